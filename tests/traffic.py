"""Traffic generator: TCP and UDP connections over loopback, as fast as possible.

traffic.py ROUND TCP UDP: make this number of connections of each protocol, all with
different tuples, in other rounds too. Each worker is client and server in one thread: it
waits only for packets that it has sent.
"""

from __future__ import annotations

import contextlib
import os
import socket
import sys

WORKERS = 2
PORTS = range(10000, 60000)  # source ports of each client address


def tcp(worker: int, turn: int, number: int) -> None:
    """Make connections with a request and a response; client and server close first in turn."""
    with socket.create_server(("0.0.0.0", 7000 + worker), backlog=16) as server:
        for i in range(number):
            size = i % 700 + 1
            client = socket.socket()
            client.bind(source(worker, 2 * turn, i))
            client.connect((f"127.0.1.{i % 3 + 1}", 7000 + worker))
            accepted, _ = server.accept()
            client.sendall(b"x" * size)
            accepted.recv(1 << 16)
            accepted.sendall(b"y" * size * 3)
            client.recv(1 << 16)
            for end in (client, accepted) if i % 2 else (accepted, client):
                end.close()


def udp(worker: int, turn: int, number: int) -> None:
    """Send datagrams, one of four with a reply; the others stay UNREPLIED."""
    addresses = [(f"127.0.1.{host}", 7000 + worker) for host in (1, 2, 3)]
    with contextlib.ExitStack() as stack:
        servers = []
        for address in addresses:
            server = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
            server.bind(address)  # bound to 0.0.0.0 it would reply from another address
            servers.append(server)
        for i in range(number):
            server = servers[i % 3]
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
                client.bind(source(worker, 2 * turn + 1, i))
                client.sendto(b"z" * (i % 900), addresses[i % 3])
                data, address = server.recvfrom(1 << 16)
                if i % 4 == 0:
                    server.sendto(data * 2, address)
                    client.recv(1 << 16)


def source(worker: int, network: int, i: int) -> tuple[str, int]:
    """Return an address and port that no other connection uses."""
    return f"127.{worker + 1}.{network}.{i // len(PORTS) + 1}", PORTS[i % len(PORTS)]


def main(turn: int, connections: int, datagrams: int) -> None:
    """Share the connections out to workers, and wait for them."""
    children = []
    for worker in range(WORKERS):
        child = os.fork()
        if not child:
            tcp(worker, turn, connections // WORKERS)
            udp(worker, turn, datagrams // WORKERS)
            os._exit(0)
        children.append(child)
    for child in children:
        assert os.waitpid(child, 0)[1] == 0


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
