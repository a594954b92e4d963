"""The page: the last snapshot and the last hour in HTML, for people with a browser.

It is one document without scripts and without anything from elsewhere, so that
the strictest Content-Security-Policy can hold it. bars and charts are drawn in
SVG, as such a policy forbids style attributes. page.html and page.css hold what
does not change.

What is under the heads is made by _SECTIONS, one function each.
"""

from __future__ import annotations

import base64
import hashlib
import importlib.resources
import time
from string import Template
from typing import TYPE_CHECKING, NamedTuple

from conntrack_textfile import __version__
from conntrack_textfile.aggregate import MEASURES, PROTOCOLS, Ranking, measure, rank
from conntrack_textfile.gaps import NO_RATES, gaps
from conntrack_textfile.labels import BY_NAME
from conntrack_textfile.plan import OTHER
from conntrack_textfile.tally import Rows, Sums
from conntrack_textfile.units import binary, decimal, per_second, percent
from conntrack_textfile.web import chart
from conntrack_textfile.web.chart import Line, Span, Times
from conntrack_textfile.web.history import Carried, compact
from conntrack_textfile.web.markup import element, fill
from conntrack_textfile.web.query import BY, Query

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from xml.etree.ElementTree import Element

    from conntrack_textfile.snapshot import Snapshot
    from conntrack_textfile.tally import Egress, Nat
    from conntrack_textfile.web.history import Past, Points

_ROWS = 10
PORTS = 64512  # that the kernel has for an address by default: 1024-65535
_PROTOCOLS = 256  # all that there can be

# From such widths of a card on, in rem, page.css makes a table of a ranking.
_WIDTHS = (26, 29, 32, 36, 42, 54, 70, 90, 120)
# Characters of the only name of a row. A longer one is wrapped.
_NAME_WIDTH = 16

_TITLES = {
    "netns": "Network namespaces",
    "src": "Sources",
    "dst": "Destinations",
    "l7protocol": "Services",
    "dport": "Ports",
    "zone": "Zones",
    "mark": "Marks",
    "egress": "Egress addresses",
    "backend": "Backends",
}
_LINKS = {"rate": "rate now", "hour": "last hour", "live": "live connections"}
_OF = {"hour": "the last hour", "live": "live connections"}
_WHEN = {"rate": "in the last interval", "hour": "in the last hour", "live": "now"}
_SENT = "the original direction, from the source of a connection"
_REPLY = "the reply direction, to the source of a connection"


class Found(NamedTuple):
    """What the tables of one view hold."""

    by: str  # of query.BY
    seconds: float  # that it was carried in, 0 for live connections
    totals: Sums
    folded: bool  # whether some of it is the "other" of the limit
    rankings: list[Ranking]


class NatOverview(NamedTuple):
    """What the page keeps of translated connections, the busiest first."""

    egress: list[Egress]
    more: int  # egress addresses that are not shown
    destinations: list[tuple[str, str, str, str, int]]  # egress, protocol, dst, dport, ports


class Overview(NamedTuple):
    """What the page keeps of a snapshot, made ready for all views."""

    warnings: Mapping[str, str]  # by kind, as Snapshot.warnings
    gaps: list[str]  # what its rates lack
    totals: tuple[tuple[str, str], ...]  # what, and how much
    counts: tuple[tuple[str, list[tuple[str, int]]], ...]  # a title, and words with numbers
    nat: NatOverview | None  # None where nothing is translated
    labels: tuple[str, ...]
    keys: int  # live groups before the limit
    connections: int
    tables: dict[str, Carried]  # of query.BY those that there are
    past: Past
    whole: dict[tuple[str, str], Found]  # views that are not of some alone, once somebody asked


class State(NamedTuple):
    """How it stands with the readings when a page is asked for."""

    now: float  # by the clock that history has
    fresh: bool  # whether numbers may be shown as those of now; else it is the past alone
    interval: float  # seconds from one to the next
    cause: str  # why the last one failed, "" if it did not


class _Row(NamedTuple):
    """A row of a card."""

    names: Sequence[str]
    cells: list[Element]  # that show them
    numbers: list[tuple[str, str, str, str]]  # see _numbers()
    bar: Element


class _View(NamedTuple):
    """What the sections of one page are made of."""

    snapshot: Snapshot
    overview: Overview
    query: Query
    state: State
    clock: float  # Unix time


def overview(snapshot: Snapshot, past: Past) -> Overview:
    """The numbers of a good snapshot that the page shows, in little memory."""
    live = snapshot.live
    assert live is not None
    totals = live.totals
    folded = live.folded
    rows = compact(live, snapshot.traffic)
    protocols: list[tuple[tuple[str, ...], Sums]] = []
    if "l4protocol" in live.labels:
        (ranking,) = rank(live.labels, rows, [("l4protocol",)], "connections", _PROTOCOLS)
        protocols = ranking.rows
    tables = {"rate": past.interval, "hour": past.hour, "live": Carried((rows,), 0.0)}
    warnings = snapshot.warnings
    warnings.pop("folded", None)  # it limits series, and the number of keys says it
    known = not _is_unknown(totals)
    return Overview(
        warnings=warnings,
        gaps=[gap.long for gap in gaps(snapshot, past.ended_unseen)],
        totals=(
            ("Connections", f"{totals.connections:,}"),
            ("Sent", binary(totals.sent_bytes) if known else "unknown"),
            ("Reply", binary(totals.reply_bytes) if known else "unknown"),
            ("Keys", f"{live.keys:,}" + (f", {folded:,} folded" if folded else "")),
            *([("Filtered", f"{live.filtered:,}")] if live.filtered else []),
            *([("Malformed", f"{live.malformed:,}")] if live.malformed else []),
            *([("Uncounted", f"{live.uncounted:,}")] if live.uncounted else []),
        ),
        counts=(
            (
                "Connections by protocol",
                _sorted({name: sums.connections for (name,), sums in protocols}),
            ),
            ("Connections by state", _sorted(_summed(live.states))),
            ("Connections by flag", _sorted(_summed(live.flags))),
        ),
        nat=_nat_overview(live.nat) if live.nat and live.nat.egress else None,
        labels=live.labels,
        keys=live.keys,
        connections=totals.connections,
        tables={by: carried for by, carried in tables.items() if carried is not None},
        past=past,
        whole={},
    )


def _nat_overview(nat: Nat) -> NatOverview:
    egress = sorted(nat.egress, key=lambda row: (-row.ports, -row.connections))
    towards = [
        (row.address, row.l4protocol, *destination)
        for row in egress
        for destination in row.destinations
    ]
    towards.sort(key=lambda row: -row[-1])
    return NatOverview(egress[:_ROWS], max(0, len(egress) - _ROWS), towards[:_ROWS])


def render(
    snapshot: Snapshot | None,
    overview: Overview | None,
    query: Query,
    state: State,
    telemetry_path: str,
) -> bytes:
    """The page. Without a snapshot or an overview it says why there is none."""
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
    """Seconds until there should be a new snapshot, but no more than an interval."""
    longest = max(1, round(interval))
    if snapshot is None or snapshot.timestamp is None or not snapshot.success:
        return min(5, longest)
    # A moment later than it is due, so that it is there.
    due = round(snapshot.timestamp + interval - clock) + 1
    return due if 1 <= due <= longest else longest


def _aging(seconds: float) -> Element:
    """A warning that appears on a page that is not renewed, which takes no script."""
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
    # The snapshot has no counters any more, so that their warnings are in the overview.
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
        "Keys": {"title": "groups of equal labels; folded: summed up as other by --limit.keys"},
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
        fill.append(_bar(entries, limit))
        items.insert(0, element("div", element("dt", "Table"), fill, class_="wide"))
    return element("dl", *items, class_="card wide")


def _charts(view: _View) -> Iterable[Element]:
    """What there was in the last hour, of all."""
    if view.query.only:
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
            now = [sum(column) / interval.seconds for column in interval.rows.columns]
        opened, _, sent, _, reply = now
        traffic = [
            Line("sent", _SENT, _rates(points, points.sent_bytes, 8), sent and 8 * sent),
            Line("reply", _REPLY, _rates(points, points.reply_bytes, 8), reply and 8 * reply),
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
        title = "Table fill" if view.snapshot.parts is None else "Fullest table"
        figures.append(chart.draw(title, [full], times, percent, "%"))
    yield element("div", *figures, class_="charts wide")


def _rates(points: Points, series: Sequence[float], factor: int) -> list[Span]:
    rows = zip(points.times, points.seconds, series, strict=True)
    return [Span(t - long, t, factor * value / long) for t, long, value in rows if long]


def _levels(points: Points, series: Sequence[float], longest: float) -> list[Span]:
    """Each value from the point before on, if that is not too long ago."""
    spans = []
    before = points.times[0] - points.seconds[0]
    for t, value in zip(points.times, series, strict=True):
        spans.append(Span(max(before, t - longest), t, value))
        before = t
    return spans


def _tables(view: _View) -> Iterable[Element]:
    """Rankings, what they are by, and what they are of."""
    if not view.state.fresh:
        return
    query, overview = view.query, view.overview
    by = query.by if query.by in overview.tables else next(b for b in BY if b in overview.tables)
    found = _found(overview, by, query)
    yield _choice(view, found)
    for note in _notes(view, found):
        yield element("p", note, class_="note wide")
    if query.only:
        yield _only(query, found)
    tables = []
    for ranking in found.rankings:
        if ranking.rows:
            count = _count(ranking, found, overview if by == "live" and not query.only else None)
            tables.append(_ranking(ranking, query, found, count))
    yield element("div", *tables, class_="tables wide")


def _choice(view: _View, found: Found) -> Element:
    """Links to the other views of the same."""
    query = view.query
    sort = measure(query.sort, found.totals) if any(found.totals) else query.sort

    def link(text: str, target: Query, *, chosen: bool) -> Element:
        more = {"aria_current": "true"} if chosen else {}
        return element("a", text, href=target.link(), **more)

    numbers = [
        link(_LINKS[name], query._replace(by=name), chosen=name == found.by)
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


def _notes(view: _View, found: Found) -> Iterable[str]:
    """Why the numbers are not those that were requested, or not complete."""
    by, sort = found.by, view.query.sort
    carried = view.overview.tables[by]
    if "rate" not in view.overview.tables:
        yield _no_rates(view) + ("" if by == view.query.by else f" These are of {_OF[by]}.")
    if by == "hour":
        yield f"Counted for {_duration(carried.seconds)}."
    if by != "live":
        yield from map(_sentence, view.overview.gaps)
    if any(found.totals) and measure(sort, found.totals) != sort:
        yield f"Sorted by connections: {sort} are unknown without packet and byte counters."
    if view.query.only:
        return
    if by != "live" and not any(found.totals):
        yield f"No traffic {_WHEN[by]}."
    if by == "live" and view.overview.connections and not any(p.groups for p in carried.parts):
        yield "Live connections by key are not collected: --collector.families=live,traffic does."


def _no_rates(view: _View) -> str:
    """Why there are no rates."""
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


def _found(overview: Overview, by: str, query: Query) -> Found:
    """The rankings of a view, kept where it is of everything."""
    if query.only:
        return _rank(overview, by, query)
    found = overview.whole.get((by, query.sort))
    if found is None:
        found = overview.whole[by, query.sort] = _rank(overview, by, query)
    return found


def _rank(overview: Overview, by: str, query: Query) -> Found:
    labels, carried = overview.labels, overview.tables[by]
    at = [(labels.index(label), value) for label, value in query.only]
    if at:
        carried = carried._replace(parts=tuple([_of(part, at) for part in carried.parts]))
    rows = carried.rows
    totals = Sums(*map(sum, rows.columns))
    fixed = {label for label, _ in query.only}
    wanted: list[tuple[str, ...]] = [
        (label,) for label in labels if _has_table(label, labels) and label not in fixed
    ]
    rest = tuple([label for label in labels if label not in fixed])
    if len(rest) > 1:
        wanted.append(rest)
    folded = any(_is_rest(labels, group) for group in rows.groups)
    rankings = rank(labels, rows, wanted, measure(query.sort, totals), _ROWS)
    return Found(by, carried.seconds, totals, folded, rankings)


def _is_rest(labels: Sequence[str], group: Sequence[str]) -> bool:
    """Whether it looks like all that has no group of its own."""
    pairs = zip(labels, group, strict=True)
    return all(value == OTHER for label, value in pairs if label not in PROTOCOLS)


def _has_table(label: str, labels: Sequence[str]) -> bool:
    """Whether a table of its values says more than others do."""
    return label not in PROTOCOLS and not (label == "dport" and "l7protocol" in labels)


def _of(rows: Rows, at: list[tuple[int, str]]) -> Rows:
    """The rows that have these values."""
    chosen: Iterable[int] = range(len(rows.groups))
    for i, value in at:
        chosen = [n for n in chosen if rows.groups[n][i] == value]
    return Rows(
        [rows.groups[n] for n in chosen],
        tuple([[column[n] for n in chosen] for column in rows.columns]),
    )


def _count(ranking: Ranking, found: Found, live: Overview | None) -> str:
    """How many there are beside those shown. What was folded is known for whole keys alone."""
    shown = len(ranking.rows)
    known = shown + ranking.others
    if live is not None and ranking.labels == live.labels:
        known = live.keys
        return f", {min(shown, known)} of {known:,}" if ranking.others else ""
    if not ranking.others:
        return ""
    return f", {shown} of " + (f"at least {known - 1:,}" if found.folded else f"{known:,}")


def _only(query: Query, found: Found) -> Element:
    """What the view is of, its sums, and the ways out of it."""
    items = []
    for label, value in query.only:
        all_of = f"all {_TITLES.get(label, 'values').lower()}"
        out = element("a", all_of, href=query.without(label).link())
        name = element("strong", value or "none")
        items.append(
            element("div", element("dt", BY_NAME[label].title), element("dd", name, " ", out))
        )
    if any(found.totals):
        shown = measure(query.sort, found.totals)
        items += [
            element("div", element("dt", head), element("dd", text, title=exact))
            for head, text, exact, _ in _numbers(shown, found.totals, found)
        ]
        return element("dl", *items, class_="card wide")
    nothing = element("dd", f"Nothing of it is known {_WHEN[found.by]}.")
    return element("dl", *items, element("div", nothing), class_="card wide")


def _numbers(sort: str, sums: Sums, found: Found) -> list[tuple[str, str, str, str]]:
    """Columns: a head, the number as it is shown, the same exactly, and a hint of the head."""
    by, seconds = found.by, found.seconds
    opened = "connections" if by == "live" else "new"
    over = "" if by == "live" else f" in {_duration(seconds)}"

    def count(number: int) -> str:
        return per_second(number / seconds) if by == "rate" else f"{number:,}"

    def size(number: int) -> str:
        return decimal(8 * number / seconds, "bit/s") if by == "rate" else binary(number)

    unknown = _is_unknown(sums)
    exact_opened = f"{sums.connections:,} connections{over}"
    columns = [(opened, count(sums.connections), exact_opened, "connections")]
    if any(found.totals[1:]):
        if sort == "packets":
            numbers = [(n, count(n), f"{n:,} packets{over}") for n in (sums[1], sums[3])]
        else:
            numbers = [(n, size(n), f"{n:,} bytes{over}") for n in (sums[2], sums[4])]
        both = [
            (head, "?", "unknown: no packet and byte counters", hint)
            if unknown
            else (head, text, exact, hint)
            for head, hint, (_, text, exact) in zip(
                ("sent", "reply"), (_SENT, _REPLY), numbers, strict=True
            )
        ]
        columns = columns + both if sort == "connections" else both + columns
    if by == "hour" and seconds:
        much = MEASURES[sort](sums) / seconds
        mean = decimal(8 * much, "bit/s") if sort == "bytes" else per_second(much)
        if unknown and sort != "connections":
            mean = "?"
        columns.insert(0, ("mean rate", mean, f"{sort}{over}", f"{sort} per second"))
    return columns


def _is_unknown(sums: Sums) -> bool:
    """Whether no connection has counters: with them each has a packet at least."""
    return sums.connections > 0 and not any(sums[1:])


def _ranking(ranking: Ranking, query: Query, found: Found, count: str) -> Element:
    size = MEASURES[ranking.by]
    most = size(ranking.rows[0][1])
    rows = []
    for values, sums in ranking.rows:
        rest = found.folded and _is_rest(ranking.labels, values)
        cells = [
            _name(label, value, query, alone=len(values) == 1, rest=rest)
            for label, value in zip(ranking.labels, values, strict=True)
        ]
        rows.append(_Row(values, cells, _numbers(ranking.by, sums, found), _bar(size(sums), most)))
    whole = len(ranking.labels) > 1
    title = "Keys" if whole else _TITLES.get(ranking.labels[0], BY_NAME[ranking.labels[0]].title)
    heads = [BY_NAME[label].title for label in ranking.labels]
    return _card(f"{title} by {ranking.by}{count}", heads, rows, wide=whole)


def _card(title: str, labels: Sequence[str], rows: list[_Row], *, wide: bool) -> Element:
    """A card with a table. Where there is no room for columns each row is a block."""
    heads = [element("th", name, scope="col") for name in labels]
    heads += [
        element("th", head, scope="col", class_="n", title=hint)
        for head, _, _, hint in rows[0].numbers
    ]
    widths = [len(head.text or "") for head in heads]
    longest = _NAME_WIDTH if len(labels) == 1 else None
    wraps = longest is not None and any(len(row.names[0]) > longest for row in rows)
    body = []
    for row in rows:
        cells = [
            element("td", element("span", f"{head} ", class_="u"), text, class_="n", title=exact)
            for head, text, exact, _ in row.numbers
        ]
        body.append(element("tr", *row.cells, *cells, element("td", row.bar, class_="bar")))
        texts = [*[name[:longest] for name in row.names], *[text for _, text, _, _ in row.numbers]]
        widths = [max(width, len(text)) for width, text in zip(widths, texts, strict=True)]
    # A table where all of its columns have room, each as wide as its longest text.
    room = _room(sum(widths), len(heads) + 1)
    head = element("thead", element("tr", *heads, element("th")))
    return element(
        "section",
        element("h2", title),
        element("table", head, element("tbody", *body)),
        class_=f"card ranking from{room}" + " wide" * wide + " wraps" * wraps,
    )


def _room(characters: int, columns: int) -> int:
    """The first of _WIDTHS that is wide enough for a table, 0 where none is."""
    needed = characters * 0.56 + columns * 0.6 + 4
    return next((width for width in _WIDTHS if width >= needed), 0)


def _name(label: str, value: str, query: Query, *, alone: bool, rest: bool) -> Element:
    """A cell that links to the view of its value alone, where it is one."""
    content: Element | str = value
    if not rest:
        content = element("a", value or "none", href=query.at(label, value).link())
    return element("td", content, class_="name only" if alone else "name")


def _nat(view: _View) -> Iterable[Element]:
    """Egress addresses, and the destinations that take most of their source ports."""
    nat = view.overview.nat
    if nat is None or not view.state.fresh or view.query.only:
        return
    of = f", {len(nat.egress)} of {len(nat.egress) + nat.more:,}" if nat.more else ""
    egress = [
        _ports((row.address, row.l4protocol), row.ports, ("connections", row.connections))
        for row in nat.egress
    ]
    title = f"NAT: egress addresses by ports towards one destination{of}"
    cards = [_card(title, ("address", "l4"), egress, wide=False)]
    if nat.destinations:
        names = ("address", "l4", "destination", "port")
        rows = [_ports(row[:4], row[4]) for row in nat.destinations]
        cards.append(_card("NAT: busiest destinations", names, rows, wide=False))
    yield element("div", *cards, class_="tables wide")


def _ports(names: Sequence[str], ports: int, *others: tuple[str, int]) -> _Row:
    """A row with a number of source ports, and others before it."""
    full = f"of the {PORTS:,} that an address has by default"
    return _Row(
        names,
        [element("td", name, class_="name") for name in names],
        [
            *[(what, f"{number:,}", f"{number:,} {what}", what) for what, number in others],
            ("ports", f"{ports:,}", f"{ports:,} source ports", "source ports in use"),
            ("used", percent(ports / PORTS), full, full),
        ],
        _bar(ports, PORTS),
    )


def _fills(view: _View) -> Iterable[Element]:
    """How full the table of each network namespace is."""
    fills = view.snapshot.fills
    if view.snapshot.parts is None or not fills or not view.state.fresh or view.query.only:
        return
    rows = [
        _Row(
            (name,),
            [_name("netns", name, view.query, alone=True, rest=False)],
            [
                ("entries", f"{entries:,}", f"{entries:,} entries", "entries in the table"),
                ("limit", f"{limit:,}", f"{limit:,} entries", "entries that fit"),
                ("used", percent(entries / limit), "of the limit", "of the limit"),
            ],
            _bar(entries, limit),
        )
        for name, entries, limit in fills[:_ROWS]
    ]
    of = f", {_ROWS} of {len(fills):,}" if len(fills) > _ROWS else ""
    card = _card(f"Tables of network namespaces by fill{of}", ("netns",), rows, wide=True)
    yield element("div", card, class_="tables wide")


def _counts(view: _View) -> Iterable[Element]:
    """All connections by protocol, state and flag."""
    counts = view.overview.counts if view.state.fresh and not view.query.only else ()
    cards = [_count_table(title, words) for title, words in counts if words]
    if cards:
        yield element("div", *cards, class_="counts wide")


def _count_table(title: str, counts: list[tuple[str, int]]) -> Element:
    most = counts[0][1]
    rows = [
        element(
            "tr",
            element("th", word, scope="row"),
            element("td", f"{number:,}", class_="n"),
            element("td", _bar(number, most), class_="bar"),
        )
        for word, number in counts
    ]
    table = element("table", element("tbody", *rows))
    return element("section", element("h2", title), table, class_="card")


def _bar(part: int, whole: int) -> Element:
    percent = 100 * min(1.0, part / whole) if whole else 0
    bar = element("svg", width="100%", height="8", aria_hidden="true")
    for kind, width in (("back", "100%"), ("part", f"{percent:.2f}%")):
        bar.append(element("rect", class_=kind, width=width, height="8", rx="2"))
    return bar


def _summed(counts: dict[tuple[str, str, str], int]) -> dict[str, int]:
    """IPv4 and IPv6 together."""
    sums: dict[str, int] = {}
    for (_, protocol, word), number in counts.items():
        sums[f"{protocol} {word}"] = sums.get(f"{protocol} {word}", 0) + number
    return sums


def _sorted(counts: dict[str, int]) -> list[tuple[str, int]]:
    shown = [(word, number) for word, number in counts.items() if number]
    return sorted(shown, key=lambda item: (-item[1], item[0]))


_SECTIONS = (_charts, _tables, _fills, _nat, _counts)

_FILES = importlib.resources.files(__package__)
_STYLE = (_FILES / "page.css").read_text("utf-8")
_PAGE = Template((_FILES / "page.html").read_text("utf-8").replace("$style", _STYLE))

_STYLE_HASH = base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()
CONTENT_SECURITY_POLICY = (
    f"default-src 'none'; style-src 'sha256-{_STYLE_HASH}'; img-src data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
