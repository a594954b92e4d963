"""Gaps: messages about traffic that is missing in the rates of a snapshot."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from conntrack_textfile.snapshot import some

if TYPE_CHECKING:
    from conntrack_textfile.snapshot import Snapshot


class Gap(NamedTuple):
    """A reason why rates are too low, or why there are none."""

    short: str  # for a summary line
    long: str  # with what to do


NO_RATES = Gap(
    "live connections only: no rates",
    "no rates: the proc file has no identity of connections (--collector.source=netlink has it)",
)
_NO_EVENTS = Gap(
    "rates of live connections only",
    "rates are of live connections only, without the last traffic of ended ones: the kernel "
    "sends no events (they need CAP_NET_ADMIN and net.netfilter.nf_conntrack_events)",
)
_ENDED_UNSEEN = Gap(
    "{} ended unseen",
    "connections ended without an event, and their last traffic is missing "
    "(with net.netfilter.nf_conntrack_events=2 those from before the start send none)",
)


def gaps(snapshot: Snapshot, ended_unseen: int) -> list[Gap]:
    """Return the gaps in the rates of a snapshot that has counters.

    ended_unseen: connections that ended without an event since the snapshot before.
    """
    tables = {"": snapshot.traffic}
    if snapshot.parts is not None:
        tables = {name: part.traffic for name, part in snapshot.parts.items()}
    silent = [name for name, traffic in tables.items() if traffic and traffic.listening is False]
    if silent:
        # Of several namespaces some are named, as in warnings.
        where = f"in {some(silent)}: " if silent[0] else ""
        return [Gap(*(where + text for text in _NO_EVENTS))]
    if ended_unseen:
        return [_ENDED_UNSEEN._replace(short=_ENDED_UNSEEN.short.format(ended_unseen))]
    return []
