"""The page: the last snapshot in HTML, for people with a browser.

It is one document without scripts and without anything from elsewhere, so that
the strictest Content-Security-Policy can hold it. Bars are drawn in SVG, as
such a policy forbids style attributes. page.html and page.css hold what does
not change; _fill() and _element() escape every value.
"""

from __future__ import annotations

import base64
import hashlib
import html
import importlib.resources
import time
from string import Template
from typing import TYPE_CHECKING, Any, NamedTuple
from xml.etree import ElementTree as ET
from xml.etree.ElementTree import Element

from conntrack_textfile import __version__
from conntrack_textfile.aggregate import MEASURES, Ranking, measure, rank
from conntrack_textfile.labels import BY_NAME
from conntrack_textfile.tally import Rows
from conntrack_textfile.units import binary

if TYPE_CHECKING:
    from collections.abc import Iterable

    from conntrack_textfile.aggregate import Aggregate
    from conntrack_textfile.snapshot import Snapshot
    from conntrack_textfile.tally import Egress, Nat

_ROWS = 10
PORTS = 64512  # that the kernel has for an address by default: 1024-65535
_PROTOCOLS = 256  # all that there can be


class NatOverview(NamedTuple):
    """What the page keeps of translated connections, the busiest first."""

    egress: list[Egress]
    more: int  # egress addresses that are not shown
    destinations: list[tuple[str, str, str, str, int]]  # egress, protocol, dst, dport, ports


class Overview(NamedTuple):
    """What the page keeps of a snapshot's connections."""

    totals: tuple[tuple[str, str], ...]  # what, and how much
    counts: tuple[tuple[str, list[tuple[str, int]]], ...]  # a title, and words with numbers
    rankings: tuple[tuple[str, Ranking], ...]  # with titles
    nat: NatOverview | None = None  # None where nothing is translated


def overview(live: Aggregate) -> Overview:
    """The few numbers that the page shows, of what may be very many."""
    totals = live.totals
    folded = live.folded
    names = live.labels
    titled = {
        "Top sources": ("src",),
        "Top destinations": ("dst",),
        "Top services": ("l7protocol",),
        "Top keys": names,
        "": ("l4protocol",),
    }
    kept = {title: labels for title, labels in titled.items() if set(labels) <= set(names)}
    by = measure("bytes", live.totals)
    rows = Rows(live.groups, live.columns)
    rankings = rank(names, rows, list(kept.values()), by, _PROTOCOLS)
    ranked = dict(zip(kept, rankings, strict=True))
    by_protocol = ranked.pop("", None)
    protocols = by_protocol.rows if by_protocol else []
    return Overview(
        (
            ("Connections", f"{totals.connections:,}"),
            ("Sent", binary(totals.sent_bytes)),
            ("Reply", binary(totals.reply_bytes)),
            ("Keys", f"{live.keys:,}" + (f", {folded:,} folded" if folded else "")),
            *([("Filtered", f"{live.filtered:,}")] if live.filtered else []),
            *([("Malformed", f"{live.malformed:,}")] if live.malformed else []),
            *([("Uncounted", f"{live.uncounted:,}")] if live.uncounted else []),
        ),
        (
            (
                "Connections by protocol",
                _sorted({name: sums.connections for (name,), sums in protocols}),
            ),
            ("Connections by state", _sorted(_summed(live.states))),
            ("Connections by flag", _sorted(_summed(live.flags))),
        ),
        tuple((title, _cut(ranking)) for title, ranking in ranked.items() if ranking.rows),
        _nat_overview(live.nat) if live.nat and live.nat.egress else None,
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


def _cut(ranking: Ranking) -> Ranking:
    more = max(0, len(ranking.rows) - _ROWS)
    return ranking._replace(rows=ranking.rows[:_ROWS], others=ranking.others + more)


def render(
    snapshot: Snapshot | None,
    overview: Overview | None,
    *,
    cause: str,
    interval: float,
    telemetry_path: str,
) -> bytes:
    """The page. Without a snapshot or an overview it says why there is none."""
    parts = [*_banners(snapshot, overview, cause)]
    if snapshot is not None:
        parts.append(_facts(snapshot, overview))
    if overview is not None:
        parts += [_count_table(title, counts) for title, counts in overview.counts if counts]
        parts += [_ranking_table(title, ranking) for title, ranking in overview.rankings]
        if overview.nat is not None:
            parts += _nat_tables(overview.nat)
    return _fill(
        _PAGE,
        refresh=str(max(5, round(interval))),
        body=parts,
        metrics=telemetry_path,
        version=__version__,
    )


def _fill(page: Template, **values: str | list[Element]) -> bytes:
    """A page with its values, of which texts are escaped; elements escape what is in them."""
    return page.substitute(
        {
            name: html.escape(value)
            if isinstance(value, str)
            else "\n".join([ET.tostring(e, "unicode", "html") for e in value])
            for name, value in values.items()
        }
    ).encode()


def _element(tag: str, *content: Element | str, **attributes: str) -> Element:
    """An element with text before the elements in it. class_ is its class."""
    made = Element(tag, {name.rstrip("_"): value for name, value in attributes.items()})
    for part in content:
        if isinstance(part, str):
            made.text = (made.text or "") + part
        else:
            made.append(part)
    return made


def _banners(snapshot: Snapshot | None, overview: Overview | None, cause: str) -> Iterable[Element]:
    if snapshot is None:
        yield _banner("The first snapshot is not finished yet.")
        return
    if not snapshot.success:
        what = "there is no snapshot that is fresh enough"
        if overview is not None:
            what = "this is the last good snapshot"
        yield _banner(f"Stale: {what}." + (f" {cause}." if cause else ""))
    for warning in snapshot.warnings.values():
        yield _banner(f"{warning[:1].upper()}{warning[1:]}.")


def _banner(text: str) -> Element:
    return _element("p", text, class_="banner", role="alert")


def _facts(snapshot: Snapshot, overview: Overview | None) -> Element:
    facts = list(overview.totals) if overview else []
    if snapshot.timestamp is not None and snapshot.duration is not None:
        age = max(0.0, time.time() - snapshot.timestamp)
        facts.append(("Snapshot", f"{age:.0f} s ago, took {snapshot.duration:.2f} s"))
    facts.append(("Read by", snapshot.source))
    items = [_element("div", _element("dt", what), _element("dd", much)) for what, much in facts]
    entries, limit = snapshot.conntrack.entries, snapshot.conntrack.entries_limit
    if entries is not None and limit:
        fill = _element("dd", f"{entries:,} of {limit:,} ({entries / limit:.1%})")
        fill.append(_bar(entries, limit))
        items.insert(0, _element("div", _element("dt", "Table"), fill, class_="wide"))
    return _element("dl", *items)


def _count_table(title: str, counts: list[tuple[str, int]]) -> Element:
    most = counts[0][1]
    rows = [
        _element(
            "tr",
            _element("th", word, scope="row"),
            _element("td", f"{number:,}", class_="n"),
            _element("td", _bar(number, most), class_="bar"),
        )
        for word, number in counts
    ]
    return _table(title, _element("tbody", *rows))


def _ranking_table(title: str, ranking: Ranking) -> Element:
    heads = [_element("th", BY_NAME[label].title, scope="col") for label in ranking.labels]
    heads += [
        _element("th", text, scope="col", class_="n") for text in ("connections", "sent", "reply")
    ]
    size = MEASURES[ranking.by]
    most = size(ranking.rows[0][1])
    rows = []
    for values, sums in ranking.rows:
        numbers = f"{sums.connections:,}", binary(sums.sent_bytes), binary(sums.reply_bytes)
        rows.append(
            _element(
                "tr",
                *[_element("td", value) for value in values],
                *[_element("td", number, class_="n") for number in numbers],
                _element("td", _bar(size(sums), most), class_="bar"),
            )
        )
    of = f", {len(rows)} of {len(rows) + ranking.others:,}" if ranking.others else ""
    head = _element("thead", _element("tr", *heads, _element("th")))
    return _table(f"{title} by {ranking.by}{of}", head, _element("tbody", *rows))


def _nat_tables(nat: NatOverview) -> list[Element]:
    """Egress addresses, and the destinations that take most of their source ports."""
    egress = [((row.address, row.l4protocol), row.connections, row.ports) for row in nat.egress]
    destinations = [(row[:4], row[4]) for row in nat.destinations]
    of = f", {len(egress)} of {len(egress) + nat.more:,}" if nat.more else ""
    return [
        _ports_table(
            f"NAT: egress addresses by ports towards one destination{of}",
            ("address", "l4"),
            ("connections", "busiest"),
            egress,
        ),
        *(
            [
                _ports_table(
                    "NAT: busiest destinations",
                    ("address", "l4", "destination", "port"),
                    ("ports",),
                    destinations,
                )
            ]
            if destinations
            else []
        ),
    ]


def _ports_table(
    title: str,
    names: tuple[str, ...],
    numbers: tuple[str, ...],
    rows: Iterable[tuple[Any, ...]],
) -> Element:
    """Rows of texts and numbers, of which the last is source ports and has a bar."""
    heads = [_element("th", name, scope="col") for name in names]
    heads += [_element("th", name, scope="col", class_="n") for name in (*numbers, "of 64,512")]
    body = [
        _element(
            "tr",
            *[_element("td", text) for text in texts],
            *[_element("td", f"{number:,}", class_="n") for number in counts],
            _element("td", f"{counts[-1] / PORTS:.1%}", class_="n"),
            _element("td", _bar(counts[-1], PORTS), class_="bar"),
        )
        for texts, *counts in rows
    ]
    head = _element("thead", _element("tr", *heads, _element("th")))
    return _table(title, head, _element("tbody", *body))


def _table(title: str, *parts: Element) -> Element:
    scroll = _element("div", _element("table", *parts), class_="scroll")
    return _element("section", _element("h2", title), scroll)


def _bar(part: int, whole: int) -> Element:
    percent = 100 * min(1.0, part / whole) if whole else 0
    bar = _element("svg", width="100%", height="8")
    bar.set("aria-hidden", "true")
    for kind, width in (("back", "100%"), ("part", f"{percent:.2f}%")):
        bar.append(_element("rect", class_=kind, width=width, height="8", rx="2"))
    return bar


def _summed(counts: dict[tuple[str, str, str], int]) -> dict[str, int]:
    """IPv4 and IPv6 together."""
    sums: dict[str, int] = {}
    for (_, protocol, word), number in counts.items():
        sums[f"{protocol} {word}"] = sums.get(f"{protocol} {word}", 0) + number
    return sums


def _sorted(counts: dict[str, int]) -> list[tuple[str, int]]:
    return sorted(counts.items(), key=lambda item: (-item[1], item[0]))


_FILES = importlib.resources.files(__package__)
_STYLE = (_FILES / "page.css").read_text("utf-8")
_PAGE = Template((_FILES / "page.html").read_text("utf-8").replace("$style", _STYLE))

_STYLE_HASH = base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()
CONTENT_SECURITY_POLICY = (
    f"default-src 'none'; style-src 'sha256-{_STYLE_HASH}'; img-src data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
