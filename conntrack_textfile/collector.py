"""The collector: takes one snapshot after the other. Both modes get their numbers here alone.

What goes from one to the next, and by the state file from one run to the next, is
the ledgers and the counters.
"""

from __future__ import annotations

import contextlib
import os
import time
from typing import TYPE_CHECKING, Any

from conntrack_textfile import aggregate
from conntrack_textfile.errors import SourceError
from conntrack_textfile.kernel import namespace, sysctl
from conntrack_textfile.kernel.engine import make
from conntrack_textfile.kernel.namespace import OWN
from conntrack_textfile.kernel.sysctl import Conntrack
from conntrack_textfile.kernel.table import Table
from conntrack_textfile.labels import NETNS
from conntrack_textfile.snapshot import Snapshot, Traffic
from conntrack_textfile.tally import Rows

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Collection, Iterable, Mapping

    from conntrack_textfile.aggregate import Aggregate
    from conntrack_textfile.counters import Counters
    from conntrack_textfile.kernel import tracker
    from conntrack_textfile.kernel.engine import Engine
    from conntrack_textfile.options import Options
    from conntrack_textfile.plan import Plan
    from conntrack_textfile.state import State
    from conntrack_textfile.talkers import Talkers
    from conntrack_textfile.tally import Group, Groups, Tally

    # Gives the socket with the events of a table, and whether another process made and holds it.
    Listen = Callable[[Table], tuple[socket.socket | None, bool]]


# Lost events are warned of once, until none was lost for so long.
_LOST_SECONDS = 60


class Collector:
    """Takes snapshots, with live figures alone until counting is begun."""

    def __init__(  # noqa: PLR0913  (each of the last three is of one command)
        self,
        options: Options,
        engine: Engine,
        plans: Callable[[], Plan] | None = None,
        *,
        ranked: int = 0,
        carried: int = 0,
        handed: Mapping[str, Iterable[socket.socket]] | None = None,
    ) -> None:
        """Of the options, whose plan is the engine's. plans() gives the one to go on with.

        So many groups are ranked by each measure, in place of series by group. Of so many,
        the largest, snapshots have what they carried.
        Sockets for dumps may have been made in network namespaces, by the names of these.
        """
        self._options = options
        self._engine = engine
        self._plans = plans
        self._handed = dict(handed or {})
        self._plan = options.plan
        self._ranked = ranked
        # Ranked groups have no series, and so need no slots.
        self._limit = options.limit._replace(keys=1) if ranked else options.limit
        self._measured_at: float | None = None
        self._carried = carried
        self._continued = False  # whether the traffic to come is that since the last snapshot
        self._labels = self._labels_of(options.plan)
        # By the names of their namespaces; "" where there is but one and none is shown.
        self._tables: dict[str, Table] = {}
        self._given_up: dict[str, tracker.Reading] = {}
        self._counters: Counters | None = None
        self._listen: Listen = lambda _: (None, False)
        self._drain: tracker.Drain | None = None
        self._saved: dict[str, State] = {}  # of tables that are not begun yet
        # take() and stop() may be called by two threads where it is counted.
        self._lock: contextlib.AbstractContextManager[Any] = contextlib.nullcontext()
        self._lost = 0
        self._lost_until = 0.0
        self.saved = False
        """Whether what was counted was ever saved."""

    def count(self, listen: Listen, saved: State | None, *, interrupted: int) -> int:
        """Begin to count traffic, with the events of sockets, or go on with what was saved.

        Another boot, another network namespace and what cannot be read begin anew.
        So many runs were interrupted before, as far as the mark tells; gives how many.
        """
        # Imported here, as all below: a run without counters need not pay for it.
        import threading

        from conntrack_textfile.counters import Counters
        from conntrack_textfile.logs import LOG

        self._lock = threading.Lock()
        counters = Counters(self._labels, self._limit)
        if saved is not None and not self._is_ours(saved):
            LOG.info("the state is of another boot or network namespace: counting from 0")
            saved = None
        if saved is not None:
            try:
                counters.load(saved.numbers["counters"], self._key_parser(self._plan))
                self._saved = _ledgers(saved)
            except (AttributeError, KeyError, TypeError, ValueError) as error:
                LOG.warning("the state is of no use (%s): counting from 0", error)
                counters = Counters(self._labels, self._limit)
        if interrupted > counters.totals["interrupted"]:
            counters.totals["interrupted"] = interrupted
            counters.published = False  # nobody knows
        self._counters, self._listen = counters, listen
        for table in self._follow().values():
            with contextlib.suppress(SourceError):  # take() tells
                self._begin(table)
        return counters.totals["interrupted"]

    def take(self) -> Snapshot:
        """Read the tables that the options name. Raises SourceError where none can be read."""
        started = time.monotonic()
        if self._plans is not None:
            plan = self._plans()
            if plan != self._plan:
                self._replan(plan)
        tallies: dict[str, Tally] = {}
        errors: dict[str, SourceError] = {}
        for name, table in self._follow().items():
            try:
                tallies[name] = self._read(table)
            except SourceError as error:  # noqa: PERF203
                # One of all that is gone since they were listed is given up by the next.
                if name in ("", *self._options.netns) or namespace.stamp(table.space.path):
                    of = f"network namespace {name}: " if name else ""
                    errors[name] = SourceError(f"{of}{error}")
        if errors and not tallies:
            raise _together(list(errors.values()))
        return self._snapshot(started, tallies, errors)

    def _read(self, table: Table) -> Tally:
        """Read a table, and have it counted from now on. Raises SourceError."""
        if self._counters is not None and table.tracker is None:
            self._begin(table)
        return table.read(self._engine)

    def _snapshot(
        self, started: float, tallies: dict[str, Tally], errors: dict[str, SourceError]
    ) -> Snapshot:
        """What is published of these tallies, by the names of their tables."""
        options = self._options
        netns = bool(options.netns)
        # Before the limit, which frees the rest.
        summaries = {name: aggregate.summary(of, self._labels) for name, of in tallies.items()}
        tally = self._joined(tallies)
        readings, traffic, carried = self._count(tally.groups, errors)
        talkers = None
        if self._ranked:
            live = aggregate.summary(tally, self._labels)
            talkers = self._talkers(tally, readings)
        else:
            live = aggregate.fold(tally, self._labels, self._limit)
        if netns:
            from conntrack_textfile import joined

            found = {name: of.nat for name, of in tallies.items() if of.nat}
            nats = aggregate.nats(found, options.limit)
            for name, exported in joined.exported(tally).items():
                summaries[name] = summaries[name]._replace(exported=exported, nat=nats.get(name))
            live = live._replace(nat=joined.nat(nats) if nats else None)
        if "live" not in options.families:
            live = live._replace(groups=(), columns=((),) * 5)
        parts = self._parts(summaries, errors, readings, traffic) if netns else None
        read = [table.last for name, table in self._tables.items() if name in tallies]
        used = {of.source for of in read if of}
        return Snapshot(
            success=True,
            source="procfs" if used == {"procfs"} else "netlink",
            engine=self._engine.name,
            conntrack=_whole([of.conntrack for of in read if of], netns=netns),
            timestamp=time.time(),
            duration=time.monotonic() - started,
            live=live,
            traffic=traffic,
            talkers=talkers,
            carried=carried,
            statistics=read[0].statistics if read and read[0] and not netns else {},
            uncountable=self._counters is not None and "procfs" in used,
            parts=parts,
            errors={name: str(error) for name, error in errors.items()},
        )

    def _parts(
        self,
        summaries: Mapping[str, Aggregate],
        errors: Mapping[str, SourceError],
        readings: Mapping[str, tracker.Reading],
        traffic: Traffic | None,
    ) -> dict[str, Snapshot]:
        """What is published of each network namespace, that of which there are counters yet too."""
        counted: dict[str, Traffic] = {}
        if traffic is not None:
            counted = self._traffic_by_table(readings, traffic.protocols)
        parts = {}
        for name in sorted({*self._tables, *counted}):
            # One that was listed, and was gone when it was to be read, is not there either.
            there = name in summaries or name in errors
            table = self._tables.get(name) if there else None
            last = table.last if table else None
            conntrack = last.conntrack if last else Conntrack()
            if table and name in errors:
                conntrack = table.conntrack()
            parts[name] = Snapshot(
                success=name in summaries if there else None,
                source=last.source if last else "netlink",
                engine=self._engine.name,
                conntrack=conntrack,
                timestamp=last.timestamp if last else None,
                duration=last.duration if last else None,
                live=summaries.get(name),
                statistics=last.statistics if last and name in summaries else {},
                traffic=counted.get(name),
            )
        return parts

    def _traffic_by_table(
        self, readings: Mapping[str, tracker.Reading], protocols: Rows
    ) -> dict[str, Traffic]:
        """The counters of each network namespace, by its name, without groups."""
        assert self._counters is not None
        nothing = Rows((), ((),) * 5)
        by_table = _by_first_label(protocols)
        found = {}
        for name, health in self._counters.health.items():
            if not name:
                continue
            reading = readings.get(name)
            found[name] = Traffic(
                labels=self._labels,
                groups=nothing,
                protocols=by_table.get(name, nothing),
                totals=dict(health.totals),
                lost=0,
                started=health.started,
                tracked=reading.tracked if reading else None,
                listening=self._tables[name].listening() if reading else None,
                buffer=reading.buffer if reading else None,
            )
        return found

    def _follow(self) -> dict[str, Table]:
        """The tables that there are now. Those of namespaces that are gone are given up."""
        options = self._options
        paths = {"": ""}
        if options.netns:
            paths = namespace.find(options.netns, options.proc_root, self._handed)
        with self._lock:
            for name, table in list(self._tables.items()):
                if name not in paths or not table.is_of(paths[name]):
                    self._give_up(self._tables.pop(name))
            for name, path in paths.items():
                if name not in self._tables:
                    handed = self._handed.get(name, ())
                    table = Table(name, path, options.source, options.proc_root, handed)
                    self._tables[name] = table
                    if options.netns and options.configure_accounting:
                        table.enable_accounting()
        return self._tables

    def _give_up(self, table: Table) -> None:
        """Read the last events of a table whose namespace is gone, and let it go."""
        if table.tracker is not None:
            if table.name in self._given_up:  # no snapshot came since another had the name
                self._settle()
            if self._drain is not None:
                self._drain.remove(table.tracker)
            self._given_up[table.name] = table.tracker.reading(
                listening=table.listening(), save=False, last=True
            )
        table.close()
        self._handed.pop(table.name, None)

    def _settle(self) -> None:
        """Add what namespaces that are gone had to the counters, before the next snapshot."""
        assert self._counters is not None
        given_up, self._given_up = self._given_up, {}
        self._update(given_up, None)
        self._counters.published = False

    def _begin(self, table: Table) -> None:
        """Begin to count the traffic of a table, or go on with what was saved of it.

        Raises SourceError.
        """
        from conntrack_textfile.kernel import events
        from conntrack_textfile.kernel.tracker import Tracker
        from conntrack_textfile.logs import LOG

        identity = table.identity = table.space.identity()
        sock, held = self._listen(table)
        saved = self._saved.pop(table.name, None)
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
                LOG.warning("the state is of no use (%s): counting from a new baseline", error)
                ledger = None
        if ledger is None:
            # Also for other filters: what passes them now was not in the ledger.
            ledger = self._engine.ledger(b"")
            ledger.baseline = True
        stale = held and not same_socket
        table.tracker = Tracker(ledger, sock, drops, stale=stale, space=table.space)
        if others_at is not None:
            table.tracker.others_at = others_at
        if self._drain is not None and sock is not None:
            self._drain.add(table.tracker)

    def _labels_of(self, plan: Plan) -> tuple[str, ...]:
        return (NETNS.name, *plan.labels) if self._options.netns else plan.labels

    def _joined(self, tallies: Mapping[str, Tally]) -> Tally:
        if not self._options.netns:
            return tallies[""]
        from conntrack_textfile import joined

        return joined.join(tallies)

    def _key_parser(self, plan: Plan) -> Callable[[Group], bytes | None]:
        from conntrack_textfile.kernel.grouping import key_parser

        parse = key_parser(plan)
        if not self._options.netns:
            return parse
        from conntrack_textfile import joined

        return joined.key_parser(parse)

    def _replan(self, plan: Plan) -> None:
        """Go on with another plan. Series of names that are gone end.

        Other labels are other series, and what passes other filters was not in the
        ledger: there all of counting begins anew.
        """
        engine = make(plan)
        if self._counters:
            from conntrack_textfile.counters import Counters

            anew = _kept(plan) != _kept(self._plan)
            with self._lock:
                if self._given_up:  # by keys of the plan before
                    self._settle()
                readings = {
                    name: table.tracker.replace(engine.ledger, anew=anew)
                    for name, table in self._tables.items()
                    if table.tracker
                }
                if anew:
                    self._counters = Counters(self._labels_of(plan), self._limit)
                else:
                    if readings:
                        self._update(readings, None)
                        self._counters.published = False
                    self._counters.rekey(self._key_parser(plan))
        self._engine, self._plan, self._labels = engine, plan, self._labels_of(plan)
        self._measured_at = None
        self._continued = False

    def _update(
        self,
        readings: Mapping[str, tracker.Reading],
        live: Groups | None,
        failed: Collection[str] = (),
    ) -> Tally:
        """Add the traffic of some tables to the counters. Gives that of all together."""
        assert self._counters is not None
        traffic = self._joined({name: reading.traffic for name, reading in readings.items()})
        present = readings if self._options.netns else ()
        self._counters.update(traffic, live, namespace.seconds(), present, failed)
        for name, reading in readings.items():
            self._counters.add_totals(reading.statistics, name)
        return traffic

    def _count(
        self, live: Groups | None, failed: Collection[str] = ()
    ) -> tuple[dict[str, tracker.Reading], Traffic | None, Rows | None]:
        """Add the traffic since the last time to the counters, and save them.

        live are the groups of a snapshot; without them it is the last time. Gives what
        was read of each table, the counters of all together, and what was carried.
        """
        readings: dict[str, tracker.Reading] = {}
        if self._counters is None:
            return readings, None, None
        path = self._options.state_file
        with self._lock:
            for name, table in self._tables.items():
                # A baseline that was not read to its end is taken again.
                unfinished = name in failed and table.tracker and table.tracker.ledger.baseline
                by_procfs = table.last is not None and table.last.source != "netlink"
                if table.tracker and not unfinished and not by_procfs:
                    readings[name] = table.tracker.reading(
                        listening=table.listening(), save=bool(path), last=live is None
                    )
            if not readings and not self._options.netns:
                self._continued = False
                return readings, None, None
            if self._given_up.keys() & readings:  # another namespace has taken the name
                self._settle()
            given_up, self._given_up = self._given_up, {}
            traffic = self._update({**given_up, **readings}, live, failed)
            self._counters.published = False
            if path:
                self._save(path, readings, published=live is not None)
            self._counters.published = live is not None
            return readings, self._traffic(readings), self._carried_by(traffic)

    def _carried_by(self, traffic: Tally) -> Rows | None:
        """The traffic of a snapshot by group. Its groups are gone after it."""
        continued, self._continued = self._continued, True
        if not self._carried or not continued:
            return None
        limit = self._limit._replace(keys=self._carried)
        found = aggregate.fold(traffic, self._labels, limit)
        return Rows(found.groups, found.columns)

    def _traffic(self, readings: Mapping[str, tracker.Reading]) -> Traffic:
        """The counters of all tables together."""
        assert self._counters is not None
        only = readings.get("")
        return Traffic(
            labels=self._labels,
            groups=self._counters.groups(),
            protocols=self._counters.by_protocol(),
            totals=dict(self._counters.totals),
            lost=self._lately_lost(sum(of.statistics["lost"] for of in readings.values())),
            started=self._counters.started,
            tracked=only.tracked if only else None,
            listening=self._tables[""].listening() if only else None,
            buffer=only.buffer if only else None,
        )

    def _talkers(self, live: Tally, readings: Mapping[str, tracker.Reading]) -> Talkers:
        """The largest groups of a snapshot: by its own traffic, so that no slot is needed."""
        from conntrack_textfile import talkers

        now = time.monotonic()
        # The first reading has the baseline, and ends it: there is no traffic yet.
        since = self._measured_at
        traffic = None
        if readings:
            if since is not None:
                traffic = self._joined({name: of.traffic for name, of in readings.items()})
            self._measured_at = now
        return talkers.Talkers(
            labels=self._labels,
            rows=talkers.largest(live, traffic, self._ranked),
            totals=aggregate.totals(traffic) if traffic else None,
            seconds=now - since if since is not None else 0.0,
            ended_unseen=sum(of.statistics["ended_unseen"] for of in readings.values()),
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

    def _is_ours(self, saved: State) -> bool:
        """Whether a state is of the same boot, and where there is but one of the same table."""
        if self._options.netns:
            return saved.numbers.get("boot") == namespace.boot()
        of = saved.numbers.get("tables", {}).get("", {})
        return bool(of.get("table") == OWN.identity())

    def _save(self, path: str, readings: Mapping[str, tracker.Reading], *, published: bool) -> None:
        from conntrack_textfile import state

        assert self._counters is not None
        # What could not be begun yet goes on to the next run as it is.
        tables = {name: of for name, of in self._saved.items() if name in self._tables}
        for name, reading in readings.items():
            tracker = self._tables[name].tracker
            assert tracker is not None
            numbers = {
                "table": self._tables[name].identity,
                "filters": self._filters,
                "socket": _inode(tracker.socket),
                "drops": tracker.drops,
                "others_at": tracker.others_at,
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
        state.save(path, state.State(numbers, ledgers))
        self.saved = True

    def failure(self, last: Snapshot | None) -> Snapshot:
        """The snapshot after a reading that failed: what was last published, marked as such."""
        if self._options.netns:
            if last is not None and last.parts is not None:
                now = {name: table.conntrack() for name, table in self._tables.items()}
                parts = {
                    name: part._replace(conntrack=now.get(name, Conntrack()))
                    for name, part in last.parts.items()
                }
                return last._replace(parts=parts).failed
            names: dict[str, str] = {}
            with contextlib.suppress(SourceError):  # take() logs it
                names = namespace.find(self._options.netns, self._options.proc_root, self._handed)
            nothing = Snapshot(
                success=False,
                source="netlink",
                engine=self._engine.name,
                conntrack=Conntrack(),
            )
            return nothing._replace(parts=dict.fromkeys(names, nothing))
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
        from conntrack_textfile.kernel.tracker import Drain

        self._drain = Drain()
        for table in self._tables.values():
            if table.tracker and table.tracker.socket:
                self._drain.add(table.tracker)

    def close(self) -> None:
        """Read no more, and close the sockets."""
        with self._lock:
            for table in self._tables.values():
                table.close()

    def stop(self) -> None:
        """Save what came since the last snapshot. Nothing is read after it. Raises OutputError."""
        begun = [
            table
            for table in list(self._tables.values())
            if table.tracker and not table.tracker.ledger.baseline
        ]
        if begun and self._options.state_file:
            self._count(None, self._tables)


def _ledgers(saved: State) -> dict[str, State]:
    """What a state has of each table."""
    found = {}
    at = 0
    for name, numbers in saved.numbers["tables"].items():
        for number in ("drops", "others_at", "ledger"):
            int(numbers[number])
        numbers["table"], numbers["filters"], numbers["socket"]
        found[name] = saved._replace(
            numbers=numbers, ledger=saved.ledger[at : at + numbers["ledger"]]
        )
        at += numbers["ledger"]
    return found


def _together(errors: list[SourceError]) -> SourceError:
    """The first of some errors, and how many more there are."""
    if len(errors) == 1:
        return errors[0]
    return SourceError(f"{errors[0]} (and {len(errors) - 1} more network namespaces failed)")


def _whole(tables: list[Conntrack], *, netns: bool) -> Conntrack:
    """The figures of all tables together. There is one limit to each, and none to the whole."""
    if not netns:
        return tables[0]
    return Conntrack(entries=sum(of.entries for of in tables if of.entries is not None))


def _by_first_label(rows: Rows) -> dict[str, Rows]:
    """Rows by the value of their first label, without it."""
    found: dict[str, tuple[list[Group], list[tuple[int, ...]]]] = {}
    for (first, *labels), row in zip(rows.groups, zip(*rows.columns, strict=True), strict=True):
        groups, numbers = found.setdefault(first, ([], []))
        groups.append(tuple(labels))
        numbers.append(row)
    return {
        first: Rows(groups, tuple(zip(*numbers, strict=True)))
        for first, (groups, numbers) in found.items()
    }


def _kept(plan: Plan) -> tuple[object, ...]:
    """What cannot change without all of counting beginning anew."""
    return plan.labels, plan.include, plan.exclude


def _inode(sock: socket.socket | None) -> int:
    """What tells a socket from others, 0 for none."""
    return os.fstat(sock.fileno()).st_ino if sock else 0
