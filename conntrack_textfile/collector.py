"""The collector: takes one snapshot after the other. Both modes get their numbers here alone.

What goes from one to the next, and by the state file from one run to the next, is
the ledger and the counters.
"""

from __future__ import annotations

import os
import threading
import time
from typing import TYPE_CHECKING

from conntrack_textfile import aggregate
from conntrack_textfile.kernel import source, sysctl
from conntrack_textfile.kernel.engine import make
from conntrack_textfile.snapshot import Snapshot, Talkers, Traffic

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    from conntrack_textfile.counters import Counters
    from conntrack_textfile.kernel.engine import Engine
    from conntrack_textfile.kernel.tracker import Reading, Tracker
    from conntrack_textfile.options import Options
    from conntrack_textfile.plan import Plan
    from conntrack_textfile.state import State
    from conntrack_textfile.tally import Groups, Tally


# Lost events are warned of once, until none was lost for so long.
_LOST_SECONDS = 60


class Collector:
    """Takes snapshots, with live figures alone until counting is begun."""

    def __init__(
        self,
        options: Options,
        engine: Engine,
        plans: Callable[[], Plan] | None = None,
        ranked: int = 0,
    ) -> None:
        """Of the options, whose plan is the engine's. plans() gives the one to go on with.

        So many groups are ranked by each measure, in place of series by group.
        """
        self._options = options
        self._engine = engine
        self._plans = plans
        self._plan = options.plan
        self._ranked = ranked
        # Ranked groups have no series, and so need no slots.
        self._limit = options.limit._replace(keys=1) if ranked else options.limit
        self._measured_at: float | None = None
        self._tracker: Tracker | None = None
        self._counters: Counters | None = None
        self._lock = threading.Lock()
        self._lost = 0
        self._lost_until = 0.0
        self.saved = False
        """Whether what was counted was ever saved."""

    def count(
        self, sock: socket.socket | None, saved: State | None, *, held: bool, interrupted: int
    ) -> int:
        """Begin to count traffic, with the events of a socket, or go on with what was saved.

        held says that the socket was made by another process, which held events on it.
        Another boot, another network namespace and what cannot be read begin anew.
        So many runs were interrupted before, as far as the mark tells; gives how many.
        """
        # Imported here, as all below: a run without counters need not pay for it.
        from conntrack_textfile.counters import Counters
        from conntrack_textfile.kernel import events, namespace
        from conntrack_textfile.kernel.tracker import Tracker
        from conntrack_textfile.logs import LOG

        plan = self._plan
        counters = Counters(plan.labels, self._limit)
        ledger = None
        same_socket = False
        others_at = None
        drops = events.buffer(sock).drops if sock else 0
        if saved is not None and saved.numbers.get("table") != namespace.identity():
            LOG.info("the state is of another boot or network namespace: counting from 0")
        elif saved is not None:
            from conntrack_textfile.kernel.grouping import key_parser

            try:
                counters.load(saved.numbers["counters"], key_parser(plan))
                if saved.numbers["filters"] == self._filters:
                    ledger = self._engine.ledger(saved.ledger)
                others_at = int(saved.numbers["others_at"])
                same_socket = saved.numbers["socket"] == _inode(sock)
                if same_socket:
                    drops = int(saved.numbers["drops"])
            except (KeyError, TypeError, ValueError) as error:
                LOG.warning("the state is of no use (%s): counting from 0", error)
                counters, ledger = Counters(plan.labels, self._limit), None
        if ledger is None:
            # Also for other filters: what passes them now was not in the ledger.
            ledger = self._engine.ledger(b"")
            ledger.baseline = True
        if interrupted > counters.totals["interrupted"]:
            counters.totals["interrupted"] = interrupted
            counters.published = False  # nobody knows
        self._tracker = Tracker(ledger, sock, drops, stale=held and not same_socket)
        if others_at is not None:
            self._tracker.others_at = others_at
        self._counters = counters
        return counters.totals["interrupted"]

    def take(self) -> Snapshot:
        """Read the table that the options name. Raises SourceError."""
        options = self._options
        started = time.monotonic()
        if self._plans is not None:
            plan = self._plans()
            if plan != self._plan:
                self._replan(plan)
        if self._tracker and self._tracker.ledger.baseline:
            # Twice: a dump may miss an entry, which would later look like a new one.
            source.read(options.source, options.proc_root, self._engine, self._tracker)
        used, tally = source.read(options.source, options.proc_root, self._engine, self._tracker)
        conntrack = sysctl.read(options.proc_root)
        reading = traffic = talkers = None
        if used == "netlink":
            listening = (
                self._tracker is not None
                and self._tracker.socket is not None
                and conntrack.events is not False
            )
            reading = self._count(tally.groups, listening=listening)
            traffic = self._traffic(reading, listening=listening) if reading else None
        labels = self._plan.labels
        if self._ranked:
            live = aggregate.without_groups(tally, labels)
            talkers = self._talkers(tally, reading)
        else:
            live = aggregate.fold(tally, labels, self._limit)
            if "live" not in options.families:
                live = live._replace(groups=(), columns=((),) * 5)
        return Snapshot(
            success=True,
            source=used,
            engine=self._engine.name,
            conntrack=conntrack,
            timestamp=time.time(),
            duration=time.monotonic() - started,
            live=live,
            traffic=traffic,
            talkers=talkers,
            uncountable=self._tracker is not None and traffic is None,
        )

    def _replan(self, plan: Plan) -> None:
        """Go on with another plan. Series of names that are gone end.

        Other labels are other series, and what passes other filters was not in the
        ledger: there all of counting begins anew.
        """
        engine = make(plan)
        if self._tracker and self._counters:
            from conntrack_textfile.counters import Counters
            from conntrack_textfile.kernel import namespace
            from conntrack_textfile.kernel.grouping import key_parser

            anew = _kept(plan) != _kept(self._plan)
            with self._lock:
                reading = self._tracker.replace(engine.ledger, anew=anew)
                if anew:
                    self._counters = Counters(plan.labels, self._limit)
                else:
                    self._counters.update(reading.traffic, None, namespace.seconds())
                    self._counters.add_totals(reading.statistics)
                    self._counters.published = False
                    self._counters.rekey(key_parser(plan))
        self._engine, self._plan = engine, plan
        self._measured_at = None

    def _count(self, live: Groups | None, *, listening: bool) -> Reading | None:
        """Add the traffic since the last time to the counters, and save them.

        live are the groups of a snapshot; without them it is the last time.
        """
        if self._tracker is None or self._counters is None:
            return None
        from conntrack_textfile.kernel import namespace

        path = self._options.state_file
        with self._lock:
            reading = self._tracker.reading(listening=listening, save=bool(path), last=live is None)
            self._counters.update(reading.traffic, live, namespace.seconds())
            self._counters.add_totals(reading.statistics)
            self._counters.published = False
            if path:
                self._save(path, reading.ledger, published=live is not None)
            self._counters.published = live is not None
        return reading

    def _traffic(self, reading: Reading, *, listening: bool) -> Traffic:
        """The counters, after a reading was added to them."""
        assert self._counters is not None
        return Traffic(
            labels=self._plan.labels,
            groups=self._counters.groups(),
            protocols=self._counters.by_protocol(),
            totals=dict(self._counters.totals),
            lost=self._lately_lost(reading.statistics["lost"]),
            started=self._counters.started,
            tracked=reading.tracked,
            listening=listening,
            buffer=reading.buffer,
        )

    def _talkers(self, live: Tally, reading: Reading | None) -> Talkers:
        """The largest groups of a reading: by its own traffic, so that no slot is needed."""
        now = time.monotonic()
        # The first reading has the baseline, and ends it: there is no traffic yet.
        since = self._measured_at
        traffic = reading.traffic if reading and since is not None else None
        if reading:
            self._measured_at = now
        return Talkers(
            labels=self._plan.labels,
            rows=aggregate.talkers(live, traffic, self._ranked),
            totals=aggregate.totals(traffic) if traffic else None,
            seconds=now - since if since is not None else 0.0,
            ended_unseen=reading.statistics["ended_unseen"] if reading else 0,
        )

    def _lately_lost(self, lost: int) -> int:
        """Events that were lost until none was for a minute."""
        now = time.monotonic()
        if lost:
            self._lost_until = now + _LOST_SECONDS
            self._lost += lost
        elif now >= self._lost_until:
            self._lost = 0
        return self._lost

    @property
    def _filters(self) -> str:
        """What is compared with a saved ledger's: it has what passed the filters alone."""
        return repr((self._plan.include, self._plan.exclude))

    def _save(self, path: str, ledger: bytes, *, published: bool) -> None:
        from conntrack_textfile import state
        from conntrack_textfile.kernel import namespace

        assert self._tracker is not None
        assert self._counters is not None
        numbers = {
            "table": namespace.identity(),
            "filters": self._filters,
            "socket": _inode(self._tracker.socket),
            "drops": self._tracker.drops,
            "others_at": self._tracker.others_at,
            "counters": self._counters.save(published=published),
        }
        state.save(path, state.State(numbers, ledger))
        self.saved = True

    def failure(self, last: Snapshot | None) -> Snapshot:
        """The snapshot after a reading that failed: what was last published, marked as such."""
        conntrack = sysctl.read(self._options.proc_root)
        if last is None:
            return Snapshot(
                success=False,
                source=self._options.source,
                engine=self._engine.name,
                conntrack=conntrack,
            )
        return last._replace(success=False, conntrack=conntrack)

    def drain(self) -> None:
        """Read events as they come, from now on, in a thread of its own."""
        if self._tracker and self._tracker.socket:
            self._tracker.start()

    def close(self) -> None:
        """Read no more events, and close their socket."""
        if self._tracker:
            self._tracker.close()

    def stop(self) -> None:
        """Save what came since the last snapshot. Nothing is read after it. Raises OutputError."""
        if self._tracker and self._options.state_file and not self._tracker.ledger.baseline:
            self._count(None, listening=self._tracker.socket is not None)


def _kept(plan: Plan) -> tuple[object, ...]:
    """What cannot change without all of counting beginning anew."""
    return plan.labels, plan.include, plan.exclude


def _inode(sock: socket.socket | None) -> int:
    """What tells a socket from others, 0 for none."""
    return os.fstat(sock.fileno()).st_ino if sock else 0
