"""The groups of the pure engine. test_engines.py compares the compiled one with it."""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING

import pytest

from conntrack_textfile.kernel.grouping import Entry, Grouping
from conntrack_textfile.kernel.uapi import MAX_LINE
from conntrack_textfile.labels import LABELS
from conntrack_textfile.networks import Prefix, parse_names
from conntrack_textfile.plan import Plan
from conntrack_textfile.services import parse_services
from conntrack_textfile.tally import Sums
from tests import tables
from tests.plans import Draft

if TYPE_CHECKING:
    from conntrack_textfile.tally import Tally


def entry(
    src: str = "10.1.2.3",
    dst: str = "192.0.2.1",
    *,
    egress: str = "",
    backend: str = "",
    l4: int = 6,
    dport: int = 443,
    zone: int = 0,
    mark: int = 0,
    counters: tuple[int, ...] | None = (1, 60, 2, 120),
    state: str = "",
    unreplied: bool = False,
    flag: str = "",
) -> Entry:
    return Entry(
        l3=6 if ":" in src else 4,
        l4=l4,
        src=packed(src),
        dst=packed(dst),
        dport=dport,
        reply_src=packed(backend or dst),
        reply_dst=packed(egress or src),
        zone=zone,
        mark=mark,
        counters=counters,
        state=state,
        unreplied=unreplied,
        flag=flag,
        sport=40000,
        reply_sport=dport,
        reply_dport=40000,
        reply_zone=zone,
    )


def packed(address: str) -> bytes:
    return ipaddress.ip_address(address).packed


def tally(plan: Plan, *entries: Entry) -> Tally:
    grouping = Grouping(plan)
    for each in entries:
        grouping.add(each)
    return grouping.tally()


def groups(plan: Plan, *entries: Entry) -> list[tuple[str, ...]]:
    return [*tables.sums(tally(plan, *entries))]


def test_a_group_has_a_value_for_each_label() -> None:
    full = entry(egress="198.51.100.1", backend="10.9.9.9", zone=7, mark=42)
    assert groups(Plan(labels=LABELS), full) == [
        (
            *("10.1.2.3", "192.0.2.1", "ipv4", "tcp", "https", "443", "7", "42"),
            *("198.51.100.1", "10.9.9.9"),
        )
    ]
    assert groups(Plan(labels=("l7protocol", "mark")), full) == [("https", "42")]
    assert groups(Plan(labels=()), full, entry(l4=17)) == [()]
    assert groups(Plan(), full) == [("10.1.2.3", "192.0.2.1", "ipv4", "tcp", "https", "443")]


def test_entries_of_a_group_are_summed() -> None:
    found = tally(
        Plan(labels=("dport",)),
        entry(),
        entry(src="2001:db8::1", dst="2001:db8::2", counters=(10, 20, 30, 40)),
        entry(counters=None),
        entry(l4=17, dport=53, counters=(2**64 - 1, 0, 2**64 - 1, 1)),
    )
    assert found.protocols == {
        ("ipv4", "tcp"): Sums(2, 1, 60, 2, 120),
        ("ipv4", "udp"): Sums(1, 2**64 - 1, 0, 2**64 - 1, 1),
        ("ipv6", "tcp"): Sums(1, 10, 20, 30, 40),
    }
    assert (found.entries, found.uncounted, len(found.groups)) == (4, 1, 2)
    assert tables.sums(found) == {
        ("53",): [1, 2**64 - 1, 0, 2**64 - 1, 1],
        ("443",): [3, 11, 80, 32, 160],
    }


def test_without_translation_there_is_neither_egress_nor_backend() -> None:
    by = Plan(labels=("egress", "backend"))
    assert groups(by, entry()) == [("", "")]
    assert groups(by, entry(egress="192.0.2.9")) == [("192.0.2.9", "")]
    assert groups(by, entry(backend="10.0.0.9")) == [("", "10.0.0.9")]
    # A network's name also applies to them.
    named = by._replace(networks=parse_names("0.0.0.0/0 all\n"))
    assert groups(named, entry(egress="192.0.2.9")) == [("all", "")]


def test_groups_are_sorted_by_address_and_number_not_by_text() -> None:
    named = parse_names("10.0.0.9 b\n10.0.0.8 a\n")
    sources = ("10.0.0.10", "10.0.0.2", "10.0.0.9", "10.0.0.8", "2001:db8::1", "9.0.0.1")
    found = groups(
        Plan(labels=("src", "dport"), networks=named),
        *(
            entry(src, "::" if ":" in src else "0.0.0.0", dport=port)
            for port in (100, 9)
            for src in sources
        ),
    )
    order = ["9.0.0.1", "10.0.0.2", "10.0.0.10", "2001:db8::1", "a", "b"]
    assert found == [(src, port) for src in order for port in ("9", "100")]


def test_prefixes_apply_to_src_and_dst_only() -> None:
    plan = Plan(
        labels=("src", "dst", "egress"), src_prefix=Prefix(24, 48), dst_prefix=Prefix(0, 127)
    )
    assert groups(plan, entry(egress="198.51.100.1")) == [
        ("10.1.2.0/24", "0.0.0.0/0", "198.51.100.1")
    ]
    assert groups(plan, entry("2001:db8:1:2::3", "2001:db8:2::f")) == [
        ("2001:db8:1::/48", "2001:db8:2::e/127", "")
    ]


def test_names_precede_prefixes_and_the_longest_prefix_wins() -> None:
    named = parse_names(
        "10.0.0.0/8 company\n10.1.0.0/16 office\n10.1.2.3 printer\n::/0 world6\n2001:db8::/32 lab\n"
    )
    plan = Plan(labels=("src", "dst"), networks=named, src_prefix=Prefix(8, 8))
    assert groups(plan, entry("10.1.2.3", "10.1.2.4")) == [("printer", "office")]
    assert groups(plan, entry("10.2.0.1", "11.0.0.1")) == [("company", "11.0.0.1")]
    assert groups(plan, entry("11.2.0.1", "10.255.255.255")) == [("11.0.0.0/8", "company")]
    assert groups(plan, entry("2001:db8::1", "2001:db9::1")) == [("lab", "world6")]


def test_host_names_apply_to_labels_with_whole_addresses() -> None:
    laptop = ipaddress.ip_address("10.1.2.3").packed
    phone = ipaddress.ip_address("2001:db8::7").packed
    plan = Plan(
        labels=("src", "dst", "egress", "backend"), hosts={laptop: "laptop", phone: "phone"}
    )
    assert groups(plan, entry("10.1.2.3", "10.1.2.4", egress="10.1.2.4", backend="10.1.2.3")) == [
        ("laptop", "10.1.2.4", "10.1.2.4", "laptop")
    ]
    assert groups(plan, entry("2001:db8::7", "2001:db8::7")) == [("phone", "phone", "", "")]
    cut = plan._replace(src_prefix=Prefix(24, 128), dst_prefix=Prefix(32, 64))
    assert groups(cut, entry("10.1.2.3", "10.1.2.3")) == [("10.1.2.0/24", "laptop", "", "")]
    assert groups(cut, entry("2001:db8::7", "2001:db8::7")) == [("phone", "2001:db8::/64", "", "")]
    # Where the host's name does not apply, the network's does.
    both = cut._replace(networks=parse_names("10.1.2.3 printer\n"))
    assert groups(both, entry("10.1.2.3", "10.1.2.3")) == [("printer", "laptop", "", "")]


def test_networks_with_the_same_name_are_one_group() -> None:
    named = parse_names("10.0.0.0/8 us\n192.168.0.0/16 us\n2001:db8::/32 us\n")
    sources = (entry("10.0.0.1"), entry("192.168.1.1"), entry("2001:db8::1", "::"))
    assert tables.sums(tally(Plan(labels=("src",), networks=named), *sources)) == {
        ("us",): [3, 3, 180, 6, 360]
    }


def test_services_have_the_configured_names() -> None:
    named = parse_services("frontend 443/tcp\nbilling 40000/udp\n")
    plan = Plan(labels=("l7protocol", "dport"), services=named, known_ports=True)
    found = groups(
        plan,
        entry(),
        entry(l4=17),
        entry(l4=17, dport=40000),
        entry(dport=40000),
        entry(dport=40001),
        entry(l4=132, dport=443),
        entry(l4=1, dport=0),
    )
    assert set(found) == {
        *(("frontend", "443"), ("https", "443"), ("billing", "40000"), ("unknown", "other")),
        ("na", "0"),
    }


def test_the_mark_is_masked() -> None:
    plan = Plan(labels=("mark",), mark_mask=0xFF00)
    assert groups(plan, entry(mark=0x12345678), entry(mark=0x5600)) == [("22016",)]
    assert groups(plan._replace(mark_mask=0xFFFFFFFF), entry(mark=2**32 - 1)) == [("4294967295",)]


@pytest.mark.parametrize(
    ("rule", "passes"),
    [
        ({"src": "10.0.0.0/8"}, True),
        ({"src": "10.1.2.4"}, False),
        ({"src": "::/0"}, False),
        ({"dst": "192.0.2.0/24", "src": "10.1.2.3"}, True),
        ({"dst": "192.0.2.0/24", "src": "10.1.2.4"}, False),
        ({"l3protocol": "ipv4"}, True),
        ({"l3protocol": "ipv6"}, False),
        ({"l4protocol": "tcp"}, True),
        ({"l4protocol": "17"}, False),
        ({"dport": "443"}, True),
        ({"dport": "0-442"}, False),
        ({"dport": "443-65535"}, True),
        ({"zone": "7"}, True),
        ({"zone": "0"}, False),
        ({"mark": "0x2a"}, True),
        ({"mark": "2/0xf"}, False),
        ({"mark": "0xa/0xf"}, True),
        ({"mark": "0/0"}, True),
        ({"egress": "198.51.100.0/24"}, True),
        ({"egress": "10.1.2.3"}, False),
        ({"backend": "10.9.9.9"}, True),
        ({"backend": "192.0.2.1"}, False),
        ({"egress": "0.0.0.0/0", "backend": "0.0.0.0/0"}, True),
    ],
)
def test_an_entry_must_meet_all_conditions(rule: dict[str, str], passes: bool) -> None:
    full = entry(egress="198.51.100.1", backend="10.9.9.9", zone=7, mark=42)
    for draft, kept in ((Draft(include=(rule,)), passes), (Draft(exclude=(rule,)), not passes)):
        found = tally(draft.plan, full)
        assert (found.filtered, len(found.groups), found.entries) == (not kept, kept, 1)


@pytest.mark.parametrize("name", ["egress", "backend"])
def test_an_entry_without_translation_matches_no_egress_or_backend_filter(name: str) -> None:
    assert tally(Draft(include=({name: "0.0.0.0/0"},)).plan, entry()).filtered == 1
    assert tally(Draft(exclude=({name: "0.0.0.0/0"},)).plan, entry()).filtered == 0


def test_exclude_wins_over_any_include() -> None:
    draft = Draft(
        include=({"src": "10.1.0.0/16"}, {"l4protocol": "udp"}), exclude=({"dport": "53"},)
    )
    sources = ["10.1.0.1", "10.2.0.1"]
    every = [entry(src, l4=l4, dport=port) for src in sources for l4 in (6, 17) for port in (1, 53)]
    found = tally(draft.plan, *every)
    assert (found.entries, found.filtered) == (8, 5)
    by = ("src", "l4protocol", "dport")
    assert groups(draft._replace(labels=by).plan, *every) == [
        *(("10.1.0.1", "tcp", "1"), ("10.1.0.1", "udp", "1"), ("10.2.0.1", "udp", "1"))
    ]


def test_states_flags_and_uncounted_ignore_the_filters() -> None:
    nothing = Draft(exclude=({"src": "0.0.0.0/0"}, {"src": "::/0"})).plan
    found = tally(
        nothing,
        entry(state="ESTABLISHED", flag="assured"),
        entry("::1", "::2", l4=132, state="CLOSED", counters=None),
        entry(l4=17, unreplied=True, flag="offload"),
    )
    assert found.states == {("ipv4", "tcp", "ESTABLISHED"): 1, ("ipv6", "sctp", "CLOSED"): 1}
    assert found.flags == {
        ("ipv4", "tcp", "assured"): 1,
        ("ipv4", "udp", "offload"): 1,
        ("ipv4", "udp", "unreplied"): 1,
    }
    assert (found.filtered, found.uncounted, found.protocols, len(found.groups)) == (3, 1, {}, 0)
    assert found.groups.rows(3, "bytes").groups == []


@pytest.mark.parametrize(
    ("by", "largest"), [("connections", "c"), ("packets", "p"), ("bytes", "b")]
)
def test_the_largest_groups_are_kept(by: str, largest: str) -> None:
    named = parse_names("10.0.0.1 c\n10.0.0.2 p\n10.0.0.3 b\n10.0.0.4 z\n")
    entries = [entry("10.0.0.1", counters=None)] * 3
    entries += [entry("10.0.0.2", counters=(0, 9, 10, 0)), entry("10.0.0.3", counters=(1, 5, 0, 5))]
    entries += [entry("10.0.0.4", counters=(1, 1, 1, 1))]
    plan = Plan(labels=("src",), networks=named)
    rows = tally(plan, *entries).groups.rows(1, by)
    assert [*rows.groups] == [(largest,)]
    for limit in (0, 4, 5):
        rows = tally(plan, *entries).groups.rows(limit, by)
        assert [*rows.groups] == [("b",), ("c",), ("p",), ("z",)]


def test_of_equal_groups_the_first_are_kept() -> None:
    sources = [f"10.0.{n % 7}.{n}" for n in range(200)]
    rows = tally(Plan(labels=("src",)), *map(entry, reversed(sources))).groups.rows(3, "bytes")
    assert [*rows.groups] == [("10.0.0.0",), ("10.0.0.7",), ("10.0.0.14",)]
    assert rows.columns == ([1] * 3, [1] * 3, [60] * 3, [2] * 3, [120] * 3)


def test_more_entries_than_the_cache_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("conntrack_textfile.kernel.grouping._MAX_CACHED", 3)
    entries = [entry(dport=n % 10) for n in range(100)]
    assert [row[0] for row in tables.sums(tally(Plan(), *entries)).values()] == [10] * 10


def test_the_first_malformed_entry_is_kept_within_a_bound() -> None:
    grouping = Grouping(Plan())
    for data in (b"1" * 100_000, b"2"):
        grouping.add_malformed(data)
    found = grouping.tally()
    assert (found.malformed, found.first_malformed) == (2, b"1" * (MAX_LINE + 1))
    assert (found.entries, found.protocols) == (0, {})
