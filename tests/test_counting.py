"""Counting, with trackers and savings that fail: all traffic is added once."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from conntrack_textfile import state
from conntrack_textfile.counting import Counted, Counting
from conntrack_textfile.errors import OutputError
from conntrack_textfile.kernel.engine import make
from conntrack_textfile.kernel.ledger import STATISTICS
from conntrack_textfile.kernel.tracker import Reading
from conntrack_textfile.networks import parse_names
from conntrack_textfile.options import parse
from conntrack_textfile.tables import Tables
from tests import engines
from tests.flows import Flow

if TYPE_CHECKING:
    from pathlib import Path

    from conntrack_textfile.tally import Tally

NAMES = ("a", "b")


class Tracker:
    """One connection in each reading, unless it fails."""

    socket = None
    drops = 0
    others_at = 0
    ledger = SimpleNamespace(baseline=False)

    def __init__(self, feed: engines.Feed) -> None:
        self.feed = feed
        self.read = 0
        self.fails = False
        self.finished = False

    def reading(self, *, listening: bool, save: bool, last: bool = False) -> Reading:
        assert not listening
        if self.fails:
            raise MemoryError
        self.read += 1
        self.finished = last
        statistics = dict.fromkeys(STATISTICS, 0) | {"received": 1, "lost": 0}
        del statistics["malformed"]
        return Reading(self.traffic(), statistics, 1, None, b"ledger" if save else b"")

    def replace(self, make: object, *, empty: bool) -> Reading:
        assert make
        assert not empty
        return self.reading(listening=False, save=False)

    def traffic(self) -> Tally:
        return self.feed.tally([Flow(counters=(1, 10, 1, 10))])


class Bench:
    """Counting of two namespaces whose trackers are made up."""

    def __init__(self, file: str = "") -> None:
        argv = [f"--netns={name}" for name in NAMES]
        argv += [f"--state.file={file}"] if file else []
        self.options = parse(["serve", "--aggregate.by=dst", *argv])
        self.plan = self.options.plan
        self.tables = Tables(self.options, {})
        self.feed = engines.make("pure", self.plan)
        self.trackers = {name: Tracker(self.feed) for name in NAMES}
        engine = make(self.plan)
        self.counting = Counting(
            self.options, self.tables, self.plan, engine, lambda _: (None, False)
        )
        made: Any = self.tables.by_name
        for name, tracker in self.trackers.items():
            made[name] = SimpleNamespace(
                name=name, tracker=tracker, last=None, identity=[name], listening=lambda: False
            )

    def count(self) -> Counted:
        live = {name: tracker.traffic() for name, tracker in self.trackers.items()}
        counted = self.counting.count(self.tables.merge(live).groups, ())
        assert counted is not None
        return counted

    def check(self) -> None:
        """All that was read is published by the third snapshot from now on."""
        for _ in range(2):
            self.count()
        traffic, namespaces, *_ = self.count()
        read = sum(tracker.read for tracker in self.trackers.values())
        assert sum(of.totals["received"] for of in namespaces.values()) == read
        assert sum(traffic.groups.columns[0]) == read
        assert sum(traffic.protocols.columns[0]) == read


def test_what_was_read_before_a_tracker_failed_is_added_by_the_next() -> None:
    bench = Bench()
    bench.count()
    bench.trackers["b"].fails = True
    with pytest.raises(MemoryError):
        bench.count()
    bench.trackers["b"].fails = False
    assert bench.count().seconds is None  # the last did not end
    assert bench.count().seconds is not None
    assert (bench.trackers["a"].read, bench.trackers["b"].read) == (4, 3)
    bench.check()


def test_what_could_not_be_saved_is_added_once(tmp_path: Path) -> None:
    directory = tmp_path / "there"
    directory.mkdir()
    bench = Bench(str(directory / "state"))
    bench.count()
    directory.rename(tmp_path / "elsewhere")
    for _ in range(3):
        with pytest.raises(OutputError, match="no directory"):
            bench.count()
    (tmp_path / "elsewhere").rename(directory)
    assert bench.count().seconds is None
    bench.check()
    saved = state.load(str(directory / "state"))
    assert saved is not None
    assert saved.ledger == b"ledger" * 2


def test_a_namespace_that_is_gone_has_its_last_traffic_in_the_next_snapshot() -> None:
    bench = Bench()
    bench.count()
    gone: Any = bench.tables.by_name.pop("b")
    bench.counting.retire(gone)
    assert gone.tracker.finished
    counted = bench.count()
    assert counted.interval.entries == 2
    # Another with its name, which goes before a snapshot: the first is not lost for it.
    for _ in range(2):
        bench.counting.retire(gone)
    bench.check()


def test_a_change_of_plan_that_fails_loses_nothing() -> None:
    bench = Bench()
    bench.count()
    plan = bench.plan._replace(networks=parse_names("192.0.2.0/24 here\n"))
    bench.trackers["b"].fails = True
    with pytest.raises(MemoryError):
        bench.counting.change_plan(plan, make(plan))
    bench.trackers["b"].fails = False
    bench.counting.change_plan(bench.plan, make(bench.plan))
    assert bench.count().seconds is None
    bench.check()


def test_after_the_end_nothing_is_pending(tmp_path: Path) -> None:
    file = str(tmp_path / "state")
    bench = Bench(file)
    bench.count()
    gone: Any = bench.tables.by_name.pop("b")
    bench.counting.retire(gone)
    bench.counting.finish()
    assert bench.trackers["a"].finished
    saved = state.load(file)
    assert saved is not None
    counters = saved.numbers["counters"]
    assert not counters["published"]
    assert list(saved.numbers["tables"]) == ["a"]
    assert sum(sums[0] for _, sums, *_ in counters["protocols"]) == 4
