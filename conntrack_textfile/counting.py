"""Counting: the traffic between snapshots, added to the counters and saved with the ledgers.

Whatever fails, all traffic is added once: a reading of a tracker is pending until the
counters have it, and they add all that is pending, or nothing.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from typing import TYPE_CHECKING, NamedTuple

from conntrack_textfile import state
from conntrack_textfile.counters import Counters
from conntrack_textfile.errors import SourceError
from conntrack_textfile.kernel import events, namespace
from conntrack_textfile.kernel.tracker import Drain, Tracker
from conntrack_textfile.logs import LOG
from conntrack_textfile.snapshot import Traffic
from conntrack_textfile.tally import Rows

if TYPE_CHECKING:
    import socket
    from collections.abc import Collection

    from conntrack_textfile.kernel.engine import Engine
    from conntrack_textfile.kernel.listener import Listen
    from conntrack_textfile.kernel.table import Table
    from conntrack_textfile.kernel.tracker import Reading
    from conntrack_textfile.options import Options
    from conntrack_textfile.plan import Plan
    from conntrack_textfile.state import State
    from conntrack_textfile.tables import Tables
    from conntrack_textfile.tally import Group, Groups, Tally

# The warning of lost events ends when none was lost for this long.
_LOST_SECONDS = 60


class Counted(NamedTuple):
    """The counters at a snapshot, and the traffic since the snapshot before."""

    traffic: Traffic  # of all tables
    namespaces: dict[str, Traffic]  # of each network namespace, without groups
    interval: Tally  # the traffic since the previous snapshot
    seconds: float | None  # of the interval; None after a start, a new plan or a failure
    ended_unseen: int  # connections that ended without an event, in the interval


class Counting:
    """The trackers of the tables, and the counters that their readings are added to."""

    def __init__(
        self, options: Options, tables: Tables, plan: Plan, engine: Engine, listen: Listen
    ) -> None:
        self.lock = threading.Lock()
        """Held while the tables or the counters change, as finish() runs in another thread."""
        self.saved = False
        """Whether the state file was written."""
        self._options = options
        self._tables = tables
        self._plan = plan
        self._engine = engine
        self._listen = listen
        self._counters = Counters(tables.labels(plan), options.limit)
        self._drain: Drain | None = None
        self._resumable: dict[str, State] = {}  # saved ledgers of tables without a tracker yet
        self._pending: dict[str, Reading] = {}  # readings that the counters do not have yet
        self._counted_at: float | None = None  # where the next interval begins (monotonic seconds)
        self._lost = 0  # events, since the last minute without a loss
        self._lost_until = 0.0  # the end of that minute (monotonic seconds)

    def resume(self, saved: State | None, interrupted: int) -> int:
        """Continue from a saved state, unless it is of another boot or table.

        interrupted: see Collector.start_counting().
        """
        if saved is not None and (fault := self._mismatch(saved)):
            LOG.info("the state is %s: counting from 0", fault)
            saved = None
        if saved is not None:
            try:
                parse = self._tables.key_parser(self._plan)
                self._counters.load(saved.numbers["counters"], parse)
                self._resumable = _ledgers(saved)
            except (AttributeError, KeyError, TypeError, ValueError) as error:
                LOG.warning("the state cannot be used (%s): counting from 0", error)
                self._counters = Counters(self._tables.labels(self._plan), self._options.limit)
        if interrupted > self._counters.totals["interrupted"]:
            self._counters.totals["interrupted"] = interrupted
            self._counters.published = False  # the run may have been killed before it published
        for table in self._tables.by_name.values():
            with contextlib.suppress(SourceError):  # the first snapshot reports it
                self.track(table)
        return self._counters.totals["interrupted"]

    def track(self, table: Table) -> None:
        """Give a table a tracker, with the saved ledger where there is one. Raises SourceError."""
        identity = table.identity = table.space.identity()
        sock, shared = self._listen(table)
        saved = self._resumable.get(table.name)
        ledger = None
        same_socket = False
        others_at = None
        drops = events.buffer(sock).drops if sock else 0
        if saved is not None and saved.numbers["table"] == identity:
            try:
                if saved.numbers["filters"] == self._filters:
                    ledger = self._engine.ledger(saved.ledger)
                others_at = int(saved.numbers["others_at"])
                same_socket = saved.numbers["socket"] == _inode(sock)
                if same_socket:
                    drops = int(saved.numbers["drops"])
            except ValueError as error:
                LOG.warning("the state cannot be used (%s): counting from a new baseline", error)
                ledger = None
        if ledger is None:
            # Also where filters changed: the ledger lacks connections that only now pass them.
            ledger = self._engine.ledger(b"")
            ledger.baseline = True
        stale = shared and not same_socket
        tracker = Tracker(ledger, sock, drops, stale=stale, space=table.space)
        if others_at is not None:
            tracker.others_at = others_at
        if self._drain is not None and sock is not None:
            self._drain.add(tracker)
        table.tracker = tracker
        self._resumable.pop(table.name, None)  # last: until there is a tracker, _save() needs it

    def retire(self, table: Table) -> None:
        """Read the last events of a table whose namespace is gone.

        There is no further dump: all connections left in its ledger have ended unseen.
        """
        if table.tracker is None:
            return
        if table.name in self._pending:  # of an earlier namespace with this name
            self._settle()
        if self._drain is not None:
            self._drain.remove(table.tracker)
        reading = table.tracker.reading(listening=table.listening(), save=False, last=True)
        self._pending[table.name] = reading
        reading.statistics["ended_unseen"] += reading.tracked

    def change_plan(self, plan: Plan, engine: Engine) -> None:
        """Continue with another plan.

        Where names change, series end. With other labels or filters the counters begin
        again at 0: the series are others, and the ledgers lack what passes the filters now.
        """
        self._settle()
        restart = _series(plan) != _series(self._plan)
        # Both at once, or neither: no event may be counted with the key of another plan.
        with contextlib.ExitStack() as replaced:
            for name, table in self._tables.by_name.items():
                if table.tracker:
                    self._pending[name] = replaced.enter_context(
                        table.tracker.replacing(engine.ledger, empty=restart)
                    )
            if restart:
                self._counters = Counters(self._tables.labels(plan), self._options.limit)
                self._pending = {}
            else:
                self._settle()
                self._counters.rekey(self._tables.key_parser(plan))
            self._plan, self._engine = plan, engine
            self._counted_at = None

    def count(self, live: Groups, failed: Collection[str]) -> Counted | None:
        """Add the traffic since the snapshot before, and save the state. Raises OutputError.

        live: the groups of this snapshot. failed: the tables that could not be read.
        Returns None where the only table was read from the proc file, which has no
        connection ids.
        """
        # None until the end: an interval does not begin with a snapshot that fails.
        since, self._counted_at = self._counted_at, None
        readings = self._read(failed, last=False)
        if not readings and not self._tables.netns:
            return None
        interval = self._add(live, failed)
        now = time.monotonic()
        lost = self._recently_lost(sum(of.statistics["lost"] for of in readings.values()), now)
        protocols = self._counters.by_protocol()
        counted = Counted(
            traffic=self._traffic(readings, protocols, lost),
            namespaces=self._traffic_by_namespace(readings, protocols),
            interval=interval,
            seconds=None if since is None else now - since,
            ended_unseen=sum(of.statistics["ended_unseen"] for of in readings.values()),
        )
        if self._options.state_file:
            self._save(readings, published=True)
        self._counters.published = True
        self._counted_at = now
        return counted

    def withdraw(self) -> None:
        """Note that the snapshot of the last count() was not published."""
        self._counters.published = False

    def finish(self) -> None:
        """Save the traffic since the last snapshot, and read no more events. Raises OutputError."""
        if not self._options.state_file:
            return
        readings = self._read(self._tables.by_name, last=True)
        if readings or self._pending:
            self._add(None, self._tables.by_name)
            self._save(readings, published=False)

    def drain(self) -> None:
        """Start a thread that reads events as they come."""
        self._drain = Drain()
        for table in self._tables.by_name.values():
            if table.tracker and table.tracker.socket:
                self._drain.add(table.tracker)

    def _read(self, failed: Collection[str], *, last: bool) -> dict[str, Reading]:
        """Take a reading of each tracker. They stay pending until _add()."""
        trackers = {}
        for name, table in self._tables.by_name.items():
            tracker = table.tracker
            if tracker is None:
                continue
            by_procfs = table.last is not None and table.last.source != "netlink"
            # A baseline that was not read to its end is repeated.
            unfinished = tracker.ledger.baseline and (name in failed or by_procfs)
            # With --netns a ledger that had no dump is saved, too, with its events.
            if not unfinished and (self._tables.netns or not by_procfs):
                trackers[name] = tracker
        # Readings of an earlier namespace with the same name, or of a count() that failed.
        if self._pending.keys() & trackers:
            self._settle()
        readings = {}
        for name, tracker in trackers.items():
            listening = self._tables.by_name[name].listening()
            readings[name] = self._pending[name] = tracker.reading(
                listening=listening, save=bool(self._options.state_file), last=last
            )
        return readings

    def _settle(self) -> None:
        """Add the pending readings, between two snapshots."""
        if self._pending:
            self._add(None, ())

    def _add(self, live: Groups | None, failed: Collection[str]) -> Tally:
        """Add the pending readings to the counters. Return their traffic, merged."""
        traffic = self._tables.merge({name: of.traffic for name, of in self._pending.items()})
        statistics = {name: of.statistics for name, of in self._pending.items()}
        pending: dict[str, Reading] = {}  # made before update(), after which nothing may fail
        self._counters.update(traffic, live, namespace.seconds(), statistics, failed)
        self._pending = pending
        return traffic

    def _recently_lost(self, lost: int, now: float) -> int:
        """Return the events lost since there was a minute without a loss."""
        if lost:
            self._lost_until = now + _LOST_SECONDS
            self._lost += lost
        elif now >= self._lost_until:
            self._lost = 0
        return self._lost

    def _traffic(self, readings: dict[str, Reading], protocols: Rows, lost: int) -> Traffic:
        """Return the counters of all tables together."""
        only = readings.get("")
        return Traffic(
            labels=self._counters.labels,
            groups=self._counters.groups(),
            protocols=protocols,
            totals=dict(self._counters.totals),
            lost=lost,
            started=self._counters.started,
            tracked=only.tracked if only else None,
            listening=self._tables.by_name[""].listening() if only else None,
            buffer=only.buffer if only else None,
        )

    def _traffic_by_namespace(
        self, readings: dict[str, Reading], protocols: Rows
    ) -> dict[str, Traffic]:
        """Return the counters of each network namespace, without groups."""
        nothing = Rows((), ((),) * 5)
        if not self._tables.netns:
            return {}
        by_namespace = _by_first_label(protocols)
        found = {}
        for name, health in self._counters.health.items():
            if not name:
                continue
            reading = readings.get(name)
            found[name] = Traffic(
                labels=self._counters.labels,
                groups=nothing,
                protocols=by_namespace.get(name, nothing),
                totals=dict(health.totals),
                lost=0,
                started=health.started,
                tracked=reading.tracked if reading else None,
                listening=self._tables.by_name[name].listening() if reading else None,
                buffer=reading.buffer if reading else None,
            )
        return found

    @property
    def _filters(self) -> str:
        """The filters as text, saved with a ledger: it has only connections that pass them."""
        return repr((self._plan.include, self._plan.exclude))

    def _mismatch(self, saved: State) -> str:
        """Return why a state cannot be continued, "" if it can: its boot, table or labels."""
        tables = saved.numbers.get("tables", {})
        if tables and ("" in tables) == self._tables.netns:
            return "of a run " + ("without" if self._tables.netns else "with") + " --netns"
        if self._tables.netns:
            same = saved.numbers.get("boot") == namespace.boot()
        else:
            same = tables.get("", {}).get("table") == namespace.OWN.identity()
        return "" if same else "of another boot or network namespace"

    def _save(self, readings: dict[str, Reading], *, published: bool) -> None:
        # For a table without a tracker yet the saved ledger is saved again.
        tables = {name: of for name, of in self._resumable.items() if name in self._tables.by_name}
        for name, reading in readings.items():
            table = self._tables.by_name[name]
            assert table.tracker is not None
            numbers = {
                "table": table.identity,
                "filters": self._filters,
                "socket": _inode(table.tracker.socket),
                "drops": table.tracker.drops,
                "others_at": table.tracker.others_at,
            }
            tables[name] = state.State(numbers, reading.ledger)
        numbers = {
            "boot": namespace.boot(),
            "tables": {
                name: {**of.numbers, "ledger": len(of.ledger)} for name, of in tables.items()
            },
            "counters": self._counters.save(published=published),
        }
        ledgers = b"".join([of.ledger for of in tables.values()])
        state.save(self._options.state_file, state.State(numbers, ledgers))
        self.saved = True


def _ledgers(saved: State) -> dict[str, State]:
    """Split a state by table. Raises KeyError, TypeError or ValueError for a damaged one."""
    found = {}
    at = 0
    for name, numbers in saved.numbers["tables"].items():
        for number in ("drops", "others_at", "ledger"):
            int(numbers[number])
        # Raises KeyError here, not later in track().
        numbers["table"], numbers["filters"], numbers["socket"]
        found[name] = saved._replace(
            numbers=numbers, ledger=saved.ledger[at : at + numbers["ledger"]]
        )
        at += numbers["ledger"]
    return found


def _series(plan: Plan) -> tuple[object, ...]:
    """Return what identifies the series of a plan: another value, and they begin at 0."""
    return plan.labels, plan.include, plan.exclude


def _by_first_label(rows: Rows) -> dict[str, Rows]:
    """Split rows by the value of their first label, and drop it."""
    found: dict[str, tuple[list[Group], list[tuple[int, ...]]]] = {}
    for (first, *labels), row in rows.pairs():
        groups, numbers = found.setdefault(first, ([], []))
        groups.append(tuple(labels))
        numbers.append(row)
    return {
        first: Rows(groups, tuple(zip(*numbers, strict=True)))
        for first, (groups, numbers) in found.items()
    }


def _inode(sock: socket.socket | None) -> int:
    """Return the inode of a socket, which no other open socket has; 0 for none."""
    return os.fstat(sock.fileno()).st_ino if sock else 0
