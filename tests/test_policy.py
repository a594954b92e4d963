"""What is shown of a tally, checked against sums that this file makes in its own way."""

from __future__ import annotations

import ipaddress
import itertools
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conntrack_textfile import names
from conntrack_textfile.filters import Filter, parse
from conntrack_textfile.networks import parse_names
from conntrack_textfile.policy import LABELS, Connections, Policy, show
from conntrack_textfile.tally import Gathered, Key, Sums, Tally

if TYPE_CHECKING:
    from collections.abc import Sequence


def key(src: str, dst: str, l4: int = 6, dport: int = 443) -> Key:
    return ipaddress.ip_address(src).packed, ipaddress.ip_address(dst).packed, l4, dport


def tally(rows: dict[Key, Sequence[int]]) -> Tally:
    gathered = Gathered()
    gathered.sums = {at: list(row) for at, row in rows.items()}
    return gathered.tally()


def series(connections: Connections) -> dict[tuple[str, ...], tuple[int, ...]]:
    rows = list(zip(connections.labels, zip(*connections.columns, strict=True), strict=True))
    assert len(dict(rows)) == len(rows) == len(connections.labels)  # else Prometheus refuses them
    return dict(rows)


TABLE = tally(
    {
        key("10.1.2.3", "192.0.2.1"): (1, 10, 100, 20, 200),
        key("10.1.2.4", "192.0.2.1"): (2, 1, 1000, 1, 1),
        key("10.9.0.1", "192.0.2.9", 17, 53): (3, 500, 50, 500, 50),
        key("10.9.0.1", "192.0.2.9", 17, 40000): (1, 1, 1, 1, 1),
        key("10.9.0.1", "192.0.2.9", 1, 0): (1, 2, 3, 4, 5),
        key("2001:db8:1:2::3", "2001:db8:2::1"): (7, 1, 2, 3, 4),
    }
)
TOTALS = Sums(15, 515, 1156, 529, 261)


def test_the_largest_keep_their_series_and_the_rest_is_summed_by_protocol() -> None:
    shown = show(Policy(limit=2), TABLE)
    other = ("other", "other")
    assert series(shown) == {
        ("10.1.2.3", "192.0.2.1", "ipv4", "tcp", "https", "443"): (1, 10, 100, 20, 200),
        ("10.1.2.4", "192.0.2.1", "ipv4", "tcp", "https", "443"): (2, 1, 1000, 1, 1),
        (*other, "ipv4", "icmp", *other): (1, 2, 3, 4, 5),
        (*other, "ipv4", "udp", *other): (4, 501, 51, 501, 51),
        (*other, "ipv6", "tcp", *other): (7, 1, 2, 3, 4),
    }
    assert (shown.keys, shown.exported, shown.totals) == (6, 2, TOTALS)


@pytest.mark.parametrize(
    ("by", "largest"), [("bytes", "10.1.2.4"), ("packets", "10.9.0.1"), ("connections", None)]
)
def test_what_is_largest(by: str, largest: str | None) -> None:
    shown = series(show(Policy(limit=1, limit_by=by), TABLE))
    assert next(iter(shown))[0] == (largest or "2001:db8:1:2::3")


def test_without_accounting_the_largest_have_most_connections() -> None:
    table = tally({key(f"10.0.0.{n}", "192.0.2.1"): (n % 3, 0, 0, 0, 0) for n in range(9) if n % 3})
    kept = [src for src, *_ in series(show(Policy(limit=2), table))]
    assert kept == ["10.0.0.2", "10.0.0.5", "other"]


def test_of_equals_the_first_are_kept() -> None:
    table = tally({key(f"10.0.0.{n}", "192.0.2.1"): (1, 1, 1, 1, 1) for n in range(200)})
    kept = [src for src, *_ in series(show(Policy(limit=3), table))]
    assert kept == ["10.0.0.0", "10.0.0.1", "10.0.0.2", "other"]


def test_a_limit_that_is_not_reached_folds_nothing() -> None:
    for limit in (0, 6, 7):
        shown = show(Policy(limit=limit), TABLE)
        assert shown.keys == shown.exported == len(series(shown)) == 6


def test_labels_that_are_left_out_are_summed_over() -> None:
    by = show(Policy(labels=("src", "l7protocol")), TABLE)
    assert by.label_names == ("src", "l7protocol")
    assert series(by)["10.9.0.1", "unknown"] == (1, 1, 1, 1, 1)
    assert by.keys == 6
    assert series(show(Policy(labels=("l3protocol",)), TABLE)) == {
        ("ipv4",): (8, 514, 1154, 526, 257),
        ("ipv6",): (7, 1, 2, 3, 4),
    }
    assert series(show(Policy(labels=()), TABLE)) == {(): TOTALS}
    # Folded into what they are, they would still be as many.
    shown = show(Policy(labels=("l3protocol",), limit=1), TABLE)
    assert shown.keys == shown.exported == 2


def test_addresses_become_networks_and_ports_become_other() -> None:
    prefixes = Policy(src_prefix=(24, 48), dst_prefix=(0, 128))
    shown = series(show(prefixes, TABLE))
    assert shown["10.1.2.0/24", "0.0.0.0/0", "ipv4", "tcp", "https", "443"][0] == 3
    assert ("2001:db8:1::/48", "2001:db8:2::1", "ipv6", "tcp", "https", "443") in shown
    known = series(show(Policy(known_ports=True), TABLE))
    assert ("10.9.0.1", "192.0.2.9", "ipv4", "udp", "unknown", "other") in known
    assert ("10.9.0.1", "192.0.2.9", "ipv4", "icmp", "na", "0") in known
    assert len(known) == 6


def test_names_go_before_prefixes() -> None:
    named = parse_names("10.1.2.3 laptop\n10.0.0.0/8 company\n192.0.2.0/24 company\n")
    shown = series(show(Policy(networks=named, src_prefix=(8, 8)), TABLE))
    assert ("laptop", "company", "ipv4", "tcp", "https", "443") in shown
    assert shown["company", "company", "ipv4", "tcp", "https", "443"][0] == 2
    assert ("2000::/8", "2001:db8:2::1", "ipv6", "tcp", "https", "443") in shown


def test_services_have_the_users_names() -> None:
    services = names.parse_services("frontend 443/tcp\nbilling 40000/udp\n")
    shown = series(show(Policy(services=services, known_ports=True), TABLE))
    assert {row[4:] for row in shown} == {
        ("frontend", "443"),
        ("dns", "53"),
        ("billing", "40000"),
        ("na", "0"),
    }


def test_a_network_may_be_called_other() -> None:
    named = parse_names("10.1.2.4 other\n")
    shown = show(Policy(labels=("src",), networks=named, limit=1), TABLE)
    assert series(shown) == {("other",): TOTALS}
    assert (shown.keys, shown.exported) == (4, 1)


def test_exclude_wins_over_any_include() -> None:
    policy = Policy(
        include=(parse("src=10.1.0.0/16"), parse("l4protocol=udp")),
        exclude=(parse("dport=53"),),
    )
    shown = show(policy, TABLE)
    assert [labels[0] for labels in shown.labels] == ["10.1.2.3", "10.1.2.4", "10.9.0.1"]
    assert shown.filtered == 11
    assert shown.totals == (4, 12, 1101, 22, 202)


def test_nothing_left_is_nothing() -> None:
    shown = show(Policy(exclude=(Filter(),)), TABLE)
    assert (shown.totals, shown.filtered, len(shown.labels)) == ((0, 0, 0, 0, 0), 15, 0)


def test_states_and_flags_have_names_and_are_not_filtered() -> None:
    gathered = Gathered()
    gathered.mark(4, 6, "ESTABLISHED", unreplied=False, flag="assured")
    gathered.mark(6, 132, "CLOSED", unreplied=False, flag="")
    gathered.mark(4, 17, "", unreplied=True, flag="")
    shown = show(Policy(exclude=(Filter(),), limit=1), gathered.tally())
    assert shown.states == {("ipv4", "tcp", "ESTABLISHED"): 1, ("ipv6", "sctp", "CLOSED"): 1}
    assert shown.flags == {("ipv4", "tcp", "assured"): 1, ("ipv4", "udp", "unreplied"): 1}


# Properties, on few addresses and ports so that they meet often.

_HOSTS4 = [f"10.{a}.{b}.{c}" for a, b, c in itertools.product((0, 1), (0, 7), (1, 255))]
_HOSTS6 = [f"2001:db8:{a}::{b}" for a, b in itertools.product((1, 2), (1, "ffff"))]
_KEYS = st.one_of(
    *[
        st.builds(
            key,
            st.sampled_from(hosts),
            st.sampled_from(hosts),
            st.sampled_from((1, 6, 17, 132)),
            st.sampled_from((0, 22, 53, 443, 4711, 40000)),
        )
        for hosts in (_HOSTS4, _HOSTS6)
    ]
)
_NUMBERS = st.one_of(st.integers(0, 9), st.integers(2**63, 2**70))
_ROWS = st.tuples(st.integers(1, 5), _NUMBERS, _NUMBERS, _NUMBERS, _NUMBERS)
_RULES = st.lists(
    st.sampled_from(
        ["src=10.0.0.0/16", "dst=2001:db8::/32", "dport=22-443", "l4protocol=udp,dport=53"]
    ).map(parse),
    max_size=2,
).map(tuple)
_POLICIES = st.builds(
    Policy,
    include=_RULES,
    exclude=_RULES,
    labels=st.sets(st.sampled_from(LABELS)).map(
        lambda chosen: tuple(label for label in LABELS if label in chosen)
    ),
    src_prefix=st.tuples(st.integers(0, 32), st.integers(0, 128)),
    dst_prefix=st.sampled_from([(32, 128), (8, 48)]),
    networks=st.sampled_from(
        ["", "10.0.0.0/8 lan", "10.1.0.0/16 other\n2001:db8::/32 lan\n10.0.0.0/15 rest"]
    ).map(parse_names),
    services=st.sampled_from(["", "other 4711/tcp\nunknown 22/tcp\nna 53/udp"]).map(
        names.parse_services
    ),
    known_ports=st.booleans(),
    limit=st.integers(0, 8),
    limit_by=st.sampled_from(["bytes", "packets", "connections"]),
)


@given(st.dictionaries(_KEYS, _ROWS, max_size=40), _POLICIES)
def test_sums_over_every_family_are_the_totals(rows: dict[Key, Any], policy: Policy) -> None:
    passing = [
        row
        for at, row in rows.items()
        if not any(rule.matches(at) for rule in policy.exclude)
        and (not policy.include or any(rule.matches(at) for rule in policy.include))
    ]
    totals = tuple(sum(row[field] for row in passing) for field in range(5))
    shown = show(policy, tally(rows))
    found = series(shown)
    assert shown.totals == totals
    assert tuple(sum(row[field] for row in found.values()) for field in range(5)) == totals
    assert shown.filtered + totals[0] == sum(row[0] for row in rows.values())
    # A series for each key that is kept, and one for each protocol that others have.
    assert len(found) <= shown.exported + 8
    if policy.limit and {*policy.labels} - {"l3protocol", "l4protocol"}:
        assert shown.exported == min(policy.limit, shown.keys)
    else:
        assert shown.exported == shown.keys == len(found)
    # Sums by layer 3 and 4 do not depend on the limit.
    kept = [i for i, name in enumerate(policy.labels) if name in ("l3protocol", "l4protocol")]
    unlimited = series(show(policy._replace(limit=0), tally(rows)))
    sums: list[Counter[tuple[str, ...]]] = [Counter(), Counter()]
    for counter, every in zip(sums, (found, unlimited), strict=True):
        for labels, row in every.items():
            counter[tuple(labels[i] for i in kept)] += row[4]
    assert sums[0] == sums[1]


@given(st.dictionaries(_KEYS, _ROWS, max_size=40), st.integers(1, 8))
def test_no_folded_key_is_larger_than_one_that_is_kept(rows: dict[Key, Any], limit: int) -> None:
    found = series(show(Policy(limit=limit), tally(rows)))
    whole = series(show(Policy(limit=0), tally(rows)))
    kept = [row[2] + row[4] for labels, row in found.items() if "other" not in labels]
    folded = [row[2] + row[4] for labels, row in whole.items() if labels not in found]
    assert len(kept) == min(limit, len(rows))
    assert not folded or max(folded) <= min(kept)
