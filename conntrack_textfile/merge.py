"""The tallies of several network namespaces merged into one, with the label netns.

The key of a merged group is the name of its namespace, a zero byte and its key in
the tally of that namespace: keys sort as the labels do.
"""

from __future__ import annotations

import bisect
import collections
import heapq
import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING, TypeVar

from conntrack_textfile.aggregate import MEASURES
from conntrack_textfile.tally import Nat, Rows, Sums, Tally

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Mapping

    from conntrack_textfile.tally import Counts, Group, Groups

_Item = TypeVar("_Item")


def merge(tallies: Mapping[str, Tally]) -> Tally:
    """Merge tallies into one. tallies: by the name of their namespace."""
    states: Counts = collections.Counter()
    flags: Counts = collections.Counter()
    for tally in tallies.values():
        for counts, more in ((states, tally.states), (flags, tally.flags)):
            for key, number in more.items():
                counts[key] += number
    return Tally(
        groups=MergedGroups({name: tally.groups for name, tally in tallies.items()}),
        protocols={
            (name, *protocol): sums
            for name, tally in sorted(tallies.items())
            for protocol, sums in tally.protocols.items()
        },
        filtered=sum(tally.filtered for tally in tallies.values()),
        malformed=sum(tally.malformed for tally in tallies.values()),
        first_malformed=b"",
        uncounted=sum(tally.uncounted for tally in tallies.values()),
        states=dict(sorted(states.items())),
        flags=dict(sorted(flags.items())),
        nat=None,  # the limit is over all namespaces: see aggregate.nats()
    )


def exported(tally: Tally) -> Mapping[str, int]:
    """Return how many groups of each namespace rows() of a merged tally returned."""
    assert isinstance(tally.groups, MergedGroups)
    return tally.groups.exported


def merge_nat(found: Mapping[str, Nat]) -> Nat:
    """Return the translated entries of all namespaces, with the name before each address."""
    connections: Counts = collections.Counter()
    for of in found.values():
        for key, number in of.connections.items():
            connections[key] += number
    return Nat(
        dict(sorted(connections.items())),
        [
            row._replace(address=f"{name} {row.address}")
            for name, of in found.items()
            for row in of.egress
        ],
    )


def key_parser(parse: Callable[[Group], bytes | None]) -> Callable[[Group], bytes | None]:
    """Return a parser of merged groups to keys. parse: the parser of a single namespace."""

    def key_of(labels: Group) -> bytes | None:
        name, *others = labels
        key = parse(tuple(others))
        return None if key is None else _prefix(name) + key

    return key_of


def _prefix(name: str) -> bytes:
    return name.encode() + b"\0"


class MergedGroups:
    """The groups of all namespaces: see tally.Groups."""

    def __init__(self, parts: Mapping[str, Groups]) -> None:
        """parts: the groups of each namespace, by name."""
        self._parts = {_prefix(name): (name, parts[name]) for name in sorted(parts)}
        self.exported = {name: len(groups) for name, groups in self._parts.values()}
        """The number of groups of each namespace that rows() returned."""

    def __len__(self) -> int:
        return sum(len(groups) for _, groups in self._parts.values())

    def rows(self, limit: int, by: str) -> Rows:
        """See tally.Groups."""
        chosen = dict.fromkeys(self._parts, 0)
        if 0 < limit < len(self):
            # Only their number is needed: they are the largest of their namespace.
            for key, _ in self.largest(limit, by):
                chosen[_split(key)[0]] += 1
            self.exported = {self._parts[prefix][0]: count for prefix, count in chosen.items()}
        names: list[tuple[str, ...]] = []
        rows = []
        for prefix, (name, groups) in self._parts.items():
            if len(groups) and (chosen[prefix] or not 0 < limit < len(self)):
                rows.append(groups.rows(chosen[prefix], by))
                names.append((name,))
        return Rows(
            _Prefixed(names, [groups for groups, _ in rows]),
            tuple(_Chain([columns[field] for _, columns in rows]) for field in range(5)),
        )

    def largest(
        self, limit: int, by: str, without: Collection[bytes] = ()
    ) -> list[tuple[bytes, Sums]]:
        """See tally.Groups."""
        size = MEASURES[by]
        hidden = self._by_part(without)

        def all_parts() -> Iterator[tuple[bytes, Sums]]:
            for prefix, (_, groups) in self._parts.items():
                for key, sums in groups.largest(limit, by, set(hidden.get(prefix, ()))):
                    yield prefix + key, sums

        return heapq.nsmallest(limit, all_parts(), key=lambda row: (-size(row[1]), row[0]))

    def get(self, keys: Iterable[bytes]) -> list[Sums | None]:
        """See tally.Groups."""
        wanted = list(keys)
        found: dict[bytes, Sums | None] = {}
        for prefix, of in self._by_part(wanted).items():
            if prefix in self._parts:
                sums = self._parts[prefix][1].get(of)
                found.update(zip([prefix + key for key in of], sums, strict=True))
        return [found.get(key) for key in wanted]

    def labels(self, key: bytes) -> Group:
        """See tally.Groups."""
        prefix, rest = _split(key)
        _, groups = self._parts[prefix]
        return (prefix[:-1].decode(), *groups.labels(rest))

    def _by_part(self, keys: Iterable[bytes]) -> dict[bytes, list[bytes]]:
        """Return keys by their prefix, without it."""
        found: dict[bytes, list[bytes]] = {}
        for key in keys:
            prefix, rest = _split(key)
            found.setdefault(prefix, []).append(rest)
        return found


def _split(key: bytes) -> tuple[bytes, bytes]:
    """Split a key into its prefix and the rest. No name has a zero byte."""
    at = key.index(b"\0") + 1
    return key[:at], key[at:]


class _Chain(Sequence[_Item]):
    """Sequences one after the other, without a copy."""

    def __init__(self, parts: Sequence[Sequence[_Item]]) -> None:
        self._parts = parts
        self._starts = [0, *itertools.accumulate(map(len, parts))]

    def __len__(self) -> int:
        return self._starts[-1]

    def __getitem__(self, i: int) -> _Item:  # type: ignore[override]
        part, at = self._at(i)
        return self._parts[part][at]

    def __iter__(self) -> Iterator[_Item]:
        return itertools.chain.from_iterable(self._parts)

    def _at(self, i: int) -> tuple[int, int]:
        if not 0 <= i < len(self):
            raise IndexError(i)
        part = bisect.bisect_right(self._starts, i) - 1
        return part, i - self._starts[part]


class _Prefixed(_Chain["Group"]):
    """A chain of groups, with the first labels of each part."""

    def __init__(self, prefixes: Sequence[Group], parts: Sequence[Sequence[Group]]) -> None:
        super().__init__(parts)
        self._prefixes = prefixes

    def __getitem__(self, i: int) -> Group:  # type: ignore[override]
        part, at = self._at(i)
        return self._prefixes[part] + self._parts[part][at]

    def __iter__(self) -> Iterator[Group]:
        for prefix, part in zip(self._prefixes, self._parts, strict=True):
            for group in part:
                yield prefix + group
