"""Top talkers: the top N groups by each measure, so that a view can sort by any of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from conntrack_textfile.aggregate import MEASURES
from conntrack_textfile.tally import Sums

if TYPE_CHECKING:
    from conntrack_textfile.tally import Group, Tally


class Talker(NamedTuple):
    """A group, with its live connections and its traffic."""

    group: Group
    live: Sums
    traffic: Sums  # since the previous snapshot; 0 where it is unknown


class Talkers(NamedTuple):
    """The top talkers of a snapshot."""

    labels: tuple[str, ...]
    rows: list[Talker]
    totals: Sums | None  # the traffic of all groups; None where it is unknown
    seconds: float  # since the previous snapshot; 0 where the traffic is unknown
    ended_unseen: int  # connections that ended without an event: their last traffic is missing


def largest(live: Tally, traffic: Tally | None, count: int) -> list[Talker]:
    """Return the top N groups by each measure, of the live connections and of the traffic."""
    # Labels are made by the tally that has the key: the other may lack its network namespace.
    found = {
        key: tally.groups
        for tally in (live, traffic)
        if tally is not None
        for by in MEASURES
        for key, _ in tally.groups.largest(count, by)
    }
    keys = sorted(found)
    nothing = Sums(0, 0, 0, 0, 0)
    sums = traffic.groups.get(keys) if traffic is not None else [None] * len(keys)
    return [
        Talker(found[key].labels(key), now or nothing, since or nothing)
        for key, now, since in zip(keys, live.groups.get(keys), sums, strict=True)
    ]
