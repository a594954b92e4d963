from __future__ import annotations

import contextlib
import http.client
import re
import socket
import threading
import time

import pytest

from conntrack_textfile.web import http as transport
from conntrack_textfile.web.body import EMPTY, Body
from tests.program import serving
from tests.web.serving import SAMPLE, application, get, listening


def test_a_client_that_is_slow_or_silent_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transport, "REQUEST_SECONDS", 0.5)
    with listening(application(lambda: (b"", EMPTY))) as port:
        silent = socket.create_connection(("127.0.0.1", port))
        dripping = socket.create_connection(("127.0.0.1", port))
        with silent, dripping:
            started = time.monotonic()
            with contextlib.suppress(OSError):
                while time.monotonic() - started < 5:
                    dripping.sendall(b"G")
                    time.sleep(0.1)
            assert time.monotonic() - started < 3
            silent.settimeout(5)
            assert silent.recv(1) == b""


def test_a_client_that_does_not_read_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transport, "RESPONSE_SECONDS", 0.5)
    done = threading.Event()
    made = application(lambda: (b"", Body([b"x" * (1 << 20)] * 32)), max_requests=1)
    free = made._done

    def watched(status: str) -> None:
        free(status)
        done.set()

    monkeypatch.setattr(made, "_done", watched)
    with listening(made) as port, socket.create_connection(("127.0.0.1", port)) as client:
        client.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
        assert done.wait(10)


def test_connections_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    for thread in threading.enumerate():  # of tests before this one, which would give places back
        if "process_request_thread" in thread.name:
            thread.join(20)
    monkeypatch.setattr(transport._Server, "_slots", threading.Semaphore(2))
    with listening(application(lambda: (b"", EMPTY))) as port, contextlib.ExitStack() as stack:
        clients = [
            stack.enter_context(socket.create_connection(("127.0.0.1", port))) for _ in range(3)
        ]
        clients[2].settimeout(5)
        assert clients[2].recv(1) == b""
        clients[0].sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
        assert clients[0].recv(100).startswith(b"HTTP/1.0 200 OK")


@pytest.mark.parametrize(
    "request_", [b"GET /" + b"a" * (8193 - 5), b"GET / HTTP/1.0\r\n" + b"A: b\r\n" * 101]
)
def test_requests_without_end_are_refused(request_: bytes) -> None:
    with (
        listening(application(lambda: (b"", EMPTY))) as port,
        socket.create_connection(("127.0.0.1", port), timeout=5) as client,
    ):
        client.sendall(request_)
        assert re.match(rb"HTTP/1.0 4(14|31) ", client.recv(100))


def test_a_request_takes_little_memory_however_large_it_is() -> None:
    with (
        listening(application(lambda: (b"", EMPTY))) as port,
        socket.create_connection(("127.0.0.1", port), timeout=5) as client,
        contextlib.suppress(ConnectionError),
    ):
        client.sendall(b"GET / HTTP/1.0\r\n")
        for n in range(99):
            client.sendall(b"A%d: " % n + b"x" * 65000 + b"\r\n")
        client.sendall(b"\r\n")
        assert client.recv(100) == b""


def test_a_thread_that_cannot_start_holds_no_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transport._Server, "_slots", threading.Semaphore(2))
    with listening(application(lambda: (b"", EMPTY))) as port:

        def no_thread(_thread: threading.Thread) -> None:
            raise RuntimeError("can't start new thread")

        with monkeypatch.context() as broken:
            broken.setattr(threading.Thread, "start", no_thread)
            for _ in range(3):
                with pytest.raises((http.client.HTTPException, OSError), match=r"closed|reset"):
                    get(f"http://127.0.0.1:{port}/metrics")
        assert get(f"http://127.0.0.1:{port}/metrics")[0] == 200


def test_scrapes_one_after_the_other_are_never_too_many() -> None:
    with listening(application(lambda: (b"", EMPTY), max_requests=1)) as port:
        url = f"http://127.0.0.1:{port}/metrics"
        assert {get(url)[0] for _ in range(300)} == {200}


def test_slow_clients_do_not_keep_a_scrape_away() -> None:
    with serving(SAMPLE) as program, contextlib.ExitStack() as stack:
        for _ in range(200):
            stack.enter_context(socket.create_connection(("127.0.0.1", program.port)))
        started = time.monotonic()
        assert get(f"{program.url}/metrics")[0] == 200
        assert time.monotonic() - started < 5
