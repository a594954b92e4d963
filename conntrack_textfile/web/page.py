"""The page: an overview of the last snapshot and the last hour as one HTML document.

It has no scripts and loads nothing, so that it works under the strictest
Content-Security-Policy. Such a policy forbids style attributes: bars and charts are
inline SVG. page.html is the template, page.css its style sheet.

_SECTIONS lists the functions that make what is below the summary.
"""

from __future__ import annotations

import base64
import hashlib
import importlib.resources
import time
from string import Template
from typing import TYPE_CHECKING, NamedTuple

from conntrack_textfile import __version__
from conntrack_textfile.aggregate import MEASURES, measure
from conntrack_textfile.gaps import NO_RATES
from conntrack_textfile.labels import BY_NAME
from conntrack_textfile.tally import Sums, lacks_counters
from conntrack_textfile.units import binary, decimal, per_second, percent
from conntrack_textfile.web import cards, chart
from conntrack_textfile.web.cards import Number
from conntrack_textfile.web.chart import Line, Span, Times
from conntrack_textfile.web.markup import element, fill
from conntrack_textfile.web.overview import NEAR, PORTS, ROWS, is_overflow
from conntrack_textfile.web.query import BY, Query

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from xml.etree.ElementTree import Element

    from conntrack_textfile.aggregate import Ranking
    from conntrack_textfile.snapshot import Snapshot
    from conntrack_textfile.web.history import Points
    from conntrack_textfile.web.overview import Overview, RankedView


# The cards of top sources: title, and the numbers (query.BY) and measure of the ranking.
_TOP_SOURCES = (
    ("Bandwidth now", "rate", "bytes"),
    ("Traffic of the last {}", "hour", "bytes"),
    ("New connections now", "rate", "connections"),
)
_LINKS = {"rate": "rate now", "hour": "last hour", "live": "live connections"}
_OF = {"hour": "the last hour", "live": "live connections"}
_WHEN = {"rate": "in the last interval", "hour": "in the last hour", "live": "now"}
_SENT = "the original direction, from the source of a connection"
_REPLY = "the reply direction, to the source of a connection"


class State(NamedTuple):
    """The state of the snapshots at the time of a request."""

    now: float  # monotonic seconds, as in History.add()
    fresh: bool  # whether the snapshot is recent enough to be shown as current
    interval: float  # seconds from one to the next
    cause: str  # error of the last snapshot, "" if it succeeded


class _View(NamedTuple):
    """The input of the sections."""

    snapshot: Snapshot
    overview: Overview
    query: Query
    state: State
    clock: float  # Unix time


def render(
    snapshot: Snapshot | None,
    overview: Overview | None,
    query: Query,
    state: State,
    telemetry_path: str,
) -> bytes:
    """Render the page. snapshot and overview are None before the first one succeeded."""
    clock = time.time()
    parts = [*_banners(snapshot, overview, state)]
    if snapshot is not None:
        parts.append(_facts(snapshot, overview if state.fresh else None, clock))
        if overview is not None:
            view = _View(snapshot, overview, query, state, clock)
            for section in _SECTIONS:
                parts += section(view)
    return fill(
        _PAGE,
        refresh=str(_renewal(snapshot, clock, state.interval)),
        body=parts,
        aging=[_aging(3 * state.interval)],
        metrics=telemetry_path,
        version=__version__,
    )


def _renewal(snapshot: Snapshot | None, clock: float, interval: float) -> int:
    """Return the seconds until the next snapshot is due, at most one interval."""
    longest = max(1, round(interval))
    if snapshot is None or snapshot.timestamp is None or not snapshot.success:
        return min(5, longest)
    # Rounded up, so that the snapshot is finished.
    due = round(snapshot.timestamp + interval - clock) + 1
    return due if 1 <= due <= longest else longest


def _aging(seconds: float) -> Element:
    """Return a warning that SVG animation shows when the page was not reloaded in time."""
    text = element("text", "These numbers are old.", x="0", y="15", visibility="hidden")
    begin = f"{max(5, round(seconds))}s"
    text.append(element("set", attributeName="visibility", to="visible", begin=begin))
    return element("svg", text, class_="aging", width="12rem", height="20")


def _banners(
    snapshot: Snapshot | None, overview: Overview | None, state: State
) -> Iterable[Element]:
    if snapshot is None:
        yield _banner("The first snapshot is not finished yet.")
        return
    if not snapshot.success:
        what = "there is no snapshot that is fresh enough"
        if state.fresh and overview is not None:
            what = "this is the last good snapshot"
        yield _banner(f"Stale: {what}." + (f" Reason: {state.cause}." if state.cause else ""))
    # The kept snapshot has no counters: the overview has their warnings.
    warnings = {**(overview.warnings if overview is not None else {}), **snapshot.warnings}
    for warning in warnings.values():
        yield _banner(_sentence(warning))


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}."


def _banner(text: str) -> Element:
    return element("p", text, class_="banner", role="alert")


def _facts(snapshot: Snapshot, overview: Overview | None, clock: float) -> Element:
    facts = list(overview.totals) if overview else []
    if snapshot.timestamp is not None and snapshot.duration is not None:
        age = max(0.0, clock - snapshot.timestamp)
        at = time.strftime("%H:%M:%S", time.localtime(snapshot.timestamp))
        facts.append(("Snapshot", f"of {at}, {age:.0f} s ago, took {snapshot.duration:.2f} s"))
        facts.append(("Read by", snapshot.source))
    hints = {
        "Keys": {"title": "combinations of label values; those beyond --limit.keys are folded"},
        "Uncounted": {"title": "connections without packet and byte counters"},
        "Sent": {"title": f"of live connections: {_SENT}"},
        "Reply": {"title": f"of live connections: {_REPLY}"},
    }
    items = [
        element("div", element("dt", what), element("dd", much), **hints.get(what, {}))
        for what, much in facts
    ]
    if snapshot.parts is None and snapshot.fills:
        ((_, entries, limit),) = snapshot.fills
        fill = element("dd", f"{entries:,} of {limit:,} ({percent(entries / limit)})")
        fill.append(cards.bar(entries, limit))
        items.insert(0, element("div", element("dt", "Table"), fill, class_="wide"))
    return element("dl", *items, class_="card wide")


def _charts(view: _View) -> Iterable[Element]:
    """Charts of the last hour, in unfiltered views."""
    if view.query.matchers:
        return
    overview, fresh = view.overview, view.state.fresh
    points, interval = overview.past.points, overview.past.interval
    longest = max(3 * view.state.interval, view.snapshot.duration or 0)
    live = _levels(points, points.live, longest)
    began = view.state.now - live[0].began
    times = Times(view.state.now, view.clock, chart.length(began))
    figures = []
    if any(points.seconds):
        now: list[float | None] = [None] * len(Sums._fields)
        if fresh and interval is not None:
            totals = interval.rows.totals
            now = [
                None if n and lacks_counters(totals) else total / interval.seconds
                for n, total in enumerate(totals)
            ]
        opened, _, sent, _, reply = now
        traffic = [
            Line("sent", _SENT, _rates(points, points.sent_bytes, 8), _bits(sent)),
            Line("reply", _REPLY, _rates(points, points.reply_bytes, 8), _bits(reply)),
        ]
        if view.snapshot.conntrack.accounting is not False or any(points.reply_bytes):
            figures.append(
                chart.draw("Traffic", traffic, times, lambda v: decimal(v, "bit/s"), "bit/s")
            )
        new = Line("", "", _rates(points, points.opened, 1), opened)
        figures.append(chart.draw("New connections", [new], times, per_second, "/s"))
    connections = Line("", "", live, overview.connections if fresh else None)
    figures.append(chart.draw("Live connections", [connections], times, lambda v: f"{v:,.0f}"))
    if all(points.entries_limit):
        parts = [e / most for e, most in zip(points.entries, points.entries_limit, strict=True)]
        fills = view.snapshot.fills if fresh else []
        present = next((entries / limit for _, entries, limit in fills), None)
        full = Line("", "", _levels(points, parts, longest), present)
        title = "Table usage" if view.snapshot.parts is None else "Fullest table"
        figures.append(chart.draw(title, [full], times, percent, "%"))
    yield element("div", *figures, class_="charts wide")


def _bits(rate: float | None) -> float | None:
    return None if rate is None else 8 * rate


def _rates(points: Points, series: Sequence[float], factor: int) -> list[Span]:
    """Return the rate per second of each point with traffic. factor: 8 for bytes as bits."""
    rows = zip(points.times, points.seconds, series, strict=True)
    return [Span(t - long, t, factor * value / long) for t, long, value in rows if long]


def _levels(points: Points, series: Sequence[float], longest: float) -> list[Span]:
    """Return a span for each value, from the previous point on, of at most longest seconds."""
    spans = []
    before = points.times[0] - points.seconds[0]
    for t, value in zip(points.times, series, strict=True):
        spans.append(Span(max(before, t - longest), t, value))
        before = t
    return spans


def _top_sources(view: _View) -> Iterable[Element]:
    """Top sources by bandwidth now, by traffic of the last hour, and by new connections."""
    overview = view.overview
    if view.query != Query() or not view.state.fresh or "src" not in overview.labels:
        return
    shown = []
    for title, by, sort in _TOP_SOURCES:
        if by not in overview.tables:
            continue
        query = Query(by, sort)
        ranked = overview.top_sources(by, sort)
        (ranking,) = ranked.rankings
        size = MEASURES[sort]
        rows: list[tuple[Element | str, str, int]] = []
        for (source,), sums in ranking.rows:
            if not size(sums):
                continue
            overflow = ranked.folded and is_overflow(ranking.labels, (source,))
            rows.append(
                (
                    source if overflow else _link("src", source, query),
                    _amount(size(sums), sort, ranked),
                    size(sums),
                )
            )
        if rows and ranking.by == sort:  # not without accounting
            hour = ranked.seconds >= 3300  # in parts of five minutes
            length = "hour" if hour else _duration(ranked.seconds)
            shown.append(cards.bar_card(title.format(length), rows))
    if shown:
        yield element("div", *shown, class_="counts wide")


def _amount(size: int, sort: str, ranked: RankedView) -> str:
    """Format a number of the measure sort, both directions together; a rate in the view rate."""
    if ranked.by == "rate":
        rate = size / ranked.seconds
        return decimal(8 * rate, "bit/s") if sort == "bytes" else per_second(rate)
    return binary(size) if sort == "bytes" else f"{size:,}"


def _tables(view: _View) -> Iterable[Element]:
    """The rankings, with links to other views."""
    if not view.state.fresh:
        return
    query, overview = view.query, view.overview
    by = query.by if query.by in overview.tables else next(b for b in BY if b in overview.tables)
    ranked = overview.ranked(by, query)
    yield _navigation(view, ranked)
    for note in _notes(view, ranked):
        yield element("p", note, class_="note wide")
    if query.matchers:
        yield _selection(query, ranked)
    tables = []
    for ranking in ranked.rankings:
        if ranking.rows:
            live = overview if by == "live" and not query.matchers else None
            count = _count(ranking, ranked, live)
            tables.append(_ranking(ranking, query, ranked, count))
    yield element("div", *tables, class_="tables wide")


def _navigation(view: _View, ranked: RankedView) -> Element:
    """Return links that change the numbers or the order."""
    query = view.query
    sort = measure(query.sort, ranked.totals) if any(ranked.totals) else query.sort

    def link(text: str, target: Query, *, chosen: bool) -> Element:
        more = {"aria_current": "true"} if chosen else {}
        return element("a", text, href=target.link(), **more)

    numbers = [
        link(_LINKS[name], query._replace(by=name), chosen=name == ranked.by)
        for name in BY
        if name in view.overview.tables
    ]
    order = [link(name, query._replace(sort=name), chosen=name == sort) for name in MEASURES]
    return element(
        "nav",
        element("span", "Show ", *numbers),
        element("span", "sort by ", *order),
        class_="wide",
    )


def _notes(view: _View, ranked: RankedView) -> Iterable[str]:
    """Notes on why numbers are not those requested, or incomplete."""
    by, sort = ranked.by, view.query.sort
    traffic = view.overview.tables[by]
    if "rate" not in view.overview.tables:
        yield _no_rates(view) + ("" if by == view.query.by else f" These are of {_OF[by]}.")
    if by == "hour":
        yield f"Counted for {_duration(traffic.seconds)}."
    if by != "live":
        yield from map(_sentence, view.overview.gaps)
    if any(ranked.totals) and measure(sort, ranked.totals) != sort:
        yield f"Sorted by connections: {sort} are unknown without packet and byte counters."
    if view.query.matchers:
        return
    if by != "live" and not any(ranked.totals):
        yield f"No traffic {_WHEN[by]}."
    if by == "live" and view.overview.connections and not any(p.groups for p in traffic.parts):
        yield "Live connections by key are not collected: --collector.families=live,traffic does."


def _no_rates(view: _View) -> str:
    """Return why there are no rates."""
    if view.overview.past.counted:
        return "Rates are known from the second snapshot on."
    if view.snapshot.uncountable:  # there is a banner of that
        return "There are no rates now."
    if view.snapshot.source == "procfs":
        return f"There are {NO_RATES.long}."
    return "There are no rates, as nothing is counted: --collector.families=live,traffic does."


def _duration(seconds: float) -> str:
    minutes = int(seconds / 60)
    return f"{minutes} min" if minutes else f"{seconds:.0f} s"


def _count(ranking: Ranking, ranked: RankedView, live: Overview | None) -> str:
    """Return ", 10 of 123" for a title. With folded groups only the number of keys is known."""
    shown = len(ranking.rows)
    known = shown + ranking.others
    if live is not None and ranking.labels == live.labels:
        known = live.keys
        return f", {min(shown, known)} of {known:,}" if ranking.others else ""
    if not ranking.others:
        return ""
    return f", {shown} of " + (f"at least {known - 1:,}" if ranked.folded else f"{known:,}")


def _selection(query: Query, ranked: RankedView) -> Element:
    """Return a card with the matchers of the view, links that remove them, and the sums."""
    items = []
    for label, value in query.matchers:
        out = element("a", f"all {BY_NAME[label].plural}", href=query.without(label).link())
        name = element("strong", value or "none")
        items.append(
            element("div", element("dt", BY_NAME[label].title), element("dd", name, " ", out))
        )
    if any(ranked.totals):
        shown = measure(query.sort, ranked.totals)
        items += [
            element("div", element("dt", head), element("dd", text, title=exact))
            for head, text, exact, _ in _numbers(shown, ranked.totals, ranked)
        ]
        return element("dl", *items, class_="card wide")
    nothing = element("dd", f"Nothing of it is known {_WHEN[ranked.by]}.")
    return element("dl", *items, element("div", nothing), class_="card wide")


def _numbers(sort: str, sums: Sums, ranked: RankedView) -> list[Number]:
    """Return the cells of sums, those of the measure sort first."""
    by, seconds = ranked.by, ranked.seconds
    opened = "connections" if by == "live" else "new"
    over = "" if by == "live" else f" in {_duration(seconds)}"

    def count(number: int) -> str:
        return per_second(number / seconds) if by == "rate" else f"{number:,}"

    def size(number: int) -> str:
        return decimal(8 * number / seconds, "bit/s") if by == "rate" else binary(number)

    unknown = lacks_counters(sums)
    exact_opened = f"{sums.connections:,} connections{over}"
    columns = [Number(opened, count(sums.connections), exact_opened, "connections")]
    if any(ranked.totals[1:]):
        both = []
        for head, hint, packets, size_in_bytes in (
            ("sent", _SENT, sums.sent_packets, sums.sent_bytes),
            ("reply", _REPLY, sums.reply_packets, sums.reply_bytes),
        ):
            if unknown:
                both.append(Number(head, "?", "unknown: no packet and byte counters", hint))
            elif sort == "packets":
                both.append(Number(head, count(packets), f"{packets:,} packets{over}", hint))
            else:
                exact = f"{size_in_bytes:,} bytes{over}"
                both.append(Number(head, size(size_in_bytes), exact, hint))
        columns = columns + both if sort == "connections" else both + columns
    if by == "hour" and seconds:
        much = MEASURES[sort](sums) / seconds
        mean = decimal(8 * much, "bit/s") if sort == "bytes" else per_second(much)
        if unknown and sort != "connections":
            mean = "?"
        columns.insert(0, Number("mean rate", mean, f"{sort}{over}", f"{sort} per second"))
    return columns


def _ranking(ranking: Ranking, query: Query, ranked: RankedView, count: str) -> Element:
    size = MEASURES[ranking.by]
    most = size(ranking.rows[0][1])
    rows = []
    for values, sums in ranking.rows:
        overflow = ranked.folded and is_overflow(ranking.labels, values)
        cells = [
            _name(label, value, query, alone=len(values) == 1, overflow=overflow)
            for label, value in zip(ranking.labels, values, strict=True)
        ]
        numbers = _numbers(ranking.by, sums, ranked)
        rows.append(cards.Row(values, cells, numbers, cards.bar(size(sums), most)))
    whole = len(ranking.labels) > 1
    title = "Keys" if whole else BY_NAME[ranking.labels[0]].plural.capitalize()
    heads = [BY_NAME[label].title for label in ranking.labels]
    return cards.card(f"{title} by {ranking.by}{count}", heads, rows, wide=whole)


def _name(label: str, value: str, query: Query, *, alone: bool, overflow: bool) -> Element:
    """Return a cell that links to the view of its value. The overflow series has none."""
    content: Element | str = value
    if not overflow:
        content = _link(label, value, query)
    return element("td", content, class_="name only" if alone else "name")


def _link(label: str, value: str, query: Query) -> Element:
    return element("a", value or "none", href=query.at(label, value).link())


def _nat(view: _View) -> Iterable[Element]:
    """Egress addresses, and the destinations towards which many source ports are in use."""
    nat = view.overview.nat
    if nat is None or not view.state.fresh or view.query.matchers:
        return
    of = f", {len(nat.egress)} of {len(nat.egress) + nat.more:,}" if nat.more else ""
    egress = [
        _ports((row.address, row.l4protocol), row.ports, ("connections", row.connections))
        for row in nat.egress
    ]
    title = f"NAT: egress addresses by ports towards one destination{of}"
    shown = [cards.card(title, ("address", "l4"), egress, wide=not nat.destinations)]
    if nat.destinations:
        names = ("address", "l4", "destination", "port")
        rows = [_ports(row[:4], row[4]) for row in nat.destinations]
        title = f"NAT: destinations with {NEAR:.0%} of the ports or more in use"
        shown.append(cards.card(title, names, rows, wide=False))
    yield element("div", *shown, class_="tables wide")


def _ports(names: Sequence[str], ports: int, *others: tuple[str, int]) -> cards.Row:
    """Return a row with source ports in use, and other numbers before them."""
    full = f"of the {PORTS:,} that an address has by default"
    return cards.Row(
        names,
        [element("td", name, class_="name") for name in names],
        [
            *[Number(what, f"{number:,}", f"{number:,} {what}", what) for what, number in others],
            Number("ports", f"{ports:,}", f"{ports:,} source ports", "source ports in use"),
            Number("used", percent(ports / PORTS), full, full),
        ],
        cards.bar(ports, PORTS),
    )


def _fills(view: _View) -> Iterable[Element]:
    """Table usage of each network namespace."""
    fills = view.snapshot.fills
    if view.snapshot.parts is None or not fills or not view.state.fresh or view.query.matchers:
        return
    rows = [
        cards.Row(
            (name,),
            [_name("netns", name, view.query, alone=True, overflow=False)],
            [
                Number("entries", f"{entries:,}", f"{entries:,} entries", "entries in the table"),
                Number("limit", f"{limit:,}", f"{limit:,} entries", "entries that fit"),
                Number("used", percent(entries / limit), "of the limit", "of the limit"),
            ],
            cards.bar(entries, limit),
        )
        for name, entries, limit in fills[:ROWS]
    ]
    of = f", {ROWS} of {len(fills):,}" if len(fills) > ROWS else ""
    table = cards.card(f"Tables of network namespaces by usage{of}", ("netns",), rows, wide=True)
    yield element("div", table, class_="tables wide")


def _counts(view: _View) -> Iterable[Element]:
    """Connections by protocol, state and flag."""
    counts = view.overview.counts if view.state.fresh and not view.query.matchers else ()
    shown = [
        cards.bar_card(title, [(word, f"{number:,}", number) for word, number in words])
        for title, words in counts
        if words
    ]
    if shown:
        yield element("div", *shown, class_="counts wide")


_SECTIONS = (_top_sources, _charts, _tables, _fills, _nat, _counts)

_FILES = importlib.resources.files(__package__)
_STYLE = (_FILES / "page.css").read_text("utf-8")
_PAGE = Template((_FILES / "page.html").read_text("utf-8").replace("$style", _STYLE))

_STYLE_HASH = base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()
CONTENT_SECURITY_POLICY = (
    f"default-src 'none'; style-src 'sha256-{_STYLE_HASH}'; img-src data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
