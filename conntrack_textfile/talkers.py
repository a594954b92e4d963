"""The largest groups of a snapshot by each measure: what a view needs to sort by any."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from conntrack_textfile.aggregate import MEASURES
from conntrack_textfile.tally import Sums

if TYPE_CHECKING:
    from conntrack_textfile.tally import Group, Tally


class Talker(NamedTuple):
    """A group as it is in the table, and what it carried since the reading before."""

    group: Group
    live: Sums
    traffic: Sums


class Talkers(NamedTuple):
    """The largest of a snapshot."""

    labels: tuple[str, ...]
    rows: list[Talker]
    totals: Sums | None  # carried since the snapshot before; None where it is not known
    seconds: float  # since then
    ended_unseen: int  # connections of which the last traffic is missing


def largest(live: Tally, traffic: Tally | None, count: int) -> list[Talker]:
    """The so many largest groups by each measure, of the live connections and of the traffic."""
    # Each has its labels of where it was found: the other may lack its network namespace.
    found = {
        key: tally.groups
        for tally in (live, traffic)
        if tally is not None
        for by in MEASURES
        for key, _ in tally.groups.largest(count, by)
    }
    keys = sorted(found)
    nothing = Sums(0, 0, 0, 0, 0)
    carried = traffic.groups.get(keys) if traffic is not None else [None] * len(keys)
    return [
        Talker(found[key].labels(key), now or nothing, since or nothing)
        for key, now, since in zip(keys, live.groups.get(keys), carried, strict=True)
    ]
