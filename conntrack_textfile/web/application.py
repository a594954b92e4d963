"""The WSGI application: finished text to whoever asks for it."""

from __future__ import annotations

import functools
import re
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

import prometheus_client

from conntrack_textfile.web.body import EMPTY
from conntrack_textfile.web.limiter import Limiter
from conntrack_textfile.web.metrics import Metrics
from conntrack_textfile.web.query import QueryError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from conntrack_textfile.reload import Reloader
    from conntrack_textfile.web.body import Body
    from conntrack_textfile.web.config import Settings
    from conntrack_textfile.web.limiter import Connection
    from conntrack_textfile.web.passwords import Passwords

_Start = Callable[[str, list[tuple[str, str]]], object]  # PEP 3333, as used here

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

# A client has its answer a moment before the place that it held is free. One
# that comes right after it must not be turned away for that.
_SLOT_SECONDS = 0.25

# Bodies that answers under way may be of. Each is as large as the page.
_VERSIONS = 2


class Served(Protocol):
    """What there is to serve. See refresh.Refresher."""

    def current(self) -> tuple[bytes, Body] | None: ...  # noqa: D102
    def html(self, telemetry_path: str, asked: str) -> tuple[bytes, str]: ...  # noqa: D102
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
        access: Reloader[Settings] | None,
    ) -> None:
        self._served = served
        self._telemetry_path = telemetry_path
        self._max_requests = max_requests
        self._limiter = Limiter(max_requests) if max_requests else None
        self._sending: dict[Connection, Body] = {}
        self._lock = threading.Lock()  # of the line above
        self._metrics_of_process = Metrics() if exporter_metrics else None
        self.access = access

    def __call__(self, environ: dict[str, Any], start: _Start) -> Iterable[bytes]:
        """Answer a request: the interface of PEP 3333."""
        settings = self._settings()
        start = _with_headers(start, settings)
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

    def refuse(
        self, environ: dict[str, Any], start: _Start, status: str, reason: str
    ) -> Iterable[bytes]:
        """Answer what the transport could not make a request of, or a request that failed."""
        answer = _text(_with_headers(start, self._settings()), status, reason)
        if environ["REQUEST_METHOD"] == "HEAD":
            answer.pieces = []
        return answer

    def refused(self, reason: str) -> None:
        """Count a connection that was turned away, or closed before its time."""
        if self._metrics_of_process:
            self._metrics_of_process.refused.labels(reason).inc()

    def _settings(self) -> Settings | None:
        return self.access.current() if self.access else None

    def _readiness(self, start: _Start) -> _Answer:
        if self._served.ready():
            return _text(start, "200 OK", "ready")
        return _text(start, "503 Service Unavailable", "there is no good snapshot yet")

    def _guarded(self, passwords: Passwords, environ: dict[str, Any], start: _Start) -> _Answer:
        connection: Connection = environ["conntrack_textfile.connection"]
        try:
            verified = passwords.verify(environ.get("HTTP_AUTHORIZATION", ""), connection.client)
        except TimeoutError:
            return _text(start, "503 Service Unavailable", "too many passwords to check")
        if verified:
            return self._open(environ, start)
        challenge = ("WWW-Authenticate", 'Basic realm="conntrack-textfile", charset="UTF-8"')
        return _text(start, "401 Unauthorized", "name and password, please", challenge)

    def _open(self, environ: dict[str, Any], start: _Start) -> _Answer:
        path = environ["PATH_INFO"]
        if path == self._telemetry_path:
            return self._scrape(environ, start)
        if path == "/":
            try:
                page, policy = self._served.html(self._telemetry_path, environ["QUERY_STRING"])
            except QueryError as error:
                return _text(start, "400 Bad Request", str(error))
            headers = [("Content-Security-Policy", policy), ("Referrer-Policy", "no-referrer")]
            return _answer(start, "200 OK", "text/html; charset=utf-8", [page], *headers)
        return _text(start, "404 Not Found", f"see {self._telemetry_path}")

    def _scrape(self, environ: dict[str, Any], start: _Start) -> _Answer:
        connection: Connection = environ["conntrack_textfile.connection"]
        if self._limiter and not self._limiter.enter(connection, _SLOT_SECONDS):
            if self._metrics_of_process:
                self._metrics_of_process.requests.labels("503").inc()
            return _text(
                start,
                "503 Service Unavailable",
                f"{self._max_requests} scrapes are running, as many as --web.max-requests allows",
            )
        if self._metrics_of_process:
            self._metrics_of_process.in_flight.inc()
        try:
            answer = self._metrics(connection, environ.get("HTTP_ACCEPT_ENCODING", ""), start)
        except BaseException:
            self._done(connection, "500")
            raise
        # Not a closure over the answer: it would hold the page until garbage is looked for.
        answer.done = functools.partial(self._done, connection, answer.status)
        return answer

    def _done(self, connection: Connection, status: str) -> None:
        with self._lock:
            self._sending.pop(connection, None)
        if self._limiter:
            self._limiter.leave(connection)
        if self._metrics_of_process:
            self._metrics_of_process.in_flight.dec()
            self._metrics_of_process.requests.labels(status).inc()

    def _metrics(self, connection: Connection, encodings: str, start: _Start) -> _Answer:
        current = self._served.current()
        if current is None:
            return _text(start, "503 Service Unavailable", "the first snapshot is not finished yet")
        rest, body = current
        self._send(connection, body)
        if self._metrics_of_process:
            rest += prometheus_client.generate_latest(self._metrics_of_process.registry)
        headers = [("Vary", "Accept-Encoding")]
        if _accepts_gzip(encodings):
            headers.append(("Content-Encoding", "gzip"))
            pieces = body.gzipped(rest)
        else:
            pieces = [*body.plain, rest]
        return _answer(start, "200 OK", CONTENT_TYPE, pieces, *headers)

    def _send(self, connection: Connection, body: Body) -> None:
        """Note whose answer is of which body, and close those of the oldest of too many."""
        if body is EMPTY:
            return
        with self._lock:
            self._sending[connection] = body
            versions = list(dict.fromkeys(self._sending.values()))
            for slow in [c for c, sent in self._sending.items() if sent in versions[:-_VERSIONS]]:
                del self._sending[slow]
                slow.close("outdated")


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


def _with_headers(start: _Start, settings: Settings | None) -> _Start:
    """Answers that begin with the configured headers too, in place of ours of the same name.

    But a Content-Security-Policy of ours stays: it is that of the page, with its style.
    """
    if settings is None:
        return start
    more = settings.headers

    def started(status: str, headers: list[tuple[str, str]]) -> object:
        ours = {name.lower() for name, _ in headers} & {"content-security-policy"}
        added = {name: value for name, value in more.items() if name.lower() not in ours}
        replaced = {name.lower() for name in added}
        kept = [header for header in headers if header[0].lower() not in replaced]
        return start(status, [*kept, *added.items()])

    return started


def _accepts_gzip(header: str) -> bool:
    """Whether an Accept-Encoding header (RFC 9110, 12.5.3) asks for gzip."""
    for offer in header.lower().split(","):
        coding, _, weight = offer.partition(";")
        if coding.strip() == "gzip":
            return not re.fullmatch(r"\s*q=0(\.0*)?\s*", weight)
    return False
