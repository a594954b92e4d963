from __future__ import annotations

import contextlib
import http.client
import os
import re
import selectors
import socket
import ssl
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from conntrack_textfile.options import Address
from conntrack_textfile.web import http as transport
from conntrack_textfile.web import sockets
from conntrack_textfile.web.body import EMPTY, Body
from conntrack_textfile.web.config import watch
from conntrack_textfile.web.limiter import KEPT, REASONS, Connection, Limiter
from tests.certificates import TLS, write
from tests.program import Serving, serving
from tests.waiting import until
from tests.web.serving import SAMPLE, application, get, listening

if TYPE_CHECKING:
    from conntrack_textfile.web.application import Application

GET = b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n"
GET_AND_CLOSE = GET[:-2] + b"Connection: close\r\n\r\n"


def connected(port: int, address: str = "127.0.0.1") -> socket.socket:
    """A connection from an address of loopback, with little room for what it does not read."""
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
    sock.settimeout(20)
    try:
        sock.bind((address, 0))
        sock.connect(("127.0.0.1", port))
    except OSError:
        sock.close()
        raise
    return sock


def rest(client: socket.socket) -> bytes:
    """All that comes until the other end closes."""
    return b"".join(iter(lambda: client.recv(1 << 16), b""))


def dropped(client: socket.socket) -> bool:
    """Whether the other end closes it before long."""
    with contextlib.suppress(ConnectionResetError):
        rest(client)
    return True


def refusals(page: Application) -> dict[str, float]:
    """The counts of refused connections, by reason."""
    assert page._metrics_of_process
    value = page._metrics_of_process.registry.get_sample_value
    name = "conntrack_http_connections_refused_total"
    return {reason: value(name, {"reason": reason}) or 0.0 for reason in REASONS}


def test_a_client_that_is_slow_or_silent_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transport, "REQUEST_SECONDS", 0.5)
    with listening(application(lambda: (b"", EMPTY))) as port:
        silent = socket.create_connection(("127.0.0.1", port))
        dripping = socket.create_connection(("127.0.0.1", port))
        with silent, dripping:
            started = time.monotonic()
            with contextlib.suppress(OSError):
                while time.monotonic() - started < 20:
                    dripping.sendall(b"G")
                    time.sleep(0.1)
            assert time.monotonic() - started < 15  # less than the usual REQUEST_SECONDS, and some
            silent.settimeout(20)
            assert silent.recv(1) == b""


def test_a_client_that_does_not_read_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transport, "RESPONSE_SECONDS", 0.5)
    done = threading.Event()
    made = application(lambda: (b"", Body([b"x" * (1 << 20)] * 32)), max_requests=1)
    free = made._done

    def watched(connection: Connection, status: str) -> None:
        free(connection, status)
        done.set()

    monkeypatch.setattr(made, "_done", watched)
    with listening(made) as port, socket.create_connection(("127.0.0.1", port)) as client:
        client.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
        assert done.wait(50)  # less than the usual RESPONSE_SECONDS


def test_silent_connections_make_room_for_new_ones() -> None:
    page = application(lambda: (b"", EMPTY))
    with listening(page, Limiter(2)) as port, contextlib.ExitStack() as stack:
        clients = [stack.enter_context(connected(port)) for _ in range(3)]
        assert dropped(clients[0])  # the oldest of them
        for client in clients[1:]:
            client.sendall(GET)
            assert client.recv(100).startswith(b"HTTP/1.1 200 OK")


def test_a_kept_connection_goes_first() -> None:
    limiter = Limiter(2)
    page = application(lambda: (b"", EMPTY))
    with listening(page, limiter) as port, contextlib.ExitStack() as stack:
        silent, kept = [stack.enter_context(connected(port)) for _ in range(2)]
        kept.sendall(GET)
        assert kept.recv(100).startswith(b"HTTP/1.1 200 OK")
        # It is kept a moment after its answer.
        until(lambda: KEPT in {connection.state for connection in list(limiter._held)})
        newer = stack.enter_context(connected(port))
        assert dropped(kept)
        for client in (silent, newer):
            client.sendall(GET)
            assert client.recv(100).startswith(b"HTTP/1.1 200 OK")


def test_who_holds_most_connections_gives_one_to_another() -> None:
    """With slow readers of a page, which are no silent ones."""
    body = Body([b"x" * (1 << 20)] * 32)
    page = application(lambda: (b"", body), exporter_metrics=1)
    with listening(page, Limiter(4)) as port, contextlib.ExitStack() as stack:
        readers = [stack.enter_context(connected(port, "127.0.0.2")) for _ in range(4)]
        for reader in readers:
            reader.sendall(GET)
            assert reader.recv(10)
        # It can be closed before it knows that it was connected.
        with contextlib.suppress(ConnectionError), connected(port, "127.0.0.2") as same:
            assert dropped(same)
        with connected(port, "127.0.0.3") as other:
            other.sendall(b"GET /-/healthy HTTP/1.0\r\n\r\n")
            assert other.recv(100).startswith(b"HTTP/1.1 200 OK")
        refused = refusals(page)
        assert (refused["full"], refused["share"]) == (1, 1)


def test_slow_readers_leave_a_scrape_to_another_address() -> None:
    body = Body([b"x" * (1 << 20)] * 32)
    page = application(lambda: (b"", body), max_requests=4, exporter_metrics=1)
    with listening(page) as port, contextlib.ExitStack() as stack:
        for _ in range(4):
            reader = stack.enter_context(connected(port, "127.0.0.2"))
            reader.sendall(GET)
            assert reader.recv(10)
        with connected(port, "127.0.0.2") as same:
            same.sendall(GET)
            assert same.recv(100).startswith(b"HTTP/1.1 503 ")
        with connected(port, "127.0.0.3") as other:
            other.sendall(GET)
            assert other.recv(100).startswith(b"HTTP/1.1 200 OK")
        assert refusals(page)["share"] == 1


def test_slow_readers_hold_two_versions_of_the_page() -> None:
    bodies = [Body([b"%d" % n + b"x" * (1 << 20)] * 32) for n in range(4)]
    shown = iter(bodies)
    page = application(lambda: (b"", next(shown)), exporter_metrics=1)
    with listening(page) as port, contextlib.ExitStack() as stack:
        readers = []
        for _ in bodies:
            reader = stack.enter_context(connected(port))
            reader.sendall(GET_AND_CLOSE)
            assert reader.recv(10)
            readers.append(reader)
        for old in readers[:2]:
            assert dropped(old)
        # A thread lets go of its body a moment after its connection is closed.
        until(lambda: [body for body in bodies if sys.getrefcount(body) > 3] == bodies[2:])
        assert refusals(page)["outdated"] == 2
        for new in readers[2:]:
            assert len(rest(new)) > 32 << 20


def test_scrapes_succeed_among_600_clients_that_say_nothing() -> None:
    stop = threading.Event()

    def come_again(port: int) -> None:
        with selectors.DefaultSelector() as waiting:
            while not stop.is_set():
                while len(waiting.get_map()) < 600:
                    with contextlib.suppress(ConnectionError):  # closed before it was connected
                        waiting.register(connected(port), selectors.EVENT_READ)
                for key, _ in waiting.select(0.1):
                    waiting.unregister(key.fileobj)
                    key.fileobj.close()  # type: ignore[union-attr]
            for key in list(waiting.get_map().values()):
                key.fileobj.close()  # type: ignore[union-attr]

    with serving(SAMPLE) as program:
        crowd = threading.Thread(target=come_again, args=(program.port,))
        crowd.start()
        try:
            silent = 0.0
            end = time.monotonic() + 120
            while silent < 600:
                assert time.monotonic() < end
                status, text, _ = get(f"{program.url}/metrics")
                assert status == 200
                assert get(f"{program.url}/-/healthy")[0] == 200
                (line,) = re.findall(rb'_refused_total{reason="silent"} (\S+)', text)
                silent = float(line)
        finally:
            stop.set()
            crowd.join()


def test_a_crowd_that_connects_at_once_fits_the_backlog() -> None:
    """Nobody accepts: who does not fit would try again and again."""
    with sockets.listen(Address("127.0.0.1", 0)) as listener, contextlib.ExitStack() as stack:
        for _ in range(500):
            sock = stack.enter_context(socket.socket())
            sock.settimeout(10)
            sock.connect(listener.getsockname())


def test_no_descriptors_are_waited_for_without_spinning() -> None:
    with serving(SAMPLE, prefix=("prlimit", "--nofile=40")) as program:
        with contextlib.ExitStack() as stack:
            for _ in range(60):
                stack.enter_context(connected(program.port))
            program.wait_for_log("cannot accept connections: Too many open files; trying again")
            before = cpu(program)
            time.sleep(2)
            assert cpu(program) - before < 0.8
            # The silent ones made room.
            assert get(f"{program.url}/-/healthy")[0] == 200
        program.wait_for_log("accepting connections works again")
        assert program.log.count("cannot accept") == 1


def cpu(program: Serving) -> float:
    fields = Path(f"/proc/{program.process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def test_a_connection_is_kept_for_the_next_request() -> None:
    page = Body([b"conntrack_connections 1\n"])
    with (
        listening(application(lambda: (b"", page))) as port,
        contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=10)) as client,
    ):
        client.connect()
        first = client.sock
        for _ in range(3):
            for method, path in (("GET", "/metrics"), ("HEAD", "/metrics"), ("GET", "/nowhere")):
                client.request(method, path)
                client.getresponse().read()
                assert client.sock is first
        client.request("GET", "/metrics", headers={"Connection": "close"})
        assert client.getresponse().headers["Connection"] == "close"


def test_requests_may_come_one_behind_the_other() -> None:
    with listening(application(lambda: (b"up 1\n", EMPTY))) as port, connected(port) as client:
        client.sendall(b"GET /metrics HTTP/1.1\r\nHost: h\r\n\r\n" * 3 + GET_AND_CLOSE)
        assert rest(client).count(b"up 1\n") == 4


def test_an_idle_connection_is_not_kept_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transport, "KEEP_SECONDS", 0.5)
    with listening(application(lambda: (b"", EMPTY))) as port, connected(port) as client:
        client.sendall(GET)
        assert client.recv(1000).startswith(b"HTTP/1.1 200 OK")
        assert dropped(client)


def test_deadlines_hold_for_each_request(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transport, "REQUEST_SECONDS", 0.5)
    with listening(application(lambda: (b"", EMPTY))) as port, connected(port) as client:
        client.sendall(GET)
        assert client.recv(1000).startswith(b"HTTP/1.1 200 OK")
        time.sleep(1.5)  # longer than a request may take
        client.sendall(GET)
        assert client.recv(1000).startswith(b"HTTP/1.1 200 OK")
        client.sendall(b"GET /metrics")
        assert dropped(client)


def test_content_is_not_taken_for_a_request() -> None:
    with listening(application(lambda: (b"up 1\n", EMPTY))) as port, connected(port) as client:
        inner = b"GET /metrics HTTP/1.1\r\nHost: h\r\n\r\n"
        client.sendall(
            b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\n\r\n" % len(inner) + inner
        )
        answer = rest(client)
        assert answer.startswith(b"HTTP/1.1 405 ")
        assert answer.count(b"HTTP/1.1") == 1


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"GET /" + b"a" * 9000 + b" HTTP/1.1\r\n", b"414 URI Too Long"),
        (GET[:-2] + b"A: b\r\n" * 101 + b"\r\n", b"431 Request Header Fields Too Large"),
        (GET[:-2] + b"A: " + b"x" * 40960 + b"\r\n\r\n", b"431 Request Header Fields Too Large"),
        (GET[:-2] + b"A: %s\r\n" % (b"x" * 65000) * 99, b"431 Request Header Fields Too Large"),
        (b"GET /metrics\r\n\r\n", b"400 Bad Request"),
        (b"GET /metrics HTTP/x\r\n\r\n", b"400 Bad Request"),
        (b"GET /metrics HTTP/2.0\r\n\r\n", b"505 HTTP Version Not Supported"),
    ],
)
def test_what_is_no_request_is_refused_in_plain_text(
    request_: bytes, status: bytes, place: Path
) -> None:
    text = "http_server_config:\n  headers:\n    X-Frame-Options: deny\n"
    page = application(lambda: (b"", EMPTY), watch(str(write(place, text))))
    with listening(page) as port, connected(port) as client:
        with contextlib.suppress(ConnectionError):  # it need not read all of it
            client.sendall(request_)
        head, _, body = rest(client).partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 " + status)
        for header in (
            b"Content-Type: text/plain; charset=utf-8",
            b"X-Content-Type-Options: nosniff",
            b"X-Frame-Options: deny",
            b"Connection: close",
        ):
            assert header in head.split(b"\r\n")
        assert body.startswith(status[4:] + b": ")


def test_an_error_of_ours_has_our_headers_too(place: Path) -> None:
    def broken() -> tuple[bytes, Body]:
        raise ValueError

    text = "http_server_config:\n  headers:\n    X-Frame-Options: deny\n"
    with listening(application(broken, watch(str(write(place, text))))) as port:
        status, body, headers = get(f"http://127.0.0.1:{port}/metrics")
        assert (status, body) == (500, b"Internal Server Error: see the log\n")
        assert headers["X-Frame-Options"] == "deny"


@pytest.mark.parametrize("start", [b"\r\n\r\n", b"\n"])
def test_empty_lines_before_a_request_are_passed_over(start: bytes) -> None:
    with listening(application(lambda: (b"", EMPTY))) as port, connected(port) as client:
        client.sendall(start + GET)
        assert client.recv(100).startswith(b"HTTP/1.1 200 OK")


def test_plain_http_to_a_port_of_tls_is_told_so(place: Path) -> None:
    page = application(lambda: (b"", EMPTY), watch(str(write(place, TLS))))
    with listening(page) as port, connected(port) as client:
        client.sendall(GET)
        answer = rest(client)
        assert answer.startswith(b"HTTP/1.1 400 Bad Request\r\n")
        assert b"Client sent an HTTP request to an HTTPS server\n" in answer


def test_a_handshake_serves_many_scrapes(made: Path, place: Path) -> None:
    access = watch(str(write(place, TLS)))
    context = ssl.create_default_context(cafile=str(made / "ca.crt"))
    with (
        listening(application(lambda: (b"", EMPTY), access)) as port,
        contextlib.closing(
            http.client.HTTPSConnection("localhost", port, context=context, timeout=10)
        ) as client,
    ):
        client.connect()
        first = client.sock
        for _ in range(3):
            client.request("GET", "/metrics")
            assert client.getresponse().read() == b""
            assert client.sock is first
        # By the settings of then: with others it must not go on.
        write(place, TLS + "  min_version: TLS13\n")
        client.request("GET", "/metrics")
        with pytest.raises((http.client.BadStatusLine, ConnectionError, ssl.SSLError)):
            client.getresponse()


def test_a_thread_that_cannot_start_holds_no_place(monkeypatch: pytest.MonkeyPatch) -> None:
    with listening(application(lambda: (b"", EMPTY)), Limiter(2)) as port:

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
        assert time.monotonic() - started < 9  # the slow ones have REQUEST_SECONDS
