"""The connection table of one network namespace."""

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
    """The results of a reading besides its tally."""

    source: str  # "netlink" or "procfs"
    conntrack: Conntrack
    statistics: dict[str, int]  # see statistics.read()
    timestamp: float  # Unix time, in seconds
    duration: float  # in seconds


class Table:
    """A table, with the tracker of its connections where traffic is counted."""

    def __init__(
        self,
        name: str,
        path: str,
        wanted: str,
        proc_root: str,
        dump_sockets: Iterable[socket] = (),
    ) -> None:
        """Describe the table of a network namespace. Nothing is read yet.

        name: the value of the label netns, "" where there is no such label.
        path: of the namespace, "" for our own.
        wanted: the source (--collector.source).
        dump_sockets: netlink sockets in the namespace, passed by systemd.
        """
        self.name = name
        self.space = Namespace(path, dump_sockets) if path else OWN
        self.tracker: Tracker | None = None
        self.identity: list[str] = []
        """Namespace.identity(), where there is a tracker."""
        self.last: Reading | None = None
        """The last successful reading."""

        self._wanted = wanted
        self._proc_root = proc_root
        self._stamp = stamp(path) if path else None

    @property
    def key(self) -> str:
        """The name that systemd passes the sockets of the namespace by, "" for our own."""
        return self.name if self.space.path else ""

    def is_of(self, path: str) -> bool:
        """Return whether a path is still that of the same namespace."""
        return path == self.space.path and (not path or stamp(path) == self._stamp)

    def read(self, engine: Engine) -> Tally:
        """Return the tally of the table, and set self.last. Raises SourceError."""
        started = time.monotonic()
        self.space.check()
        if self.tracker and self.tracker.ledger.baseline:
            # Twice: a dump can miss an entry, which would look like a new one in the next.
            self._read(engine)
        used, tally = self._read(engine)
        counted: dict[str, int] = {}
        if used == "netlink":
            # Imported here, as below: the import takes longer than to read a small table.
            from conntrack_textfile.kernel import statistics

            counted = statistics.read(self.space)
        duration = time.monotonic() - started
        self.last = Reading(used, self.conntrack(), counted, time.time(), duration)
        return tally

    def conntrack(self) -> Conntrack:
        """Return the settings and the size of the table; None for what cannot be read."""
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
        """Set net.netfilter.nf_conntrack_acct=1 in the namespace; log where that fails."""
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
        """Return whether the kernel sends events to the tracker."""
        events = self.last.conntrack.events if self.last else None
        return self.tracker is not None and self.tracker.socket is not None and events is not False

    def close(self) -> None:
        """Close all sockets, which keep the namespace alive."""
        self.space.close()
        if self.tracker:
            self.tracker.close()

    def _read(self, engine: Engine) -> tuple[str, Tally]:
        return source.read(self._wanted, self._proc_root, engine, self.tracker, self.space)
