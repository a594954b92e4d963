"""The snapshot: one finished picture of the table, in the words of the user.

Both modes take their numbers here and nowhere else.
"""

from __future__ import annotations

import time

# Not from socket: to import that costs more than to read a small table.
from _socket import AF_INET, AF_INET6, inet_ntop
from typing import TYPE_CHECKING, NamedTuple

from conntrack_textfile import names, source, sysctl
from conntrack_textfile.tally import Sums

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

    from conntrack_textfile.options import Options
    from conntrack_textfile.tally import Engine, Key

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
    """What the table held, by columns."""

    labels: Collection[Labels]
    """The labels of each series, in the order of the keys; made as they are asked for."""

    columns: tuple[Collection[int], ...]
    """Five, one for each field of Sums: a number for each series."""

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


def take(options: Options, engine: Engine) -> Snapshot:
    """Read the table that the options name. Raises source.SourceError."""
    started = time.monotonic()
    used, tally = source.read(options.source, options.proc_root, engine)
    totals = Sums(*map(sum, tally.columns))
    connections = Connections(
        _Named(tally.keys),
        tally.columns,
        totals,
        len(tally.keys),
        tally.malformed,
        tally.uncounted,
    )
    return Snapshot(
        success=True,
        source=used,
        engine=engine.name,
        conntrack=sysctl.read(options.proc_root),
        timestamp=time.time(),
        duration=time.monotonic() - started,
        connections=connections,
    )


def failure(options: Options, engine: Engine, last: Snapshot | None) -> Snapshot:
    """The snapshot after a reading that failed: what was last shown, marked as such."""
    conntrack = sysctl.read(options.proc_root)
    if last is None:
        return Snapshot(
            success=False, source=options.source, engine=engine.name, conntrack=conntrack
        )
    return last._replace(success=False, conntrack=conntrack)


class _Named:
    """The labels of keys, without keeping them: there may be very many."""

    def __init__(self, keys: Collection[Key]) -> None:
        self._keys = keys

    def __len__(self) -> int:
        return len(self._keys)

    def __iter__(self) -> Iterator[Labels]:
        return map(_labels, self._keys)

    def __contains__(self, labels: object) -> bool:
        return any(labels == other for other in self)


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
