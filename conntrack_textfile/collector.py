"""The collector: takes one snapshot after the other, in both modes."""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING, Any, NamedTuple

from conntrack_textfile import aggregate
from conntrack_textfile.errors import SourceError
from conntrack_textfile.kernel import sysctl
from conntrack_textfile.kernel.engine import make
from conntrack_textfile.kernel.source import may_be_netlink
from conntrack_textfile.kernel.sysctl import Conntrack
from conntrack_textfile.snapshot import Snapshot
from conntrack_textfile.tables import Tables
from conntrack_textfile.tally import Rows

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Iterable, Mapping

    from conntrack_textfile.aggregate import Aggregate
    from conntrack_textfile.counting import Counted, Counting
    from conntrack_textfile.kernel.engine import Engine
    from conntrack_textfile.kernel.listener import Listen
    from conntrack_textfile.options import Options
    from conntrack_textfile.plan import Plan
    from conntrack_textfile.state import State
    from conntrack_textfile.tally import Tally


class _Readings(NamedTuple):
    """The tables, read for one snapshot."""

    started: float  # monotonic seconds
    tallies: dict[str, Tally]  # by name of the table
    errors: dict[str, SourceError]  # of the tables that could not be read
    tally: Tally  # all tables merged
    summaries: dict[str, Aggregate]  # by name, without groups


class Collector:
    """Takes snapshots: of live connections, and of the counters after start_counting().

    One thread calls take(), top() and failure(), another may call stop().
    """

    def __init__(
        self,
        options: Options,
        engine: Engine,
        plans: Callable[[], Plan] | None = None,
        *,
        dump_sockets: Mapping[str, Iterable[socket.socket]] | None = None,
        interval_groups: int = 0,
    ) -> None:
        """Open nothing yet.

        engine: for options.plan.
        plans: called before each snapshot; returns the current plan (the names files
        may have changed).
        dump_sockets: see Tables.
        interval_groups: the number of top groups in Snapshot.interval; 0 for no interval.
        """
        self._options = options
        self._engine = engine
        self._plan = options.plan
        self._plans = plans or (lambda: options.plan)
        self._interval_groups = interval_groups
        self._tables = Tables(options, dump_sockets or {})
        self._counting: Counting | None = None
        self._lock: contextlib.AbstractContextManager[Any] = contextlib.nullcontext()
        self._counted = False  # whether the counters include the current snapshot

    def start_counting(
        self, listen: Listen, saved: State | None = None, *, interrupted: int = 0
    ) -> int:
        """Begin to count traffic, or continue from a saved state.

        listen: returns the event socket of a table.
        interrupted: the count of interrupted runs in the lock file of the state.

        Returns the larger of that count and the one in the saved counters.
        """
        # Imported here: a run without counters need not pay for it.
        from conntrack_textfile.counting import Counting

        counting = Counting(self._options, self._tables, self._plan, self._engine, listen)
        with contextlib.suppress(SourceError):  # the first snapshot reports it
            self._tables.update(counting.retire)
        self._counting, self._lock = counting, counting.lock
        return counting.resume(saved, interrupted)

    @property
    def can_count(self) -> bool:
        """Whether traffic can be counted: the proc file has no connection ids."""
        options = self._options
        return self._tables.netns or may_be_netlink(options.source, options.proc_root)

    def drain(self) -> None:
        """Start a thread that reads events as they come. Call start_counting() first."""
        assert self._counting is not None
        self._counting.drain()

    @property
    def saved(self) -> bool:
        """Whether the state file was written."""
        return self._counting is not None and self._counting.saved

    def take(self) -> Snapshot:
        """Return a snapshot with the series by group.

        Raises SourceError where no table can be read, and OutputError where the state
        cannot be saved.
        """
        readings = self._read()
        counted = self._count(readings)
        live = aggregate.fold(readings.tally, self._labels, self._options.limit)
        if "live" not in self._options.families:
            live = live._replace(groups=(), columns=((),) * 5)
        interval = self._interval(counted)
        return self._snapshot(readings, counted, live)._replace(interval=interval)

    def top(self, count: int) -> Snapshot:
        """Return a snapshot with the top talkers in place of the series by group.

        count: the number of groups for each measure. Raises SourceError where no table can be read.
        """
        from conntrack_textfile import talkers

        readings = self._read()
        counted = self._count(readings)
        live = aggregate.summary(readings.tally, self._labels)
        traffic = counted.interval if counted and counted.seconds is not None else None
        found = talkers.Talkers(
            labels=self._labels,
            rows=talkers.largest(readings.tally, traffic, count),
            totals=aggregate.totals(traffic) if traffic else None,
            seconds=(counted.seconds or 0.0) if counted else 0.0,
            ended_unseen=counted.ended_unseen if counted else 0,
        )
        return self._snapshot(readings, counted, live)._replace(talkers=found)

    def failure(self, last: Snapshot | None) -> Snapshot:
        """Return the snapshot to publish after a failure, with the current size of the table.

        Either take() failed, or its snapshot could not be published.
        last: the last snapshot that was published, None before the first.
        """
        if self._counted and self._counting:
            self._counting.withdraw()
        if last is None:
            last = Snapshot(
                success=False,
                source="netlink" if self._tables.netns else self._options.source,
                engine=self._engine.name,
                conntrack=Conntrack(),
            )
            if self._tables.netns:
                names: Iterable[str] = self._options.netns
                with contextlib.suppress(SourceError):
                    names = self._tables.names()
                last = last._replace(parts=dict.fromkeys(names, last))
        if last.parts is None:
            return last.failed._replace(conntrack=sysctl.read(self._options.proc_root))
        now = {name: table.conntrack() for name, table in self._tables.by_name.items()}
        parts = {
            name: part._replace(conntrack=now.get(name, Conntrack()))
            for name, part in last.parts.items()
        }
        return last._replace(parts=parts).failed

    def stop(self) -> None:
        """Save the traffic since the last snapshot. A later take() blocks. Raises OutputError."""
        if self._counting is None:
            return
        # Never released: a take() in the other thread must not count after the last save.
        self._counting.lock.acquire()
        self._counting.finish()

    def close(self) -> None:
        """Close all sockets."""
        self._tables.close()

    @property
    def _labels(self) -> tuple[str, ...]:
        return self._tables.labels(self._plan)

    def _read(self) -> _Readings:
        """Read the tables of the current namespaces, with the current plan."""
        started = time.monotonic()
        self._counted = False
        self._update_plan()
        self._update_tables()
        tallies: dict[str, Tally] = {}
        errors: dict[str, SourceError] = {}
        for name, table in self._tables.by_name.items():
            try:
                if self._counting and table.tracker is None:
                    with self._lock:  # stop() in the other thread saves the state
                        self._counting.track(table)
                tallies[name] = table.read(self._engine)
            except SourceError as error:  # noqa: PERF203
                if self._tables.is_expected(table):
                    of = f"network namespace {name}: " if name else ""
                    errors[name] = SourceError(f"{of}{error}")
        if errors and not tallies:
            raise _first(list(errors.values()))
        # Before the limit is applied, which frees the groups.
        summaries = {name: aggregate.summary(of, self._labels) for name, of in tallies.items()}
        tally = self._tables.merge(tallies)
        return _Readings(started, tallies, errors, tally, summaries)

    def _update_plan(self) -> None:
        plan = self._plans()
        if plan == self._plan:
            return
        engine = make(plan)
        if self._counting:
            with self._lock:
                self._counting.change_plan(plan, engine)
        self._plan, self._engine = plan, engine

    def _update_tables(self) -> None:
        with self._lock:
            self._tables.update(self._counting.retire if self._counting else lambda _: None)

    def _count(self, readings: _Readings) -> Counted | None:
        if self._counting is None:
            return None
        # Also namespaces that were deleted meanwhile, which is no error.
        failed = self._tables.by_name.keys() - readings.tallies.keys()
        with self._lock:
            counted = self._counting.count(readings.tally.groups, failed)
        self._counted = counted is not None
        return counted

    def _interval(self, counted: Counted | None) -> Rows | None:
        """Return the traffic since the previous snapshot, limited to interval_groups."""
        if not self._interval_groups or counted is None or counted.seconds is None:
            return None
        limit = self._options.limit._replace(keys=self._interval_groups)
        found = aggregate.fold(counted.interval, self._labels, limit)
        return Rows(found.groups, found.columns)

    def _snapshot(self, readings: _Readings, counted: Counted | None, live: Aggregate) -> Snapshot:
        """Assemble the snapshot. live: of all tables, under the limit."""
        parts = None
        if self._tables.netns:
            live, parts = self._by_namespace(readings, counted, live)
        tables = self._tables.by_name
        last = [of for name in readings.tallies if (of := tables[name].last)]
        sources = {of.source for of in last}
        sizes = [of.conntrack for of in last]
        return Snapshot(
            success=True,
            source="procfs" if sources == {"procfs"} else "netlink",
            engine=self._engine.name,
            conntrack=sizes[0] if parts is None else _sum(sizes),
            timestamp=time.time(),
            duration=time.monotonic() - readings.started,
            live=live,
            traffic=counted.traffic if counted else None,
            statistics=last[0].statistics if parts is None else {},
            uncountable=self._counting is not None and "procfs" in sources,
            parts=parts,
            errors={name: str(error) for name, error in readings.errors.items()},
        )

    def _by_namespace(
        self, readings: _Readings, counted: Counted | None, live: Aggregate
    ) -> tuple[Aggregate, dict[str, Snapshot]]:
        """Return live with the NAT of all network namespaces, and a snapshot of each namespace.

        A namespace that was deleted still has its counters.
        """
        from conntrack_textfile import merge

        found = {name: of.nat for name, of in readings.tallies.items() if of.nat}
        nats = aggregate.nats(found, self._options.limit)
        exported = merge.exported(readings.tally)
        traffic = counted.namespaces if counted else {}
        parts = {}
        for name in sorted({*self._tables.by_name, *traffic}):
            # With neither a reading nor an error, the namespace was deleted meanwhile.
            exists = name in readings.tallies or name in readings.errors
            table = self._tables.by_name[name] if exists else None
            last = table.last if table else None
            conntrack = last.conntrack if last else Conntrack()
            if table and name in readings.errors:
                conntrack = table.conntrack()
            summary = readings.summaries.get(name)
            if summary:
                summary = summary._replace(exported=exported[name], nat=nats.get(name))
            parts[name] = Snapshot(
                success=summary is not None if exists else None,
                source=last.source if last else "netlink",
                engine=self._engine.name,
                conntrack=conntrack,
                timestamp=last.timestamp if last else None,
                duration=last.duration if last else None,
                live=summary,
                statistics=last.statistics if last and summary else {},
                traffic=traffic.get(name),
            )
        return live._replace(nat=merge.merge_nat(nats) if nats else None), parts


def _first(errors: list[SourceError]) -> SourceError:
    """Return the first error, with the number of the others."""
    if len(errors) == 1:
        return errors[0]
    return SourceError(f"{errors[0]} (and {len(errors) - 1} more network namespaces failed)")


def _sum(tables: list[Conntrack]) -> Conntrack:
    """Return the entries of all tables together. A sum of their limits has no meaning."""
    return Conntrack(entries=sum(of.entries for of in tables if of.entries is not None))
