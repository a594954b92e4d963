"""HTTP: finished text to whoever asks for it. Knows nothing of connections.

Every request is a thread of the standard library's WSGI server. Threads, time
and sizes are bounded, since anybody who reaches the port can send anything.
"""

from __future__ import annotations

import functools
import io
import os
import re
import socket
import ssl
import struct
import sys
import threading
import time
import zlib
from collections.abc import Callable
from socketserver import ThreadingMixIn
from typing import IO, TYPE_CHECKING, Any, Protocol, cast
from wsgiref.simple_server import ServerHandler, WSGIRequestHandler, WSGIServer

import prometheus_client

from conntrack_textfile.logs import LOG
from conntrack_textfile.textfile import OutputError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from types import TracebackType

    from conntrack_textfile.options import Address
    from conntrack_textfile.passwords import Passwords
    from conntrack_textfile.webconfig import Access

    _ExcInfo = tuple[type[BaseException], BaseException, TracebackType] | tuple[None, None, None]

_Start = Callable[[str, list[tuple[str, str]]], object]  # PEP 3333, as used here

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

# Seconds that a client has to send its request, and to take the answer.
REQUEST_SECONDS = 10.0
RESPONSE_SECONDS = 60.0

# A client has its answer a moment before the place that it held is free. One
# that comes right after it must not be turned away for that.
_PATIENCE = 0.25

# Bytes. A scrape sends less than a thousand.
_MAX_REQUEST_LINE = 8192
_MAX_REQUEST = 32768

# Seconds from one complaint about TLS to the next.
_AGAIN = 60.0

# Open connections above which new ones are closed at once.
MAX_CONNECTIONS = 512


class Page:
    """A text made ready once, to be sent often: plain and deflated."""

    def __init__(self, pieces: Iterable[bytes]) -> None:
        deflate = _deflater()
        self.plain: list[bytes] = []
        self.deflated: list[bytes] = []
        self.size = 0
        self.crc = 0
        for piece in pieces:
            self.plain.append(piece)
            self.deflated.append(deflate.compress(piece))
            self.size += len(piece)
            self.crc = zlib.crc32(piece, self.crc)
        # Ends on a whole byte and refers to nothing before it: any deflated
        # text can follow. See gzipped().
        self.deflated.append(deflate.flush(zlib.Z_FULL_FLUSH))

    def gzipped(self, rest: bytes) -> list[bytes]:
        """The page and another text as one gzip stream (RFC 1952), in pieces."""
        deflate = _deflater()
        size = (self.size + len(rest)) & 0xFFFFFFFF
        return [
            b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\xff",
            *self.deflated,
            deflate.compress(rest) + deflate.flush(),
            struct.pack("<II", zlib.crc32(rest, self.crc), size),
        ]


def _deflater() -> zlib._Compress:
    return zlib.compressobj(1, zlib.DEFLATED, -zlib.MAX_WBITS)


EMPTY = Page([])


class Served(Protocol):
    """What there is to serve. See refresh.Refresher."""

    def current(self) -> tuple[bytes, Page] | None: ...  # noqa: D102
    def html(self, telemetry_path: str) -> tuple[bytes, str]: ...  # noqa: D102
    def ready(self) -> bool: ...  # noqa: D102


class Application:
    """The WSGI application: the metrics at one path, a page for people at the root."""

    def __init__(
        self,
        served: Served,
        *,
        telemetry_path: str,
        max_requests: int,
        exporter_metrics: bool,
        access: Access | None,
    ) -> None:
        self._served = served
        self._telemetry_path = telemetry_path
        self._max_requests = max_requests
        self._slots = threading.Semaphore(max_requests)
        self._exporter = _Exporter() if exporter_metrics else None
        self.access = access

    def __call__(self, environ: dict[str, Any], start: _Start) -> Iterable[bytes]:
        """Answer a request: the interface of PEP 3333."""
        settings = self.access.current() if self.access else None
        if settings is not None:
            start = _with_headers(start, settings.headers)
        path = environ["PATH_INFO"]
        if environ["REQUEST_METHOD"] not in ("GET", "HEAD"):
            answer = _text(start, "405 Method Not Allowed", "use GET", ("Allow", "GET, HEAD"))
        elif path == "/-/healthy":  # these two tell nothing of the table
            answer = _text(start, "200 OK", "healthy")
        elif path == "/-/ready":
            answer = self._readiness(start)
        elif settings is not None and settings.passwords is not None:
            answer = self._guarded(settings.passwords, environ, start)
        else:
            answer = self._open(environ, start)
        if environ["REQUEST_METHOD"] == "HEAD":
            answer.pieces = []
        return answer

    def _readiness(self, start: _Start) -> _Answer:
        if self._served.ready():
            return _text(start, "200 OK", "ready")
        return _text(start, "503 Service Unavailable", "there is no good snapshot yet")

    def _guarded(self, passwords: Passwords, environ: dict[str, Any], start: _Start) -> _Answer:
        try:
            if passwords.admit(environ.get("HTTP_AUTHORIZATION", "")):
                return self._open(environ, start)
        except TimeoutError:
            return _text(start, "503 Service Unavailable", "too many passwords to check")
        challenge = ("WWW-Authenticate", 'Basic realm="conntrack-textfile", charset="UTF-8"')
        return _text(start, "401 Unauthorized", "name and password, please", challenge)

    def _open(self, environ: dict[str, Any], start: _Start) -> _Answer:
        path = environ["PATH_INFO"]
        if path == self._telemetry_path:
            return self._scrape(environ.get("HTTP_ACCEPT_ENCODING", ""), start)
        if path == "/":
            page, policy = self._served.html(self._telemetry_path)
            headers = [("Content-Security-Policy", policy), ("Referrer-Policy", "no-referrer")]
            return _answer(start, "200 OK", "text/html; charset=utf-8", [page], *headers)
        return _text(start, "404 Not Found", f"see {self._telemetry_path}")

    def _scrape(self, encodings: str, start: _Start) -> _Answer:
        if self._max_requests and not self._slots.acquire(timeout=_PATIENCE):
            if self._exporter:
                self._exporter.requests.labels("503").inc()
            return _text(
                start,
                "503 Service Unavailable",
                f"{self._max_requests} scrapes are running, as many as --web.max-requests allows",
            )
        if self._exporter:
            self._exporter.in_flight.inc()
        try:
            answer = self._metrics(encodings, start)
        except BaseException:
            self._done("500")
            raise
        # Not a closure over the answer: it would hold the page until garbage is looked for.
        answer.done = functools.partial(self._done, answer.status)
        return answer

    def _done(self, status: str) -> None:
        if self._max_requests:
            self._slots.release()
        if self._exporter:
            self._exporter.in_flight.dec()
            self._exporter.requests.labels(status).inc()

    def _metrics(self, encodings: str, start: _Start) -> _Answer:
        current = self._served.current()
        if current is None:
            return _text(start, "503 Service Unavailable", "the first snapshot is not finished yet")
        rest, page = current
        if self._exporter:
            rest += prometheus_client.generate_latest(self._exporter.registry)
        headers = [("Vary", "Accept-Encoding")]
        if _accepts_gzip(encodings):
            headers.append(("Content-Encoding", "gzip"))
            pieces = page.gzipped(rest)
        else:
            pieces = [*page.plain, rest]
        return _answer(start, "200 OK", CONTENT_TYPE, pieces, *headers)


class _Exporter:
    """The metrics about this process, with the names that promhttp has made common."""

    def __init__(self) -> None:
        prometheus_client.disable_created_metrics()  # type: ignore[no-untyped-call]
        self.registry = prometheus_client.CollectorRegistry()
        prometheus_client.ProcessCollector(registry=self.registry)
        prometheus_client.PlatformCollector(registry=self.registry)
        prometheus_client.GCCollector(registry=self.registry)
        self.requests = prometheus_client.Counter(
            "promhttp_metric_handler_requests_total",
            "Scrapes by HTTP status code.",
            ["code"],
            registry=self.registry,
        )
        for code in ("200", "500", "503"):
            self.requests.labels(code)
        self.in_flight = prometheus_client.Gauge(
            "promhttp_metric_handler_requests_in_flight",
            "Scrapes that are being served.",
            registry=self.registry,
        )


class _Answer:
    """The body of an answer. WSGI calls close() when it was sent or could not be."""

    def __init__(self, status: str, pieces: list[bytes]) -> None:
        self.status = status
        self.pieces = pieces
        self.done: Callable[[], None] = lambda: None

    def __iter__(self) -> Iterator[bytes]:
        return iter(self.pieces)

    def close(self) -> None:
        self.done()


def _answer(
    start: _Start,
    status: str,
    content_type: str,
    pieces: list[bytes],
    *headers: tuple[str, str],
) -> _Answer:
    start(
        status,
        [
            ("Content-Type", content_type),
            ("Content-Length", str(sum(map(len, pieces)))),
            ("X-Content-Type-Options", "nosniff"),
            ("Cache-Control", "no-store"),  # it says who talks to whom
            ("Server", "conntrack-textfile"),
            *headers,
        ],
    )
    return _Answer(status[:3], pieces)


def _text(start: _Start, status: str, text: str, *headers: tuple[str, str]) -> _Answer:
    body = f"{status[4:]}: {text}\n".encode()
    return _answer(start, status, "text/plain; charset=utf-8", [body], *headers)


def _with_headers(start: _Start, more: dict[str, str]) -> _Start:
    """Answers that begin with these headers too, in place of ours of the same name."""
    names = {name.lower() for name in more}

    def started(status: str, headers: list[tuple[str, str]]) -> object:
        kept = [header for header in headers if header[0].lower() not in names]
        return start(status, [*kept, *more.items()])

    return started


def _accepts_gzip(header: str) -> bool:
    """Whether an Accept-Encoding header (RFC 9110, 12.5.3) asks for gzip."""
    for offer in header.lower().split(","):
        coding, _, weight = offer.partition(";")
        if coding.strip() == "gzip":
            return not re.fullmatch(r"\s*q=0(\.0*)?\s*", weight)
    return False


def listen(address: Address) -> socket.socket:
    """A listening socket. Raises OutputError.

    No host means all addresses, IPv4 and IPv6. Of a name's addresses it takes
    the first, IPv4 before IPv6, as exporters written in Go do.
    """
    try:
        if not address.host:
            if socket.has_dualstack_ipv6():
                return socket.create_server(
                    ("", address.port), family=socket.AF_INET6, dualstack_ipv6=True
                )
            return socket.create_server(("", address.port))
        found = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)
        family, _, _, _, where = min(found, key=lambda info: info[0] != socket.AF_INET)
        return socket.create_server(where, family=family)
    except socket.gaierror as error:
        raise OutputError(f"cannot listen on {address}: {error.strerror}") from error
    except UnicodeError:
        raise OutputError(f"cannot listen on {address}: not a host name") from None
    except OSError as error:
        raise OutputError(f"cannot listen on {address}: {os.strerror(error.errno or 0)}") from error


def handed_over() -> list[socket.socket]:
    """The listening sockets that systemd handed over, if any (sd_listen_fds(3)).

    Raises OutputError.
    """
    pid, count = os.environ.pop("LISTEN_PID", ""), os.environ.pop("LISTEN_FDS", "")
    if pid != str(os.getpid()) or not count.isdecimal():
        return []
    found = []
    for number in range(3, 3 + int(count)):
        try:
            handed = socket.socket(fileno=number)
            listens = handed.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
        except OSError:
            listens = 0
        if not listens or handed.family not in (socket.AF_INET, socket.AF_INET6):
            raise OutputError("systemd handed over what is not a listening TCP socket")
        handed.settimeout(None)
        found.append(handed)
    return found


def start(listener: socket.socket, application: Application) -> WSGIServer:
    """Serve on a listening socket, in threads that end with the process."""
    server = _Server(listener, application)
    threading.Thread(target=server.serve_forever, name="http", daemon=True).start()
    return server


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True
    _slots = threading.Semaphore(MAX_CONNECTIONS)  # of all servers together
    _told = float("-inf")

    def __init__(self, listener: socket.socket, application: Application) -> None:
        host, port = listener.getsockname()[:2]
        super().__init__((host, port), _Handler, bind_and_activate=False)
        self.socket.close()
        self.socket = listener
        # Not HTTPServer.server_bind(): that asks the DNS for this host's name.
        self.server_name, self.server_port = host, port
        self.setup_environ()
        self.serves = application

    def process_request(self, request: Any, client_address: Any) -> None:
        if self._slots.acquire(blocking=False):
            try:
                super().process_request(request, client_address)
            except BaseException:  # no thread to be had
                self._slots.release()
                raise
        else:
            LOG.debug("%d connections are open: closed one more", MAX_CONNECTIONS)
            self.shutdown_request(request)

    def finish_request(self, request: Any, client_address: Any) -> None:
        """Serve one connection, in its thread; by TLS where that is wanted."""
        access = self.serves.access
        tls = access.current().tls if access else None
        if tls is None:
            super().finish_request(request, client_address)
            return
        request.settimeout(REQUEST_SECONDS)
        with tls.wrap_socket(request, server_side=True) as secured:
            super().finish_request(secured, client_address)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._slots.release()

    def handle_error(self, _request: Any, client_address: Any) -> None:
        # The client's doing, mostly: it went away or was too slow.
        LOG.debug("connection from %s failed", client_address[0], exc_info=True)
        # This one is mostly a wrong setting, there or here. Anybody can make many.
        error = sys.exc_info()[1]
        if isinstance(error, ssl.SSLError) and time.monotonic() > _Server._told + _AGAIN:
            _Server._told = time.monotonic()
            reason = (error.reason or "closed").replace("_", " ").lower()
            LOG.warning("TLS with %s failed: %s", client_address[0], reason)


class _Handler(WSGIRequestHandler):
    server: _Server

    def setup(self) -> None:
        self.stream = _TimedStream(self.request, REQUEST_SECONDS)
        self.rfile = io.BufferedReader(self.stream)
        self.wfile = io.BufferedWriter(self.stream)

    def finish(self) -> None:
        self.wfile.flush()

    def handle(self) -> None:
        self.raw_requestline = self.rfile.readline(_MAX_REQUEST_LINE + 1)
        if len(self.raw_requestline) > _MAX_REQUEST_LINE:
            self.requestline = self.request_version = self.command = ""
            self.send_error(414)
        elif self.parse_request():
            self.stream.allow(RESPONSE_SECONDS)
            read, write = cast("IO[bytes]", self.rfile), cast("IO[bytes]", self.wfile)
            handler = _ServerHandler(read, write, sys.stderr, self.get_environ())
            handler.request_handler = self
            handler.run(self.server.serves)

    def version_string(self) -> str:
        return "conntrack-textfile"

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  # the name it has there
        LOG.debug(f"%s {format}", self.client_address[0], *args)


class _ServerHandler(ServerHandler):
    request_handler: _Handler

    def log_exception(self, exc_info: _ExcInfo) -> None:
        error = exc_info[1]
        if isinstance(error, OSError):  # the client went away or was too slow
            LOG.debug("answer not taken: %s", error)
        else:
            LOG.error("request failed: %r", error)
            LOG.debug("request failed", exc_info=exc_info)


class _TimedStream(io.RawIOBase):
    """A socket of which all reads and writes together end by a deadline, and reads by a size.

    A timeout for each of them would let a client that sends a byte a second stay.
    """

    def __init__(self, sock: socket.socket, seconds: float) -> None:
        self._socket = sock
        self._read = 0
        self.allow(seconds)

    def allow(self, seconds: float) -> None:
        """Set the deadline to so many seconds from now."""
        self._deadline = time.monotonic() + seconds

    def readable(self) -> bool:
        return True

    def writable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        self._socket.settimeout(self._left())
        size = self._socket.recv_into(buffer)
        self._read += size
        if self._read > _MAX_REQUEST:
            raise ConnectionError("the request is too large")
        return size

    def write(self, data: Any) -> int:
        # Not sendall(): with TLS the time would begin anew with every record.
        self._socket.settimeout(self._left())
        return self._socket.send(data)

    def _left(self) -> float:
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError("the client is too slow")
        return left
