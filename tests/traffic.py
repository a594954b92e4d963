"""Makes connections over loopback, as many and as fast as it can, and says how many.

traffic.py ROUND TCP UDP: so many of each, no two with the same tuple, also those of
other rounds. Client and server are one thread: no packet is waited for that was not
sent before.
"""

from __future__ import annotations

import contextlib
import os
import socket
import sys

WORKERS = 2
PORTS = range(10000, 60000)  # of the clients, on each of their addresses


def tcp(worker: int, turn: int, number: int) -> None:
    """Connections with a request and an answer, each closed by its two ends in turn."""
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
    """Datagrams, of which every fourth is answered."""
    addresses = [(f"127.0.1.{host}", 7000 + worker) for host in (1, 2, 3)]
    with contextlib.ExitStack() as stack:
        servers = []
        for address in addresses:
            server = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
            server.bind(address)  # one that is bound to all would answer from another
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
    """An address and a port that no other connection has."""
    return f"127.{worker + 1}.{network}.{i // len(PORTS) + 1}", PORTS[i % len(PORTS)]


def main(turn: int, connections: int, datagrams: int) -> None:
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
