from __future__ import annotations

import contextlib
import gc
import gzip
import http.client
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
import zlib
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from conntrack_textfile import server
from conntrack_textfile.options import Address
from conntrack_textfile.server import EMPTY, Application, Page
from conntrack_textfile.textfile import OutputError
from tests.conftest import DATA
from tests.program import COMMAND, Serving, serving

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from conntrack_textfile.webconfig import Access

SAMPLE = f"--path.procfs={DATA / 'kernel-6.18'}"


def get(url: str, method: str = "GET", **headers: str) -> tuple[int, bytes, dict[str, str]]:
    request = urllib.request.Request(url, method=method, headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.status, answer.read(), dict(answer.headers)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read(), dict(error.headers)


@contextlib.contextmanager
def listening(application: Application) -> Iterator[int]:
    with server.listen(Address("127.0.0.1", 0)) as listener:
        running = server.start(listener, application)
        try:
            yield listener.getsockname()[1]
        finally:
            running.shutdown()


class Fixed(NamedTuple):
    """What a test has to be served."""

    current: Callable[[], tuple[bytes, Page] | None]

    def html(self, telemetry_path: str) -> tuple[bytes, str]:
        return f"<a href={telemetry_path}>".encode(), "default-src 'none'"

    def ready(self) -> bool:
        return self.current() is not None


def application(
    current: Callable[[], tuple[bytes, Page] | None], access: Access | None = None, **more: int
) -> Application:
    settings = {"max_requests": 40, "exporter_metrics": False, **more}
    return Application(
        Fixed(current),
        telemetry_path="/metrics",
        max_requests=settings["max_requests"],
        exporter_metrics=bool(settings["exporter_metrics"]),
        access=access,
    )


# The page


@given(st.lists(st.binary(max_size=200)), st.binary(max_size=200))
def test_a_page_and_what_follows_are_one_gzip_stream(pieces: list[bytes], rest: bytes) -> None:
    stream = b"".join(Page(pieces).gzipped(rest))
    assert gzip.decompress(stream) == b"".join(pieces) + rest
    inflated = zlib.decompressobj(31)
    assert inflated.decompress(stream) == b"".join(pieces) + rest
    assert inflated.eof
    assert not inflated.unused_data  # one member, for readers that stop at the first


@pytest.mark.parametrize(
    ("header", "accepted"),
    [
        ("gzip", True),
        ("deflate, gzip;q=1.0, *;q=0.5", True),
        ("GZIP", True),
        ("gzip;q=0.001", True),
        ("gzip;q=0", False),
        ("gzip; q=0.000", False),
        ("identity", False),
        ("x-gzip2", False),
        ("", False),
    ],
)
def test_gzip_is_sent_to_who_asks_for_it(header: str, *, accepted: bool) -> None:
    assert server._accepts_gzip(header) is accepted


# One server in this process


def test_paths_and_methods() -> None:
    page = Page([b"conntrack_connections 1\n"])
    with listening(application(lambda: (b"up 1\n", page))) as port:
        base = f"http://127.0.0.1:{port}"
        status, body, headers = get(f"{base}/metrics?x=y")
        assert (status, body) == (200, b"conntrack_connections 1\nup 1\n")
        assert headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
        assert headers["Content-Length"] == str(len(body))
        assert "Python" not in headers["Server"]
        status, body, headers = get(f"{base}/metrics", method="HEAD")
        assert (status, body, headers["Content-Length"]) == (200, b"", "29")
        status, body, headers = get(f"{base}/")
        assert status == 200
        assert body == b"<a href=/metrics>"
        assert headers["Content-Security-Policy"] == "default-src 'none'"
        assert headers["Cache-Control"] == "no-store"
        assert get(f"{base}/other")[0] == 404
        assert get(f"{base}/other", method="HEAD")[:2] == (404, b"")
        for method in ("POST", "PUT", "DELETE", "OPTIONS", "BREW"):
            status, _, headers = get(f"{base}/metrics", method=method)
            assert (status, headers["Allow"]) == (405, "GET, HEAD")


def test_no_snapshot_yet_is_503() -> None:
    with listening(application(lambda: None)) as port:
        assert get(f"http://127.0.0.1:{port}/metrics")[0] == 503
        assert get(f"http://127.0.0.1:{port}/-/ready")[0] == 503
        assert get(f"http://127.0.0.1:{port}/-/healthy")[:2] == (200, b"OK: healthy\n")
    with listening(application(lambda: (b"", EMPTY))) as port:
        assert get(f"http://127.0.0.1:{port}/-/ready")[:2] == (200, b"OK: ready\n")


def test_more_scrapes_than_allowed_are_503_and_counted() -> None:
    arrived = threading.Semaphore(0)
    go_on = threading.Event()

    def slow() -> tuple[bytes, Page]:
        arrived.release()
        go_on.wait(10)
        return b"", EMPTY

    with listening(application(slow, max_requests=2, exporter_metrics=1)) as port:
        url = f"http://127.0.0.1:{port}/metrics"
        with ThreadPoolExecutor(2) as pool:
            held = [pool.submit(get, url) for _ in range(2)]
            assert arrived.acquire(timeout=10)
            assert arrived.acquire(timeout=10)
            status, body, _ = get(url)
            assert status == 503
            assert b"--web.max-requests" in body
            go_on.set()
            assert [future.result()[0] for future in held] == [200, 200]
        assert 'requests_total{code="503"} 1.0\n' in get(url)[1].decode()


def test_an_error_in_an_answer_is_500_and_gives_back_its_place() -> None:
    outcomes = iter([ValueError("bug"), None, None])

    def current() -> tuple[bytes, Page]:
        if outcome := next(outcomes):
            raise outcome
        return b"", EMPTY

    with listening(application(current, max_requests=1, exporter_metrics=1)) as port:
        url = f"http://127.0.0.1:{port}/metrics"
        assert get(url)[0] == 500
        assert get(url)[0] == 200
        time.sleep(0.2)  # a scrape is counted after its answer was taken
        text = get(url)[1].decode()
        counts = re.findall(r'requests_total{code="(\d+)"} (\S+)', text)
        assert dict(counts) == {"200": "1.0", "500": "1.0", "503": "0.0"}
        assert "promhttp_metric_handler_requests_in_flight 1.0\n" in text


def test_a_client_that_is_slow_or_silent_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "REQUEST_SECONDS", 0.5)
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
    monkeypatch.setattr(server, "RESPONSE_SECONDS", 0.5)
    done = threading.Event()
    made = application(lambda: (b"", Page([b"x" * (1 << 20)] * 32)), max_requests=1)
    free = made._done

    def watched(status: str) -> None:
        free(status)
        done.set()

    monkeypatch.setattr(made, "_done", watched)
    with listening(made) as port, socket.create_connection(("127.0.0.1", port)) as client:
        client.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
        assert done.wait(10)


def test_a_page_is_gone_when_it_was_sent_and_is_no_longer_shown() -> None:
    piece = bytes(1000)
    nobody_else = sys.getrefcount(piece)
    pages = [Page([piece])]
    gc.collect()
    gc.disable()
    try:
        with listening(application(lambda: (b"", pages[0]))) as port:
            assert len(get(f"http://127.0.0.1:{port}/metrics")[1]) == 1000
            pages.clear()
            end = time.monotonic() + 5
            while sys.getrefcount(piece) != nobody_else:
                assert time.monotonic() < end
                time.sleep(0.01)
    finally:
        gc.enable()


def test_connections_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    for thread in threading.enumerate():  # of tests before this one, which would give places back
        if "process_request_thread" in thread.name:
            thread.join(20)
    monkeypatch.setattr(server._Server, "_slots", threading.Semaphore(2))
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
    monkeypatch.setattr(server._Server, "_slots", threading.Semaphore(2))
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


def test_all_addresses_means_ipv4_and_ipv6() -> None:
    with server.listen(Address("", 0)) as listener:
        running = server.start(listener, application(lambda: (b"", EMPTY)))
        port = listener.getsockname()[1]
        for host in ("127.0.0.1", "::1"):
            with contextlib.closing(http.client.HTTPConnection(host, port, timeout=5)) as client:
                client.request("GET", "/metrics")
                assert client.getresponse().status == 200
        running.shutdown()


def test_a_name_is_looked_up() -> None:
    with server.listen(Address("localhost", 0)) as listener:
        assert listener.getsockname()[0] == "127.0.0.1"
    with pytest.raises(OutputError, match=r"cannot listen on nowhere.invalid:1: "):
        server.listen(Address("nowhere.invalid", 1))
    with pytest.raises(OutputError, match=r"cannot listen on a..b:1: not a host name"):
        server.listen(Address("a..b", 1))


# The program


def test_serve_answers_with_the_snapshot_and_its_own_metrics() -> None:
    with serving(SAMPLE) as program:
        status, body, _ = get(f"{program.url}/metrics")
        assert status == 200
        families = {f.name: f for f in text_string_to_metric_families(body.decode())}
        assert families["conntrack_total_connections"].samples[0].value == 91
        assert {"process_open_fds", "python_info"} <= set(families)
        time.sleep(0.2)  # it is counted after its answer was taken
        status, packed, headers = get(f"{program.url}/metrics", **{"Accept-Encoding": "gzip"})
        assert headers["Content-Encoding"] == "gzip"
        unpacked = gzip.decompress(packed).decode()
        assert "conntrack_total_connections 91\n" in unpacked
        assert 'promhttp_metric_handler_requests_total{code="200"} 1.0\n' in unpacked


def test_the_exporters_own_metrics_can_be_left_out() -> None:
    with serving(SAMPLE, "--web.disable-exporter-metrics", "--web.telemetry-path=/m") as program:
        text = get(f"{program.url}/m")[1].decode()
        assert not re.search(r"^(process|python|promhttp)_", text, re.MULTILINE)
        assert get(f"{program.url}/metrics")[0] == 404


def stop(program: Serving, number: int) -> None:
    started = time.monotonic()
    program.process.send_signal(number)
    assert program.process.wait(5) == 0
    assert time.monotonic() - started < 1


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_within_a_second(number: int) -> None:
    with serving(SAMPLE) as program:
        stop(program, number)
        program.wait_for_log(f"stopped by {signal.Signals(number).name}")


def test_a_signal_ends_it_in_the_middle_of_a_refresh(tmp_path: Path) -> None:
    (tmp_path / "net").mkdir()
    fifo = tmp_path / "net" / "nf_conntrack"
    os.mkfifo(fifo)
    with serving(f"--path.procfs={tmp_path}") as program, fifo.open("wb") as table:
        table.write((DATA / "kernel-6.18" / "net" / "nf_conntrack").read_bytes() * 3)
        table.flush()  # and the reading waits for more
        stop(program, signal.SIGTERM)


def test_an_address_in_use_is_named() -> None:
    with serving(SAMPLE) as program:
        argv = [*COMMAND, "serve", SAMPLE, f"--web.listen-address=127.0.0.1:{program.port}"]
        done = subprocess.run(argv, capture_output=True, text=True, timeout=20, check=False)
        assert done.returncode == 1
        assert done.stderr.count("\n") == 1
        assert f"cannot listen on 127.0.0.1:{program.port}: Address already in use" in done.stderr


def test_scrapes_during_refreshes_see_one_whole_snapshot(tmp_path: Path) -> None:
    line = (
        "ipv4     2 tcp      6 9 ESTABLISHED src=10.0.{a}.{b} dst=10.0.0.2 sport=1 dport={n} "
        "packets={n} bytes=1 src=10.0.0.2 dst=10.0.0.1 sport=2 dport=1 packets=1 bytes=1 use=2\n"
    )
    (tmp_path / "net").mkdir()
    table = tmp_path / "net" / "nf_conntrack"

    def fill(n: int) -> None:
        new = tmp_path / "new"
        new.write_text("".join(line.format(a=i >> 8, b=i & 255, n=n) for i in range(2000)))
        new.rename(table)

    def scrape(url: str) -> int:
        text = gzip.decompress(get(f"{url}/metrics", **{"Accept-Encoding": "gzip"})[1]).decode()
        packets = re.findall(r'^conntrack_sent_packets{.*dport="(\d+)"} (\d+)$', text, re.MULTILINE)
        total = re.search(r"^conntrack_total_sent_packets (\d+)$", text, re.MULTILINE)
        assert total
        assert len(packets) == 2000
        ((port, each),) = set(packets)
        assert port == each
        assert int(total[1]) == 2000 * int(each)
        return int(port)

    fill(1)
    with (
        serving(f"--path.procfs={tmp_path}", "--collector.interval=0.3") as program,
        ThreadPoolExecutor(4) as pool,
    ):
        seen = set()
        for n in range(2, 12):
            fill(n)
            seen |= set(pool.map(scrape, [program.url] * 40))
        assert len(seen) > 2


def test_a_table_that_goes_and_comes_back(tmp_path: Path) -> None:
    (tmp_path / "net").mkdir()
    table = tmp_path / "net" / "nf_conntrack"
    text = (DATA / "kernel-6.18" / "net" / "nf_conntrack").read_bytes()
    with serving(f"--path.procfs={tmp_path}", "--collector.interval=0.2") as program:

        def until(part: bytes, *, there: bool = True) -> bytes:
            end = time.monotonic() + 10
            while time.monotonic() < end:
                body = get(f"{program.url}/metrics")[1]
                if (part in body) is there:
                    return body
                time.sleep(0.02)
            raise AssertionError(body)

        assert b"conntrack_total" not in until(b"conntrack_snapshot_success 0\n")
        table.write_bytes(text)
        until(b"conntrack_total_connections 91\n")
        table.unlink()
        until(b"conntrack_snapshot_success 0\n")
        until(b"conntrack_total_connections", there=False)
        table.write_bytes(text)
        until(b"conntrack_snapshot_success 1\n")
        assert program.log.count("level=error") == 2
        program.wait_for_log("works again")


def test_slow_clients_do_not_keep_a_scrape_away() -> None:
    with serving(SAMPLE) as program, contextlib.ExitStack() as stack:
        for _ in range(200):
            stack.enter_context(socket.create_connection(("127.0.0.1", program.port)))
        started = time.monotonic()
        assert get(f"{program.url}/metrics")[0] == 200
        assert time.monotonic() - started < 5


# Sockets of systemd

ACTIVATE = """
import os, socket, sys
listener = socket.create_server(("127.0.0.1", 0))
print(listener.getsockname()[1], flush=True)
os.set_inheritable(listener.fileno(), True)
if listener.fileno() != 3:
    os.dup2(listener.fileno(), 3)
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS="1")
os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
"""


def test_a_socket_of_systemd_is_served() -> None:
    argv = [sys.executable, "-c", ACTIVATE, *COMMAND[1:], "serve", "--web.systemd-socket", SAMPLE]
    process = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        port = process.stdout.readline().strip()
        answer = urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=20).read()
        assert b"conntrack_total_connections 91\n" in answer
    finally:
        process.terminate()
        assert "listening on 127.0.0.1:" in process.communicate()[1]


GIVEN = """
import os, sys
os.environ.update(LISTEN_PID=sys.argv[1].replace("own", str(os.getpid())), LISTEN_FDS=sys.argv[2])
os.dup2(0, 3)
from conntrack_textfile.cli import main
sys.exit(main(sys.argv[3:]))
"""


def test_what_is_no_listening_socket_is_an_error() -> None:
    argv = [sys.executable, "-c", GIVEN, "own", "1", "serve", "--web.systemd-socket", SAMPLE]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=30, check=False)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "not a listening TCP socket" in done.stderr


@pytest.mark.parametrize(("pid", "count"), [("", ""), ("1", "1"), ("own", "0"), ("own", "x")])
def test_without_such_a_socket_it_listens_itself(pid: str, count: str) -> None:
    listen = "--web.listen-address=127.0.0.1:0"
    argv = [sys.executable, "-c", GIVEN, pid, count, "serve", "--web.systemd-socket", SAMPLE]
    argv.append(listen)
    with subprocess.Popen(argv, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        assert "listening on 127.0.0.1:" in process.stderr.readline()
        process.terminate()
