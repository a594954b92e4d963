from __future__ import annotations

import contextlib
import gc
import http.client
import re
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

from conntrack_textfile.web.application import _accepts_gzip
from conntrack_textfile.web.body import EMPTY, Body
from conntrack_textfile.web.config import watch
from tests.certificates import write
from tests.waiting import until
from tests.web.serving import application, get, listening

if TYPE_CHECKING:
    from pathlib import Path


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
def test_gzip_is_negotiated(header: str, *, accepted: bool) -> None:
    assert _accepts_gzip(header) is accepted


def test_paths_and_methods() -> None:
    page = Body([b"conntrack_connections 1\n"])
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


def test_configured_headers_are_sent_but_for_the_policy_of_the_page(tmp_path: Path) -> None:
    """Another one would forbid the page's style sheet."""
    headers = {
        "Content-Security-Policy": "default-src 'self'",
        "X-Content-Type-Options": "nosniff",
        "X-Frame-Options": "sameorigin",
    }
    text = "http_server_config:\n  headers:\n"
    text += "".join(f"    {name}: {value}\n" for name, value in headers.items())
    web_config = watch(write(tmp_path, text))
    with listening(application(lambda: (b"", EMPTY), web_config)) as port:
        for path, expected in (
            ("/metrics", headers),
            ("/nowhere", headers),
            ("/", {**headers, "Content-Security-Policy": "default-src 'none'"}),
        ):
            with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port)) as client:
                client.request("GET", path)
                answer = client.getresponse()
                for name, value in expected.items():
                    assert answer.headers.get_all(name) == [value], (path, name)


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

    def slow() -> tuple[bytes, Body]:
        arrived.release()
        go_on.wait(60)
        return b"", EMPTY

    with listening(application(slow, max_requests=2, exporter_metrics=1)) as port:
        url = f"http://127.0.0.1:{port}/metrics"
        with ThreadPoolExecutor(2) as pool:
            held = [pool.submit(get, url) for _ in range(2)]
            assert arrived.acquire(timeout=60)
            assert arrived.acquire(timeout=60)
            status, body, _ = get(url)
            assert status == 503
            assert b"--web.max-requests" in body
            go_on.set()
            assert [future.result()[0] for future in held] == [200, 200]
        assert 'requests_total{code="503"} 1.0\n' in get(url)[1].decode()


def test_an_error_is_status_500_and_releases_its_slot() -> None:
    outcomes = iter([ValueError("bug"), None, None])

    def current() -> tuple[bytes, Body]:
        if outcome := next(outcomes):
            raise outcome
        return b"", EMPTY

    page = application(current, max_requests=1, exporter_metrics=1)
    with listening(page) as port:
        url = f"http://127.0.0.1:{port}/metrics"
        assert get(url)[0] == 500
        assert get(url)[0] == 200
        assert page._exporter_metrics
        value = page._exporter_metrics.registry.get_sample_value
        name = "promhttp_metric_handler_requests"
        until(lambda: value(f"{name}_in_flight") == 0)  # counted after the response was sent
        text = get(url)[1].decode()
        counts = re.findall(rf'{name}_total{{code="(\d+)"}} (\S+)', text)
        assert dict(counts) == {"200": "1.0", "500": "1.0", "503": "0.0"}
        assert f"{name}_in_flight 1.0\n" in text


def test_a_body_is_freed_without_garbage_collection() -> None:
    piece = bytes(1000)
    unreferenced = sys.getrefcount(piece)
    pages = [Body([piece])]
    gc.collect()
    gc.disable()
    try:
        with listening(application(lambda: (b"", pages[0]))) as port:
            assert len(get(f"http://127.0.0.1:{port}/metrics")[1]) == 1000
            pages.clear()
            until(lambda: sys.getrefcount(piece) == unreferenced)
    finally:
        gc.enable()
