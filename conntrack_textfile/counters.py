"""The counters: traffic added up by group, in a bounded number of slots.

- A new group takes a free slot and is published as 0 at first, with its value
  from the next snapshot on: increase() of Prometheus does not count the first
  sample of a series. Without a free slot its traffic goes to "other", for good.
- A slot is evicted when its group had neither traffic nor a live connection for
  an hour, or when a group without a slot had twice the traffic of the smallest one
  in three consecutive snapshots. Its sums are dropped.

So no published value decreases, and the increases by group add up to the increases
by protocol, at most one snapshot later.
"""

from __future__ import annotations

import time
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from conntrack_textfile.aggregate import (
    KEPT,
    MEASURES,
    Limit,
    measure,
    other_group,
    protocol_labels,
    totals,
)
from conntrack_textfile.tally import Rows, Sums, add

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping

    from conntrack_textfile.tally import Group, Groups, Tally

IDLE_SECONDS = 3600
REPLACE_FACTOR = 2
REPLACE_SNAPSHOTS = 3


# What is counted besides traffic, since the counters began.
TOTALS = (
    *("received", "lost", "duplicate", "zeroed", "ended_unseen", "ended_uncounted"),
    *("evicted", "interrupted"),
)


class Slot:
    """The sums of one group: a series in each family."""

    __slots__ = ("active", "labels", "sums", "unpublished")

    def __init__(self, labels: Group, active: int) -> None:
        self.labels = labels
        self.active = active  # when it last had traffic or a live connection, in seconds
        self.sums = [0, 0, 0, 0, 0]
        self.unpublished = 2  # how many values are still to be published: 0, and the first sums

    def plus(self, row: Iterable[int]) -> list[int]:
        """Return the sums with a row of traffic added, as a new list: snapshots share the old."""
        return [a + b for a, b in zip(self.sums, row, strict=True)]


class Health:
    """What is counted of one table besides its traffic."""

    __slots__ = ("seen", "started", "totals")

    def __init__(self, now: int) -> None:
        self.started = time.time()
        self.totals = dict.fromkeys(TOTALS, 0)
        self.seen = now  # when the table last existed, in seconds


class Counters:
    """The slots of the groups, of "other" and of the protocols."""

    def __init__(self, labels: tuple[str, ...], limit: Limit) -> None:
        self.labels = labels
        self.limit = limit
        self.slots: dict[bytes, Slot] = {}  # by the engine's key of the group
        self.others: dict[Group, Slot] = {}
        self.protocols: dict[Group, Slot] = {}
        # "" is all tables together; with the label netns also of each namespace.
        self.health = {"": Health(0)}
        self.published = True  # set by the caller once the sums of the last update() are published
        # Evicted groups, and how many snapshots must be published before they get a slot again:
        # without a snapshot that lacks them, their series would fall to 0.
        self._evicted: dict[Group, int] = {}
        # Groups without a slot, and in how many consecutive snapshots they were large enough.
        self._candidates: dict[bytes, tuple[Group, int]] = {}

    @property
    def totals(self) -> dict[str, int]:
        """What is counted besides traffic, of all tables together."""
        return self.health[""].totals

    @property
    def started(self) -> float:
        """When the counters began (Unix time, in seconds)."""
        return self.health[""].started

    def update(
        self,
        traffic: Tally,
        live: Groups | None,
        now: int,
        statistics: Mapping[str, Mapping[str, int]] = MappingProxyType({}),
        failed: Collection[str] = (),
    ) -> None:
        """Add the traffic since the last call, and what was counted besides it.

        An exception adds nothing, and the same can be added again.

        live: the groups of the snapshot; None between two snapshots.
        now: seconds of a monotonic clock.
        statistics: of TOTALS, by the network namespaces that traffic is of; "" is the only table.
        failed: the network namespaces that could not be read.
        """
        self._see([*statistics, *self.health.keys() & set(failed)], now)
        published, self.published = self.published, False
        # No slot is evicted before its sums, without this traffic, were published.
        if published:
            for slot in self._all():
                slot.unpublished = max(0, slot.unpublished - 1)
            self._evicted = {labels: left - 1 for labels, left in self._evicted.items() if left > 1}
        if published and live is not None:
            self._free_idle(traffic.groups, live, now, failed)
            self._forget_namespaces(now)
        waiting = self._admit(traffic, now)
        if published and live is not None:
            self._replace_smallest(traffic, waiting, now)
        # All sums are made before the first is stored: a MemoryError adds nothing.
        found = self._sums_with(traffic, now)
        totals = self._totals_with(statistics)
        for slot, sums in found:
            slot.sums = sums
        for netns, counts in totals.items():
            self.health[netns].totals = counts

    def groups(self) -> Rows:
        """Return the series by group, those of "other" last."""
        return _published([*self.slots.values(), *self.others.values()])

    def by_protocol(self) -> Rows:
        """Return the series by l3protocol and l4protocol, and by netns where it is a label."""
        return _published(list(self.protocols.values()))

    def rekey(self, key_of: Callable[[Group], bytes | None]) -> None:
        """Rekey the slots for a new plan, the largest first.

        A slot is evicted where there is no key for its group, or no room under the limit.
        An exception leaves the old keys, and may have evicted some of these slots.
        """
        size = MEASURES[self.limit.by]
        slots: dict[bytes, Slot] = {}
        unfit = []
        for old, slot in sorted(self.slots.items(), key=lambda s: size(s[1].sums), reverse=True):
            key = key_of(slot.labels)
            if key is not None and (not self._limited or len(slots) < self.limit.keys):
                slots[key] = slot
            else:
                unfit.append(old)
        candidates = {
            key: (labels, count)
            for labels, count in self._candidates.values()
            if (key := key_of(labels)) is not None
        }
        for old in unfit:
            self._evict_to_other(old)
        self.slots, self._candidates = slots, candidates

    def save(self, *, published: bool) -> dict[str, object]:
        """Return all for JSON. published: whether the sums as they are will be published."""
        return {
            "labels": self.labels,
            "started": self.started,
            "totals": self.totals,
            "namespaces": [
                [netns, health.started, health.totals, health.seen]
                for netns, health in self.health.items()
                if netns
            ],
            "published": published,
            "evicted": list(self._evicted.items()),
            "candidates": list(self._candidates.values()),
            **{
                name: [
                    [slot.labels, slot.sums, slot.active, slot.unpublished]
                    for slot in slots.values()
                ]
                for name, slots in (
                    ("slots", self.slots),
                    ("others", self.others),
                    ("protocols", self.protocols),
                )
            },
        }

    def load(self, saved: dict[str, object], key_of: Callable[[Group], bytes | None]) -> None:
        """Continue from what save() returned. Counters of other labels are dropped.

        Raises AttributeError, KeyError, TypeError or ValueError for anything else.
        """
        labels: tuple[str, ...] = tuple(saved["labels"])  # type: ignore[arg-type]
        self.published = bool(saved["published"])
        same = protocol_labels(labels) == protocol_labels(self.labels)
        rows: list[list[Any]] = saved.get("namespaces", []) if same else []  # type: ignore[assignment]
        for netns, started, counts, seen in [["", saved["started"], saved["totals"], 0], *rows]:
            health = self.health[str(netns)] = Health(int(seen))
            health.started = float(started)
            health.totals = {name: int(counts[name]) for name in TOTALS}
        if not same:
            return
        self.protocols = _loaded(saved["protocols"], len(protocol_labels(labels)))
        if labels != self.labels:
            return
        self.others = _loaded(saved["others"], len(self.labels))
        self.slots = {
            str(labels).encode(): slot
            for labels, slot in _loaded(saved["slots"], len(self.labels)).items()
        }
        self._evicted = {
            tuple(map(str, labels)): int(left)
            for labels, left in saved["evicted"]  # type: ignore[attr-defined]
        }
        self._candidates = {
            str(labels).encode(): (tuple(map(str, labels)), int(count))
            for labels, count in saved["candidates"]  # type: ignore[attr-defined]
        }
        self.rekey(key_of)

    @property
    def _limited(self) -> bool:
        """Whether the limit applies: where all labels are in KEPT, "other" would save nothing."""
        return self.limit.keys > 0 and not set(self.labels) <= set(KEPT)

    def _all(self) -> list[Slot]:
        return [*self.slots.values(), *self.others.values(), *self.protocols.values()]

    def _slot(self, slots: dict[Group, Slot], labels: Group, now: int) -> Slot:
        slot = slots.get(labels)
        if slot is None:
            slot = slots[labels] = Slot(labels, now)
        return slot

    def _kept_protocol(self, protocol: Group) -> Group:
        """Return the values of a group of protocols for the labels that all groups have, too."""
        return tuple(
            [
                name
                for label, name in zip(protocol_labels(self.labels), protocol, strict=True)
                if label in self.labels
            ]
        )

    def _protocol_of(self, labels: Group) -> Group:
        """Return the values of a group for the labels in KEPT: what its "other" is chosen by."""
        return tuple(
            [value for label, value in zip(self.labels, labels, strict=True) if label in KEPT]
        )

    def _sums_with(self, traffic: Tally, now: int) -> list[tuple[Slot, list[int]]]:
        """Return each slot with traffic, and its sums with the traffic added."""
        found = []
        rest: dict[Group, list[int]] = {}
        for protocol, total in traffic.protocols.items():
            slot = self._slot(self.protocols, protocol, now)
            found.append((slot, slot.plus(total)))
            add(rest, self._kept_protocol(protocol), total)
        for slot, sums in zip(
            self.slots.values(), traffic.groups.get(list(self.slots)), strict=True
        ):
            if sums is not None:
                found.append((slot, slot.plus(sums)))
                add(rest, self._protocol_of(slot.labels), [-value for value in sums])
        for protocol, row in rest.items():
            if any(row):
                slot = self._slot(self.others, other_group(self.labels, protocol), now)
                found.append((slot, slot.plus(row)))
        return found

    def _totals_with(
        self, statistics: Mapping[str, Mapping[str, int]]
    ) -> dict[str, dict[str, int]]:
        """Return the totals by network namespace, and of all together, with statistics added."""
        found = {netns: dict(self.health[netns].totals) for netns in ("", *statistics)}
        for netns, numbers in statistics.items():
            for name, number in numbers.items():
                found[netns][name] += number
                if netns:
                    found[""][name] += number
        return found

    def _free_idle(self, traffic: Groups, live: Groups, now: int, failed: Collection[str]) -> None:
        """Evict slots without traffic or live connections for IDLE_SECONDS.

        Those of a namespace that could not be read stay.
        """
        keys = list(self.slots)
        for key, traffic_sums, live_sums in zip(
            keys, traffic.get(keys), live.get(keys), strict=True
        ):
            slot = self.slots[key]
            if (
                traffic_sums is not None
                or live_sums is not None
                or self._netns_of(slot.labels) in failed
            ):
                slot.active = now
            elif now - slot.active >= IDLE_SECONDS and not slot.unpublished:
                self._evict(key, 1)

    def _see(self, present: Collection[str], now: int) -> None:
        """Note which network namespaces exist now."""
        for netns in present:
            self.health.setdefault(netns, Health(now)).seen = now

    def _forget_namespaces(self, now: int) -> None:
        """Drop the series of namespaces gone for IDLE_SECONDS, and at once where all are 0."""
        gone = {netns for netns, health in self.health.items() if netns and health.seen < now}
        for netns in list(gone):
            health = self.health[netns]
            counted = any(health.totals.values()) or any(
                labels[0] == netns and any(slot.sums) for labels, slot in self.protocols.items()
            )
            if counted and now - health.seen < IDLE_SECONDS:
                gone.remove(netns)
        gone -= {self._netns_of(slot.labels) for slot in self.slots.values()}
        for netns in gone:
            del self.health[netns]
        for slots in (self.protocols, self.others) if gone else ():
            for labels in [labels for labels in slots if labels[0] in gone]:
                del slots[labels]

    def _netns_of(self, labels: Group) -> str:
        """Return the network namespace of a group, "" without the label netns."""
        return labels[0] if self.labels[:1] == ("netns",) else ""

    def _evict(self, key: bytes, snapshots: int) -> None:
        """Evict a slot. Its group gets none until that many snapshots were published."""
        labels = self.slots[key].labels
        self._evicted[labels] = snapshots
        for netns in {"", self._netns_of(labels)} & self.health.keys():
            self.health[netns].totals["evicted"] += 1
        del self.slots[key]  # last: without memory the slot stays

    def _evict_to_other(self, key: bytes) -> None:
        """Evict a slot between two snapshots. Sums of which only 0 was published go to "other"."""
        slot = self.slots[key]
        if slot.unpublished < 2:
            self._evict(key, 2)  # not 1: the next update() precedes the snapshot without it
            return
        labels = other_group(self.labels, self._protocol_of(slot.labels))
        other = self.others.get(labels)
        if other is None:
            other = Slot(labels, slot.active)
            other.unpublished += 1
            self.others[labels] = other
        sums = other.plus(slot.sums)
        self._evict(key, 2)
        other.sums = sums

    def _admit(self, traffic: Tally, now: int) -> list[tuple[bytes, Group, int]]:
        """Give free slots to new groups. Return the largest without one: key, group and size."""
        room = len(traffic.groups)
        if self._limited:
            room = max(0, self.limit.keys - len(self.slots))
        by = self._measure(traffic)
        outside = traffic.groups.largest(
            room + (self.limit.keys if self._limited else 0), by, self.slots.keys()
        )
        others = {
            other_group(self.labels, self._kept_protocol(protocol))
            for protocol in traffic.protocols
        }
        waiting = []
        for key, sums in outside:
            labels = traffic.groups.labels(key)
            # A user can name a network or service "other".
            if labels in others or labels in self._evicted:
                continue
            if room:
                self.slots[key] = Slot(labels, now)
                room -= 1
            else:
                waiting.append((key, labels, MEASURES[by](sums)))
        return waiting

    def _replace_smallest(
        self, traffic: Tally, waiting: Iterable[tuple[bytes, Group, int]], now: int
    ) -> None:
        """Evict the smallest slots in favour of much larger groups, the largest first."""
        size = MEASURES[self._measure(traffic)]
        # Not slots that are unpublished: their sums would be in no increase().
        slots = {key: slot for key, slot in self.slots.items() if not slot.unpublished}
        smallest = sorted(
            (size(sums) if sums is not None else 0, key)
            for key, sums in zip(slots, traffic.groups.get(slots), strict=True)
        )
        candidates = {}
        for (key, labels, new_size), (old_size, old) in zip(waiting, smallest, strict=False):
            if new_size == 0 or new_size < REPLACE_FACTOR * old_size:
                break
            _, count = self._candidates.get(key, (labels, 0))
            if count + 1 < REPLACE_SNAPSHOTS:
                candidates[key] = labels, count + 1
            else:
                slot = Slot(labels, now)
                self._evict(old, 1)
                self.slots[key] = slot
        self._candidates = candidates

    def _measure(self, traffic: Tally) -> str:
        return measure(self.limit.by, totals(traffic))


def _published(slots: list[Slot]) -> Rows:
    """Return the series of slots: 0 for one that was never published."""
    rows = [(0,) * 5 if slot.unpublished >= 2 else slot.sums for slot in slots]
    return Rows(
        [slot.labels for slot in slots], tuple([row[field] for row in rows] for field in range(5))
    )


def _loaded(saved: object, labels: int) -> dict[Group, Slot]:
    """Return slots from JSON. labels: how many each has. Raises TypeError or ValueError."""
    found = {}
    for texts, sums, active, unpublished in saved:  # type: ignore[attr-defined]
        slot = Slot(tuple(map(str, texts)), int(active))
        slot.sums = [int(value) for value in sums]
        slot.unpublished = int(unpublished)
        if len(slot.labels) != labels or len(slot.sums) != len(Sums._fields):
            raise ValueError("counters of another shape")
        found[slot.labels] = slot
    return found
