"""Counting, with trackers and savings that fail: all traffic is added once."""

from __future__ import annotations

import contextlib
import gc
import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from conntrack_textfile import counters, counting, merge, state
from conntrack_textfile.counting import Counted, Counting
from conntrack_textfile.errors import OutputError
from conntrack_textfile.kernel import ledger, tracker
from conntrack_textfile.kernel.engine import make
from conntrack_textfile.kernel.ledger import STATISTICS
from conntrack_textfile.kernel.tracker import Reading
from conntrack_textfile.networks import parse_names
from conntrack_textfile.options import parse
from conntrack_textfile.tables import Tables
from tests import engines
from tests.flows import DESTROY, Flow, message

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import FrameType

    from conntrack_textfile.tally import Group, Tally

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

    @contextlib.contextmanager
    def replacing(self, make: object, *, empty: bool) -> Iterator[Reading]:
        assert make
        assert not empty
        yield self.reading(listening=False, save=False)

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
        for name, of in self.trackers.items():
            made[name] = SimpleNamespace(
                name=name, tracker=of, last=None, identity=[name], listening=lambda: False
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
    # The connection that its ledger still had can be followed no more.
    assert [of.totals["ended_unseen"] for of in counted.namespaces.values()] == [0, 1]
    assert counted.traffic.totals["ended_unseen"] == 1
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


@pytest.mark.parametrize("baseline", [False, True])
def test_a_table_read_from_the_proc_file_keeps_its_ledger(tmp_path: Path, baseline: bool) -> None:
    """Its events have been read: without them the next run would count too little."""
    file = str(tmp_path / "state")
    bench = Bench(file)
    bench.tables.by_name["a"].last = SimpleNamespace(source="procfs")  # type: ignore[assignment]
    bench.trackers["a"].ledger = SimpleNamespace(baseline=baseline)
    bench.count()
    saved = state.load(file)
    assert saved is not None
    assert list(saved.numbers["tables"]) == (["b"] if baseline else ["a", "b"])


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
    numbers = saved.numbers["counters"]
    assert not numbers["published"]
    assert list(saved.numbers["tables"]) == ["a"]
    assert sum(sums[0] for _, sums, *_ in numbers["protocols"]) == 4


# The files whose calls fail in turn, but not the end of a with statement, nor the making of
# a tuple of a few words.
FAILING = {
    str(Path(module.__file__ or ""))
    for module in (counters, counting, ledger, merge, state, tracker)
}
FIRST, SECOND, THIRD = "192.0.2.0/24 one\n", "198.51.100.0/24 two\n", "203.0.113.0/24 an\n"
DESTINATIONS = {"192.0.2.1": "one", "198.51.100.1": "two", "10.9.9.9": "10.9.9.9"}


class Faults:
    """Raises an error in place of a call. Keeps the calls before it."""

    def __init__(self, at: int, error: Exception) -> None:
        self.at = at
        self.error = error
        self.calls: list[tuple[str, int, str]] = []

    def __enter__(self) -> None:
        gc.disable()  # its callbacks (Hypothesis has one) would be calls, at no fixed place
        sys.setprofile(self._profile)

    def __exit__(self, *_: object) -> None:
        sys.setprofile(None)
        gc.enable()

    def _profile(self, frame: FrameType, event: str, arg: Any) -> None:
        caller = frame.f_back if event == "call" else frame
        name = frame.f_code.co_name if event == "call" else getattr(arg, "__name__", "")
        small = frame.f_code.co_filename == "<string>"  # NamedTuple.__new__()
        if event not in ("call", "c_call") or caller is None or name == "__exit__" or small:
            return
        if caller.f_code.co_filename in FAILING:
            self.calls.append((caller.f_code.co_filename, caller.f_lineno, name))
            if len(self.calls) == self.at:
                raise self.error


class Story:
    """Counting of two namespaces with real ledgers, beside what their events carried."""

    def __init__(self, engine: str, file: Path) -> None:
        self.file = str(file)
        options = parse(
            ["serve", "--aggregate.by=dst", "--limit.keys=2", f"--state.file={file}"]
            + [f"--netns={name}" for name in NAMES]
        )
        self.engine = engine
        self.plan = options.plan._replace(networks=parse_names(FIRST + SECOND))
        self.tables = Tables(options, {})
        feed = engines.make(engine, self.plan).engine
        self.counting = Counting(options, self.tables, self.plan, feed, lambda _: (None, False))
        self.trackers: dict[str, tracker.Tracker] = {}
        self.sent: dict[str, int] = {}
        self.shown: dict[Group, int] = {}
        self.flow = 0
        for name in NAMES:
            self.open(name)

    def open(self, name: str) -> None:
        book = engines.make(self.engine, self.plan).engine.ledger(b"")
        made: Any = self.tables.by_name
        self.trackers[name] = tracker.Tracker(book, None, 0)
        made[name] = SimpleNamespace(
            name=name,
            tracker=self.trackers[name],
            last=None,
            identity=[name],
            listening=lambda: False,
        )

    def send(self) -> None:
        """Connections to each destination that begin and end."""
        for number, dst in enumerate(DESTINATIONS, 1):
            for of in self.trackers.values():
                for _ in range(number):
                    self.flow += 1
                    flow = Flow(dst=dst, id=self.flow, counters=(1, 10, 1, 10))
                    book: Any = of.ledger
                    book.destroy(message(flow, DESTROY), 1)
                    self.sent[dst] = self.sent.get(dst, 0) + 1

    def count(self) -> None:
        feed = engines.make(self.engine, self.plan)
        live = self.tables.merge({name: feed.tally([]) for name in self.trackers}).groups
        counted = self.counting.count(live, ())
        assert counted is not None
        traffic = counted.traffic
        shown = dict(zip(traffic.groups.groups, traffic.groups.columns[0], strict=True))
        assert len(shown) == len(traffic.groups.groups), "two series with the same labels"
        for labels, value in shown.items():
            assert value >= self.shown.get(labels, 0), f"{labels} fell"
            assert value == 0 or labels in self.shown, f"{labels} begins at {value}"
            dst = next((dst for dst, name in DESTINATIONS.items() if name == labels[1]), labels[1])
            assert dst == "other" or value <= self.sent[dst], f"{labels} is more than was sent"
        assert sum(traffic.protocols.columns[0]) <= sum(self.sent.values())
        self.shown = shown

    def rename(self, text: str) -> None:
        plan = self.plan._replace(networks=parse_names(text))
        self.counting.change_plan(plan, engines.make(self.engine, plan).engine)
        self.plan = plan

    def retire(self) -> None:
        """The second namespace is gone, and another has its name."""
        gone: Any = self.tables.by_name["b"]
        self.counting.retire(gone)
        self.open("b")

    def steps(self) -> Iterator[Callable[[], None]]:
        yield from [self.count] * 3
        yield self.retire
        yield self.count
        yield lambda: self.rename(FIRST + SECOND + THIRD)
        yield from [self.count] * 2
        yield self.counting.finish

    def tell(self, faults: Faults) -> bool:
        """Return whether a call failed. The step is repeated then, as by the next snapshot."""
        failed = False
        for step in self.steps():
            self.send()
            try:
                with faults:
                    step()
            except type(faults.error):
                failed = True
                self.send()  # the thread that drains reads on
                step()
        return failed

    def check(self) -> None:
        """All that was sent is in the saved counters, once."""
        saved = state.load(self.file)
        assert saved is not None
        numbers = saved.numbers["counters"]
        sent = sum(self.sent.values())
        assert sum(sums[0] for _, sums, *_ in numbers["protocols"]) == sent
        assert sum(totals["received"] for _, _, totals, _ in numbers["namespaces"]) == sent


@pytest.mark.parametrize("engine", engines.NAMES)
def test_whatever_call_fails_all_is_counted_once(
    tmp_path: Path, engine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of each place in the program one call fails: in turn its first, middle and last.

    The engines share the places.
    """
    monkeypatch.setattr(os, "fsync", lambda _: None)  # a disk that others use takes long
    none = Faults(0, MemoryError())
    assert not Story(engine, tmp_path / "state").tell(none)
    places: dict[tuple[str, int, str], list[int]] = {}
    for at, place in enumerate(none.calls, 1):
        places.setdefault(place, []).append(at)
    assert len(places) > 100
    share = list(places.items())[engines.NAMES.index(engine) :: len(engines.NAMES)]
    for number, (place, calls) in enumerate(share):
        at = (calls[0], calls[len(calls) // 2], calls[-1])[number % 3]
        story = Story(engine, tmp_path / "state")
        try:
            assert story.tell(Faults(at, (MemoryError(), OSError("fault"))[number % 2]))
            story.check()
        except AssertionError as fault:
            raise AssertionError(f"call {at}, {place}: {fault}") from fault
