from __future__ import annotations

import itertools

import pytest

from conntrack_textfile import aggregate, merge
from conntrack_textfile.aggregate import MEASURES, Limit
from conntrack_textfile.kernel.grouping import key_parser
from conntrack_textfile.plan import Plan
from conntrack_textfile.tally import Sums, Tally
from tests import engines
from tests.builders import series
from tests.flows import Flow

PLAN = Plan(labels=("src", "l4protocol"))
LABELS = ("netns", *PLAN.labels)

# The same keys in each namespace, and some that are as large as others.
FLOWS = {
    "b": [
        Flow(src=f"10.0.0.{n % 5}", sport=n, l4=17 if n % 2 else 6, counters=(n, 9 * n, 1, n % 3))
        for n in range(1, 30)
    ],
    "a": [
        Flow(src=f"10.0.0.{n % 7}", sport=n, l4=17 if n % 3 else 6, counters=(n, 5 * n, 1, 7))
        for n in range(1, 40)
    ],
    "ab": [Flow(sport=n, counters=(1, 1, 1, 1)) for n in range(3)],
    "none": [],
}


def rows_of(netns: str) -> dict[tuple[str, ...], tuple[int, ...]]:
    """The sums of the flows of a namespace, by labels."""
    found: dict[tuple[str, ...], tuple[int, ...]] = {}
    for flow in FLOWS[netns]:
        labels = (netns, flow.src, {6: "tcp", 17: "udp"}[flow.l4])
        assert flow.counters
        before = found.get(labels, (0,) * 5)
        found[labels] = tuple(a + b for a, b in zip(before, (1, *flow.counters), strict=True))
    return found


ROWS = {labels: row for netns in FLOWS for labels, row in rows_of(netns).items()}


@pytest.fixture(params=engines.NAMES)
def tallies(request: pytest.FixtureRequest) -> dict[str, Tally]:
    made = engines.make(str(request.param), PLAN)
    return {netns: made.tally(flows) for netns, flows in FLOWS.items()}


def key(labels: tuple[str, ...]) -> bytes:
    found = merge.key_parser(key_parser(PLAN))(labels)
    assert found is not None
    return found


def test_all_groups_ascend_by_namespace_and_then_as_in_each(tallies: dict[str, Tally]) -> None:
    tally = merge.merge(tallies)
    assert len(tally.groups) == len(ROWS)
    groups, columns = tally.groups.rows(0, "bytes")
    assert len(groups) == len(ROWS)
    assert dict(zip(groups, zip(*columns, strict=True), strict=True)) == ROWS
    assert list(groups) == sorted(groups)
    assert [groups[i] for i in range(len(groups))] == list(groups)
    assert [columns[2][i] for i in range(len(groups))] == list(columns[2])


@pytest.mark.parametrize("by", MEASURES)
@pytest.mark.parametrize("limit", [1, 2, 5, 11, 13, len(ROWS), len(ROWS) + 1])
def test_the_largest_are_those_of_all_namespaces(
    tallies: dict[str, Tally], by: str, limit: int
) -> None:
    groups = merge.merge(tallies).groups
    assert isinstance(groups, merge.MergedGroups)
    expected = sorted(ROWS, key=lambda labels: (-MEASURES[by](ROWS[labels]), key(labels)))
    found = groups.largest(limit, by)
    assert [groups.labels(at) for at, _ in found] == expected[:limit]
    assert [tuple(sums) for _, sums in found] == [ROWS[labels] for labels in expected[:limit]]
    hidden = {key(labels) for labels in expected[::2]}
    found = groups.largest(limit, by, hidden)
    assert [groups.labels(at) for at, _ in found] == expected[1::2][:limit]

    assert list(groups.rows(limit, by).groups) == sorted(expected[:limit])
    assert groups.exported == {
        netns: sum(labels[0] == netns for labels in expected[:limit]) for netns in FLOWS
    }


def test_sums_by_key(tallies: dict[str, Tally]) -> None:
    groups = merge.merge(tallies).groups
    gone = ("gone", "10.0.0.1", "tcp")
    wanted = [*ROWS, ("a", "10.9.9.9", "tcp"), gone, *ROWS]
    found = groups.get(map(key, wanted))
    assert found == [Sums(*ROWS[labels]) if labels in ROWS else None for labels in wanted]


@pytest.mark.parametrize("limit", [1, 3, 8])
def test_under_a_limit_the_sums_of_each_namespace_are_exact(
    tallies: dict[str, Tally], limit: int
) -> None:
    live = aggregate.fold(merge.merge(tallies), LABELS, Limit(limit, "bytes"))
    found = series(live)
    for netns, l4 in itertools.product(FLOWS, ("tcp", "udp")):
        expected = [row for labels, row in ROWS.items() if labels[::2] == (netns, l4)]
        kept = [row for labels, row in found.items() if labels[::2] == (netns, l4)]
        assert [sum(column) for column in zip(*kept, strict=True)] == [
            sum(column) for column in zip(*expected, strict=True)
        ]
    assert (live.keys, live.exported) == (len(ROWS), limit)
    assert sum(labels[1] != "other" for labels in found) == limit


def test_a_key_of_another_plan_is_none() -> None:
    assert merge.key_parser(key_parser(PLAN))(("a", "no address", "tcp")) is None
