"""Entries summed by group: what the pure engine does with what it has parsed.

The key of a group has the values of its labels, in the order of the labels, padded
with zeros to a multiple of 8 bytes. Keys sort by label values:

    src, dst, egress, backend  17 bytes: 0 for none, or 1 and an IPv4 address, 2 and an
                               IPv6 address, 3 and the index of a network's or host's name
    l3protocol                 1 byte: 4 or 6
    l4protocol                 1 byte
    l7protocol                 3 bytes: the index of a service's name
    dport                      3 bytes: 65536 is "other"
    zone, mark                 2 and 4 bytes

grouping.pxi and plan.pxi are the same in C.
"""

from __future__ import annotations

import functools
import heapq
from typing import TYPE_CHECKING, NamedTuple

from conntrack_textfile import networks
from conntrack_textfile.kernel.nat import Translations
from conntrack_textfile.kernel.uapi import MAX_LINE
from conntrack_textfile.plan import OTHER
from conntrack_textfile.protocols import l3protocol, l4protocol
from conntrack_textfile.services import UNKNOWN, l7protocol
from conntrack_textfile.tally import Rows, Sums, Tally, add

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Sequence

    from conntrack_textfile.filters import Filter
    from conntrack_textfile.networks import Prefix
    from conntrack_textfile.plan import Plan
    from conntrack_textfile.tally import Counts, Group

_OTHER_PORT = 65536
_IPV4, _IPV6, _NAMED = 1, 2, 3
_VERSION = {4: bytes([_IPV4]), 16: bytes([_IPV6])}  # by size of the address
_MAX_CACHED = 1 << 16  # entries


class Entry(NamedTuple):
    """One tracked connection."""

    # What filters and groups depend on:
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

    # With these NAT is detected. The source port of ICMP is its id.
    sport: int
    reply_sport: int
    reply_dport: int
    reply_zone: int


class _Field(NamedTuple):
    """The encoding of a label's value in the key of a group."""

    size: int
    encode: Callable[[Entry], bytes]
    decode: Callable[[bytes], str]
    parse: Callable[[str], bytes]  # the inverse of decode; raises ValueError


class Grouping:
    """Sums by group and by protocol."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._fields = _fields(plan)
        self._encoders = [field.encode for field in self._fields]
        self._sums: dict[bytes, list[int]] = {}
        self._cache: dict[tuple[object, ...], bytes | None] = {}
        self._protocols: dict[tuple[int, int], list[int]] = {}
        self._filtered = 0
        self._malformed = 0
        self._first_malformed = b""
        self._uncounted = 0
        self._states: dict[tuple[int, int, str], int] = {}
        self._flags: dict[tuple[int, int, str], int] = {}
        self._nat = Translations() if plan.nat else None

    def add(self, entry: Entry) -> bytes | None:
        """Count an entry. Return the key of its group, or None if the filters drop it."""
        group = self.group_of(entry)
        if group is None:
            self._filtered += 1
        else:
            self.add_sums(group, entry, (1, *(entry.counters or (0, 0, 0, 0))))
        self._uncounted += entry.counters is None
        if entry.state:
            _count(self._states, (entry.l3, entry.l4, entry.state))
        if entry.unreplied:
            _count(self._flags, (entry.l3, entry.l4, "unreplied"))
        if entry.flag:
            _count(self._flags, (entry.l3, entry.l4, entry.flag))
        if self._nat is not None:
            self._nat.add(
                entry.l3,
                entry.l4,
                (entry.src, entry.sport, entry.dst, entry.dport),
                (entry.reply_src, entry.reply_sport, entry.reply_dst, entry.reply_dport),
                entry.reply_zone,
            )
        return group

    def group_of(self, entry: Entry) -> bytes | None:
        """Return the key of an entry's group, or None if the filters drop it."""
        relevant = entry[:9]  # l3 to mark
        try:
            return self._cache[relevant]
        except KeyError:
            pass
        group = None
        if _passes(self._plan, entry):
            group = _padded([encode(entry) for encode in self._encoders])
        if len(self._cache) >= _MAX_CACHED:
            self._cache.clear()
        self._cache[relevant] = group
        return group

    def add_sums(self, group: bytes, entry: Entry, row: Sequence[int]) -> None:
        """Add a row of Sums to a group and to the protocols of an entry."""
        add(self._sums, group, row)
        add(self._protocols, (entry.l3, entry.l4), row)

    def add_malformed(self, data: bytes) -> None:
        """Count a malformed entry."""
        if not self._malformed:
            self._first_malformed = data[: MAX_LINE + 1]
        self._malformed += 1

    def tally(self) -> Tally:
        """Return the tally."""
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
            self._nat,
        )


class _Groups:
    """See tally.Groups."""

    def __init__(self, fields: list[_Field], sums: dict[bytes, list[int]]) -> None:
        self._fields = fields
        self._sums = sums

    def __len__(self) -> int:
        return len(self._sums)

    def rows(self, limit: int, by: str) -> Rows:
        keys: Iterable[bytes] = self._sums
        if 0 < limit < len(self._sums):
            keys = [key for key, _ in self.largest(limit, by)]
        keys = sorted(keys)
        columns = tuple([self._sums[key][field] for key in keys] for field in range(5))
        return Rows([self.labels(key) for key in keys], columns)

    def largest(
        self, limit: int, by: str, without: Collection[bytes] = ()
    ) -> list[tuple[bytes, Sums]]:
        size = {"bytes": _bytes, "packets": _packets, "connections": _connections}[by]
        rows = [(key, sums) for key, sums in self._sums.items() if key not in without]
        largest = heapq.nsmallest(limit, rows, key=lambda row: (-size(row[1]), row[0]))
        return [(key, Sums(*sums)) for key, sums in largest]

    def get(self, keys: Iterable[bytes]) -> list[Sums | None]:
        return [Sums(*self._sums[key]) if key in self._sums else None for key in keys]

    def labels(self, key: bytes) -> Group:
        values = []
        start = 0
        for field in self._fields:
            values.append(field.decode(key[start : start + field.size]))
            start += field.size
        return tuple(values)


def _bytes(sums: list[int]) -> int:
    return sums[2] + sums[4]


def _packets(sums: list[int]) -> int:
    return sums[1] + sums[3]


def _connections(sums: list[int]) -> int:
    return sums[0]


def key_parser(plan: Plan) -> Callable[[Group], bytes | None]:
    """Return a function from label values to the key of a group; None if the plan has none."""
    fields = _fields(plan)

    def key_of(labels: Group) -> bytes | None:
        try:
            return _padded([f.parse(text) for f, text in zip(fields, labels, strict=True)])
        except (ValueError, OverflowError):
            return None

    return key_of


def _count(counts: dict[tuple[int, int, str], int], at: tuple[int, int, str]) -> None:
    counts[at] = counts.get(at, 0) + 1


def _padded(values: Iterable[bytes]) -> bytes:
    key = b"".join(values)
    return key + bytes(-len(key) % 8 if key else 8)


def _named(counts: dict[tuple[int, int, str], int]) -> Counts:
    return {
        (l3protocol(l3), l4protocol(l4), name): count
        for (l3, l4, name), count in sorted(counts.items())
    }


def _egress(entry: Entry) -> bytes:
    """Return the address that the source is translated to: replies go there."""
    return b"" if entry.reply_dst == entry.src else entry.reply_dst


def _backend(entry: Entry) -> bytes:
    """Return the address that the destination is translated to: replies come from there."""
    return b"" if entry.reply_src == entry.dst else entry.reply_src


def _passes(plan: Plan, entry: Entry) -> bool:
    if any(_matches(rule, entry) for rule in plan.exclude):
        return False
    return not plan.include or any(_matches(rule, entry) for rule in plan.include)


def _matches(rule: Filter, entry: Entry) -> bool:
    """Return whether an entry meets all conditions."""
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
    """Return the field of each label of the plan."""
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
        "l3protocol": _name(1, lambda entry: entry.l3, {n: l3protocol(n) for n in (4, 6)}),
        "l4protocol": _name(1, lambda entry: entry.l4, {n: l4protocol(n) for n in range(256)}),
        "l7protocol": _name(
            3, lambda entry: service_indexes[service(entry)], dict(enumerate(service_names))
        ),
        "dport": _number(3, port, {_OTHER_PORT: OTHER}),
        "zone": _number(2, lambda entry: entry.zone, {}),
        "mark": _number(4, lambda entry: entry.mark & plan.mark_mask, {}),
        "egress": _address(plan, _egress),
        "backend": _address(plan, _backend),
    }
    return [fields[label] for label in plan.labels]


def _name(size: int, value: Callable[[Entry], int], names: dict[int, str]) -> _Field:
    """Return the field of a number that is shown by its name."""
    codes = {number: number.to_bytes(size, "big") for number in names}
    numbers = {name: number for number, name in names.items()}

    def parse(text: str) -> bytes:
        if text not in numbers:
            raise ValueError("no such name")
        return codes[numbers[text]]

    return _Field(
        size,
        lambda entry: codes[value(entry)],
        lambda data: names[int.from_bytes(data, "big")],
        parse,
    )


def _number(size: int, value: Callable[[Entry], int], names: dict[int, str]) -> _Field:
    """Return the field of a number; some numbers have names."""
    numbers = {name: number for number, name in names.items()}

    def decode(data: bytes) -> str:
        number = int.from_bytes(data, "big")
        return names.get(number) or str(number)

    def parse(text: str) -> bytes:
        data = (numbers[text] if text in numbers else int(text)).to_bytes(size, "big")
        if decode(data) != text:
            raise ValueError("a number in another form")
        return data

    return _Field(size, lambda entry: value(entry).to_bytes(size, "big"), decode, parse)


def _address(
    plan: Plan, value: Callable[[Entry], bytes], prefix: Prefix = networks.WHOLE
) -> _Field:
    """Return the field of an address, which is masked or replaced by a name."""
    names = plan.address_names
    keys = {
        name: bytes([_NAMED]) + index.to_bytes(4, "big") + bytes(12)
        for index, name in enumerate(names)
    }

    def is_whole(packed: bytes) -> bool:
        return prefix[len(packed) == 16] == len(packed) * 8

    @functools.lru_cache(_MAX_CACHED)
    def encode(packed: bytes) -> bytes:
        if not packed:
            return bytes(17)
        whole = is_whole(packed)
        name = _name_of(plan, packed, whole=whole) if names else None
        if name is not None:
            return keys[name]
        kept = packed if whole else networks.masked(packed, prefix[len(packed) == 16])
        return _VERSION[len(packed)] + kept.ljust(16, b"\0")

    def decode(data: bytes) -> str:
        return _address_text(data, names, prefix)

    def parse(text: str) -> bytes:
        if text in keys or not text:
            return keys.get(text, bytes(17))
        packed = networks.parse(text).packed
        key = _VERSION[len(packed)] + packed.ljust(16, b"\0")
        if decode(key) != text:
            raise ValueError("a prefix of another length")
        if is_whole(packed) and encode(packed) != key:
            raise ValueError("an address that has a name now")
        return key

    return _Field(17, lambda entry: encode(value(entry)), decode, parse)


def _name_of(plan: Plan, packed: bytes, *, whole: bool) -> str | None:
    """Return the name of a host, if addresses are not masked, else that of its network."""
    name = plan.hosts.get(packed) if whole else None
    return networks.name(plan.networks, packed) if name is None else name


def _address_text(data: bytes, names: list[str], prefix: Prefix) -> str:
    if data[0] == _NAMED:
        return names[int.from_bytes(data[1:5], "big")]
    if data[0] == _IPV4:
        return networks.text_of(data[1:5], prefix.v4)
    return networks.text_of(data[1:], prefix.v6) if data[0] else ""
