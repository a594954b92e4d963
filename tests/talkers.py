"""Traffic over loopback for tests of top: idle hosts, one that downloads, one that scans.

talkers.py IDLE

IDLE hosts send a few datagrams once. 127.0.0.2 downloads PIECE bytes DOWNLOADS_PER_SECOND
times a second, each in a connection of its own; 127.0.0.3 opens PER_SECOND connections a
second. It prints the number of idle hosts, starts the other two after a line on standard
input, stops them after another line, and prints how many connections each of them made.
"""

from __future__ import annotations

import contextlib
import socket
import sys
import threading
import time

PIECE = 64 << 10
DOWNLOADS, SCANS = ("127.0.0.2", 8001), ("127.0.0.3", 8002)
DOWNLOADS_PER_SECOND, PER_SECOND = 10, 40


def serve(server: socket.socket, answer: bytes) -> None:
    while True:
        with server.accept()[0] as connection, contextlib.suppress(OSError):
            connection.recv(100)
            connection.sendall(answer)


def connect(source: str, port: int, per_second: int, stop: threading.Event) -> int:
    """Make connections until an event is set; return their number.

    On a busy machine they are fewer than per_second: late ones are not caught up.
    """
    made, due = 0, time.monotonic()
    while not stop.wait(max(0.0, due - time.monotonic())):
        with socket.create_connection(("127.0.0.1", port), source_address=(source, 0)) as client:
            client.sendall(b"x")
            while client.recv(1 << 16):
                pass
        made += 1
        due = max(due, time.monotonic() - 1 / per_second) + 1 / per_second
    return made


def main(idle: int) -> None:
    kept = []
    sink = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sink.bind(("127.0.0.1", 9000))
    for number in range(idle):
        client = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        client.bind((f"127.1.{number // 250}.{number % 250 + 1}", 0))
        for _ in range(3):
            client.sendto(b"x" * 1400, ("127.0.0.1", 9000))
            sink.recv(2000)
        kept.append(client)
    for (_, port), answer in ((DOWNLOADS, b"y" * PIECE), (SCANS, b"y")):
        server = socket.create_server(("127.0.0.1", port), backlog=128)
        threading.Thread(target=serve, args=(server, answer), daemon=True).start()
    print(len(kept), flush=True)
    sys.stdin.readline()
    made = {}
    stop = threading.Event()

    def count(source: str, port: int, per_second: int) -> None:
        made[source] = connect(source, port, per_second, stop)

    rates = ((*DOWNLOADS, DOWNLOADS_PER_SECOND), (*SCANS, PER_SECOND))
    threads = [threading.Thread(target=count, args=of) for of in rates]
    for thread in threads:
        thread.start()
    sys.stdin.readline()
    stop.set()
    for thread in threads:
        thread.join()
    print(made[DOWNLOADS[0]], made[SCANS[0]], flush=True)
    sys.stdin.readline()


if __name__ == "__main__":
    main(int(sys.argv[1]))
