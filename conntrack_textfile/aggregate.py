"""Aggregation of a tally: the limit on series, "other" as the overflow series, top N.

Whatever the limit, the series of a family add up to its total.
"""

from __future__ import annotations

import operator
from typing import TYPE_CHECKING, NamedTuple

from conntrack_textfile.plan import OTHER
from conntrack_textfile.tally import Egress, Rows, Sums, add

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from conntrack_textfile.tally import Counts, Group, Nat, Tally, Translations

# What groups can be ranked by (--limit.by).
MEASURES: dict[str, Callable[[Sequence[int]], int]] = {
    "bytes": lambda sums: sums[2] + sums[4],
    "packets": lambda sums: sums[1] + sums[3],
    "connections": operator.itemgetter(0),
}

PROTOCOLS = ("l3protocol", "l4protocol")
# The labels that "other" keeps: they have few values.
KEPT = ("netns", *PROTOCOLS)


class Limit(NamedTuple):
    """How many groups have series of their own, and which."""

    keys: int = 10000  # 0: no limit
    by: str = "bytes"  # of MEASURES
    destinations: int = 10  # for each egress address


class Aggregate(NamedTuple):
    """The live connections of a table, under the limit."""

    labels: tuple[str, ...]
    groups: Sequence[Group]
    columns: tuple[Sequence[int], ...]  # one for each field of Sums, a number for each group
    totals: Sums  # over all groups
    keys: int  # groups before the limit
    exported: int  # groups that have series of their own
    filtered: int  # entries that the filters dropped: they are in no sum

    # Of the whole table, whatever the filters:
    malformed: int
    uncounted: int
    states: Counts
    flags: Counts
    nat: Nat | None  # None where translated entries are not counted

    @property
    def folded(self) -> int:
        """The number of groups in "other"."""
        return self.keys - self.exported


class Ranking(NamedTuple):
    """The top N groups for one label set."""

    labels: tuple[str, ...]
    by: str  # of MEASURES
    rows: list[tuple[Group, Sums]]  # largest first
    others: int  # the number of groups that are not in rows


def fold(tally: Tally, labels: tuple[str, ...], limit: Limit) -> Aggregate:
    """Return a tally under a limit: the largest groups, and an "other" for each protocol.

    It frees the groups of the tally: see tally.Groups.rows().
    """
    found = summary(tally, labels)
    if tally.nat:
        found = found._replace(nat=nats({"": tally.nat}, limit)[""])
    # Where all labels are in KEPT, "other" would have the labels of the groups themselves.
    if 0 < limit.keys < found.keys and set(labels) - set(KEPT):
        rows = tally.groups.rows(limit.keys, measure(limit.by, found.totals))
        groups, columns = _with_others(rows, tally.protocols, labels)
        return found._replace(groups=groups, columns=columns, exported=limit.keys)
    groups, columns = tally.groups.rows(0, limit.by)
    return found._replace(groups=groups, columns=columns)


def summary(tally: Tally, labels: tuple[str, ...]) -> Aggregate:
    """Return the aggregate of a tally, without groups and NAT."""
    keys = len(tally.groups)
    return Aggregate(
        labels=labels,
        groups=(),
        columns=((),) * len(Sums._fields),
        totals=totals(tally),
        keys=keys,
        exported=keys,
        filtered=tally.filtered,
        malformed=tally.malformed,
        uncounted=tally.uncounted,
        states=tally.states,
        flags=tally.flags,
        nat=None,
    )


def protocol_labels(labels: tuple[str, ...]) -> tuple[str, ...]:
    """Return the labels of the sums by protocol. labels: those of the groups."""
    return KEPT if "netns" in labels else PROTOCOLS


def nats(translations: Mapping[str, Translations], limit: Limit) -> dict[str, Nat]:
    """Return the translated entries of each table, by name. All tables share one limit."""
    found = {
        name: table.nat(limit.keys, limit.destinations) for name, table in translations.items()
    }
    return _with_busiest_destinations(_with_busiest_egress(found, limit.keys), limit.keys)


def _with_busiest_egress(found: dict[str, Nat], keys: int) -> dict[str, Nat]:
    """Keep the top N egress addresses over all tables; fold those of each table into "other".

    keys: N, 0 for no limit.
    """
    order = sorted(
        (-row.ports, -row.connections, name, at)
        for name, nat in found.items()
        for at, row in enumerate(nat.egress)
        if row.address != OTHER
    )
    if not 0 < keys < len(order):
        return found
    kept = {(name, at) for _, _, name, at in order[:keys]}
    limited = {}
    for name, nat in found.items():
        rows = []
        others: dict[str, Egress] = {}
        for at, row in enumerate(nat.egress):
            if (name, at) in kept:
                rows.append(row)
                continue
            other = others.get(row.l4protocol, Egress(OTHER, row.l4protocol, 0, 0, []))
            others[row.l4protocol] = other._replace(
                connections=other.connections + row.connections,
                ports=max(other.ports, row.ports),
            )
        limited[name] = nat._replace(egress=[*rows, *others.values()])
    return limited


def _with_busiest_destinations(found: dict[str, Nat], keys: int) -> dict[str, Nat]:
    """Keep the top N destinations over all tables. keys: N, 0 for no limit."""
    egress = [row for nat in found.values() for row in nat.egress]
    counts = [ports for row in egress for _, _, ports in row.destinations]
    if not 0 < keys < len(counts):
        return found
    least = sorted(counts, reverse=True)[keys - 1]
    # Of the destinations with exactly this many ports, only the first fit.
    room = keys - sum(count > least for count in counts)
    limited = {}
    for name, nat in found.items():
        rows = []
        for row in nat.egress:
            larger = [dst for dst in row.destinations if dst[2] > least]
            equal = [dst for dst in row.destinations if dst[2] == least][:room]
            room -= len(equal)
            rows.append(row._replace(destinations=larger + equal))
        limited[name] = nat._replace(egress=rows)
    return limited


def totals(tally: Tally) -> Sums:
    """Return the sums over all groups."""
    return Sums(*map(sum, zip(Sums(0, 0, 0, 0, 0), *tally.protocols.values(), strict=True)))


def measure(by: str, totals: Sums) -> str:
    """Return what to rank by: connections where all packets and bytes are 0 (accounting off)."""
    return by if any(totals[1:]) else "connections"


def rank(
    labels: Sequence[str], rows: Rows, wanted: Sequence[Sequence[str]], by: str, count: int
) -> list[Ranking]:
    """Return the top N groups for each label set, in one pass over the rows.

    wanted: the label sets, each a subset of labels.
    """
    positions = [[labels.index(label) for label in kept] for kept in wanted]
    sums: list[dict[Group, list[int]]] = [{} for _ in wanted]
    for group, row in rows.pairs():
        for indexes, into in zip(positions, sums, strict=True):
            add(into, tuple([group[index] for index in indexes]), row)
    return [_ranking(tuple(kept), by, into, count) for kept, into in zip(wanted, sums, strict=True)]


def _ranking(labels: tuple[str, ...], by: str, sums: dict[Group, list[int]], count: int) -> Ranking:
    # Imported here: write ranks nothing.
    import heapq

    size = MEASURES[by]
    # Stable: of equally large groups the first are taken.
    largest = heapq.nlargest(count, sums.items(), key=lambda item: size(item[1]))
    rows = [(group, Sums(*row)) for group, row in largest]
    return Ranking(labels, by, rows, len(sums) - len(rows))


def _with_others(
    rows: Rows, protocols: dict[Group, Sums], labels: tuple[str, ...]
) -> tuple[Sequence[Group], tuple[Sequence[int], ...]]:
    """Return rows, with an "other" for each protocol that the labels distinguish.

    rows: the groups with series of their own. protocols: the sums over all groups.
    """
    names_of = protocol_labels(labels)
    # Where the shared labels are in a group, and in a key of protocols.
    at = [labels.index(label) for label in names_of if label in labels]
    kept = [names_of.index(labels[index]) for index in at]
    # "other" is the total of its protocol less the rows: the folded groups are not visited.
    rest: dict[Group, list[int]] = {}
    for names, subtotal in protocols.items():
        add(rest, tuple([names[index] for index in kept]), subtotal)
    sums: dict[Group, list[int]] = {}
    for group, row in rows.pairs():
        add(sums, group, row)
        add(rest, tuple([group[index] for index in at]), [-value for value in row])
    for protocol, left in rest.items():
        if left[0]:
            # A user can name a network or service "other": then both are one series.
            add(sums, other_group(labels, protocol), left)
    return list(sums), _columns(sums.values())


def other_group(labels: tuple[str, ...], protocol: Group) -> Group:
    """Return the group "other" of a protocol. protocol: the values of the labels in KEPT."""
    names = iter(protocol)
    return tuple([next(names) if label in KEPT else OTHER for label in labels])


def _columns(rows: Iterable[Sequence[int]]) -> tuple[Sequence[int], ...]:
    return tuple(map(list, zip(*rows, strict=True)))
