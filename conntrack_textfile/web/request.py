"""Parser of the request line and headers of HTTP/1.1 (RFC 9112), without I/O."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable

# A scrape sends less than 1,000 bytes.
_MAX_REQUEST_LINE_BYTES = 8192
MAX_REQUEST_BYTES = 32768
_MAX_HEADERS = 100

_TOKEN = rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
# request-line = method SP request-target SP HTTP-version
_REQUEST_LINE = re.compile(rb"(" + _TOKEN + rb") ([!-~]+) HTTP/([0-9])\.([0-9])\r?\n")
# field-line = field-name ":" OWS field-value OWS. Whitespace before the colon (5.1) and
# line folding (obs-fold, 5.2) are errors.
_FIELD_LINE = re.compile(rb"(" + _TOKEN + rb"):[ \t]*([^\0\r\n]*?)[ \t]*\r?\n")
# absolute-form = absolute-URI, which a server MUST accept (3.2.2)
_ABSOLUTE = re.compile(r"https?://([^/?#@]+)([/?].*)?", re.IGNORECASE)
# Host = uri-host [ ":" port ]; empty if the target URI has no authority
_HOST = re.compile(r"([A-Za-z0-9._~!$&'()*+,;=%-]*|\[[0-9A-Fa-f:.]+\])(:[0-9]*)?")
_DIGITS = re.compile(r"[0-9]{1,18}")


class Request(NamedTuple):
    """A request without its content, which is never read."""

    method: str
    path: str  # percent-encoded
    query: str
    version: str
    headers: dict[str, str]  # names in lower case; values of repeated headers are joined by ", "
    has_content: bool
    keep_alive: bool  # whether another request may follow on the connection


class BadRequestError(Exception):
    """An invalid request, with the status to respond with."""

    def __init__(self, status: str, reason: str, method: str = "") -> None:
        super().__init__(reason)
        self.status = status
        self.method = method


class TooLargeError(Exception):
    """Raised by readline() after MAX_REQUEST_BYTES."""


def read(readline: Callable[[int], bytes]) -> Request | None:
    """Read a request, None at the end of the connection. Raises BadRequestError.

    readline: reads a line of at most the given number of bytes; raises TooLargeError.
    """
    method = ""
    try:
        line = b"\r\n"
        while line in (b"\r\n", b"\n"):  # empty lines before it are ignored (2.2)
            line = readline(_MAX_REQUEST_LINE_BYTES + 1)
        if not line:
            return None
        method, target, version = _request_line(line)
        headers = _fields(readline)
    except TooLargeError:
        status = "431 Request Header Fields Too Large"
        raise BadRequestError(status, f"more than {MAX_REQUEST_BYTES} bytes", method) from None
    except BadRequestError as error:
        error.method = error.method or method
        raise
    try:
        return _request(method, target, version, headers)
    except ValueError as error:
        raise BadRequestError("400 Bad Request", str(error), method) from None


def _request_line(line: bytes) -> tuple[str, str, str]:
    if len(line) > _MAX_REQUEST_LINE_BYTES:
        raise BadRequestError("414 URI Too Long", "the request line is too long")
    match = _REQUEST_LINE.fullmatch(line)
    if match is None:
        raise BadRequestError("400 Bad Request", "the request line is not one of HTTP/1.1")
    method, target, major, minor = (part.decode("ascii") for part in match.groups())
    if major != "1":
        raise BadRequestError("505 HTTP Version Not Supported", "use HTTP/1.1", method)
    return method, target, f"HTTP/1.{minor}"


def _fields(readline: Callable[[int], bytes]) -> dict[str, list[str]]:
    fields: dict[str, list[str]] = {}
    number = 0
    while (line := readline(MAX_REQUEST_BYTES)) not in (b"\r\n", b"\n"):
        match = _FIELD_LINE.fullmatch(line)
        if match is None:
            raise BadRequestError("400 Bad Request", "a header is not of the form name: value")
        number += 1
        if number > _MAX_HEADERS:
            status = "431 Request Header Fields Too Large"
            raise BadRequestError(status, f"more than {_MAX_HEADERS} headers")
        name, value = (part.decode("iso-8859-1") for part in match.groups())
        fields.setdefault(name.lower(), []).append(value)
    return fields


def _request(method: str, target: str, version: str, fields: dict[str, list[str]]) -> Request:
    """Check the headers that concern the connection. Raises ValueError."""
    hosts = fields.get("host", [])
    # RFC 9112, 3.2: 400 for a request of HTTP/1.1 without Host, and for any with two.
    if len(hosts) > 1 or (not hosts and version != "HTTP/1.0"):
        raise ValueError("there must be one Host header")
    if hosts and not _HOST.fullmatch(hosts[0]):
        raise ValueError("the Host header is not a host name or address")
    lengths = fields.get("content-length", [])
    if len(lengths) > 1 or any(not _DIGITS.fullmatch(length) for length in lengths):
        raise ValueError("Content-Length is not one number")
    # Together they are how requests are smuggled past a proxy (11.2).
    encoded = "transfer-encoding" in fields
    if encoded and (lengths or version == "HTTP/1.0"):
        raise ValueError("Transfer-Encoding with Content-Length or HTTP/1.0")
    if absolute := _ABSOLUTE.fullmatch(target):
        target = absolute[2] or ""
        target = target if target.startswith("/") else f"/{target}"
    elif not target.startswith("/") and (method, target) != ("OPTIONS", "*"):
        raise ValueError("the request target is not a path")
    path, _, query = target.partition("?")
    has_content = encoded or any(int(length) for length in lengths)
    options = ",".join(fields.get("connection", [])).lower().split(",")
    return Request(
        method,
        path,
        query,
        version,
        {name: ", ".join(values) for name, values in fields.items()},
        has_content,
        keep_alive=version != "HTTP/1.0"
        and not has_content
        and "close" not in (option.strip() for option in options),
    )
