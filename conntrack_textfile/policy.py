"""The policy: which keys are shown, in what words, and how many of them.

Filters choose keys, grouping makes fewer of them, and the limit folds the
smallest into "other". Whatever is asked for, the series add up to the totals.
"""

from __future__ import annotations

import functools
import itertools
import operator
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, TypeVar

from conntrack_textfile import names, networks
from conntrack_textfile.tally import Sums, add

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from conntrack_textfile.filters import Filter
    from conntrack_textfile.tally import Counts, Key, Subtotals, Tally

LABELS = ("src", "dst", "l3protocol", "l4protocol", "l7protocol", "dport")
OTHER = "other"

_BITS = (32, 128)
_L3 = {4: "ipv4", 6: "ipv6"}

# What a series is for: layer 3 (4 or 6), source and destination, layer 4,
# destination port, layer 7. Source and destination are packed addresses or
# networks, or words (_word()). What is left out is 0, b"", -1 or "".
_Group = tuple[int, bytes, bytes, int, int, str]

_OTHER_PORT = 65536
_WORD = b"\xff" * 16  # longer than an address with what follows
_REMEMBERED = 1 << 16  # addresses

_Given = TypeVar("_Given")
_Made = TypeVar("_Made")


class Policy(NamedTuple):
    """What the user wants to see of a tally."""

    include: tuple[Filter, ...] = ()  # any of these, or all keys where there is none
    exclude: tuple[Filter, ...] = ()  # and none of these
    labels: tuple[str, ...] = LABELS  # a subset of these, in their order
    src_prefix: tuple[int, int] = _BITS  # lengths for IPv4 and IPv6
    dst_prefix: tuple[int, int] = _BITS
    networks: networks.Names = ()
    services: names.Services = names.SERVICES
    known_ports: bool = False  # only ports of a known service are shown
    limit: int = 10000  # series; 0 is no limit
    limit_by: str = "bytes"


class Connections(NamedTuple):
    """What the table held, by columns."""

    label_names: tuple[str, ...]

    labels: Sequence[tuple[str, ...]]
    """A value for each label name, for each series; made as they are asked for."""

    columns: tuple[Sequence[int], ...]
    """Five, one for each field of Sums: a number for each series."""

    totals: Sums
    """The sums over all series."""

    keys: int
    """How many keys the connections were summed up to."""

    exported: int
    """How many of these have a series of their own."""

    filtered: int
    """Connections that filters took out: they are in no sum."""

    # Of the whole table, whatever the filters:

    malformed: int
    uncounted: int
    states: dict[tuple[str, str, str], int]  # by l3protocol, l4protocol, state
    flags: dict[tuple[str, str, str], int]

    @property
    def folded(self) -> int:
        """How many keys have no series of their own."""
        return self.keys - self.exported


def show(policy: Policy, tally: Tally) -> Connections:
    """A tally under a policy."""
    rows, filtered = _grouped(policy, tally)
    keys = exported = len(rows.groups)
    totals = Sums(*map(sum, zip(Sums(0, 0, 0, 0, 0), *rows.subtotals.values(), strict=True)))
    # By layer 3 and 4 alone there are few, and to fold them would change nothing.
    if 0 < policy.limit < keys and set(policy.labels) - {"l3protocol", "l4protocol"}:
        exported = policy.limit
        rows = _folded(policy, rows, totals)
    elif not rows.ordered:
        rows = _chosen(rows, sorted(range(keys), key=rows.groups.__getitem__))
    return Connections(
        policy.labels,
        _Mapped(_labeller(policy), rows.groups),
        rows.columns,
        totals,
        keys,
        exported,
        filtered,
        tally.malformed,
        tally.uncounted,
        _named(tally.states),
        _named(tally.flags),
    )


class _Rows(NamedTuple):
    groups: Sequence[_Group]
    columns: tuple[Sequence[int], ...]
    subtotals: Subtotals
    ordered: bool  # whether the groups ascend


class _Mapped(Sequence[_Made], Generic[_Given, _Made]):
    """What a function makes of each item, made as it is asked for: there may be very many."""

    def __init__(self, make: Callable[[_Given], _Made], items: Sequence[_Given]) -> None:
        self._make = make
        self._items = items

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, index: Any) -> Any:
        return self._make(self._items[index])

    def __iter__(self) -> Iterator[_Made]:
        return map(self._make, self._items)


def _grouped(policy: Policy, tally: Tally) -> tuple[_Rows, int]:
    """The rows of a tally as the user groups them; and the connections that were filtered out."""
    group = _grouper(policy)
    if policy == Policy(
        limit=policy.limit, limit_by=policy.limit_by, services=policy.services
    ):  # every key is a group
        rows = _Rows(_Mapped(group, tally.keys), tally.columns, tally.subtotals, ordered=True)
        return rows, 0
    filtered = 0
    sums: dict[_Group, list[int]] = {}
    filters = policy.include or policy.exclude
    for key, row in zip(tally.keys, zip(*tally.columns, strict=True), strict=True):
        if filters and not _passes(policy, key):
            filtered += row[0]
        else:
            add(sums, group(key), row)
    subtotals: dict[tuple[int, int], list[int]] = {}
    for (l3, _, _, l4, _, _), values in sums.items():
        add(subtotals, (l3, l4), values)
    return _rows(sums, {at: Sums(*values) for at, values in subtotals.items()}), filtered


def _rows(sums: dict[_Group, list[int]], subtotals: Subtotals) -> _Rows:
    columns = tuple([row[field] for row in sums.values()] for field in range(5))
    return _Rows(list(sums), columns, subtotals, ordered=False)


def _passes(policy: Policy, key: Key) -> bool:
    if any(rule.matches(key) for rule in policy.exclude):
        return False
    return not policy.include or any(rule.matches(key) for rule in policy.include)


def _chosen(rows: _Rows, indexes: Sequence[int]) -> _Rows:
    """Some of the rows, in this order."""
    groups = [rows.groups[index] for index in indexes]
    columns = tuple([column[index] for index in indexes] for column in rows.columns)
    return _Rows(groups, columns, rows.subtotals, ordered=True)


def _folded(policy: Policy, rows: _Rows, totals: Sums) -> _Rows:
    """The largest rows, and for each layer 3 and 4 a row of all the others."""
    # Imported here: most tables are below the limit.
    import heapq

    by = policy.limit_by
    if not any(totals[1:]):  # nothing has counters
        by = "connections"
    connections, sent_packets, sent_bytes, reply_packets, reply_bytes = rows.columns
    sizes: Iterator[int] = iter(connections)
    if by == "packets":
        sizes = map(operator.add, sent_packets, reply_packets)
    elif by == "bytes":
        sizes = map(operator.add, sent_bytes, reply_bytes)
    # Of equal ones the first.
    order = itertools.repeat(None) if rows.ordered else rows.groups
    ranked = zip(map(operator.neg, sizes), order, itertools.count())
    largest = [row[1:] for row in heapq.nsmallest(policy.limit, ranked)]
    kept = _chosen(rows, [index for _, index in sorted(largest)])

    sums = dict(zip(kept.groups, map(list, zip(*kept.columns, strict=True)), strict=True))
    # What is not kept is the rest of each subtotal: no need to look at it.
    rest = {at: list(subtotal) for at, subtotal in rows.subtotals.items()}
    for (l3, _, _, l4, _, _), row in sums.items():
        for field, value in enumerate(row):
            rest[l3, l4][field] -= value
    for (l3, l4), row in sorted(rest.items()):
        if row[0]:
            # A user may have given this very name to something large.
            add(sums, _other(policy, l3, l4), row)
    return _rows(sums, rows.subtotals)


def _other(policy: Policy, l3: int, l4: int) -> _Group:
    src, dst, dport, l7 = (name in policy.labels for name in ("src", "dst", "dport", "l7protocol"))
    return (
        l3,
        _word(OTHER) if src else b"",
        _word(OTHER) if dst else b"",
        l4,
        _OTHER_PORT if dport else -1,
        OTHER if l7 else "",
    )


def _grouper(policy: Policy) -> Callable[[Key], _Group]:
    """What a key is counted for."""
    by_src, by_dst, by_l3, by_l4, by_l7, by_dport = (name in policy.labels for name in LABELS)
    services, known_ports = policy.services, policy.known_ports
    needs_l7 = by_l7 or known_ports
    src_of = _places(policy.networks, policy.src_prefix)
    dst_of = _places(policy.networks, policy.dst_prefix)

    def group(key: Key) -> _Group:
        src, dst, l4, dport = key
        l7 = names.l7protocol(l4, dport, services) if needs_l7 else ""
        if known_ports and l7 == names.UNKNOWN:
            dport = _OTHER_PORT
        return (
            (4 if len(src) == 4 else 6) if by_l3 else 0,
            src_of(src) if by_src else b"",
            dst_of(dst) if by_dst else b"",
            l4 if by_l4 else -1,
            dport if by_dport else -1,
            l7 if by_l7 else "",
        )

    return group


def _places(named: networks.Names, prefix: tuple[int, int]) -> Callable[[bytes], bytes]:
    """What an address is counted for: its name, or else its network."""
    if not named and prefix == _BITS:
        return bytes  # the address itself

    def place(address: bytes) -> bytes:
        name = networks.name(named, address) if named else None
        if name is not None:
            return _word(name)
        return networks.masked(address, prefix[len(address) == 16])

    return functools.lru_cache(_REMEMBERED)(place) if named else place


def _word(name: str) -> bytes:
    return _WORD + name.encode()


def _labeller(policy: Policy) -> Callable[[_Group], tuple[str, ...]]:
    """The values of the labels of a group."""
    shown = [name in policy.labels for name in LABELS]

    def place(packed: bytes, prefix: tuple[int, int]) -> str:
        if len(packed) > 16:
            return packed.removeprefix(_WORD).decode()
        return networks.shown(packed, prefix[len(packed) == 16]) if packed else ""

    def labels(group: _Group) -> tuple[str, ...]:
        l3, src, dst, l4, dport, l7 = group
        values = (
            place(src, policy.src_prefix),
            place(dst, policy.dst_prefix),
            _L3.get(l3, ""),
            names.l4protocol(l4),
            l7,
            OTHER if dport == _OTHER_PORT else str(dport),
        )
        return values if policy.labels == LABELS else tuple(itertools.compress(values, shown))

    return labels


def _named(counts: Counts) -> dict[tuple[str, str, str], int]:
    return {(_L3[l3], names.l4protocol(l4), name): n for (l3, l4, name), n in counts.items()}
