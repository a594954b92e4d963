from __future__ import annotations

import contextlib
import html
import re
import time
from html.parser import HTMLParser
from typing import TYPE_CHECKING, Any

import pytest

from conntrack_textfile.collector import Collector
from conntrack_textfile.kernel.engine import make
from conntrack_textfile.labels import DEFAULT
from conntrack_textfile.options import parse
from conntrack_textfile.tally import Egress, Nat, Rows
from conntrack_textfile.web import page
from conntrack_textfile.web.application import Application
from conntrack_textfile.web.history import History
from conntrack_textfile.web.overview import Overview, prepare
from conntrack_textfile.web.query import Query
from conntrack_textfile.web.refresh import Refresher
from tests.browser import browsing
from tests.builders import CONNTRACK, Flow, aggregated, counted, proc_root, table, taken
from tests.conftest import DATA, need
from tests.program import serving
from tests.waiting import until
from tests.web.serving import get, listening

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from conntrack_textfile.aggregate import Aggregate
    from conntrack_textfile.snapshot import Snapshot
    from tests.browser import Browser
    from tests.builders import Series

EMPTY = taken(None)
NOW = 10000.0
KEYS = ("src", "dst", "l4protocol", "l7protocol")


def render(
    shown: Snapshot | None,
    overview: Overview | None = None,
    query: Query | None = None,
    telemetry_path: str = "/metrics",
    **more: Any,
) -> str:
    state = page.State(**{"now": NOW, "fresh": True, "interval": 60.0, "cause": "", **more})
    return page.render(shown, overview, query or Query(), state, telemetry_path).decode()


def overview(live: Aggregate) -> Overview:
    """What there is to show of live connections alone."""
    return after(taken(live))


def after(*snapshots: Snapshot) -> Overview:
    """What there is to show after snapshots that were a minute apart, the last one now."""
    made = History()
    for n, snapshot in enumerate(snapshots, 1 - len(snapshots)):
        past = made.add(snapshot, NOW + 60 * n)
    return prepare(snapshots[-1], past)


def snapshots(*steps: Series, labels: tuple[str, ...] = KEYS) -> list[Snapshot]:
    """Snapshots with these counters, and live connections that carried the same."""
    made = []
    before: Series | None = None
    for rows in steps:
        carried = None
        if before is not None:
            columns = [
                [row[field] - before.get(group, (0,) * 5)[field] for group, row in rows.items()]
                for field in range(5)
            ]
            carried = Rows(list(rows), tuple(columns))
        live = taken(aggregated(rows, *labels))
        made.append(live._replace(traffic=counted(rows, *labels), interval=carried))
        before = rows
    return made


def words(text: str) -> str:
    """What a reader sees."""
    plain = re.sub(r"<title>[^<]*</title>", " ", text.partition("</head>")[2])
    plain = re.sub(r'<span class="u">[^<]*</span>', " ", plain)
    return " ".join(html.unescape(re.sub(r"<[^>]*>+", " ", plain)).split())


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


@pytest.mark.parametrize("only", [(), (("src", HOSTILE),)])
def test_every_value_is_escaped(only: tuple[tuple[str, str], ...]) -> None:
    live = aggregated({(HOSTILE, HOSTILE): (1, 1, 1, 1, 1)}, "src", "dport")
    live = live._replace(states={(HOSTILE,) * 3: 1}, flags={(HOSTILE,) * 3: 1})
    text = render(
        EMPTY._replace(success=False, source=HOSTILE),
        overview(live),
        Query(matchers=only),
        cause=HOSTILE,
        telemetry_path="/" + HOSTILE,
    )
    outline = Outline()
    outline.feed(text)
    assert not outline.left
    assert not outline.tags & {"script", "img"}
    assert not outline.attributes & {"onerror", "style"}
    assert html.unescape(text).count(HOSTILE) >= 5


def test_there_are_the_numbers_of_the_capture() -> None:
    options = parse(["serve", f"--path.procfs={DATA / 'kernel-6.18'}"])
    shown = Collector(options, make(options.plan)).take()
    assert shown.live is not None
    text = render(shown, overview(shown.live))
    found = words(text)
    assert "Table 91 of 262,144 (<0.1%)" in found
    assert "Connections 91 Sent 38.9 MiB Reply 38.3 MiB Keys 83 Uncounted 3" in found
    assert "Connections by protocol tcp 32 sctp 20 udp 16" in found
    assert "Connections by state tcp ESTABLISHED 14 sctp CLOSED 4" in found
    assert "Sources by bytes source sent reply connections 10.77.1.2 19.6 MiB 19.1 MiB 50" in found
    assert "Keys by bytes, 10 of 83" in found
    assert "There are no rates: the proc file has no identity of connections" in found
    assert "address l4 connections ports used 10.77.2.1 tcp 4 3 <0.1%" in found
    assert "NAT: destinations" not in found  # with 3 ports at most
    assert 'role="alert"' not in text


ONE: Series = {
    ("a", "x", "tcp", "http"): (10, 10, 10, 10, 10),
    ("b", "x", "udp", "ntp"): (1, 1, 1, 1, 1),
}
TWO: Series = {
    ("a", "x", "tcp", "http"): (16, 310, 7510, 610, 750_010),
    ("b", "x", "udp", "ntp"): (601, 1, 1, 1, 1),
}


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        (Query(), "Sources by bytes source sent reply new a 1.0 kbit/s 100 kbit/s 0.10/s b"),
        (Query("rate", "packets"), "source sent reply new a 5.00/s 10.0/s 0.10/s b ? ? 10.0/s"),
        (Query("rate", "connections"), "source new sent reply b 10.0/s ? ? a 0.10/s"),
        (Query("hour"), "source mean rate sent reply new a 101 kbit/s 7.3 KiB 732 KiB 6 b"),
        (Query("hour", "connections"), "source mean rate new sent reply b 10.0/s 600 ? ? a"),
        (Query("live"), "source sent reply connections a 7.3 KiB 732 KiB 16 b 1 B 1 B 601"),
        (Query("live", "packets"), "source sent reply connections a 310 610 16 b 1 1 601"),
    ],
)
def test_tables_are_by_what_the_query_says(query: Query, expected: str) -> None:
    shown = snapshots(ONE, TWO)
    assert expected in words(render(shown[-1], after(*shown), query))


def test_the_page_opens_with_the_answers() -> None:
    shown = snapshots(ONE, TWO)
    made = after(*shown)
    text = render(shown[-1], made)
    found = words(text)
    assert "Bandwidth now a 101 kbit/s Traffic" in found
    assert "Traffic of the last 1 min a 740 KiB New" in found
    assert "New connections now b 10.0/s a 0.10/s" in found
    assert found.index("Table") < found.index("Bandwidth now") < found.index("Live connections")
    assert 'href="?by=hour&amp;src=a"' in text
    assert 'href="?by=rate&amp;sort=connections&amp;src=b"' in text
    assert "Bandwidth now" not in words(render(shown[-1], made, Query("rate")))
    assert "Bandwidth now" not in words(render(shown[-1], made, fresh=False))
    # Without accounting there are connections alone.
    bare = snapshots(
        {("a", "x", "tcp", "http"): (5, 0, 0, 0, 0)}, {("a", "x", "tcp", "http"): (65, 0, 0, 0, 0)}
    )
    found = words(render(bare[-1], after(*bare)))
    assert "New connections now a 1.00/s" in found
    assert "Bandwidth now" not in found
    other: Series = {("other", "other", "tcp", "other"): (9,) * 5}
    folded = snapshots({next(iter(other)): (1,) * 5}, other)
    assert "src=other" not in render(folded[-1], after(*folded))


def test_a_value_has_a_view_of_its_own() -> None:
    shown = snapshots(ONE, TWO)
    made = after(*shown)
    whole = render(shown[-1], made, Query("rate", "packets"))
    assert 'href="?by=rate&amp;sort=packets&amp;src=a"' in whole
    assert 'href="?by=rate&amp;sort=packets&amp;l7protocol=ntp"' in whole
    text = render(shown[-1], made, Query("rate", "packets").at("src", "a"))
    found = words(text)
    assert "source a all sources sent 5.00/s reply 10.0/s new 0.10/s" in found
    assert "Services by packets service sent reply new http" in found
    assert "ntp" not in found
    assert "Sources by" not in found
    assert 'href="?by=rate&amp;sort=packets&amp;src=a&amp;dst=x"' in text
    assert '">all sources</a>' in text
    gone = words(render(shown[-1], made, Query("hour").at("src", "nobody")))
    assert "source nobody all sources Nothing of it is known in the last hour." in gone


def test_the_charts_are_of_what_was_counted() -> None:
    shown = snapshots(ONE, TWO)
    text = render(shown[-1], after(*shown))
    labels = re.findall(r'aria-label="([^"]*)"', text)
    assert labels == [
        "Traffic over the last 60 s: sent 1.0 kbit/s, reply 100 kbit/s, at most 100 kbit/s",
        "New connections over the last 60 s: 10.1/s, at most 10.1/s",
        "Live connections over the last 60 s: 617, at most 617",
        "Table usage over the last 60 s: 25.0%, at most 25.0%",
    ]


def test_traffic_is_unknown_once_accounting_is_off() -> None:
    key = ("a", "b", "tcp", "x")
    shown = snapshots({key: (1,) * 5}, {key: (2, 9, 9, 9, 9)}, {key: (8, 9, 9, 9, 9)})
    off = shown[-1]._replace(conntrack=CONNTRACK._replace(accounting=False))
    text = render(off, after(*shown))
    assert "Traffic over the last 2 min: sent unknown, reply unknown" in text
    assert "New connections over the last 2 min: 0.10/s" in text


def test_the_charts_of_levels_begin_with_those_of_rates() -> None:
    made = History()
    key = ("a", "b", "tcp", "x")
    first, last = snapshots({key: (1,) * 5}, {key: (2,) * 5})
    made.add(first, NOW - 6)
    text = render(last, prepare(last, made.add(last, NOW)))
    begun = re.findall(r'class="line line0" d="M([0-9.]+) [0-9.]+H([0-9.]+)', text)
    assert begun == [("540.0", "600.0")] * 4


def test_without_counters_it_says_why_there_are_no_rates() -> None:
    (first,) = snapshots(ONE)
    live = first._replace(traffic=None, source="netlink")
    second = render(first, after(first), Query("rate"))
    assert "Rates are known from the second snapshot on. These are of live connections." in second
    never = render(live, after(live), Query("rate"))
    assert "There are no rates, as nothing is counted: --collector.families=live,traffic" in never
    assert ">rate now</a>" not in never
    assert "<h2>Traffic" not in never
    other = live._replace(uncountable=True)
    found = words(render(other, after(other)))
    assert "The proc file has no identity of connections" in found
    assert "There are no rates now. These are of live connections." in found
    # Counters that there were before: the hour still has what they counted.
    before = render(other, after(*snapshots(ONE, TWO), other), Query("rate"))
    assert "There are no rates now. These are of the last hour." in before
    for text in (second, never, found, before):
        assert "Sources by bytes" in text


def test_live_connections_that_are_not_collected_are_not_shown_as_none() -> None:
    shown = snapshots(ONE, TWO)
    assert shown[-1].live is not None
    empty = shown[-1].live._replace(groups=(), columns=((),) * 5)
    shown[-1] = shown[-1]._replace(live=empty)
    found = words(render(shown[-1], after(*shown), Query("live")))
    assert "Live connections by key are not collected" in found
    assert "Sources by bytes source sent reply new a" in words(render(shown[-1], after(*shown)))


def test_of_old_numbers_there_is_the_past_alone() -> None:
    shown = snapshots(ONE, TWO)
    old = shown[-1]._replace(success=False)
    text = render(old, after(*shown), fresh=False, now=NOW + 200, cause="it is gone")
    assert "Stale: there is no snapshot that is fresh enough. Reason: it is gone." in text
    assert "Traffic over the last 6 min: sent unknown, reply unknown, at most 100 kbit/s" in text
    assert "Sources by" not in text
    assert "617" not in words(text)


def test_without_accounting_bytes_are_not_shown_as_none() -> None:
    shown = snapshots(
        {("a", "x", "tcp", "http"): (5, 0, 0, 0, 0)}, {("a", "x", "tcp", "http"): (65, 0, 0, 0, 0)}
    )
    off = shown[-1]._replace(conntrack=CONNTRACK._replace(accounting=False))
    text = render(off, after(*shown))
    found = words(text)
    assert "Sources by connections source new a 1.00/s" in found
    assert "bit/s" not in text
    assert "Sent unknown Reply unknown" in found
    assert "Sorted by connections: bytes are unknown without packet and byte counters." in found
    assert 'aria-current="true">connections</a>' in text
    assert 'aria-current="true">bytes</a>' not in text
    # Where others are counted, it is not 0 of those that are not.
    shown = snapshots(
        {(name, "x", "tcp", "http"): (1,) * 5 for name in "ab"},
        {("a", "x", "tcp", "http"): (2,) * 5, ("b", "x", "tcp", "http"): (61, 1, 1, 1, 1)},
    )
    assert "b ? ? 1.00/s" in words(render(shown[-1], after(*shown)))
    mean = words(render(shown[-1], after(*shown), Query("hour")))
    assert "b ? ? ? 60" in mean


def test_rates_that_lack_traffic_say_so() -> None:
    first, last = snapshots(ONE, TWO)
    assert last.traffic is not None
    silent = last._replace(traffic=last.traffic._replace(listening=False))
    note = "Rates are of live connections only, without the last traffic of ended ones"
    for by in ("rate", "hour"):
        assert note in words(render(silent, after(first, silent), Query(by)))
    assert note not in words(render(silent, after(first, silent), Query("live")))
    assert note not in words(render(last, after(first, last)))
    totals = {**last.traffic.totals, "ended_unseen": 3}
    unseen = last._replace(traffic=last.traffic._replace(totals=totals))
    text = words(render(unseen, after(first, unseen)))
    assert "Connections ended without an event, and their last traffic is missing" in text
    # None of them since the last snapshot.
    assert "ended without" not in words(render(unseen, after(first, unseen, unseen)))


def test_warnings_about_counters_are_shown_when_the_snapshot_has_none_any_more() -> None:
    shown = snapshots(ONE, TWO)[-1]
    assert shown.live is not None
    assert shown.traffic is not None
    live = shown.live._replace(keys=9)
    shown = shown._replace(traffic=shown.traffic._replace(lost=5), live=live)
    made = Refresher(lambda: shown, lambda last: last or EMPTY, 60.0)
    made.refresh()
    text = words(made.html("/metrics", "")[0].decode())
    assert "5 events of ended connections were lost" in text
    assert "Keys 9, 7 folded" in text
    assert "beyond --limit.keys" not in text  # it is not the page that lacks them


def test_no_traffic_is_said() -> None:
    shown = snapshots(ONE, ONE)
    quiet = shown[-1]._replace(interval=Rows([], ((),) * 5))
    text = words(render(quiet, after(shown[0], quiet)))
    assert "No traffic in the last interval." in text
    assert "unknown without" not in text
    assert "No traffic" not in words(render(quiet, after(shown[0], quiet), Query("live")))


def test_before_a_reading_has_worked_it_is_not_said_how_the_table_is_read() -> None:
    failed = EMPTY._replace(success=False, source="auto", timestamp=None, duration=None)
    assert "Read by" not in render(failed)


def test_what_there_is_is_counted_and_not_what_is_left() -> None:
    rows: Series = {(f"s{n}", "x", "tcp", "http"): (1, 1, 99 - n, 1, 1) for n in range(12)}
    rows["other", "other", "tcp", "other"] = (9846, 1, 1, 1, 1)
    live = aggregated(rows, *KEYS)._replace(keys=9857, exported=12)
    found = words(render(EMPTY, overview(live)))
    assert "Keys by bytes, 10 of 9,857 source" in found
    assert "Sources by bytes, 10 of at least 12 source" in found
    rows.pop(("other", "other", "tcp", "other"))
    found = words(render(EMPTY, overview(aggregated(rows, *KEYS))))
    assert "Keys by bytes, 10 of 12 source" in found
    assert "Sources by bytes, 10 of 12 source" in found
    assert "Destinations by bytes destination" in found


def test_the_rest_has_no_view_of_its_own() -> None:
    rows: Series = {
        ("other", "other", "tcp", "other"): (1,) * 5,
        ("a", "b", "tcp", "http"): (2,) * 5,
    }
    text = render(EMPTY, overview(aggregated(rows, *KEYS)))
    assert "src=a" in text
    assert "=other" not in text


def test_each_network_namespace_has_its_usage() -> None:
    shown = snapshots({("<b>", "a", "tcp", "x"): (1,) * 5}, labels=("netns", *KEYS[1:]))[0]
    parts = {
        name: shown._replace(conntrack=CONNTRACK._replace(entries=entries, entries_limit=limit))
        for name, (entries, limit) in {"blue": (90, 1000), "<b>": (50, 100)}.items()
    }
    shown = shown._replace(parts=parts, conntrack=CONNTRACK._replace(entries_limit=None))
    text = render(shown, after(shown))
    assert "netns entries limit used <b> 50 100 50.0% blue 90 1,000 9.0%" in words(text)
    assert "Fullest table 50.0%" in words(text)
    assert "Table 50 of" not in words(text)
    assert "by usage" not in words(
        render(shown, after(shown), Query(matchers=(("netns", "blue"),)))
    )
    assert "by usage" not in words(render(shown, after(shown), fresh=False))
    many = shown._replace(parts={f"n{n:02}": parts["blue"] for n in range(12)})
    assert "by usage, 10 of 12 " in words(render(many, after(many)))


def test_an_empty_card_is_left_out() -> None:
    live = aggregated({("a",): (1, 1, 1, 1, 1)}, "src")
    live = live._replace(flags={("ipv4", "tcp", "offload"): 0}, states={("ipv4", "tcp", "NONE"): 1})
    text = render(EMPTY, overview(live))
    assert "Connections by state" in text
    assert "Connections by flag" not in text
    assert "Connections by protocol" not in text  # that label is not kept


@pytest.mark.parametrize(
    ("age", "success", "interval", "seconds"),
    [
        (0, True, 60.0, 60),
        (50, True, 60.0, 11),
        (59.9, True, 60.0, 1),
        (90, True, 60.0, 60),
        (0, False, 60.0, 5),
        (0, True, 0.2, 1),
        (0, False, 1.0, 1),
        (0, True, 3600.0, 3600),
    ],
)
def test_it_is_renewed_when_the_next_snapshot_is_there(
    monkeypatch: pytest.MonkeyPatch, age: float, success: bool, interval: float, seconds: int
) -> None:
    monkeypatch.setattr(time, "time", lambda: 1700000000.25 + age)
    text = render(EMPTY._replace(success=success), interval=interval)
    assert f'<meta http-equiv="refresh" content="{seconds}">' in text


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
    text = render(EMPTY, overview(shown))
    assert "1,234, 1,233 folded" in text
    assert "<dt>Filtered</dt><dd>5,678</dd>" in text
    assert "<dt>Malformed</dt><dd>9</dd>" in text
    assert "Sources by connections" in text
    assert "Services" not in text  # that label is not kept


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
            "[...document.querySelectorAll('.counts section:first-child rect.part')]"
            ".map(e => e.getBoundingClientRect().width)"
        )
        assert widths[0] == max(widths) > 3 * widths[3] > 0  # tcp, and gre


# What is wider than the room it has, by tags and classes; and what leaves its card.
CUT = """
[...document.querySelectorAll("html, body, body *")].filter(e =>
    e.scrollWidth > e.clientWidth && e.clientWidth && getComputedStyle(e).display != "inline"
    || e.closest(".card, section, dl") && e.getBoundingClientRect().right
        > e.closest(".card, section, dl").getBoundingClientRect().right + 0.5
).map(e => `${e.tagName} ${e.getAttribute("class")} ${e.scrollWidth} > ${e.clientWidth}`)
"""
WIDTHS = (360, 400, 800, 1200, 2560)
LONGEST = "2001:1db8:1111:2222:3333:4444:5555:"  # and four digits: 39 characters
NAME = "A-name-of-thirty-characters-"  # and two digits


def test_nothing_is_cut_at_any_width(browser: Browser, tmp_path: Path) -> None:
    flows = {
        Flow(f"{LONGEST}a{n:03}", f"{LONGEST}b{n % 11:03}", dport=30000 + n): (
            1,
            *(10**14 + n,) * 4,
        )
        for n in range(15)
    }
    flows |= {Flow("10.0.0.1", f"10.0.{n}.1"): (1, 5, 5, 5, 5) for n in range(3)}
    names = tmp_path / "networks"
    names.write_text("".join(f"10.0.{n}.1/32 {NAME}0{n}\n" for n in range(3)))
    root = tmp_path / "proc"
    root.mkdir()
    proc_root(root, table(flows))
    with serving(f"--path.procfs={root}", f"--networks.file={names}") as program:
        get(f"{program.url}/metrics")
        for width in WIDTHS:
            browser.open(f"{program.url}/", width=width)
            assert f"{LONGEST}a014" in browser.evaluate("document.body.innerText")
            assert browser.evaluate(CUT) == [], width


@contextlib.contextmanager
def crowded(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The URL of a page with an hour of the longest names and numbers of 15 digits."""
    groups = [
        (*(f"{LONGEST}a{n:03}", f"{NAME}{n % 11:02}"), "ipv6", "tcp", f"{NAME}9{n % 3}", "65535")
        for n in range(15)
    ]
    steps = iter(range(61))

    def take() -> Snapshot:
        step = next(steps)
        counters: list[Series] = [
            {group: (many * (10**14 - n),) * 5 for n, group in enumerate(groups)}
            for many in ((step - 1, step) if step else (step,))
        ]
        shown = snapshots(*counters, labels=DEFAULT)[-1]
        conntrack = CONNTRACK._replace(entries=10**14, entries_limit=10**15 - 1)
        return shown._replace(timestamp=time.time(), conntrack=conntrack)

    made = Refresher(take, lambda last: last or EMPTY, 60.0)
    now = time.monotonic()
    for minute in range(61):
        with monkeypatch.context() as patched:
            patched.setattr(time, "monotonic", lambda minute=minute: now - 60 * (60 - minute))
            made.refresh()
    app = Application(
        made, telemetry_path="/metrics", max_requests=4, exporter_metrics=False, web_config=None
    )
    with listening(app) as port:
        yield f"http://127.0.0.1:{port}/"


def test_nothing_is_cut_of_rates_and_history(
    browser: Browser, monkeypatch: pytest.MonkeyPatch
) -> None:
    views = ("", "?by=hour", "?by=live&sort=packets", "?sort=packets&dst=" + NAME + "00")
    with crowded(monkeypatch) as url:
        for width in WIDTHS:
            for view in views:
                browser.open(url + view, width=width)
                text = browser.evaluate("document.body.innerText")
                assert f"{LONGEST}a000" in text
                assert browser.evaluate(CUT) == [], (width, view)
                # A number is on one line.
                high = browser.evaluate(
                    "[...document.querySelectorAll('td.n, dd')].filter(e => {"
                    " const r = document.createRange(); r.selectNodeContents(e);"
                    " const t = [...r.getClientRects()].map(c => c.top);"
                    " return /^[0-9,]+$/.test(e.lastChild.textContent)"
                    " && Math.max(...t) - Math.min(...t) > 12; }).map(e => e.innerText)"
                )
                assert high == [], (width, view)
        assert browser.complaints() == []


def test_no_half_of_a_row_is_empty_beside_the_last_of_the_cards(
    browser: Browser, tmp_path: Path
) -> None:
    # The right edge of each card that has none after it in its row.
    edges = """[...document.querySelectorAll('.tables')].flatMap(tables => {
        const rows = {}; for (const card of tables.children) {
            const r = card.getBoundingClientRect();
            rows[r.top] = Math.max(rows[r.top] ?? 0, r.right); }
        return Object.values(rows).map(x => Math.round(tables.getBoundingClientRect().right - x));
    })"""
    live = aggregated({("a", "b", "tcp", "x"): (1,) * 5}, *KEYS)
    file = tmp_path / "page.html"
    for ports in (3, 3000):
        egress = Egress("192.0.2.1", "tcp", ports, ports, [("10.0.0.9", "80", ports)])
        shown = taken(live._replace(nat=Nat({}, [egress])))
        file.write_text(render(shown, after(shown)))
        for width in (1200, 1900, 2560):
            browser.open(file.as_uri(), width=width)
            assert set(browser.evaluate(edges)) == {0}, (width, ports)


def test_it_renews_itself_and_keeps_its_place(browser: Browser) -> None:
    sample = f"--path.procfs={DATA / 'kernel-6.18'}"
    with serving(sample, "--collector.interval=1") as program:
        get(f"{program.url}/metrics")
        browser.open(f"{program.url}/?by=live&sort=packets", width=400)
        # It is renewed each second: at a place, and in one piece.
        assert until(lambda: browser.evaluate("scrollTo(0, 700); window.first = scrollY")) == 700
        renewed = "!window.first && document.readyState == 'complete' && scrollY"
        until(lambda: browser.evaluate(renewed) == 700)
        assert browser.evaluate("location.search") == "?by=live&sort=packets"


def test_a_page_that_is_not_renewed_says_that_it_is_old(browser: Browser) -> None:
    seen = (
        "document.querySelector('.aging').setCurrentTime(%d), "
        "getComputedStyle(document.querySelector('.aging text')).visibility"
    )
    with serving(f"--path.procfs={DATA / 'kernel-6.18'}", "--collector.interval=60") as program:
        get(f"{program.url}/metrics")
        browser.open(f"{program.url}/")
        assert browser.evaluate(seen % 100) == "hidden"
        assert browser.evaluate(seen % 181) == "visible"


def test_links_lead_from_view_to_view(browser: Browser, monkeypatch: pytest.MonkeyPatch) -> None:
    with crowded(monkeypatch) as url:
        browser.open(url)
        for click, search in (
            ("nav a:not([aria-current])", "?by=hour"),
            (".ranking .name a", "?by=hour&src="),
            (".ranking .name a", "?by=hour&src="),
            ("dl dd a", "?by=hour&dst="),
        ):
            target = browser.evaluate(f"document.querySelector({click!r}).href")
            assert search in target
            assert get(target)[0] == 200
            browser.open(target)
            assert "Keys by bytes" in browser.evaluate("document.body.innerText")
        assert get(f"{url}?src={NAME}")[0] == 200
        for query in (
            "?by=day",
            "?x=1",
            "?src=a&src=b",
            "?zone=1",
            "?src=%FF",
            "?by=" + "x" * 5000,
        ):
            status, body, headers = get(url + query)
            assert status == 400, query
            assert headers["Content-Type"].startswith("text/plain")
            assert body.startswith(b"Bad Request: ")
            assert body.count(b"\n") == 1


def test_a_browser_shows_what_is_wrong(browser: Browser, tmp_path: Path) -> None:
    root = proc_root(tmp_path, nf_conntrack_acct=0)
    with serving(f"--path.procfs={root}", "--collector.interval=0.2") as program:
        browser.open(f"{program.url}/")
        alerts = "[...document.querySelectorAll('[role=alert]')].map(e => e.innerText).join()"
        until(lambda: browser.evaluate(alerts).startswith("Accounting is off"))
        (tmp_path / "net" / "nf_conntrack").unlink()
        program.wait_for_log("there is no .*nf_conntrack")
        browser.open(f"{program.url}/")
        until(lambda: "Stale: " in browser.evaluate(alerts))
        until(lambda: f"there is no {tmp_path}/net/nf_conntrack" in browser.evaluate(alerts))
        assert browser.complaints() == []


def test_a_long_name_takes_the_columns_of_no_other_row(browser: Browser, tmp_path: Path) -> None:
    rows: Series = {
        (name, "x", "tcp", "y"): (9, 9, 10**6, 9, 10**6)
        for name in (f"{LONGEST}a001", "192.168.100.200", NAME + "00")
    }
    shown = snapshots(dict.fromkeys(rows, (0,) * 5), rows)
    file = tmp_path / "page.html"
    file.write_text(render(shown[-1], after(*shown)))
    displays = "[...document.querySelectorAll('.tables section:not(.wide)')].map(e =>"
    displays += " getComputedStyle(e.querySelector('tr')).display)"
    for width, display in ((360, "flex"), (1185, "table-row"), (2560, "table-row")):
        browser.open(file.as_uri(), width=width)
        assert set(browser.evaluate(displays)) == {display}, width
        assert browser.evaluate(CUT) == [], width
        # An address of IPv4 is on one line.
        lines = "document.evaluate(\"//a[.='192.168.100.200']\", document, null, 9)"
        assert browser.evaluate(f"{lines}.singleNodeValue.getClientRects().length") == 1, width


def test_three_answers_leave_no_hole(browser: Browser, tmp_path: Path) -> None:
    shown = snapshots({("a", "x", "tcp", "http"): (1,) * 5}, {("a", "x", "tcp", "http"): (9,) * 5})
    file = tmp_path / "page.html"
    file.write_text(render(shown[-1], after(*shown)))
    right = "(all => [all.length, ...[all[0].parentNode, all[2]].map("
    right += "e => Math.round(e.getBoundingClientRect().right))])"
    right += "(document.querySelector('.counts').children)"
    for width in (360, 660, 689, 690, 850, 1000, 1029, 1030, 1040, 1200, 2560):
        browser.open(file.as_uri(), width=width)
        count, whole, last = browser.evaluate(right)
        assert count == 3
        assert whole == last, width


def test_destinations_with_few_ports_are_not_listed() -> None:
    egress = Egress("192.0.2.1", "tcp", 900, 646, [("10.0.0.9", "80", 646), ("10.0.0.8", "1", 645)])
    live = aggregated({("a", "b", "tcp", "x"): (1,) * 5}, *KEYS)
    shown = taken(live._replace(nat=Nat({}, [egress])))
    found = words(render(shown, after(shown)))
    assert "192.0.2.1 tcp 900 646 1.0%" in found
    assert "NAT: destinations with 1% of the ports or more in use" in found
    assert "192.0.2.1 tcp 10.0.0.9 80 646 1.0%" in found
    assert "10.0.0.8" not in found


def test_three_charts_leave_no_hole(browser: Browser, tmp_path: Path) -> None:
    shown = snapshots(
        {("a", "x", "tcp", "http"): (5, 0, 0, 0, 0)}, {("a", "x", "tcp", "http"): (65, 0, 0, 0, 0)}
    )
    off = shown[-1]._replace(conntrack=CONNTRACK._replace(accounting=False))
    file = tmp_path / "page.html"
    file.write_text(render(off, after(*shown)))
    right = "[...document.querySelectorAll('.charts, .charts > :last-child')]"
    right += ".map(e => Math.round(e.getBoundingClientRect().right))"
    for width in (360, 800, 1000, 1200, 2560):
        browser.open(file.as_uri(), width=width)
        whole, last = browser.evaluate(right)
        assert whole == last, width
