"""The data of the page: the parts of a snapshot that it shows, and the rankings of its views."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from conntrack_textfile.aggregate import KEPT, PROTOCOLS, Ranking, measure, rank
from conntrack_textfile.gaps import gaps
from conntrack_textfile.plan import OTHER
from conntrack_textfile.tally import Rows, Sums, add, lacks_counters
from conntrack_textfile.units import binary
from conntrack_textfile.web.history import GroupTraffic, compact

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from conntrack_textfile.snapshot import Snapshot
    from conntrack_textfile.tally import Egress, Group, Nat
    from conntrack_textfile.web.history import Past
    from conntrack_textfile.web.query import Query

ROWS = 10
"""Rows of a ranking."""
PORTS = 64512
"""Source ports of an address by default: 1024-65535."""
NEAR = 0.01
"""Share of PORTS in use from which a destination is listed."""

_TOP_SOURCES = 5
_PROTOCOLS = 256  # an 8-bit number: all of them


class RankedView(NamedTuple):
    """The rankings of one view."""

    by: str  # of query.BY
    seconds: float  # length of the interval or the hour so far; 0 for live connections
    totals: Sums
    folded: bool  # whether there is an overflow series ("other")
    rankings: list[Ranking]


class NatOverview(NamedTuple):
    """Translated connections: egress addresses and destinations with the most ports in use."""

    egress: list[Egress]
    more: int  # further egress addresses
    # Egress address, protocol, dst, dport, ports in use: NEAR of PORTS or more.
    destinations: list[tuple[str, str, str, str, int]]


class Overview(NamedTuple):
    """What the page keeps of a snapshot, prepared once for all views."""

    warnings: Mapping[str, str]  # by kind, as Snapshot.warnings
    gaps: list[str]  # traffic that is missing in its rates, see gaps.py
    totals: tuple[tuple[str, str], ...]  # names and texts
    counts: tuple[tuple[str, list[tuple[str, int]]], ...]  # a title, and rows
    nat: NatOverview | None  # None without translated connections
    labels: tuple[str, ...]
    keys: int  # live groups before the limit
    connections: int
    tables: dict[str, GroupTraffic]  # by the values of query.BY that are available
    past: Past
    cache: dict[tuple[str, ...], RankedView]  # unfiltered views, once requested

    def ranked(self, by: str, query: Query) -> RankedView:
        """Return the rankings of a view. Those of unfiltered views are cached."""
        if query.matchers:
            return _rank(self, by, query)
        ranked = self.cache.get((by, query.sort))
        if ranked is None:
            ranked = self.cache[by, query.sort] = _rank(self, by, query)
        return ranked

    def top_sources(self, by: str, sort: str) -> RankedView:
        """Return the ranking of sources alone: that of all labels takes several times as long."""
        key = ("src", by, sort)
        ranked = self.cache.get(key)
        if ranked is None:
            ranked = self.cache[key] = _rank_sources(self, by, sort)
        return ranked


def prepare(snapshot: Snapshot, past: Past) -> Overview:
    """Return what the page needs of a good snapshot, without its groups and counters."""
    live = snapshot.live
    assert live is not None
    totals = live.totals
    folded = live.folded
    rows = compact(live, snapshot.traffic)
    protocols: list[tuple[tuple[str, ...], Sums]] = []
    if "l4protocol" in live.labels:
        (ranking,) = rank(live.labels, rows, [("l4protocol",)], "connections", _PROTOCOLS)
        protocols = ranking.rows
    tables = {"rate": past.interval, "hour": past.hour, "live": GroupTraffic((rows,), 0.0)}
    warnings = snapshot.warnings
    warnings.pop("folded", None)  # it limits series, and the number of keys says it
    known = not lacks_counters(totals)
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
        tables={by: traffic for by, traffic in tables.items() if traffic is not None},
        past=past,
        cache={},
    )


def _nat_overview(nat: Nat) -> NatOverview:
    egress = sorted(nat.egress, key=lambda row: (-row.ports, -row.connections))
    towards = [
        (row.address, row.l4protocol, *destination)
        for row in egress
        for destination in row.destinations
        if destination[-1] >= NEAR * PORTS
    ]
    towards.sort(key=lambda row: -row[-1])
    return NatOverview(egress[:ROWS], max(0, len(egress) - ROWS), towards[:ROWS])


def _summed(counts: dict[tuple[str, str, str], int]) -> dict[str, int]:
    """Return the counts of IPv4 and IPv6 together, by "protocol word"."""
    sums: dict[str, int] = {}
    for (_, protocol, word), number in counts.items():
        sums[f"{protocol} {word}"] = sums.get(f"{protocol} {word}", 0) + number
    return sums


def _sorted(counts: dict[str, int]) -> list[tuple[str, int]]:
    shown = [(word, number) for word, number in counts.items() if number]
    return sorted(shown, key=lambda item: (-item[1], item[0]))


def _rank(overview: Overview, by: str, query: Query) -> RankedView:
    labels, traffic = overview.labels, overview.tables[by]
    at = [(labels.index(label), value) for label, value in query.matchers]
    if at:
        traffic = traffic._replace(parts=tuple([_select(part, at) for part in traffic.parts]))
    rows = traffic.rows
    totals = rows.totals
    fixed = {label for label, _ in query.matchers}
    wanted: list[tuple[str, ...]] = [
        (label,) for label in labels if _has_table(label, labels) and label not in fixed
    ]
    rest = tuple([label for label in labels if label not in fixed])
    if len(rest) > 1:
        wanted.append(rest)
    folded = any(is_overflow(labels, group) for group in rows.groups)
    rankings = rank(labels, rows, wanted, measure(query.sort, totals), ROWS)
    return RankedView(by, traffic.seconds, totals, folded, rankings)


def _rank_sources(overview: Overview, by: str, sort: str) -> RankedView:
    at, traffic = overview.labels.index("src"), overview.tables[by]
    sums: dict[Group, list[int]] = {}
    for part in traffic.parts:
        for group, row in part.pairs():
            add(sums, (group[at],), row)
    rows = Rows.of(sums)
    totals = rows.totals
    rankings = rank(("src",), rows, [("src",)], measure(sort, totals), _TOP_SOURCES)
    return RankedView(by, traffic.seconds, totals, (OTHER,) in sums, rankings)


def is_overflow(labels: Sequence[str], group: Sequence[str]) -> bool:
    """Return whether a group is an overflow series: "other", but for the labels in KEPT."""
    pairs = zip(labels, group, strict=True)
    folded = [value for label, value in pairs if label not in KEPT]
    return bool(folded) and all(value == OTHER for value in folded)


def _has_table(label: str, labels: Sequence[str]) -> bool:
    """Whether a label gets a ranking: services imply ports, and protocols have a card."""
    return label not in PROTOCOLS and not (label == "dport" and "l7protocol" in labels)


def _select(rows: Rows, at: list[tuple[int, str]]) -> Rows:
    """Return the rows with these label values, given by the index of each label."""
    chosen: Iterable[int] = range(len(rows.groups))
    for i, value in at:
        chosen = [n for n in chosen if rows.groups[n][i] == value]
    return Rows(
        [rows.groups[n] for n in chosen],
        tuple([[column[n] for n in chosen] for column in rows.columns]),
    )
