"""What is shown of a tally, checked against sums that this file makes in its own way."""

from __future__ import annotations

import itertools
from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conntrack_textfile import filters, networks, services
from conntrack_textfile.aggregate import MEASURES, Aggregate, Limit, rank
from conntrack_textfile.filters import Filter
from conntrack_textfile.labels import LABELS
from conntrack_textfile.networks import Prefix
from conntrack_textfile.plan import Plan
from conntrack_textfile.tally import Rows, Sums
from tests.builders import Flow, aggregated, folded, series, table

TABLE = table(
    {
        Flow("10.1.2.3", "192.0.2.1"): (1, 10, 100, 20, 200),
        Flow("10.1.2.4", "192.0.2.1"): (2, 1, 1000, 1, 1),
        Flow("10.9.0.1", "192.0.2.9", 17, 53): (3, 500, 50, 500, 50),
        Flow("10.9.0.1", "192.0.2.9", 17, 40000): (1, 1, 1, 1, 1),
        Flow("10.9.0.1", "192.0.2.9", 1, 0): (1, 2, 3, 4, 5),
        Flow("2001:db8:1:2::3", "2001:db8:2::1"): (7, 1, 2, 3, 4),
    }
)
TOTALS = Sums(15, 515, 1156, 529, 261)


def test_the_largest_keep_their_series_and_the_rest_is_summed_by_protocol() -> None:
    live = folded(TABLE, Plan(), Limit(2))
    other = ("other", "other")
    assert series(live) == {
        ("10.1.2.3", "192.0.2.1", "ipv4", "tcp", "https", "443"): (1, 10, 100, 20, 200),
        ("10.1.2.4", "192.0.2.1", "ipv4", "tcp", "https", "443"): (2, 1, 1000, 1, 1),
        (*other, "ipv4", "icmp", *other): (1, 2, 3, 4, 5),
        (*other, "ipv4", "udp", *other): (4, 501, 51, 501, 51),
        (*other, "ipv6", "tcp", *other): (7, 1, 2, 3, 4),
    }
    assert (live.keys, live.exported, live.folded, live.totals) == (6, 2, 4, TOTALS)


@pytest.mark.parametrize(
    ("by", "largest"), [("bytes", "10.1.2.4"), ("packets", "10.9.0.1"), ("connections", None)]
)
def test_what_is_largest(by: str, largest: str | None) -> None:
    shown = series(folded(TABLE, Plan(), Limit(1, by)))
    assert next(iter(shown))[0] == (largest or "2001:db8:1:2::3")


def test_without_accounting_the_largest_have_most_connections() -> None:
    flows = {Flow(f"10.0.0.{n}", "192.0.2.1"): (n % 3, 0, 0, 0, 0) for n in range(9) if n % 3}
    kept = [src for src, *_ in series(folded(table(flows), Plan(), Limit(2)))]
    assert kept == ["10.0.0.2", "10.0.0.5", "other"]


def test_of_equals_the_first_are_kept() -> None:
    text = table({Flow(f"10.0.0.{n}", "192.0.2.1"): (1, 1, 1, 1, 1) for n in range(200)})
    kept = [src for src, *_ in series(folded(text, Plan(), Limit(3)))]
    assert kept == ["10.0.0.0", "10.0.0.1", "10.0.0.2", "other"]


def test_a_limit_that_is_not_reached_folds_nothing() -> None:
    for limit in (0, 6, 7):
        live = folded(TABLE, Plan(), Limit(limit))
        assert live.keys == live.exported == len(series(live)) == 6
        assert live.folded == 0


def test_by_protocols_alone_nothing_is_folded() -> None:
    # Folded into what they are, they would still be as many.
    for labels in (("l3protocol",), ("l3protocol", "l4protocol"), ()):
        live = folded(TABLE, Plan(labels=labels), Limit(1))
        assert live.keys == live.exported == len(series(live))


def test_the_rest_is_told_apart_by_the_protocols_that_are_kept() -> None:
    shown = series(folded(TABLE, Plan(labels=("src", "l3protocol")), Limit(1)))
    assert shown == {
        ("10.1.2.4", "ipv4"): (2, 1, 1000, 1, 1),
        ("other", "ipv4"): (6, 513, 154, 525, 256),
        ("other", "ipv6"): (7, 1, 2, 3, 4),
    }


def test_a_network_may_be_called_other() -> None:
    plan = Plan(labels=("src",), networks=networks.parse_names("10.1.2.4 other\n"))
    live = folded(TABLE, plan, Limit(1))
    assert series(live) == {("other",): TOTALS}
    assert (live.keys, live.exported) == (4, 1)


def test_nothing_left_is_nothing() -> None:
    live = folded(TABLE, Plan(exclude=(Filter(),)), Limit(1))
    assert (live.totals, live.filtered, len(live.groups)) == ((0, 0, 0, 0, 0), 15, 0)


def test_what_is_of_the_whole_table_is_kept() -> None:
    live = folded(TABLE + b"no entry\n", Plan(exclude=(Filter(),)), Limit(1))
    assert live.states == {("ipv4", "tcp", "ESTABLISHED"): 3, ("ipv6", "tcp", "ESTABLISHED"): 7}
    assert (live.malformed, live.uncounted) == (1, 0)


# Properties, on few addresses and ports so that they meet often.

_HOSTS4 = [f"10.{a}.{b}.{c}" for a, b, c in itertools.product((0, 1), (0, 7), (1, 255))]
_HOSTS6 = [f"2001:db8:{a}::{b}" for a, b in itertools.product((1, 2), (1, "ffff"))]
_FLOWS = st.one_of(
    *[
        st.builds(
            lambda src, dst, l4, dport: Flow(src, dst, l4, dport if l4 != 1 else 0),
            st.sampled_from(hosts),
            st.sampled_from(hosts),
            st.sampled_from((1, 6, 17, 132)),
            st.sampled_from((0, 22, 53, 443, 4711, 40000)),
        )
        for hosts in (_HOSTS4, _HOSTS6)
    ]
)
_NUMBERS = st.one_of(st.integers(0, 9), st.integers(2**63, 2**64 - 1))
_ROWS = st.tuples(st.integers(1, 5), _NUMBERS, _NUMBERS, _NUMBERS, _NUMBERS)
# Conditions, and this file's own reading of them.
_RULES = {
    Filter(src=networks.parse("10.0.0.0/16")): lambda flow: flow.src.startswith("10.0."),
    Filter(dst=networks.parse("2001:db8::/32")): lambda flow: flow.dst.startswith("2001:db8:"),
    Filter(dport=filters.parse_ports("22-443")): lambda flow: 22 <= flow.dport <= 443,
    Filter(l4protocol=17, dport=range(53, 54)): lambda flow: flow.l4 == 17 and flow.dport == 53,
}
_CHOSEN = st.lists(st.sampled_from(list(_RULES)), max_size=2).map(tuple)
_PLANS = st.builds(
    Plan,
    include=_CHOSEN,
    exclude=_CHOSEN,
    labels=st.sets(st.sampled_from(LABELS)).map(
        lambda chosen: tuple(label for label in LABELS if label in chosen)
    ),
    src_prefix=st.builds(Prefix, st.integers(0, 32), st.integers(0, 128)),
    dst_prefix=st.sampled_from([Prefix(32, 128), Prefix(8, 48)]),
    networks=st.sampled_from(
        ["", "10.0.0.0/8 lan", "10.1.0.0/16 other\n2001:db8::/32 lan\n10.0.0.0/15 rest"]
    ).map(networks.parse_names),
    services=st.sampled_from(["", "other 4711/tcp\nunknown 22/tcp\nna 53/udp"]).map(
        services.parse_services
    ),
    known_ports=st.booleans(),
)
_LIMITS = st.builds(Limit, st.integers(0, 8), st.sampled_from(list(MEASURES)), st.integers(0, 3))


@given(st.dictionaries(_FLOWS, _ROWS, max_size=40), _PLANS, _LIMITS)
def test_sums_over_every_family_are_the_totals(
    flows: dict[Flow, Any], plan: Plan, limit: Limit
) -> None:
    passing = [
        row
        for flow, row in flows.items()
        if not any(_RULES[rule](flow) for rule in plan.exclude)
        and (not plan.include or any(_RULES[rule](flow) for rule in plan.include))
    ]
    totals = tuple(sum(row[field] for row in passing) for field in range(5))
    live = folded(table(flows), plan, limit)
    found = series(live)
    assert live.malformed == 0
    assert live.totals == totals
    assert tuple(sum(row[field] for row in found.values()) for field in range(5)) == totals
    assert live.filtered + totals[0] == sum(row[0] for row in flows.values())
    # A series for each key that is kept, and one for each protocol that others have.
    assert len(found) <= live.exported + 8
    if limit.keys and {*plan.labels} - {"l3protocol", "l4protocol"}:
        assert live.exported == min(limit.keys, live.keys)
    else:
        assert live.exported == live.keys == len(found)
    # Sums by layer 3 and 4 do not depend on the limit.
    kept = [i for i, name in enumerate(plan.labels) if name in ("l3protocol", "l4protocol")]
    unlimited = series(folded(table(flows), plan, limit._replace(keys=0)))
    sums: list[Counter[tuple[str, ...]]] = [Counter(), Counter()]
    for counter, every in zip(sums, (found, unlimited), strict=True):
        for labels, row in every.items():
            counter[tuple(labels[i] for i in kept)] += row[4]
    assert sums[0] == sums[1]


@given(st.dictionaries(_FLOWS, _ROWS, max_size=40), st.integers(1, 8))
def test_no_folded_key_is_larger_than_one_that_is_kept(flows: dict[Flow, Any], limit: int) -> None:
    found = series(folded(table(flows), Plan(), Limit(limit)))
    whole = series(folded(table(flows), Plan(), Limit(0)))
    kept = [row[2] + row[4] for labels, row in found.items() if "other" not in labels]
    left = [row[2] + row[4] for labels, row in whole.items() if labels not in found]
    assert len(kept) == min(limit, len(whole))
    assert not left or max(left) <= min(kept)


RANKED = aggregated(
    {
        ("a", "x"): (1, 0, 10, 0, 20),
        ("a", "y"): (1, 0, 10, 0, 0),
        ("b", "x"): (9, 0, 30, 0, 5),
        ("c", "x"): (1, 0, 0, 0, 40),
    },
    "src",
    "dst",
)


def rows(live: Aggregate) -> Rows:
    return Rows(live.groups, live.columns)


def test_the_largest_are_those_of_most_bytes_in_both_directions() -> None:
    ranking, keys = rank(RANKED.labels, rows(RANKED), [["src"], ["src", "dst"]], "bytes", 2)
    assert ranking.by == "bytes"
    assert ranking.rows == [(("a",), (2, 0, 20, 0, 20)), (("c",), (1, 0, 0, 0, 40))]
    assert ranking.others == 1
    assert [values for values, _ in keys.rows] == [("c", "x"), ("b", "x")]
    assert (keys.labels, keys.others) == (("src", "dst"), 2)


def test_they_can_be_those_of_most_connections() -> None:
    live = aggregated({("a",): (1, 0, 9, 0, 0), ("b",): (2, 0, 0, 0, 0)}, "src")
    (ranking,) = rank(live.labels, rows(live), [["src"]], "connections", 9)
    assert (ranking.by, [values for values, _ in ranking.rows]) == ("connections", [("b",), ("a",)])


def test_of_equals_the_first_is_first() -> None:
    live = aggregated({("b", "x"): (1, 0, 1, 0, 0), ("a", "x"): (1, 0, 1, 0, 0)}, "src", "dst")
    for labels in (["src"], ["src", "dst"]):
        (ranking,) = rank(live.labels, rows(live), [labels], "bytes", 9)
        assert [values[0] for values, _ in ranking.rows] == ["b", "a"]
