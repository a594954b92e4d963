"""The WSGI application: paths, authentication, headers and content encoding."""

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

_Start = Callable[[str, list[tuple[str, str]]], object]  # start_response() of PEP 3333

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

# A client can have its whole response a moment before its slot is released: the next
# request waits this long for a slot, before it is refused.
_SLOT_SECONDS = 0.25

# Bodies, each of one snapshot, that responses in progress may keep in memory.
_MAX_BODIES = 2


class Served(Protocol):
    """The content to serve. See refresh.Refresher."""

    def current(self) -> tuple[bytes, Body] | None: ...  # noqa: D102
    def html(self, telemetry_path: str, query_string: str) -> tuple[bytes, str]: ...  # noqa: D102
    def ready(self) -> bool: ...  # noqa: D102


class Application:
    """The WSGI application: the metrics, the HTML page at / and the health checks."""

    def __init__(
        self,
        served: Served,
        *,
        telemetry_path: str,
        max_requests: int,
        exporter_metrics: bool,
        web_config: Reloader[Settings] | None,
    ) -> None:
        self._served = served
        self._telemetry_path = telemetry_path
        self._max_requests = max_requests
        self._limiter = Limiter(max_requests) if max_requests else None
        self._sending: dict[Connection, Body] = {}  # responses in progress
        self._sending_lock = threading.Lock()
        self._exporter_metrics = Metrics() if exporter_metrics else None
        self.web_config = web_config

    def __call__(self, environ: dict[str, Any], start: _Start) -> Iterable[bytes]:
        """Respond to a request: the interface of PEP 3333."""
        settings = self._settings()
        start = _with_headers(start, settings)
        path = environ["PATH_INFO"]
        if environ["REQUEST_METHOD"] not in ("GET", "HEAD"):
            response = _text(start, "405 Method Not Allowed", "use GET", ("Allow", "GET, HEAD"))
        elif path == "/-/healthy":  # health checks need no password
            response = _text(start, "200 OK", "healthy")
        elif path == "/-/ready":
            response = self._readiness(start)
        elif settings is not None and settings.passwords is not None:
            response = self._authenticated(settings.passwords, environ, start)
        else:
            response = self._content(environ, start)
        return response.without_body() if environ["REQUEST_METHOD"] == "HEAD" else response

    def error(
        self, environ: dict[str, Any], start: _Start, status: str, reason: str
    ) -> Iterable[bytes]:
        """Respond to an invalid or failed request."""
        response = _text(_with_headers(start, self._settings()), status, reason)
        return response.without_body() if environ["REQUEST_METHOD"] == "HEAD" else response

    def count_refused(self, reason: str) -> None:
        """Count a connection that was refused or evicted."""
        if self._exporter_metrics:
            self._exporter_metrics.refused.labels(reason).inc()

    def _settings(self) -> Settings | None:
        return self.web_config.current() if self.web_config else None

    def _readiness(self, start: _Start) -> _Response:
        if self._served.ready():
            return _text(start, "200 OK", "ready")
        return _text(start, "503 Service Unavailable", "there is no good snapshot yet")

    def _authenticated(
        self, passwords: Passwords, environ: dict[str, Any], start: _Start
    ) -> _Response:
        connection: Connection = environ["conntrack_textfile.connection"]
        try:
            verified = passwords.verify(environ.get("HTTP_AUTHORIZATION", ""), connection.client)
        except TimeoutError:
            return _text(start, "503 Service Unavailable", "too many passwords to check")
        if verified:
            return self._content(environ, start)
        challenge = ("WWW-Authenticate", 'Basic realm="conntrack-textfile", charset="UTF-8"')
        return _text(start, "401 Unauthorized", "a user name and password are required", challenge)

    def _content(self, environ: dict[str, Any], start: _Start) -> _Response:
        path = environ["PATH_INFO"]
        if path == self._telemetry_path:
            return self._scrape(environ, start)
        if path == "/":
            try:
                page, policy = self._served.html(self._telemetry_path, environ["QUERY_STRING"])
            except QueryError as error:
                return _text(start, "400 Bad Request", str(error))
            headers = [("Content-Security-Policy", policy), ("Referrer-Policy", "no-referrer")]
            return _response(start, "200 OK", "text/html; charset=utf-8", [page], *headers)
        return _text(start, "404 Not Found", f"see {self._telemetry_path}")

    def _scrape(self, environ: dict[str, Any], start: _Start) -> _Response:
        connection: Connection = environ["conntrack_textfile.connection"]
        if self._limiter and not self._limiter.acquire(connection, _SLOT_SECONDS):
            if self._exporter_metrics:
                self._exporter_metrics.requests.labels("503").inc()
            return _text(
                start,
                "503 Service Unavailable",
                f"{self._max_requests} scrapes are running, as many as --web.max-requests allows",
            )
        if self._exporter_metrics:
            self._exporter_metrics.in_flight.inc()
        try:
            response = self._exposition(connection, environ.get("HTTP_ACCEPT_ENCODING", ""), start)
        except BaseException:
            self._done(connection, "500")
            raise
        # Not a closure over the response: the cycle would keep the body until garbage collection.
        response.on_close = functools.partial(self._done, connection, response.status)
        return response

    def _done(self, connection: Connection, status: str) -> None:
        with self._sending_lock:
            self._sending.pop(connection, None)
        if self._limiter:
            self._limiter.release(connection)
        if self._exporter_metrics:
            self._exporter_metrics.in_flight.dec()
            self._exporter_metrics.requests.labels(status).inc()

    def _exposition(self, connection: Connection, encodings: str, start: _Start) -> _Response:
        current = self._served.current()
        if current is None:
            return _text(start, "503 Service Unavailable", "the first snapshot is not finished yet")
        rest, body = current
        self._track(connection, body)
        if self._exporter_metrics:
            rest += prometheus_client.generate_latest(self._exporter_metrics.registry)
        headers = [("Vary", "Accept-Encoding")]
        if _accepts_gzip(encodings):
            headers.append(("Content-Encoding", "gzip"))
            pieces = body.gzipped(rest)
        else:
            pieces = [*body.plain, rest]
        return _response(start, "200 OK", CONTENT_TYPE, pieces, *headers)

    def _track(self, connection: Connection, body: Body) -> None:
        """Record the body that a connection sends, and close those that send too old ones."""
        if body is EMPTY:
            return
        with self._sending_lock:
            self._sending[connection] = body
            bodies = list(dict.fromkeys(self._sending.values()))
            for slow in [c for c, sent in self._sending.items() if sent in bodies[:-_MAX_BODIES]]:
                del self._sending[slow]
                slow.close("outdated")


class _Response:
    """The response body of PEP 3333: close() is called after it was sent, or failed."""

    def __init__(self, status: str, pieces: list[bytes]) -> None:
        self.status = status
        self.pieces = pieces
        self.on_close: Callable[[], None] = lambda: None

    def without_body(self) -> _Response:
        self.pieces = []
        return self

    def __iter__(self) -> Iterator[bytes]:
        return iter(self.pieces)

    def close(self) -> None:
        self.on_close()


def _response(
    start: _Start,
    status: str,
    content_type: str,
    pieces: list[bytes],
    *headers: tuple[str, str],
) -> _Response:
    start(
        status,
        [
            ("Content-Type", content_type),
            ("Content-Length", str(sum(map(len, pieces)))),
            ("X-Content-Type-Options", "nosniff"),
            ("Cache-Control", "no-store"),  # addresses are personal data
            ("Server", "conntrack-textfile"),
            *headers,
        ],
    )
    return _Response(status[:3], pieces)


def _text(start: _Start, status: str, text: str, *headers: tuple[str, str]) -> _Response:
    body = f"{status[4:]}: {text}\n".encode()
    return _response(start, status, "text/plain; charset=utf-8", [body], *headers)


def _with_headers(start: _Start, settings: Settings | None) -> _Start:
    """Return a start_response() that adds the configured headers; they replace equal ones.

    The page's own Content-Security-Policy stays: another one would forbid its style sheet.
    """
    if settings is None:
        return start
    configured = settings.headers

    def started(status: str, headers: list[tuple[str, str]]) -> object:
        own = {name.lower() for name, _ in headers} & {"content-security-policy"}
        added = {name: value for name, value in configured.items() if name.lower() not in own}
        replaced = {name.lower() for name in added}
        kept = [header for header in headers if header[0].lower() not in replaced]
        return start(status, [*kept, *added.items()])

    return started


def _accepts_gzip(header: str) -> bool:
    """Return whether an Accept-Encoding header (RFC 9110, 12.5.3) allows gzip."""
    for offer in header.lower().split(","):
        coding, _, weight = offer.partition(";")
        if coding.strip() == "gzip":
            return not re.fullmatch(r"\s*q=0(\.0*)?\s*", weight)
    return False
