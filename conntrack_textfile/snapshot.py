"""The snapshot: all that is published at one time, finished and immutable."""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping

    from conntrack_textfile.aggregate import Aggregate
    from conntrack_textfile.kernel.events import Buffer
    from conntrack_textfile.kernel.sysctl import Conntrack
    from conntrack_textfile.talkers import Talkers
    from conntrack_textfile.tally import Rows

_ACCOUNTING_OFF = (
    "accounting is off, so packets and bytes are not counted: set "
    "net.netfilter.nf_conntrack_acct=1; only connections made after it is switched on are counted"
)
_FOLDED = (
    "{} of {} keys are beyond --limit.keys and folded into other: raise it, or make fewer keys "
    "by --aggregate.by, prefixes, names or filters"
)
NO_COUNTERS = (
    "the proc file has no identity of connections, so there are no counters (conntrack_traffic_*): "
    "--collector.source=netlink has it"
)
_LOST = (
    "{} events of ended connections were lost, and their last traffic with them: raise "
    "--collector.event-buffer, or ReceiveBuffer= of the socket unit"
)

_RESOLVED = {
    "accounting": "accounting is no longer known to be off",
    "folded": "all keys are within --limit.keys again",
    "counters": "the table is read by netlink again, with counters",
    "lost": "no event was lost for a minute",
}

# Names of network namespaces in one message, at most.
_NAMED = 5


class Traffic(NamedTuple):
    """The counters at one moment."""

    labels: tuple[str, ...]
    groups: Rows
    protocols: Rows
    totals: dict[str, int]  # of counters.TOTALS
    lost: int  # events, since there was a minute without a loss
    started: float  # Unix time of the baseline, in seconds
    # None where the network namespace could not be read or was deleted, and for several together:
    tracked: int | None  # connections in the ledger
    listening: bool | None  # whether the kernel sends events
    buffer: Buffer | None  # of the event socket, None without one


class Snapshot(NamedTuple):
    """What is published after a reading of the table, or after one that failed."""

    success: bool | None  # of the last reading; None for a network namespace that was deleted
    source: str  # "netlink" or "procfs"
    engine: str  # "compiled" or "pure"
    conntrack: Conntrack
    timestamp: float | None = None
    """Unix time of the last successful reading, in seconds; None before the first."""

    duration: float | None = None
    """How long that reading took, with the counting of traffic, in seconds."""

    live: Aggregate | None = None
    """None where no reading succeeded, or the last is too old to be published."""

    traffic: Traffic | None = None
    """None where traffic is not counted."""

    interval: Rows | None = None
    """The traffic since the previous snapshot: the top groups, and "other" for the rest.
    None where it is unknown or was not requested (see Collector)."""

    statistics: Mapping[str, int] = MappingProxyType({})
    """The kernel's error counters, by name (see statistics.read()). Empty where unreadable."""

    talkers: Talkers | None = None
    """Only from Collector.top()."""

    uncountable: bool = False
    """Traffic is to be counted, but the proc file was read, which has no connection ids."""

    parts: Mapping[str, Snapshot] | None = None
    """A snapshot of each network namespace, by name, without groups; None without the
    label netns. A namespace that was deleted still has its counters."""

    errors: Mapping[str, str] = {}
    """Why network namespaces could not be read, by name."""

    @property
    def fills(self) -> list[tuple[str, int, int]]:
        """The network namespace ("" without the label netns), entries and limit of each table.

        The fullest is first.
        """
        tables = {"": self} if self.parts is None else self.parts
        known = [
            (name, of.conntrack.entries, of.conntrack.entries_limit)
            for name, of in tables.items()
            if of.conntrack.entries is not None and of.conntrack.entries_limit
        ]
        return sorted(known, key=lambda row: (-row[1] / row[2], row[0]))

    @property
    def failed(self) -> Snapshot:
        """The same snapshot with success=False, to be published after a failed reading."""
        parts = self.parts
        if parts is not None:
            parts = {name: part.failed for name, part in parts.items()}
        return self._replace(success=self.success and False, parts=parts)

    @property
    def warnings(self) -> dict[str, str]:
        """Warnings to log with this snapshot, by kind."""
        found = {f"netns {name}": error for name, error in self.errors.items()}
        if self.parts is not None:
            off = [name for name, part in self.parts.items() if part.conntrack.accounting is False]
            if off:
                found["accounting"] = f"in {some(off)}: {_ACCOUNTING_OFF}"
        elif self.conntrack.accounting is False:
            found["accounting"] = _ACCOUNTING_OFF
        if self.live is not None and self.live.folded:
            found["folded"] = _FOLDED.format(self.live.folded, self.live.keys)
        if self.uncountable:
            found["counters"] = NO_COUNTERS
        if self.traffic is not None and self.traffic.lost:
            found["lost"] = _LOST.format(self.traffic.lost)
        return found


def some(namespaces: list[str]) -> str:
    """Return a list of names for a message: the first few, and the number of the others."""
    more = len(namespaces) - _NAMED
    return ", ".join(namespaces[:_NAMED]) + (f" and {more} more" if more > 0 else "")


def resolved(kind: str) -> str:
    """Return what to log when a warning of this kind has gone."""
    what, _, name = kind.partition(" ")
    return f"network namespace {name} is read again, or gone" if name else _RESOLVED[what]
