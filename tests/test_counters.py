"""The counters: bounded, never falling, and adding up, over random streams of traffic."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conntrack_textfile import merge
from conntrack_textfile.aggregate import Limit
from conntrack_textfile.counters import IDLE_SECONDS, Counters, Slot
from conntrack_textfile.kernel.grouping import key_parser
from conntrack_textfile.networks import parse_names
from conntrack_textfile.plan import Plan
from tests import engines
from tests.flows import Flow

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from conntrack_textfile.tally import Rows, Tally
    from tests.engines import Feed

Group = tuple[str, ...]
Values = tuple[int, ...]
ZEROS: Values = (0, 0, 0, 0, 0)
PROTOCOLS = {6: ("ipv4", "tcp"), 17: ("ipv4", "udp")}
NAMES = ("", "10.0.0.3 other\n10.0.0.4 four\n", "10.0.0.4/30 upper\n10.0.0.1 other\n")


def values(published: Rows) -> dict[Group, Values]:
    found = dict(
        zip(published.groups, map(tuple, zip(*published.columns, strict=True)), strict=True)
    )
    assert len(found) == len(published.groups), "two series with the same labels"
    return found


def plus(one: Sequence[int], other: Sequence[int]) -> Values:
    return tuple(a + b for a, b in zip(one, other, strict=True))


def at_most(one: Sequence[int], other: Sequence[int]) -> bool:
    return all(a <= b for a, b in zip(one, other, strict=True))


def flow(host: int, size: int, l4: int = 6) -> Flow:
    return Flow(src=f"10.0.0.{host}", l4=l4, counters=(size, size * 10, size * 2, size * 30))


def row(size: int) -> Values:
    return (1, size, size * 10, size * 2, size * 30)


class Reader:
    """What Prometheus makes of the series: the increases of each, however often it begins anew."""

    def __init__(self) -> None:
        self.last: dict[Group, Values] = {}
        self.increases: dict[Group, Values] = {}

    def read(self, published: dict[Group, Values]) -> None:
        for labels, now in published.items():
            if labels not in self.last:
                assert now == ZEROS, f"{labels} begins at {now}"
                continue
            before = self.last[labels]
            assert at_most(before, now), f"{labels} fell from {before} to {now}"
            grown = tuple(b - a for a, b in zip(before, now, strict=True))
            self.increases[labels] = plus(self.increases.get(labels, ZEROS), grown)
        self.last = published

    def by_protocol(self, labels: Sequence[str]) -> dict[Group, Values]:
        """The increases by the labels of protocols that there are."""
        at = [i for i, label in enumerate(labels) if label in ("l3protocol", "l4protocol")]
        found: dict[Group, Values] = {}
        for group, grown in self.increases.items():
            key = tuple(group[i] for i in at)
            found[key] = plus(found.get(key, ZEROS), grown)
        return found


class Run:
    """Counters under test beside a model: what was fed, by protocol, at each snapshot."""

    def __init__(self, engine: str, labels: tuple[str, ...], limit: int) -> None:
        self.engine = engine
        self.labels = labels
        self.limit = limit
        self.now = 1000
        self.names = 0
        self.plan = Plan(labels=labels)
        self.feed: Feed = engines.make(engine, self.plan)
        self.counters = Counters(labels, Limit(limit))
        self.groups, self.protocols = Reader(), Reader()
        self.fed: dict[Group, Values] = {}
        # The same at the snapshots of which all that they gave is known to be published.
        self.sure: list[dict[Group, Values]] = [{}]

    def update(self, traffic: Mapping[tuple[int, int], int], *, last: bool = False) -> None:
        flows = [flow(host, size, l4) for (host, l4), size in traffic.items()]
        self.now += 60
        live = None if last else self.feed.tally([]).groups
        self.counters.update(self.feed.tally(flows), live, self.now)
        for (_, l4), size in traffic.items():
            key = PROTOCOLS[l4]
            self.fed[key] = plus(self.fed.get(key, ZEROS), row(size))

    def step(self, step: str, traffic: Mapping[tuple[int, int], int], names: int) -> None:
        if step == "restart":
            self.restart(published=self.counters.published)
        elif step == "rename":
            if self.counters.published:  # else what a group had grown since is in none
                self.restart(published=True, names=names)
                self.sure = self.sure[:-1] or [{}]  # a new "other" must begin at 0
        elif step == "stop":  # of serve: counted and saved, shown by nobody
            self.update(traffic, last=True)
            self.restart(published=False)
        elif step == "killed":  # between the state file and the textfile
            self.update(traffic)
            self.restart(published=True, known=False)
        elif step == "killed after":  # after the textfile
            self.update(traffic)
            self.publish()
            self.sure.pop()
            self.restart(published=True, known=False)
        elif step == "idle":
            self.now += IDLE_SECONDS
        else:
            self.update(traffic)
            self.publish()

    def publish(self) -> None:
        self.counters.published = True
        shown = values(self.counters.groups())
        self.groups.read(shown)
        self.protocols.read(values(self.counters.by_protocol()))
        kept = [i for i, label in enumerate(("l3protocol", "l4protocol")) if label in self.labels]
        for reader, labels in (
            (self.groups, self.labels),
            (self.protocols, ("l3protocol", "l4protocol")),
        ):
            # All that was fed up to the snapshot before, nothing that was not fed.
            found = reader.by_protocol(labels)
            at = kept if reader is self.groups else [0, 1]
            least, most = (self.folded(fed, at) for fed in (self.sure[-1], self.fed))
            for key in most:
                assert at_most(least.get(key, ZEROS), found.get(key, ZEROS)), (least, found)
                assert at_most(found.get(key, ZEROS), most[key]), (found, most)
            assert found.keys() <= most.keys()
        self.sure.append(dict(self.fed))
        if self.limit and set(self.labels) - {"l3protocol", "l4protocol"}:
            others = [group for group in shown if group[0] == "other"]
            assert len(shown) - len(others) <= self.limit
            assert len(others) <= len(PROTOCOLS)
            saved = self.counters.save(published=True)["candidates"]
            assert isinstance(saved, list)
            assert len(saved) <= self.limit

    @staticmethod
    def folded(fed: dict[Group, Values], at: Sequence[int]) -> dict[Group, Values]:
        found: dict[Group, Values] = {}
        for protocol, sums in fed.items():
            key = tuple(protocol[i] for i in at)
            found[key] = plus(found.get(key, ZEROS), sums)
        return found

    def restart(self, *, published: bool, known: bool = True, names: int | None = None) -> None:
        saved = json.loads(json.dumps(self.counters.save(published=published)))
        if names is not None:
            self.plan = Plan(labels=self.labels, networks=parse_names(NAMES[names]))
            self.feed = engines.make(self.engine, self.plan)
        self.counters = Counters(self.labels, Limit(self.limit))
        self.counters.load(saved, key_parser(self.plan))
        if not known:
            self.counters.published = False


TRAFFIC = st.dictionaries(
    st.tuples(st.integers(1, 8), st.sampled_from([6, 17])), st.integers(0, 50), max_size=8
)
STEPS = st.lists(
    st.tuples(
        st.sampled_from(
            ["snapshot"] * 6 + ["restart", "stop", "killed", "killed after", "rename", "idle"]
        ),
        TRAFFIC,
        st.integers(0, 2),
    ),
    max_size=25,
)


@pytest.mark.parametrize("engine", engines.NAMES)
@given(
    STEPS,
    st.sampled_from([1, 2, 3, 0]),
    st.sampled_from(
        [("src", "l3protocol", "l4protocol"), ("src", "l4protocol"), ("src",), ("l4protocol",)]
    ),
)
@settings(max_examples=150)
def test_any_stream_is_counted_bounded_and_never_falls(
    engine: str,
    steps: list[tuple[str, dict[tuple[int, int], int], int]],
    limit: int,
    labels: tuple[str, ...],
) -> None:
    run = Run(engine, labels, limit)
    for step, traffic, names in steps:
        run.step(step, traffic, names)
    run.update({})
    run.publish()
    if all(step not in ("rename", "killed after") for step, *_ in steps):
        run.update({})
        run.publish()
        assert run.protocols.by_protocol(("l3protocol", "l4protocol")) == run.fed
        kept = [i for i, label in enumerate(("l3protocol", "l4protocol")) if label in labels]
        if run.fed:
            assert {
                key: sums for key, sums in run.groups.by_protocol(labels).items() if any(sums)
            } == {key: sums for key, sums in run.folded(run.fed, kept).items() if any(sums)}


@pytest.mark.parametrize("engine", engines.NAMES)
def test_groups_that_churn_at_ten_times_the_limit(engine: str) -> None:
    run = Run(engine, ("src", "l4protocol"), 5)
    for snapshot in range(200):
        hosts = {(1 + (snapshot * 50 + i) % 250, 6): 1 + (snapshot + i * i) % 90 for i in range(50)}
        run.update({**hosts, (251, 17): 5})
        run.publish()
    assert len(run.counters.slots) == 5
    assert len(run.counters.others) == 2


class World:
    """A stream of traffic by the number of a host, in one engine."""

    def __init__(self, engine: str, limit: int = 2, labels: tuple[str, ...] = ("src",)) -> None:
        self.feed = engines.make(engine, Plan(labels=labels))
        self.counters = Counters(labels, Limit(limit))
        self.now = 0

    def snapshot(self, live: Sequence[int] = (), seconds: int = 60, **sizes: int) -> dict[str, int]:
        """Sent packets by source after traffic of hosts: h1=5."""
        traffic = self.tally({int(name[1:]): size for name, size in sizes.items()})
        now_live = self.tally(dict.fromkeys(live, 0)).groups
        self.now += seconds
        self.counters.update(traffic, now_live, self.now)
        self.counters.published = True
        return {group[0]: sums[1] for group, sums in values(self.counters.groups()).items()}

    def tally(self, sizes: Mapping[int, int]) -> Tally:
        return self.feed.tally([flow(host, size) for host, size in sizes.items()])


@pytest.fixture(params=engines.NAMES)
def world(request: pytest.FixtureRequest) -> World:
    return World(request.param)


def test_a_new_group_is_0_at_first_and_its_value_from_the_next_on(world: World) -> None:
    assert world.snapshot(h1=5) == {"10.0.0.1": 0}
    assert world.snapshot(h1=2, h2=1) == {"10.0.0.1": 7, "10.0.0.2": 0}
    assert world.snapshot(h3=9) == {"10.0.0.1": 7, "10.0.0.2": 1, "other": 0}
    assert world.snapshot() == {"10.0.0.1": 7, "10.0.0.2": 1, "other": 9}


def test_twice_the_smallest_for_three_snapshots_takes_its_slot(world: World) -> None:
    for _ in range(2):
        world.snapshot(h1=100, h2=10)
    for _ in range(2):
        world.snapshot(h1=100, h2=10, h3=20)
    assert world.counters.totals["evicted"] == 0
    shown = world.snapshot(h1=100, h2=10, h3=20)
    assert shown.keys() == {"10.0.0.1", "10.0.0.3", "other"}
    assert shown["10.0.0.3"] == 0
    assert world.counters.totals["evicted"] == 1
    # What was counted until then stays where it was, and is not moved to "other".
    assert world.snapshot(h1=100, h3=20) == {"10.0.0.1": 600, "10.0.0.3": 40, "other": 50}


def test_less_than_twice_or_not_three_times_running_does_not(world: World) -> None:
    for _ in range(2):
        world.snapshot(h1=100, h2=10)
    for _ in range(9):
        world.snapshot(h1=100, h2=10, h3=19)
    for size in (50, 50, 19, 50, 50, 0, 50, 50, 5):
        world.snapshot(h1=100, h2=10, h3=size)
    assert world.counters.totals["evicted"] == 0


def test_who_waits_for_a_slot_waits_through_a_restart(world: World) -> None:
    for _ in range(2):
        world.snapshot(h1=100, h2=10)
    for _ in range(3):
        world.snapshot(h1=100, h2=10, h3=30)
        saved = json.loads(json.dumps(world.counters.save(published=True)))
        world.counters = Counters(("src",), Limit(2))
        world.counters.load(saved, key_parser(Plan(labels=("src",))))
    assert world.counters.totals["evicted"] == 1
    assert world.snapshot().keys() == {"10.0.0.1", "10.0.0.3", "other"}


def test_a_slot_is_free_after_an_hour_without_traffic_and_live_connection(world: World) -> None:
    world.snapshot(h1=1, h2=1)
    world.snapshot(live=[2])
    assert world.snapshot(live=[2], seconds=IDLE_SECONDS - 61).keys() == {"10.0.0.1", "10.0.0.2"}
    assert world.snapshot(live=[2]).keys() == {"10.0.0.2"}
    assert world.counters.totals["evicted"] == 1
    assert world.snapshot(live=[2], seconds=IDLE_SECONDS * 5).keys() == {"10.0.0.2"}
    assert world.snapshot(h1=3, h2=1) == {"10.0.0.2": 2, "10.0.0.1": 0}


@pytest.mark.parametrize("step", [0, 1, 2])
def test_an_error_adds_nothing_and_the_same_traffic_can_be_added_again(
    world: World, step: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As of too little memory: for the first, the second or the third sum."""
    for _ in range(3):
        before = world.snapshot(h1=5, h2=3, h3=1)
    plus, calls = Slot.plus, iter(range(100))

    def failing(self: Slot, row: Iterable[int]) -> list[int]:
        if next(calls) == step:
            raise MemoryError
        return plus(self, row)

    monkeypatch.setattr(Slot, "plus", failing)
    with pytest.raises(MemoryError):
        world.snapshot(h1=50, h2=30, h3=10)
    monkeypatch.undo()
    assert not world.counters.published
    assert values(world.counters.by_protocol()) == {("ipv4", "tcp"): (9, 27, 270, 54, 810)}
    assert {group[0]: sums[1] for group, sums in values(world.counters.groups()).items()} == before
    after = world.snapshot(h1=50, h2=30, h3=10)
    assert {name: after[name] - before[name] for name in before} == {
        "10.0.0.1": 50,
        "10.0.0.2": 30,
        "other": 10,
    }


@pytest.mark.parametrize("engine", engines.NAMES)
@pytest.mark.parametrize(
    ("limit", "labels"), [(0, ("src",)), (1, ("l3protocol", "l4protocol")), (1, ("l4protocol",))]
)
def test_what_is_never_folded(engine: str, limit: int, labels: tuple[str, ...]) -> None:
    feed = engines.make(engine, Plan(labels=labels))
    counters = Counters(labels, Limit(limit))
    flows = [flow(host, 1, l4) for host in range(1, 9) for l4 in (6, 17)]
    for now in (60, 120, 180, 240):
        counters.update(feed.tally(flows), feed.tally([]).groups, now)
        counters.published = True
    shown = values(counters.groups())
    assert len(shown) == (8 if labels == ("src",) else 2)
    assert not any("other" in group for group in shown)
    assert {sums[0] for sums in shown.values()} == {8 if labels == ("src",) else 32}


@pytest.mark.parametrize("engine", engines.NAMES)
@pytest.mark.parametrize("limit", [0, 3])
def test_a_network_that_a_user_called_other(engine: str, limit: int) -> None:
    plan = Plan(labels=("src",), networks=parse_names("10.0.0.1 other\n"))
    feed = engines.make(engine, plan)
    counters = Counters(("src",), Limit(limit))
    for now in (60, 120, 180):
        counters.update(
            feed.tally([flow(host, 1) for host in range(1, 4)]), feed.tally([]).groups, now
        )
        counters.published = True
    shown = values(counters.groups())
    assert {group: sums[0] for group, sums in shown.items()} == {
        ("10.0.0.2",): 3,
        ("10.0.0.3",): 3,
        ("other",): 3,
    }


def loaded(counters: Counters, labels: tuple[str, ...], limit: int, plan: Plan) -> Counters:
    found = Counters(labels, Limit(limit))
    found.load(json.loads(json.dumps(counters.save(published=True))), key_parser(plan))
    return found


def test_a_lower_limit_after_a_restart_keeps_the_largest(world: World) -> None:
    world.counters.limit = Limit(9)
    for _ in range(3):
        world.snapshot(h1=1, h2=9, h3=5)
    world.counters = loaded(world.counters, ("src",), 2, Plan(labels=("src",)))
    assert world.snapshot() == {"10.0.0.2": 27, "10.0.0.3": 15}
    assert world.counters.totals["evicted"] == 1


def test_other_labels_are_other_series_and_protocols_go_on(world: World) -> None:
    for _ in range(3):
        world.snapshot(h1=1)
    counters = loaded(world.counters, ("dst",), 2, Plan(labels=("dst",)))
    assert values(counters.groups()) == {}
    assert values(counters.by_protocol()) == {("ipv4", "tcp"): (3, 3, 30, 6, 90)}
    assert counters.started == world.counters.started


class Shape(NamedTuple):
    key: str
    value: object


@pytest.mark.parametrize(
    "change",
    [
        Shape("started", None),
        Shape("totals", {}),
        Shape("protocols", [[["ipv4"], [0] * 5, 0, 0]]),
        Shape("slots", [[["10.0.0.1"], [0] * 4, 0, 0]]),
        Shape("slots", [[["10.0.0.1"], "many", 0, 0]]),
        Shape("others", 5),
        Shape("candidates", [["10.0.0.1"]]),
    ],
)
def test_what_is_not_saved_counters_is_refused(world: World, change: Shape) -> None:
    world.snapshot(h1=1)
    saved = json.loads(json.dumps(world.counters.save(published=True)))
    saved[change.key] = change.value
    with pytest.raises((KeyError, TypeError, ValueError)):
        Counters(("src",), Limit(2)).load(saved, key_parser(Plan(labels=("src",))))


def test_counters_of_a_namespace_that_is_gone_live_for_an_hour() -> None:
    feed = engines.make("pure", Plan(labels=("dst",)))
    counters = Counters(("netns", "dst"), Limit())

    def update(now: int, *present: str, failed: tuple[str, ...] = ()) -> set[str]:
        """The namespaces with counters, by key, by protocol and for themselves."""
        tally = merge.merge({netns: feed.tally([Flow(counters=(1, 1, 1, 1))]) for netns in present})
        counters.update(tally, tally.groups, now, {netns: {} for netns in present}, failed)
        counters.published = True
        by_key = {labels[0] for labels in counters.groups().groups}
        assert by_key == {labels[0] for labels in counters.by_protocol().groups}
        assert by_key == counters.health.keys() - {""}
        return by_key

    for now in (1, 2, 3):
        assert update(now, "a", "b", "c") == {"a", "b", "c"}
    assert update(3 + IDLE_SECONDS - 1, "b", failed=("c",)) == {"a", "b", "c"}
    assert update(3 + IDLE_SECONDS, "b", failed=("c",)) == {"b", "c"}
    assert counters.health["b"].totals["evicted"] == 0
    # One that comes back counts from 0.
    assert update(3 + IDLE_SECONDS + 1, "a", "b", failed=("c",)) == {"a", "b", "c"}
    columns = dict(zip(counters.protocols, counters.by_protocol().columns[0], strict=True))
    assert columns[("a", "ipv4", "tcp")] == 0
    assert columns[("c", "ipv4", "tcp")] == 3


def test_what_namespaces_have_is_saved_and_loaded() -> None:
    plan = Plan(labels=("dst",))
    feed = engines.make("pure", plan)
    counters = Counters(("netns", "dst"), Limit())
    parse = merge.key_parser(key_parser(plan))
    tally = merge.merge({netns: feed.tally([Flow()]) for netns in ("a", "b")})
    counters.update(tally, tally.groups, 5, {"a": {}, "b": {"lost": 7}})
    saved = json.loads(json.dumps(counters.save(published=True)))
    again = Counters(("netns", "dst"), Limit())
    again.load(saved, parse)
    assert again.save(published=True) == counters.save(published=True)
    assert again.health["b"].totals["lost"] == 7
    # Without the label they are other series, also those by protocol.
    other = Counters(("dst",), Limit())
    other.load(saved, key_parser(plan))
    assert (other.slots, other.protocols) == ({}, {})
    assert list(other.health) == [""]


def test_the_totals_of_all_tables_are_the_sums_over_the_namespaces() -> None:
    feed = engines.make("pure", Plan(labels=("dst",)))
    counters = Counters(("netns", "dst"), Limit())
    tally = merge.merge({netns: feed.tally([Flow()]) for netns in ("a", "b")})
    for _ in range(2):
        counters.update(
            tally, tally.groups, 5, {"a": {"ended_unseen": 3}, "b": {"ended_unseen": 4, "lost": 1}}
        )
    assert counters.health["a"].totals["ended_unseen"] == 6
    assert (counters.totals["ended_unseen"], counters.totals["lost"]) == (14, 2)
    # One table has the totals of all.
    alone = Counters(("dst",), Limit())
    tally = feed.tally([Flow()])
    alone.update(tally, tally.groups, 5, {"": {"lost": 7}})
    assert alone.totals["lost"] == 7


def test_a_namespace_that_is_gone_keeps_no_counters_where_all_are_0() -> None:
    """Of a thousand short-lived containers an hour there would be thousands of series."""
    feed = engines.make("pure", Plan(labels=("dst",)))
    counters = Counters(("netns", "dst"), Limit())

    def update(now: int, lost: int = 0, **flows: list[Flow]) -> set[str]:
        tally = merge.merge({netns: feed.tally(of) for netns, of in flows.items()})
        statistics = {netns: {"lost": lost} if netns == "losing" else {} for netns in flows}
        counters.update(tally, tally.groups, now, statistics)
        counters.published = True
        return set(counters.health) - {""}

    # Of these the second has an event that was lost, and the third traffic.
    busy = [Flow(counters=(1, 1, 1, 1))]
    seen = update(1000, lost=1, stays=[], losing=[], busy=busy, idle=[])
    assert seen == {"stays", "losing", "busy", "idle"}
    assert update(1001, stays=[]) == {"stays", "losing", "busy"}
    assert update(1000 + IDLE_SECONDS, stays=[]) == {"stays"}
