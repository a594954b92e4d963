from __future__ import annotations

import contextlib
import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conntrack_textfile.web.request import BadRequestError, Request, read


def parse(text: bytes) -> Request | None:
    return read(io.BytesIO(text).readline)


def test_a_request() -> None:
    text = (
        b"GET /metrics?x=y HTTP/1.1\r\nHost: h:9095\r\nAccept-Encoding:gzip\r\n"
        b"accept-encoding: \t br\t\r\nEmpty:\r\n\r\n"
    )
    assert parse(text) == Request(
        "GET",
        "/metrics",
        "x=y",
        "HTTP/1.1",
        {"host": "h:9095", "accept-encoding": "gzip, br", "empty": ""},
        has_content=False,
        keep_alive=True,
    )
    assert parse(b"") is None


@pytest.mark.parametrize(
    ("target", "path", "query"),
    [
        (b"http://h:9095/metrics?a", "/metrics", "a"),
        (b"HTTPS://[::1]/metrics", "/metrics", ""),
        (b"http://h", "/", ""),
        (b"http://h?a", "/", "a"),
        (b"//h/metrics", "//h/metrics", ""),
        (b"/http://h/", "/http://h/", ""),
    ],
)
def test_the_absolute_form_of_a_target(target: bytes, path: str, query: str) -> None:
    request = parse(b"GET " + target + b" HTTP/1.1\r\nHost: other\r\n\r\n")
    assert request
    assert (request.path, request.query) == (path, query)


@pytest.mark.parametrize(
    ("text", "keep_alive"),
    [
        (b"GET / HTTP/1.0\r\n\r\n", False),  # without Host
        (b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n", False),
        (b"GET / HTTP/1.1\r\nHost:\r\n\r\n", True),
        (b"GET / HTTP/1.1\nHost: h\n\n", True),
        (b"\r\n\r\nGET / HTTP/1.1\r\nHost: [::1]:9095\r\n\r\n", True),
        (b"GET / HTTP/1.1\r\nHost: h\r\nConnection: x, Close\r\n\r\n", False),
        (b"GET / HTTP/1.1\r\nHost: h\r\nContent-Length: 0\r\n\r\n", True),
        (b"GET / HTTP/1.1\r\nHost: h\r\nContent-Length: 1\r\n\r\n", False),
        (b"GET / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n", False),
        (b"OPTIONS * HTTP/1.1\r\nHost: h\r\n\r\n", True),
    ],
)
def test_keep_alive(text: bytes, keep_alive: bool) -> None:
    request = parse(text)
    assert request
    assert request.keep_alive is keep_alive


@pytest.mark.parametrize(
    "text",
    [
        b"GET /\r\n\r\n",
        b"GET / HTTP\r\n\r\n",
        b"GET / HTTP/11\r\n\r\n",
        b"GET / http/1.1\r\nHost: h\r\n\r\n",
        b"GET  / HTTP/1.1\r\nHost: h\r\n\r\n",
        b"GET / x HTTP/1.1\r\nHost: h\r\n\r\n",
        b"G@T / HTTP/1.1\r\nHost: h\r\n\r\n",
        b"GET / HTTP/1.1",
        b"GET metrics HTTP/1.1\r\nHost: h\r\n\r\n",
        b"GET * HTTP/1.1\r\nHost: h\r\n\r\n",
        b"GET ftp://h/ HTTP/1.1\r\nHost: h\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: h\r\nHost: h\r\n\r\n",
        b"GET / HTTP/1.0\r\nHost: h\r\nHost: h\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: h/x\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost : h\r\n\r\n",
        b"GET / HTTP/1.1\r\n Host: h\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: h\r\nA: b\r\n c\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: h\r\nA: b\rC: d\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: h\r\nA: \0\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: h\r\nA\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: h\r\n: b\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: h\r\nContent-Length: x\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: h\r\nContent-Length: -1\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: h\r\nContent-Length: +1\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: h\r\nContent-Length:\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: h\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: h\r\nContent-Length: \xd9\xa3\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: h\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: h\r\n",
    ],
)
def test_an_invalid_request_is_400(text: bytes) -> None:
    with pytest.raises(BadRequestError) as caught:
        parse(text)
    assert caught.value.status == "400 Bad Request"


PARTS = st.sampled_from(
    [b"GET", b" ", b"/", b"HTTP/1.1", b"\r\n", b"\n", b"Host:", b"h", b"Content-Length:", b"1"]
)


@given(st.lists(PARTS | st.binary(max_size=8), max_size=30).map(b"".join))
def test_any_input_is_a_request_or_an_error(text: bytes) -> None:
    request = None
    with contextlib.suppress(BadRequestError):
        request = parse(text)
    assert request is None or request.path.startswith(("/", "*"))
