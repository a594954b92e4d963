"""The snapshot: one finished picture of the table, in the words of the user.

Both modes take their numbers here and nowhere else.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, NamedTuple

from conntrack_textfile import aggregate
from conntrack_textfile.kernel import source, sysctl

if TYPE_CHECKING:
    from conntrack_textfile.aggregate import Aggregate
    from conntrack_textfile.kernel.engine import Engine
    from conntrack_textfile.kernel.sysctl import Conntrack
    from conntrack_textfile.options import Options

_ACCOUNTING_OFF = (
    "accounting is off, so packets and bytes are not counted: set "
    "net.netfilter.nf_conntrack_acct=1; only connections made after it is switched on are counted"
)
_FOLDED = (
    "{} of {} keys are beyond --limit.keys and summed up as other: raise it, or make fewer keys "
    "by --aggregate.by, prefixes, names or filters"
)

# What to log when a warning no longer applies, by its kind.
RESOLVED = {
    "accounting": "accounting is no longer known to be off",
    "folded": "all keys are within --limit.keys again",
}


class Snapshot(NamedTuple):
    """One picture of the table, or of the failure to take one."""

    success: bool
    source: str
    engine: str
    conntrack: Conntrack
    timestamp: float | None = None
    """Unix time of the last good reading, in seconds; None before the first."""

    duration: float | None = None
    """What that reading and counting took, in seconds."""

    live: Aggregate | None = None
    """None where no reading is fresh enough to be shown."""

    @property
    def warnings(self) -> dict[str, str]:
        """What the user should know about these numbers, by kind."""
        found = {}
        if self.conntrack.accounting is False:
            found["accounting"] = _ACCOUNTING_OFF
        if self.live is not None and self.live.folded:
            found["folded"] = _FOLDED.format(self.live.folded, self.live.keys)
        return found


def take(options: Options, engine: Engine) -> Snapshot:
    """Read the table that the options name. Raises SourceError."""
    started = time.monotonic()
    used, tally = source.read(options.source, options.proc_root, engine)
    live = aggregate.fold(tally, options.plan.labels, options.limit)
    return Snapshot(
        success=True,
        source=used,
        engine=engine.name,
        conntrack=sysctl.read(options.proc_root),
        timestamp=time.time(),
        duration=time.monotonic() - started,
        live=live,
    )


def failure(options: Options, engine: Engine, last: Snapshot | None) -> Snapshot:
    """The snapshot after a reading that failed: what was last published, marked as such."""
    conntrack = sysctl.read(options.proc_root)
    if last is None:
        return Snapshot(
            success=False, source=options.source, engine=engine.name, conntrack=conntrack
        )
    return last._replace(success=False, conntrack=conntrack)
