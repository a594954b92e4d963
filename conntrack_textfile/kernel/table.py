"""The table of one network namespace, from one snapshot to the next."""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING, NamedTuple

from conntrack_textfile.errors import SourceError
from conntrack_textfile.kernel import source, sysctl
from conntrack_textfile.kernel.namespace import OWN, Namespace, stamp
from conntrack_textfile.kernel.sysctl import Conntrack

if TYPE_CHECKING:
    from collections.abc import Iterable
    from socket import socket

    from conntrack_textfile.kernel.engine import Engine
    from conntrack_textfile.kernel.tracker import Tracker
    from conntrack_textfile.tally import Tally


class Reading(NamedTuple):
    """What is known of a reading beside its tally."""

    source: str  # that was used
    conntrack: Conntrack
    statistics: dict[str, int]  # what the kernel counted of its own trouble
    timestamp: float  # Unix time, in seconds
    duration: float  # in seconds


class Table:
    """A table, and the tracker of its connections where they are counted."""

    def __init__(
        self,
        name: str,
        path: str,
        wanted: str,
        proc_root: str,
        handed: Iterable[socket] = (),
    ) -> None:
        """The table of the namespace at a path, or our own where that is "".

        The name is for people, and "" where there is but one. wanted is the source;
        handed are sockets for dumps that were made inside by somebody else.
        """
        self.name = name
        self.space = Namespace(path, handed) if path else OWN
        self.tracker: Tracker | None = None
        self.identity: list[str] = []  # of its namespace, once it was asked for
        self.last: Reading | None = None
        """The last good one."""

        self._wanted = wanted
        self._proc_root = proc_root
        self._stamp = stamp(path) if path else None

    @property
    def key(self) -> str:
        """What sockets of its namespace are handed over by: its name, "" for our own."""
        return self.name if self.space.path else ""

    def is_of(self, path: str) -> bool:
        """Whether there is still the same namespace at a path."""
        return path == self.space.path and (not path or stamp(path) == self._stamp)

    def read(self, engine: Engine) -> Tally:
        """Read all of it, and remember what else is known in self.last. Raises SourceError."""
        started = time.monotonic()
        self.space.check()
        if self.tracker and self.tracker.ledger.baseline:
            # Twice: a dump may miss an entry, which would later look like a new one.
            self._read(engine)
        used, tally = self._read(engine)
        counted: dict[str, int] = {}
        if used == "netlink":
            # Imported here, as all below: each costs time that a small table does not.
            from conntrack_textfile.kernel import statistics

            counted = statistics.read(self.space)
        duration = time.monotonic() - started
        self.last = Reading(used, self.conntrack(), counted, time.time(), duration)
        return tally

    def conntrack(self) -> Conntrack:
        """The settings and figures of the table, of which what cannot be read is None."""
        if not self.space.path:
            return sysctl.read(self._proc_root)
        from conntrack_textfile.kernel import statistics

        found = Conntrack()
        with contextlib.suppress(SourceError):
            found = self.space.run(lambda: sysctl.read(self._proc_root))
        with contextlib.suppress(OSError, SourceError):
            entries, limit = statistics.size(self.space)
            found = found._replace(entries=entries, entries_limit=limit or found.entries_limit)
        return found

    def enable_accounting(self) -> None:
        """Try to have new connections counted."""
        try:
            self.space.run(lambda: sysctl.enable_accounting(self._proc_root))
        except (OSError, SourceError) as error:
            from conntrack_textfile.logs import LOG

            LOG.warning(
                "network namespace %s: cannot set net.netfilter.nf_conntrack_acct=1: %s",
                self.name,
                error,
            )

    def listening(self) -> bool:
        """Whether the kernel sends events to the tracker."""
        events = self.last.conntrack.events if self.last else None
        return self.tracker is not None and self.tracker.socket is not None and events is not False

    def close(self) -> None:
        """Let the namespace go."""
        self.space.close()
        if self.tracker:
            self.tracker.close()

    def _read(self, engine: Engine) -> tuple[str, Tally]:
        return source.read(self._wanted, self._proc_root, engine, self.tracker, self.space)
