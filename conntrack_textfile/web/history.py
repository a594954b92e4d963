"""The history of the last hour for the page: totals over time, and traffic by group.

It is in memory alone and begins with the process. The first snapshot has no traffic.
"""

from __future__ import annotations

import heapq
from array import array
from typing import TYPE_CHECKING, NamedTuple

from conntrack_textfile.aggregate import KEPT, MEASURES
from conntrack_textfile.plan import OTHER
from conntrack_textfile.tally import Rows, Sums, add

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence

    from conntrack_textfile.aggregate import Aggregate
    from conntrack_textfile.snapshot import Snapshot, Traffic
    from conntrack_textfile.tally import Group

    _Pair = tuple[Group, Sequence[int]]

SECONDS = 3600

# Snapshots within this time are merged into one point. Two successive points span more,
# so that there are at most 720: 6 KiB a series.
_POINT_SECONDS = 10

# Traffic by group is kept, and dropped after an hour, in parts of this length, or of one
# interval where that is longer.
_PART_SECONDS = 300

# Largest groups kept of each snapshot. More than the default of --limit.keys: the groups
# with series are not all those with traffic.
GROUPS = 11000

# Largest groups kept of each part, of which there are twelve or more.
_PART_GROUPS = 4000


class Points(NamedTuple):
    """Totals over time, oldest first."""

    times: Sequence[float]  # of the end of each point, by the clock of History.add()
    seconds: Sequence[float]  # that its traffic spans; 0 where traffic is unknown
    sent_bytes: Sequence[float]
    reply_bytes: Sequence[float]
    opened: Sequence[float]  # new connections
    live: Sequence[float]  # live connections, maximum
    entries: Sequence[float]  # of the table, or of the fullest of several, maximum
    entries_limit: Sequence[float]  # 0 where it is unknown


class GroupTraffic(NamedTuple):
    """Traffic by group. A group may be in several parts."""

    parts: tuple[Rows, ...]
    seconds: float

    @property
    def rows(self) -> Rows:
        """Return the sum of the parts."""
        if len(self.parts) == 1:
            return self.parts[0]
        sums: dict[Group, list[int]] = {}
        for part in self.parts:
            for group, row in part.pairs():
                add(sums, group, row)
        return _rows(sums)


class Past(NamedTuple):
    """The history as of one snapshot. Immutable."""

    points: Points
    interval: GroupTraffic | None  # since the previous snapshot; None where it is unknown
    hour: GroupTraffic | None  # of the last hour; None where it is unknown
    counted: bool  # whether there are counters
    ended_unseen: int  # connections that ended in the interval without an event


class History:
    """Collects successive snapshots."""

    def __init__(self) -> None:
        self._points = Points(*[array("d") for _ in Points._fields])
        self._point_began = 0.0
        self._at = 0.0  # time of the last snapshot
        self._parts: list[tuple[float, float, Rows]] = []  # begin, end, traffic
        self._part_began = 0.0  # of the current part
        self._sums: dict[Group, list[int]] = {}  # traffic of the current part
        self._ended_unseen = 0  # until the last snapshot

    def add(self, snapshot: Snapshot, now: float) -> Past:
        """Add a good snapshot. now: monotonic seconds."""
        rows, interval = snapshot.interval, None
        totals = Sums(0, 0, 0, 0, 0)
        if rows is None:  # the traffic until now is unknown
            self._end_part()
            self._part_began = now
        else:
            assert snapshot.live is not None
            totals = rows.totals
            interval = GroupTraffic((_packed(rows),), now - self._at)
            for group, row in rows.pairs():
                add(self._sums, group, row)
            kept = bounded(snapshot.live.labels, _rows(self._sums), _PART_GROUPS)
            if len(kept.groups) < len(self._sums):
                self._sums = {group: list(row) for group, row in kept.pairs()}
        self._add_point(snapshot, totals, interval.seconds if interval else 0.0, now)
        self._at = now
        if now - self._part_began >= _PART_SECONDS:
            self._end_part()
            self._part_began = now
        self._parts = [part for part in self._parts if part[1] > now - SECONDS]
        points = Points(*[array("d", series) for series in self._points])
        before = self._ended_unseen
        if snapshot.traffic is not None:
            self._ended_unseen = snapshot.traffic.totals["ended_unseen"]
        return Past(
            points,
            interval,
            self._hour(),
            counted=snapshot.traffic is not None,
            ended_unseen=max(0, self._ended_unseen - before) if interval is not None else 0,
        )

    def _end_part(self) -> None:
        if self._at > self._part_began:
            # Share the group objects of earlier parts, to save memory.
            known = {group: group for _, _, part in self._parts for group in part.groups}
            rows = _rows({known.get(group, group): row for group, row in self._sums.items()})
            self._parts.append((self._part_began, self._at, rows))
        self._sums = {}

    def _hour(self) -> GroupTraffic | None:
        parts = list(self._parts)
        if self._at > self._part_began:
            parts.append((self._part_began, self._at, _rows(self._sums)))
        if not parts:
            return None
        return GroupTraffic(
            tuple([rows for _, _, rows in parts]), sum(end - began for began, end, _ in parts)
        )

    def _add_point(self, snapshot: Snapshot, totals: Sums, seconds: float, now: float) -> None:
        series: Iterable[array[float]] = self._points  # type: ignore[assignment]
        times, *more = series
        _, entries, limit = next(iter(snapshot.fills), ("", 0, 0))
        flows = seconds, totals.sent_bytes, totals.reply_bytes, totals.connections
        levels = (
            snapshot.live.totals.connections if snapshot.live else 0,
            entries,
            limit,
        )
        if times and now - self._point_began <= _POINT_SECONDS:
            times[-1] = now
            for n, (kept, value) in enumerate(zip(more, (*flows, *levels), strict=True)):
                kept[-1] = kept[-1] + value if n < len(flows) else max(kept[-1], value)
        else:
            self._point_began = times[-1] if times else now
            for kept, value in zip((times, *more), (now, *flows, *levels), strict=True):
                kept.append(value)
        gone = sum(time < now - SECONDS for time in times)
        for kept in (times, *more):
            del kept[:gone]


def bounded(labels: Sequence[str], rows: Rows, most: int = GROUPS) -> Rows:
    """Return the largest groups. The others are merged by source, so that a scanner stays visible.

    Beyond the largest sources, too, the rest is merged by protocol.
    """
    if len(rows.groups) <= most:
        return rows
    pairs = rows.pairs()
    kept, others = _largest(list(pairs), most // 2)
    by_source: dict[Group, list[int]] = {}
    for group, row in others:
        add(by_source, _summed(labels, group, ("src", *KEPT)), row)
    sources, others = _largest(list(by_source.items()), most // 2)
    sums: dict[Group, list[int]] = {}
    for group, row in (*kept, *sources):
        add(sums, group, row)
    for group, row in others:
        add(sums, _summed(labels, group, KEPT), row)
    return _rows(sums)


def _largest(pairs: list[_Pair], count: int) -> tuple[list[_Pair], list[_Pair]]:
    """Return the largest groups with their sums, and the others."""
    found = heapq.nlargest(count, range(len(pairs)), key=lambda n: _size(pairs[n][1]))
    largest = set(found)
    return [pairs[n] for n in found], [p for n, p in enumerate(pairs) if n not in largest]


def _summed(labels: Sequence[str], group: Group, kept: Collection[str]) -> Group:
    """Return the group with "other" for each label that is not kept."""
    pairs = zip(labels, group, strict=True)
    return tuple([value if label in kept else OTHER for label, value in pairs])


def _size(row: Sequence[int]) -> tuple[int, ...]:
    """Sort key: bytes, then packets, then connections."""
    return tuple([size(row) for size in MEASURES.values()])


def compact(live: Aggregate, traffic: Traffic | None) -> Rows:
    """Return the live groups in little memory: equal strings shared, with the counters too."""
    rows = bounded(live.labels, Rows(live.groups, live.columns))
    known = {group: group for group in traffic.groups.groups} if traffic else {}
    texts: dict[str, str] = {}
    groups = [
        known.get(group) or tuple([texts.setdefault(text, text) for text in group])
        for group in rows.groups
    ]
    return _packed(Rows(groups, rows.columns))


def _rows(sums: dict[Group, list[int]] | dict[Group, tuple[int, ...]]) -> Rows:
    return _packed(Rows.of(sums))


def _packed(rows: Rows) -> Rows:
    """Return the rows with columns as arrays of the smallest integer type that fits."""
    return Rows(rows.groups, tuple(map(_column, rows.columns)))


def _column(values: Sequence[int]) -> Sequence[int]:
    largest = max(values, default=0)
    for code in "BHIQ":
        if largest < 1 << 8 * array(code).itemsize:
            return array(code, values)
    return tuple(values)  # beyond 64 bits: counters that were set through ctnetlink
