"""The pure engine after its grammars: entries to groups, by a plan.

A group is first a string of bytes, the values of its labels one after the other
in the order of the labels, so that groups are compared and sorted as bytes:

    src, dst, egress, backend  17 bytes: 0 for none, or 1 and an IPv4 address, 2 and an
                               IPv6 address, 3 and the index of a network's name
    l3protocol                 1 byte: 4 or 6
    l4protocol                 1 byte
    l7protocol                 3 bytes: the index of a service's name
    dport                      3 bytes: 65536 is "other"
    zone, mark                 2 and 4 bytes

_speedups.pyx does the same in C.
"""

from __future__ import annotations

import functools
import heapq
from typing import TYPE_CHECKING, NamedTuple

from conntrack_textfile import networks
from conntrack_textfile.kernel.uapi import MAX_LINE
from conntrack_textfile.plan import OTHER
from conntrack_textfile.protocols import l3protocol, l4protocol
from conntrack_textfile.services import UNKNOWN, l7protocol
from conntrack_textfile.tally import Rows, Sums, Tally, add

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from conntrack_textfile.filters import Filter
    from conntrack_textfile.networks import Prefix
    from conntrack_textfile.plan import Plan
    from conntrack_textfile.tally import Counts, Group

_OTHER_PORT = 65536
_IPV4, _IPV6, _NAMED = 1, 2, 3
_MAX_CACHED = 1 << 16  # entries


class Entry(NamedTuple):
    """One tracked connection."""

    # What filters and groups look at:
    l3: int  # 4 or 6
    l4: int
    src: bytes  # of the original tuple, packed
    dst: bytes
    dport: int  # 0 where the protocol has none
    reply_src: bytes
    reply_dst: bytes
    zone: int  # of the original direction
    mark: int

    counters: tuple[int, ...] | None  # the last four of Sums; None without accounting
    state: str  # "" where it has none
    unreplied: bool
    flag: str  # of FLAGS; "" where it has none


class _Field(NamedTuple):
    """How a label's value stands in the bytes of a group."""

    size: int
    encode: Callable[[Entry], bytes]
    decode: Callable[[bytes], str]


class Grouping:
    """Sums entries by group. The twin of _speedups.Grouping."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._fields = _fields(plan)
        self._sums: dict[bytes, list[int]] = {}
        self._cache: dict[tuple[object, ...], list[int] | None] = {}
        self._protocols: dict[tuple[int, int], list[int]] = {}
        self._filtered = 0
        self._malformed = 0
        self._first_malformed = b""
        self._uncounted = 0
        self._states: dict[tuple[int, int, str], int] = {}
        self._flags: dict[tuple[int, int, str], int] = {}

    def add(self, entry: Entry) -> None:
        """Count an entry."""
        looked_at = entry[:9]
        try:
            sums = self._cache[looked_at]
        except KeyError:
            sums = self._sums_of(entry)
            if len(self._cache) >= _MAX_CACHED:
                self._cache.clear()
            self._cache[looked_at] = sums
        if sums is None:
            self._filtered += 1
        else:
            row = (1, *(entry.counters or (0, 0, 0, 0)))
            for field, value in enumerate(row):
                sums[field] += value
            add(self._protocols, (entry.l3, entry.l4), row)
        self._uncounted += entry.counters is None
        for counts, name in (
            (self._states, entry.state),
            (self._flags, "unreplied" if entry.unreplied else ""),
            (self._flags, entry.flag),
        ):
            if name:
                at = entry.l3, entry.l4, name
                counts[at] = counts.get(at, 0) + 1

    def add_malformed(self, data: bytes) -> None:
        """Count what is no entry."""
        if not self._malformed:
            self._first_malformed = data[: MAX_LINE + 1]
        self._malformed += 1

    def tally(self) -> Tally:
        """The sums of all that was added."""
        return Tally(
            _Groups(self._fields, self._sums),
            {
                (l3protocol(l3), l4protocol(l4)): Sums(*row)
                for (l3, l4), row in sorted(self._protocols.items())
            },
            self._filtered,
            self._malformed,
            self._first_malformed,
            self._uncounted,
            _named(self._states),
            _named(self._flags),
        )

    def _sums_of(self, entry: Entry) -> list[int] | None:
        """The sums of an entry's group, None where it is filtered out."""
        if not _passes(self._plan, entry):
            return None
        group = b"".join([field.encode(entry) for field in self._fields])
        return self._sums.setdefault(group, [0, 0, 0, 0, 0])


class _Groups:
    """See tally.Groups."""

    def __init__(self, fields: list[_Field], sums: dict[bytes, list[int]]) -> None:
        self._fields = fields
        self._sums = sums

    def __len__(self) -> int:
        return len(self._sums)

    def rows(self, limit: int, by: str) -> Rows:
        groups: Iterable[bytes] = self._sums
        if 0 < limit < len(self._sums):
            size = {"bytes": _bytes, "packets": _packets, "connections": _connections}[by]
            groups = heapq.nsmallest(
                limit, groups, key=lambda group: (-size(self._sums[group]), group)
            )
        ordered = sorted(groups)
        columns = tuple([self._sums[group][field] for group in ordered] for field in range(5))
        return Rows([self._labels(group) for group in ordered], columns)

    def _labels(self, group: bytes) -> Group:
        values = []
        start = 0
        for field in self._fields:
            values.append(field.decode(group[start : start + field.size]))
            start += field.size
        return tuple(values)


def _bytes(sums: list[int]) -> int:
    return sums[2] + sums[4]


def _packets(sums: list[int]) -> int:
    return sums[1] + sums[3]


def _connections(sums: list[int]) -> int:
    return sums[0]


def _named(counts: dict[tuple[int, int, str], int]) -> Counts:
    return {
        (l3protocol(l3), l4protocol(l4), name): count
        for (l3, l4, name), count in sorted(counts.items())
    }


def _egress(entry: Entry) -> bytes:
    """The address that the source was translated to: replies go there."""
    return b"" if entry.reply_dst == entry.src else entry.reply_dst


def _backend(entry: Entry) -> bytes:
    """The address that the destination was translated to: replies come from there."""
    return b"" if entry.reply_src == entry.dst else entry.reply_src


def _passes(plan: Plan, entry: Entry) -> bool:
    if any(_matches(rule, entry) for rule in plan.exclude):
        return False
    return not plan.include or any(_matches(rule, entry) for rule in plan.include)


def _matches(rule: Filter, entry: Entry) -> bool:
    """Whether an entry meets all conditions."""
    return (
        (rule.l3protocol is None or rule.l3protocol == entry.l3)
        and (rule.l4protocol is None or rule.l4protocol == entry.l4)
        and (rule.dport is None or entry.dport in rule.dport)
        and (rule.zone is None or rule.zone == entry.zone)
        and (rule.mark is None or entry.mark & rule.mark.mask == rule.mark.value)
        and (rule.src is None or rule.src.holds(entry.src))
        and (rule.dst is None or rule.dst.holds(entry.dst))
        and (rule.egress is None or rule.egress.holds(_egress(entry)))
        and (rule.backend is None or rule.backend.holds(_backend(entry)))
    )


def _fields(plan: Plan) -> list[_Field]:
    """The fields of the labels that are kept."""
    service_names = plan.service_names
    service_indexes = {name: index for index, name in enumerate(service_names)}

    def service(entry: Entry) -> str:
        return l7protocol(entry.l4, entry.dport, plan.services)

    def port(entry: Entry) -> int:
        hidden = plan.known_ports and service(entry) == UNKNOWN
        return _OTHER_PORT if hidden else entry.dport

    fields = {
        "src": _address(plan, lambda entry: entry.src, plan.src_prefix),
        "dst": _address(plan, lambda entry: entry.dst, plan.dst_prefix),
        "l3protocol": _number(1, lambda entry: entry.l3, l3protocol),
        "l4protocol": _number(1, lambda entry: entry.l4, l4protocol),
        "l7protocol": _number(
            3, lambda entry: service_indexes[service(entry)], service_names.__getitem__
        ),
        "dport": _number(3, port, lambda number: OTHER if number == _OTHER_PORT else str(number)),
        "zone": _number(2, lambda entry: entry.zone, str),
        "mark": _number(4, lambda entry: entry.mark & plan.mark_mask, str),
        "egress": _address(plan, _egress),
        "backend": _address(plan, _backend),
    }
    return [fields[label] for label in plan.labels]


def _number(size: int, value: Callable[[Entry], int], text: Callable[[int], str]) -> _Field:
    return _Field(
        size,
        lambda entry: value(entry).to_bytes(size, "big"),
        lambda data: text(int.from_bytes(data, "big")),
    )


def _address(
    plan: Plan, value: Callable[[Entry], bytes], prefix: Prefix = networks.WHOLE
) -> _Field:
    names = plan.network_names
    indexes = {name: index for index, name in enumerate(names)}

    @functools.lru_cache(_MAX_CACHED)
    def encode(packed: bytes) -> bytes:
        if not packed:
            return bytes(17)
        name = networks.name(plan.networks, packed)
        if name is not None:
            return bytes([_NAMED]) + indexes[name].to_bytes(4, "big") + bytes(12)
        v6 = len(packed) == 16
        kept = networks.masked(packed, prefix[v6])
        return bytes([_IPV6 if v6 else _IPV4]) + kept.ljust(16, b"\0")

    def decode(data: bytes) -> str:
        if data[0] == _NAMED:
            return names[int.from_bytes(data[1:5], "big")]
        if data[0] == _IPV4:
            return networks.text_of(data[1:5], prefix.v4)
        return networks.text_of(data[1:], prefix.v6) if data[0] else ""

    return _Field(17, lambda entry: encode(value(entry)), decode)
