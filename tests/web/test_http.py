from __future__ import annotations

import contextlib
import http.client
import os
import re
import selectors
import socket
import ssl
import statistics
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from conntrack_textfile.logs import LOG
from conntrack_textfile.values import Address
from conntrack_textfile.web import http as transport
from conntrack_textfile.web import sockets
from conntrack_textfile.web.body import EMPTY, Body
from conntrack_textfile.web.config import watch
from conntrack_textfile.web.limiter import IDLE, REASONS, Connection, Limiter
from tests.certificates import TLS, write
from tests.program import Serving, serving
from tests.waiting import until
from tests.web.serving import SAMPLE, application, get, listening

if TYPE_CHECKING:
    from conntrack_textfile.web.application import Application

GET = b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n"
GET_AND_CLOSE = GET[:-2] + b"Connection: close\r\n\r\n"


def connected(port: int, address: str = "127.0.0.1") -> socket.socket:
    """Return a connection from a loopback address, with a small receive buffer."""
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
    """Read until the server closes the connection."""
    return b"".join(iter(lambda: client.recv(1 << 16), b""))


def closed(client: socket.socket) -> bool:
    """Return True once the server closes the connection; time out otherwise."""
    with contextlib.suppress(ConnectionResetError):
        rest(client)
    return True


def refusals(page: Application) -> dict[str, float]:
    """Return the counts of refused connections by reason."""
    assert page._exporter_metrics
    value = page._exporter_metrics.registry.get_sample_value
    name = "conntrack_http_connections_refused_total"
    return {reason: value(name, {"reason": reason}) or 0.0 for reason in REASONS}


def test_a_slow_or_silent_client_is_disconnected(monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_a_client_that_does_not_read_is_disconnected(monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_silent_connections_are_evicted_for_new_ones() -> None:
    page = application(lambda: (b"", EMPTY))
    with listening(page, Limiter(2)) as port, contextlib.ExitStack() as stack:
        clients = [stack.enter_context(connected(port)) for _ in range(3)]
        assert closed(clients[0])  # the oldest of them
        for client in clients[1:]:
            client.sendall(GET)
            assert client.recv(100).startswith(b"HTTP/1.1 200 OK")


def test_an_idle_connection_is_evicted_first() -> None:
    limiter = Limiter(2)
    page = application(lambda: (b"", EMPTY))
    with listening(page, limiter) as port, contextlib.ExitStack() as stack:
        silent, kept = [stack.enter_context(connected(port)) for _ in range(2)]
        kept.sendall(GET)
        assert kept.recv(100).startswith(b"HTTP/1.1 200 OK")
        # It is idle a moment after its response.
        until(lambda: IDLE in {connection.state for connection in list(limiter._connections)})
        newer = stack.enter_context(connected(port))
        assert closed(kept)
        for client in (silent, newer):
            client.sendall(GET)
            assert client.recv(100).startswith(b"HTTP/1.1 200 OK")


def test_the_client_with_most_connections_loses_one_to_another() -> None:
    """Slow readers are not silent, so their fair share decides."""
    body = Body([b"x" * (1 << 20)] * 32)
    page = application(lambda: (b"", body), exporter_metrics=1)
    with listening(page, Limiter(4)) as port, contextlib.ExitStack() as stack:
        readers = [stack.enter_context(connected(port, "127.0.0.2")) for _ in range(4)]
        for reader in readers:
            reader.sendall(GET)
            assert reader.recv(10)
        # The reset can arrive before connect() returns.
        with contextlib.suppress(ConnectionError), connected(port, "127.0.0.2") as same:
            assert closed(same)
        with connected(port, "127.0.0.3") as other:
            other.sendall(b"GET /-/healthy HTTP/1.0\r\n\r\n")
            assert other.recv(100).startswith(b"HTTP/1.1 200 OK")
        refused = refusals(page)
        assert (refused["full"], refused["share"]) == (1, 1)


def test_slow_readers_leave_a_scrape_to_another_client() -> None:
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


def test_slow_readers_keep_two_bodies_in_memory() -> None:
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
            assert closed(old)
        # A thread lets go of its body a moment after its connection is closed.
        until(lambda: [body for body in bodies if sys.getrefcount(body) > 3] == bodies[2:])
        assert refusals(page)["outdated"] == 2
        for new in readers[2:]:
            assert len(rest(new)) > 32 << 20


def test_scrapes_succeed_beside_600_silent_clients() -> None:
    stop = threading.Event()

    def reconnect(port: int) -> None:
        with selectors.DefaultSelector() as waiting:
            while not stop.is_set():
                while len(waiting.get_map()) < 600:
                    with contextlib.suppress(ConnectionError):  # reset before connect() returns
                        waiting.register(connected(port), selectors.EVENT_READ)
                for key, _ in waiting.select(0.1):
                    waiting.unregister(key.fileobj)
                    key.fileobj.close()  # type: ignore[union-attr]
            for key in list(waiting.get_map().values()):
                key.fileobj.close()  # type: ignore[union-attr]

    with serving(SAMPLE) as program:
        crowd = threading.Thread(target=reconnect, args=(program.port,))
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


def test_500_simultaneous_connections_fit_the_backlog() -> None:
    """Without accept(): the SYN of one that does not fit would be dropped."""
    with sockets.listen(Address("127.0.0.1", 0)) as listener, contextlib.ExitStack() as stack:
        for _ in range(500):
            sock = stack.enter_context(socket.socket())
            sock.settimeout(10)
            sock.connect(listener.getsockname())


def test_descriptor_exhaustion_is_no_busy_loop() -> None:
    with serving(SAMPLE, prefix=("prlimit", "--nofile=40")) as program:
        with contextlib.ExitStack() as stack:
            for _ in range(60):
                stack.enter_context(connected(program.port))
            program.wait_for_log("cannot accept connections: Too many open files; trying again")
            before = cpu(program)
            time.sleep(2)
            assert cpu(program) - before < 0.8
            # Silent connections were evicted.
            assert get(f"{program.url}/-/healthy")[0] == 200
        program.wait_for_log("accepting connections works again")
        assert program.log.count("cannot accept") == 1


def cpu(program: Serving) -> float:
    fields = Path(f"/proc/{program.process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def test_a_connection_is_kept_alive() -> None:
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


def test_small_pieces_of_a_response_do_not_wait_for_a_delayed_ack() -> None:
    """The median: a busy machine is late now and then, a delayed ACK (40 ms) is always."""
    with (
        listening(application(lambda: (b"up 1\n", Body([b"x" * 3000])))) as port,
        contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=10)) as client,
    ):
        seconds = []
        for _ in range(25):
            started = time.monotonic()
            client.request("GET", "/metrics", headers={"Accept-Encoding": "gzip"})
            client.getresponse().read()
            seconds.append(time.monotonic() - started)
        assert statistics.median(seconds) < 0.03


def test_requests_can_be_pipelined() -> None:
    with listening(application(lambda: (b"up 1\n", EMPTY))) as port, connected(port) as client:
        client.sendall(b"GET /metrics HTTP/1.1\r\nHost: h\r\n\r\n" * 3 + GET_AND_CLOSE)
        assert rest(client).count(b"up 1\n") == 4


def test_requests_after_the_last_one_do_not_reset_the_connection() -> None:
    body = Body([b"x" * (1 << 20)] * 4)
    with listening(application(lambda: (b"", body))) as port, connected(port) as client:
        client.sendall(GET_AND_CLOSE + GET * 1000)
        time.sleep(0.3)  # until the server would have closed it
        assert len(rest(client)) > 4 << 20


def test_keep_alive_has_a_timeout(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transport, "KEEP_ALIVE_SECONDS", 0.5)
    with listening(application(lambda: (b"", EMPTY))) as port, connected(port) as client:
        client.sendall(GET)
        assert client.recv(1000).startswith(b"HTTP/1.1 200 OK")
        assert closed(client)


def test_deadlines_hold_for_each_request(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transport, "REQUEST_SECONDS", 0.5)
    with listening(application(lambda: (b"", EMPTY))) as port, connected(port) as client:
        client.sendall(GET)
        assert client.recv(1000).startswith(b"HTTP/1.1 200 OK")
        time.sleep(1.5)  # longer than a request may take
        client.sendall(GET)
        assert client.recv(1000).startswith(b"HTTP/1.1 200 OK")
        client.sendall(b"GET /metrics")
        assert closed(client)


def test_content_is_not_parsed_as_a_request() -> None:
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
def test_an_invalid_request_gets_an_error_in_plain_text(
    request_: bytes, status: bytes, place: Path
) -> None:
    text = "http_server_config:\n  headers:\n    X-Frame-Options: deny\n"
    page = application(lambda: (b"", EMPTY), watch(str(write(place, text))))
    with listening(page) as port, connected(port) as client:
        with contextlib.suppress(ConnectionError):  # it does not read all
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


def test_status_500_has_the_configured_headers(place: Path) -> None:
    def broken() -> tuple[bytes, Body]:
        raise ValueError

    text = "http_server_config:\n  headers:\n    X-Frame-Options: deny\n"
    with listening(application(broken, watch(str(write(place, text))))) as port:
        status, body, headers = get(f"http://127.0.0.1:{port}/metrics")
        assert (status, body) == (500, b"Internal Server Error: see the log\n")
        assert headers["X-Frame-Options"] == "deny"


def test_a_header_name_with_an_underscore_is_another_name() -> None:
    """WSGI's environment makes both one: a client could bypass a proxy that strips the header."""
    with listening(application(lambda: (b"up 1\n", EMPTY))) as port:
        headers = {"Accept_Encoding": "gzip"}
        assert get(f"http://127.0.0.1:{port}/metrics", **headers)[1] == b"up 1\n"


@pytest.mark.parametrize("start", [b"\r\n\r\n", b"\n"])
def test_empty_lines_before_a_request_are_ignored(start: bytes) -> None:
    with listening(application(lambda: (b"", EMPTY))) as port, connected(port) as client:
        client.sendall(start + GET)
        assert client.recv(100).startswith(b"HTTP/1.1 200 OK")


def test_plain_http_to_a_tls_port_gets_an_error_in_plain_text(place: Path) -> None:
    page = application(lambda: (b"", EMPTY), watch(str(write(place, TLS))))
    with listening(page) as port, connected(port) as client:
        client.sendall(GET)
        answer = rest(client)
        assert answer.startswith(b"HTTP/1.1 400 Bad Request\r\n")
        assert b"Client sent an HTTP request to an HTTPS server\n" in answer


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_tls_ends_with_close_notify(made: Path, place: Path, method: str) -> None:
    access = watch(str(write(place, TLS)))
    context = ssl.create_default_context(cafile=str(made / "ca.crt"))
    text = f"{method} / HTTP/1.1\r\nHost: h\r\nConnection: close\r\nContent-Length: 1\r\n\r\nx"
    with (
        listening(application(lambda: (b"", EMPTY), access)) as port,
        connected(port) as plain,
        context.wrap_socket(
            plain, server_hostname="localhost", suppress_ragged_eofs=False
        ) as client,
    ):
        client.sendall(text.encode())
        assert rest(client).startswith(b"HTTP/1.1 ")


def test_a_client_without_its_certificate_gets_the_alert(made: Path, place: Path) -> None:
    """Though its request is unread: close() alone would reset the connection."""
    verified = "  client_auth_type: RequireAndVerifyClientCert\n  client_ca_file: ca.crt\n"
    access = watch(str(write(place, TLS + verified)))
    context = ssl.create_default_context(cafile=str(made / "ca.crt"))
    with listening(application(lambda: (b"", EMPTY), access)) as port:
        for _ in range(20):
            with (
                connected(port) as plain,
                context.wrap_socket(plain, server_hostname="localhost") as client,
            ):
                client.sendall(GET)
                time.sleep(0.01)
                with pytest.raises(ssl.SSLError, match="certificate required"):
                    client.recv(1)


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
        # After a reload the connection must not be used.
        write(place, TLS + "  min_version: TLS13\n")
        client.request("GET", "/metrics")
        with pytest.raises((http.client.BadStatusLine, ConnectionError, ssl.SSLError)):
            client.getresponse()


def test_a_reload_after_the_handshake_does_not_cost_the_first_request(
    made: Path, place: Path
) -> None:
    access = watch(str(write(place, TLS)))
    context = ssl.create_default_context(cafile=str(made / "ca.crt"))
    with (
        listening(application(lambda: (b"", EMPTY), access)) as port,
        connected(port) as plain,
        context.wrap_socket(plain, server_hostname="localhost") as client,
    ):
        access.reload()
        client.sendall(GET)
        assert client.recv(100).startswith(b"HTTP/1.1 200 OK")
        client.sendall(GET)
        with contextlib.suppress(ConnectionResetError):
            assert b"HTTP/1.1" not in rest(client)


def test_a_thread_that_cannot_start_leaves_no_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    with listening(application(lambda: (b"", EMPTY)), Limiter(2)) as port:

        def no_thread(_thread: threading.Thread) -> None:
            raise RuntimeError("can't start new thread")

        with monkeypatch.context() as broken:
            broken.setattr(threading.Thread, "start", no_thread)
            for _ in range(3):
                with pytest.raises((http.client.HTTPException, OSError), match=r"closed|reset"):
                    get(f"http://127.0.0.1:{port}/metrics")
        assert get(f"http://127.0.0.1:{port}/metrics")[0] == 200


def test_the_accept_loop_starts_again_after_an_error(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(LOG, "propagate", True)
    caplog.set_level("DEBUG", LOG.name)
    actions = transport.Server.service_actions
    errors = iter([MemoryError("once")])

    def broken(server: transport.Server) -> None:
        for error in errors:
            raise error
        actions(server)

    monkeypatch.setattr(transport.Server, "service_actions", broken)
    with listening(application(lambda: (b"", EMPTY))) as port:
        assert get(f"http://127.0.0.1:{port}/metrics")[0] == 200
    assert "the accept loop failed; starting it again" in caplog.text


def test_scrapes_in_sequence_stay_within_one_slot() -> None:
    with listening(application(lambda: (b"", EMPTY), max_requests=1)) as port:
        url = f"http://127.0.0.1:{port}/metrics"
        assert {get(url)[0] for _ in range(300)} == {200}


def test_200_silent_clients_do_not_delay_a_scrape() -> None:
    with serving(SAMPLE) as program, contextlib.ExitStack() as stack:
        for _ in range(200):
            stack.enter_context(socket.create_connection(("127.0.0.1", program.port)))
        started = time.monotonic()
        assert get(f"{program.url}/metrics")[0] == 200
        assert time.monotonic() - started < 9  # the slow ones have REQUEST_SECONDS
