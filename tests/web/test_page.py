from __future__ import annotations

import html
import re
from html.parser import HTMLParser
from typing import TYPE_CHECKING, Any

import pytest

from conntrack_textfile.collector import Collector
from conntrack_textfile.kernel.engine import make
from conntrack_textfile.options import parse
from conntrack_textfile.web import page
from tests.browser import browsing
from tests.builders import CONNTRACK, aggregated, proc_root, taken
from tests.conftest import DATA, need
from tests.program import serving
from tests.web.serving import get

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from conntrack_textfile.snapshot import Snapshot
    from tests.browser import Browser

EMPTY = taken(None)


def render(shown: Snapshot | None, overview: page.Overview | None = None, **more: Any) -> str:
    settings = {"cause": "", "interval": 60.0, "telemetry_path": "/metrics", **more}
    return page.render(shown, overview, **settings).decode()


class Outline(HTMLParser):
    """Tags that were opened and not closed, and the attributes that are there."""

    def __init__(self) -> None:
        super().__init__()
        self.left: list[str] = []
        self.attributes: set[str] = set()
        self.tags: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}
        if tag not in ("meta", "link", "br"):
            self.left.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.left.pop() == tag


HOSTILE = '<script>alert("1")</script>&\'<img src=x onerror=y>'


def test_every_value_is_escaped() -> None:
    shown = aggregated({(HOSTILE, HOSTILE): (1, 1, 1, 1, 1)}, "src", "dport")
    shown = shown._replace(states={(HOSTILE,) * 3: 1}, flags={(HOSTILE,) * 3: 1})
    text = render(
        EMPTY._replace(success=False, source=HOSTILE),
        page.overview(shown),
        cause=HOSTILE,
        telemetry_path="/" + HOSTILE,
    )
    outline = Outline()
    outline.feed(text)
    assert not outline.left
    assert not outline.tags & {"script", "img"}
    assert not outline.attributes & {"onerror", "style"}
    assert html.unescape(text).count(HOSTILE) >= 7


def test_there_are_the_numbers_of_the_capture() -> None:
    options = parse(["serve", f"--path.procfs={DATA / 'kernel-6.18'}"])
    shown = Collector(options, make(options.plan)).take()
    assert shown.live is not None
    text = render(shown, page.overview(shown.live))
    plain = re.sub(r"<[^>]*>+", " ", text.partition("</head>")[2])
    words = " ".join(plain.split())
    assert "Table 91 of 262,144 (0.0%)" in words
    assert "Connections 91 Sent 38.9 MiB Reply 38.3 MiB Keys 83 Uncounted 3" in words
    assert "Connections by protocol tcp 32 sctp 20 udp 16" in words
    assert "Connections by state tcp ESTABLISHED 14 sctp CLOSED 4" in words
    assert "Top sources by bytes source connections sent reply 10.77.1.2 50 19.6 MiB" in words
    assert "Top keys by bytes, 10 of 83" in words
    assert "10.77.2.1 tcp 4 3 0.0%" in words
    assert "busiest destinations address l4 destination port ports of 64,512 10.77.2.1" in words
    assert "10.77.2.1 tcp 10.77.2.2 8002 3 0.0%" in words
    assert 'role="alert"' not in text


@pytest.mark.parametrize(
    ("shown", "banner"),
    [
        (None, "The first snapshot is not finished yet"),
        (EMPTY._replace(conntrack=CONNTRACK._replace(accounting=False)), "Accounting is off"),
        (EMPTY._replace(success=False), "Stale: there is no snapshot that is fresh enough"),
    ],
)
def test_a_banner_says_what_is_wrong(shown: Snapshot | None, banner: str) -> None:
    assert f'<p class="banner" role="alert">{banner}' in render(shown)


def test_folded_and_filtered_are_shown() -> None:
    shown = aggregated({("a",): (1, 0, 0, 0, 0)}, "src")
    shown = shown._replace(keys=1234, filtered=5678, malformed=9)
    text = render(EMPTY, page.overview(shown))
    assert "1,234, 1,233 folded" in text
    assert "<dt>Filtered</dt><dd>5,678</dd>" in text
    assert "<dt>Malformed</dt><dd>9</dd>" in text
    assert "Top sources by connections" in text
    assert "Top services" not in text  # that label is not kept


def test_what_is_not_known_is_left_out() -> None:
    first = EMPTY._replace(success=False, timestamp=None, duration=None)
    assert "<dt>Snapshot</dt>" not in render(first)
    assert "<dt>Table</dt>" in render(first)
    text = render(EMPTY._replace(conntrack=CONNTRACK._replace(entries_limit=None)))
    assert "<dt>Table</dt>" not in text
    assert "<dt>Snapshot</dt>" in text


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    need("chromium")
    with browsing() as made:
        yield made


@pytest.mark.parametrize("width", [360, 1200])
@pytest.mark.parametrize("dark", [False, True])
def test_a_browser_shows_it_light_and_dark_on_phone_and_desk(
    browser: Browser, width: int, dark: bool
) -> None:
    with serving(f"--path.procfs={DATA / 'kernel-6.18'}") as program:
        get(f"{program.url}/metrics")  # it waits for the first snapshot
        browser.open(f"{program.url}/", width=width, dark=dark)
        assert browser.complaints() == []
        assert browser.evaluate("document.documentElement.scrollWidth <= innerWidth")
        assert browser.evaluate("innerWidth") == width
        assert "fd77:1::2" in browser.evaluate("document.body.innerText")
        # The styles are used, so the policy lets them.
        back = browser.evaluate("getComputedStyle(document.body).backgroundColor")
        assert back == ("rgb(18, 22, 28)" if dark else "rgb(245, 246, 248)")
        widths = browser.evaluate(
            "[...document.querySelectorAll('rect.part')].map(e => e.getBoundingClientRect().width)"
        )
        assert widths[1] == max(widths[1:14]) > 3 * widths[4] > 0  # tcp, and gre


def test_a_browser_shows_what_is_wrong(browser: Browser, tmp_path: Path) -> None:
    root = proc_root(tmp_path, nf_conntrack_acct=0)
    with serving(f"--path.procfs={root}", "--collector.interval=0.2") as program:
        browser.open(f"{program.url}/")
        alerts = "[...document.querySelectorAll('[role=alert]')].map(e => e.innerText).join()"
        assert browser.evaluate(alerts).startswith("Accounting is off")
        (tmp_path / "net" / "nf_conntrack").unlink()
        program.wait_for_log("there is no .*nf_conntrack")
        browser.open(f"{program.url}/")
        assert "Stale: " in browser.evaluate(alerts)
        assert f"there is no {tmp_path}/net/nf_conntrack" in browser.evaluate(alerts)
        assert browser.complaints() == []
