"""The snapshot: one finished picture of the table, in the words of the user.

Both modes take their numbers here and nowhere else.
"""

from __future__ import annotations

import time
from socket import AF_INET, AF_INET6, inet_ntop
from typing import TYPE_CHECKING, NamedTuple

from conntrack_textfile import names, source, sysctl
from conntrack_textfile.tally import Sums

if TYPE_CHECKING:
    from collections.abc import Sequence

    from conntrack_textfile.tally import Key, Tally

ACCOUNTING_OFF = (
    "accounting is off, so packets and bytes are not counted: set "
    "net.netfilter.nf_conntrack_acct=1; only connections made after it is switched on are counted"
)


class Labels(NamedTuple):
    """The labels of a series, in their compatible order."""

    src: str
    dst: str
    l3protocol: str
    l4protocol: str
    l7protocol: str
    dport: str


class Connections(NamedTuple):
    """What the table held."""

    series: Sequence[tuple[Labels, Sequence[int]]]
    """Labels and sums (the fields of Sums, in their order) of each key, sorted by labels."""

    totals: Sums
    """The sums over all keys."""

    keys: int
    """How many keys the entries were summed up to."""

    malformed: int
    uncounted: int


class Snapshot(NamedTuple):
    """One picture of the table, or of the failure to take one."""

    success: bool
    source: str
    engine: str
    conntrack: sysctl.Conntrack
    timestamp: float | None = None
    """Unix time of the last good reading, in seconds; None before the first."""

    duration: float | None = None
    """What that reading and counting took, in seconds."""

    connections: Connections | None = None
    """None where no reading is fresh enough to be shown."""

    @property
    def warnings(self) -> list[str]:
        """What the user should know about these numbers."""
        return [ACCOUNTING_OFF] if self.conntrack.accounting is False else []


def take(proc_root: str) -> Snapshot:
    """Read the table under a proc root such as /proc. Raises source.SourceError."""
    started = time.monotonic()
    tally = source.read(proc_root)
    connections = _name(tally)
    return Snapshot(
        success=True,
        source="procfs",
        engine="pure",
        conntrack=sysctl.read(proc_root),
        timestamp=time.time(),
        duration=time.monotonic() - started,
        connections=connections,
    )


def failure(proc_root: str, last: Snapshot | None) -> Snapshot:
    """The snapshot after a reading that failed: what was last shown, marked as such."""
    conntrack = sysctl.read(proc_root)
    if last is None:
        return Snapshot(success=False, source="procfs", engine="pure", conntrack=conntrack)
    return last._replace(success=False, conntrack=conntrack)


def _name(tally: Tally) -> Connections:
    """Put a tally into words."""
    series = sorted((_labels(key), sums) for key, sums in tally.sums.items())
    totals = Sums(*(sum(sums[i] for sums in tally.sums.values()) for i in range(5)))
    return Connections(series, totals, len(tally.sums), tally.malformed, tally.uncounted)


def _labels(key: Key) -> Labels:
    src, dst, l4, dport = key
    family, l3 = (AF_INET, "ipv4") if len(src) == 4 else (AF_INET6, "ipv6")
    return Labels(
        src=inet_ntop(family, src),
        dst=inet_ntop(family, dst),
        l3protocol=l3,
        l4protocol=names.l4protocol(l4),
        l7protocol=names.l7protocol(l4, dport),
        dport=str(dport),
    )
