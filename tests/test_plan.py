"""What a plan makes of a table, by either engine."""

from __future__ import annotations

import pytest

from conntrack_textfile import filters, labels, networks, services
from conntrack_textfile.filters import Filter
from conntrack_textfile.networks import Prefix
from conntrack_textfile.plan import Plan
from tests.builders import Flow, folded, series, table

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


@pytest.fixture(autouse=True, params=["pure", "compiled"])
def _engine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONNTRACK_TEXTFILE_ENGINE", request.param)


def test_the_default_keeps_the_labels_that_are_default() -> None:
    assert Plan().labels == labels.DEFAULT
    assert folded(TABLE, Plan()).labels == labels.DEFAULT


def test_labels_that_are_left_out_are_summed_over() -> None:
    by = folded(TABLE, Plan(labels=("src", "l7protocol")))
    assert by.labels == ("src", "l7protocol")
    assert series(by)["10.9.0.1", "unknown"] == (1, 1, 1, 1, 1)
    assert by.keys == 6
    assert series(folded(TABLE, Plan(labels=("l3protocol",)))) == {
        ("ipv4",): (8, 514, 1154, 526, 257),
        ("ipv6",): (7, 1, 2, 3, 4),
    }
    assert series(folded(TABLE, Plan(labels=()))) == {(): (15, 515, 1156, 529, 261)}


def test_addresses_become_networks_and_ports_become_other() -> None:
    prefixes = Plan(src_prefix=Prefix(24, 48), dst_prefix=Prefix(0, 128))
    shown = series(folded(TABLE, prefixes))
    assert shown["10.1.2.0/24", "0.0.0.0/0", "ipv4", "tcp", "https", "443"][0] == 3
    assert ("2001:db8:1::/48", "2001:db8:2::1", "ipv6", "tcp", "https", "443") in shown
    known = series(folded(TABLE, Plan(known_ports=True)))
    assert ("10.9.0.1", "192.0.2.9", "ipv4", "udp", "unknown", "other") in known
    assert ("10.9.0.1", "192.0.2.9", "ipv4", "icmp", "na", "0") in known
    assert len(known) == 6


def test_names_go_before_prefixes() -> None:
    named = networks.parse_names("10.1.2.3 laptop\n10.0.0.0/8 company\n192.0.2.0/24 company\n")
    shown = series(folded(TABLE, Plan(networks=named, src_prefix=Prefix(8, 8))))
    assert ("laptop", "company", "ipv4", "tcp", "https", "443") in shown
    assert shown["company", "company", "ipv4", "tcp", "https", "443"][0] == 2
    assert ("2000::/8", "2001:db8:2::1", "ipv6", "tcp", "https", "443") in shown


def test_services_have_the_users_names() -> None:
    named = services.parse_services("frontend 443/tcp\nbilling 40000/udp\n")
    shown = series(folded(TABLE, Plan(services=named, known_ports=True)))
    assert {row[4:] for row in shown} == {
        ("frontend", "443"),
        ("dns", "53"),
        ("billing", "40000"),
        ("na", "0"),
    }


def test_exclude_wins_over_any_include() -> None:
    plan = Plan(
        include=(Filter(src=networks.parse("10.1.0.0/16")), Filter(l4protocol=17)),
        exclude=(Filter(dport=filters.parse_ports("53")),),
    )
    live = folded(TABLE, plan)
    assert [group[0] for group in live.groups] == ["10.1.2.3", "10.1.2.4", "10.9.0.1"]
    assert live.filtered == 11
    assert live.totals == (4, 12, 1101, 22, 202)


def test_states_and_flags_have_names_and_are_not_filtered() -> None:
    text = TABLE + (
        b"ipv4     2 udp      17 29 src=10.0.0.1 dst=10.0.0.2 sport=1 dport=2 packets=1 bytes=2 "
        b"[UNREPLIED] src=10.0.0.2 dst=10.0.0.1 sport=2 dport=1 packets=0 bytes=0 use=2\n"
        b"ipv6     10 sctp     132 9 CLOSED src=0000:0000:0000:0000:0000:0000:0000:0001 "
        b"dst=0000:0000:0000:0000:0000:0000:0000:0001 sport=1 dport=2 "
        b"src=0000:0000:0000:0000:0000:0000:0000:0001 "
        b"dst=0000:0000:0000:0000:0000:0000:0000:0001 sport=2 dport=1 [ASSURED] use=2\n"
    )
    live = folded(text, Plan(exclude=(Filter(),)))
    assert live.filtered == 17
    assert live.states == {
        ("ipv4", "tcp", "ESTABLISHED"): 3,
        ("ipv6", "tcp", "ESTABLISHED"): 7,
        ("ipv6", "sctp", "CLOSED"): 1,
    }
    assert live.flags == {("ipv6", "sctp", "assured"): 1, ("ipv4", "udp", "unreplied"): 1}


def test_the_names_that_values_can_have_are_in_order() -> None:
    plan = Plan(
        networks=networks.parse_names("10.0.0.0/8 zoo\n10.1.0.0/16 lab\n::/0 zoo\n"),
        services=services.parse_services("aaa 4711/tcp\n"),
    )
    assert plan.address_names == ["lab", "zoo"]
    plan = plan._replace(hosts={bytes(4): "nas", bytes(16): "lab"})
    assert plan.address_names == ["lab", "nas", "zoo"]
    assert plan.service_names[0] == "aaa"
    assert plan.service_names == sorted({*plan.service_names, "unknown", "na"})
