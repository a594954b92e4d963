"""The head of an HTTP/1.1 request by its grammar (RFC 9112), without I/O."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable

# Bytes. A scrape sends less than a thousand.
_MAX_REQUEST_LINE = 8192
MAX_REQUEST = 32768
_MAX_FIELDS = 100

_TOKEN = rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
# request-line = method SP request-target SP HTTP-version
_REQUEST_LINE = re.compile(rb"(" + _TOKEN + rb") ([!-~]+) HTTP/([0-9])\.([0-9])\r?\n")
# field-line = field-name ":" OWS field-value OWS; no space before the colon (5.1),
# and a line that begins with one (obs-fold, 5.2) is refused.
_FIELD_LINE = re.compile(rb"(" + _TOKEN + rb"):[ \t]*([^\0\r\n]*?)[ \t]*\r?\n")
# absolute-form = absolute-URI, which a server MUST accept (3.2.2)
_ABSOLUTE = re.compile(r"https?://([^/?#@]+)([/?].*)?", re.IGNORECASE)
# Host = uri-host [ ":" port ], and nothing where the target has no authority
_HOST = re.compile(r"([A-Za-z0-9._~!$&'()*+,;=%-]*|\[[0-9A-Fa-f:.]+\])(:[0-9]*)?")
_DIGITS = re.compile(r"[0-9]{1,18}")


class Request(NamedTuple):
    """A request, without its content."""

    method: str
    path: str  # percent-encoded
    query: str
    version: str
    headers: dict[str, str]  # by names in lower case; of equal names the values are joined
    content: bool  # which nothing here reads
    keeps: bool  # whether another request may follow on the same connection


class BadRequestError(Exception):
    """What is refused before it is a request, with the status to refuse it by."""

    def __init__(self, status: str, reason: str, method: str = "") -> None:
        super().__init__(reason)
        self.status = status
        self.method = method


class TooLargeError(Exception):
    """Raised by a readline() that has given MAX_REQUEST bytes."""


def read(readline: Callable[[int], bytes]) -> Request | None:
    """The next request of a connection, or None at its end. Raises BadRequestError."""
    method = ""
    try:
        line = b"\r\n"
        while line in (b"\r\n", b"\n"):  # empty lines before it are passed over (2.2)
            line = readline(_MAX_REQUEST_LINE + 1)
        if not line:
            return None
        method, target, version = _request_line(line)
        headers = _fields(readline)
    except TooLargeError:
        status = "431 Request Header Fields Too Large"
        raise BadRequestError(status, f"more than {MAX_REQUEST} bytes", method) from None
    except BadRequestError as error:
        error.method = error.method or method
        raise
    try:
        return _request(method, target, version, headers)
    except ValueError as error:
        raise BadRequestError("400 Bad Request", str(error), method) from None


def _request_line(line: bytes) -> tuple[str, str, str]:
    if len(line) > _MAX_REQUEST_LINE:
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
    while (line := readline(MAX_REQUEST)) not in (b"\r\n", b"\n"):
        match = _FIELD_LINE.fullmatch(line)
        if match is None:
            raise BadRequestError("400 Bad Request", "a header is not of the form name: value")
        number += 1
        if number > _MAX_FIELDS:
            status = "431 Request Header Fields Too Large"
            raise BadRequestError(status, f"more than {_MAX_FIELDS} headers")
        name, value = (part.decode("iso-8859-1") for part in match.groups())
        fields.setdefault(name.lower(), []).append(value)
    return fields


def _request(method: str, target: str, version: str, fields: dict[str, list[str]]) -> Request:
    """Raises ValueError with what is wrong with it."""
    hosts = fields.get("host", [])
    # RFC 9112, 3.2: 400 for a request of HTTP/1.1 without Host, and for any with two.
    if len(hosts) > 1 or (not hosts and version != "HTTP/1.0"):
        raise ValueError("there must be one Host header")
    if hosts and not _HOST.fullmatch(hosts[0]):
        raise ValueError("the Host header is not a host")
    lengths = fields.get("content-length", [])
    if len(lengths) > 1 or any(not _DIGITS.fullmatch(length) for length in lengths):
        raise ValueError("Content-Length is not one number")
    coded = "transfer-encoding" in fields
    if coded and (lengths or version == "HTTP/1.0"):
        raise ValueError("Transfer-Encoding does not go with this")
    if absolute := _ABSOLUTE.fullmatch(target):
        target = absolute[2] or ""
        target = target if target.startswith("/") else f"/{target}"
    elif not target.startswith("/") and (method, target) != ("OPTIONS", "*"):
        raise ValueError("the request target is not a path")
    path, _, query = target.partition("?")
    content = coded or any(int(length) for length in lengths)
    options = ",".join(fields.get("connection", [])).lower().split(",")
    return Request(
        method,
        path,
        query,
        version,
        {name: ", ".join(values) for name, values in fields.items()},
        content,
        keeps=version != "HTTP/1.0"
        and not content
        and "close" not in (option.strip() for option in options),
    )
