"""NAT metrics of a router namespace, compared with `conntrack -L` and `conntrack -S`."""

from __future__ import annotations

import collections
import itertools
import re
import sys
import time
from typing import TYPE_CHECKING

import pytest

from tests import conntrack_l
from tests.conftest import need
from tests.netns import Network, check, inside, network
from tests.program import run
from tests.test_kernel import answering, conntrack_prints, write

if TYPE_CHECKING:
    from collections.abc import Iterator

    Found = dict[str, dict[tuple[str, ...], int]]

FIRST, LAST = 1024, 2023  # the port range of one SNAT rule

# Behind port 8000 of the router are three backends, behind 9000 is a neighbour of the client,
# whose replies must come back through the router (hairpin NAT). Ports from 5000 on use a pool.
# Connections to 9100 alternate between two zones.
RULES = f"""
table ip translate {{
    chain raw {{
        type filter hook prerouting priority raw;
        udp dport 9100 ct zone set numgen inc mod 2 map {{ 0 : 7, 1 : 8 }}
    }}
    chain pre {{
        type nat hook prerouting priority dstnat;
        ip daddr 10.77.2.1 udp dport 8000 dnat to numgen inc mod 3 map {{
            0 : 10.77.2.11, 1 : 10.77.2.12, 2 : 10.77.2.13 }}
        ip daddr 10.77.2.1 udp dport 9000 dnat to 10.77.1.3:7000
    }}
    chain post {{
        type nat hook postrouting priority srcnat;
        udp dport 5000-5009 snat to 10.77.2.101-10.77.2.103
        udp dport 6000 snat to 10.77.2.1:{FIRST}-{LAST}
        udp dport 6001 masquerade to :3000-3999
        udp dport {{ 7000, 9100 }} masquerade
        ip daddr 10.77.2.2 tcp dport 7001 masquerade
        ip protocol icmp masquerade
    }}
}}
table ip6 translate {{
    chain pre {{
        type nat hook prerouting priority dstnat;
        ip6 daddr fd77:2::1 udp dport 8000 dnat to fd77:2::3
        ip6 daddr fd77:2::1 udp dport 9000 dnat to [fd77:1::3]:7000
    }}
    chain post {{
        type nat hook postrouting priority srcnat;
        ip6 daddr fd77:1::3 udp dport 7000 masquerade
        oifname "r2" meta l4proto {{ tcp, udp, icmpv6 }} ip6 daddr fd77:2::2 masquerade
    }}
}}
"""

# HOST PORT FIRST COUNT TIMES: send TIMES datagrams from each of COUNT source ports.
SEND = """
import socket, sys
host, port, first, count, times = sys.argv[1], *map(int, sys.argv[2:])
sockets = [socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM)
           for _ in range(count)]
for number, sock in enumerate(sockets):
    sock.bind(("", first + number))
for _ in range(times):
    for sock in sockets:
        sock.sendto(b"x", (host, port))
"""

CONNECT = """
import socket
kept = [socket.create_connection((host, 7001), timeout=20)
        for host in ("10.77.2.2", "fd77:2::2") for _ in range(5)]
"""


_PORTS = itertools.count(20000)  # source ports, each used once


def send(namespace: str, host: str, port: int, count: int, times: int = 1) -> None:
    """Open UDP connections to a port, each from a new source port."""
    first, *_ = itertools.islice(_PORTS, count)
    numbers = map(str, (port, first, count, times))
    check(*inside(namespace), sys.executable, "-c", SEND, host, *numbers)


@pytest.fixture(scope="module")
def net() -> Iterator[Network]:
    need("ip", "nft", "conntrack", "ping", "sysctl", root=True)
    with network() as made:
        for name, device, addresses in (
            (made.client, "c0", ["10.77.1.3"]),
            (made.router, "r2", [f"10.77.2.{n}" for n in (101, 102, 103)]),
            (made.server, "s0", [f"10.77.2.{n}" for n in (11, 12, 13)]),
        ):
            for address in addresses:
                check("ip", "-n", name, "addr", "add", "dev", device, f"{address}/24")
        check("ip", "-n", made.client, "addr", "add", "dev", "c0", "fd77:1::3/64", "nodad")
        check(*inside(made.router), "nft", "-f", "-", text=RULES)
        yield made


@pytest.fixture(scope="module")
def used(net: Network) -> Network:
    """The router, after connections of each kind of NAT."""
    with answering(net.server):
        check(*inside(net.client), sys.executable, "-c", CONNECT)
    for port, count in ((5000, 30), (5001, 4), (6001, 7), (7000, 3)):
        send(net.client, "10.77.2.2", port, count)
    for n in range(2, 6):  # more destinations than --nat.destinations
        send(net.client, "10.77.2.2", 5000 + n, n)
    send(net.client, "10.77.2.1", 8000, 9)
    send(net.client, "10.77.2.1", 9000, 6)
    send(net.client, "10.77.2.2", 9100, 22)
    send(net.client, "fd77:2::1", 8000, 3)
    send(net.client, "fd77:2::1", 9000, 2)
    send(net.client, "fd77:2::2", 5000, 4)
    # From the router itself: the address stays, the port is translated.
    send(net.router, "10.77.2.2", 6001, 5)
    for host in ("10.77.2.2", "fd77:2::2"):
        for _ in range(2):
            check(*inside(net.client), "ping", "-q", "-c", "1", "-W", "5", host)
    return net


def nat(namespace: str, *args: str) -> tuple[Found, list[conntrack_l.Entry]]:
    """Return the metrics and the entries of a table that did not change in between."""
    end = time.monotonic() + 30
    while True:
        before = conntrack_prints(namespace)
        found = write(namespace, *args)
        after = conntrack_prints(namespace)
        entries = conntrack_l.entries(before)
        # TCP states may still change, and nothing here depends on them.
        if [entry._replace(state="") for entry in entries] == [
            entry._replace(state="") for entry in conntrack_l.entries(after)
        ]:
            return found, entries
        assert time.monotonic() < end, "the table keeps changing"


@pytest.mark.parametrize("engine", ["pure", "compiled"])
@pytest.mark.parametrize("source", ["netlink", "procfs"])
def test_translated_connections_are_what_conntrack_prints(
    used: Network, source: str, engine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CONNTRACK_TEXTFILE_ENGINE", engine)
    found, entries = nat(used.router, f"--collector.source={source}", "--nat.destinations=3")
    expected = conntrack_l.translated(entries)
    assert {kind for *_, kind in expected.connections} == {"snat", "dnat", "both"}
    assert found["conntrack_nat_connections"] == expected.connections
    assert found["conntrack_snat_connections"] == expected.snat
    assert found["conntrack_snat_busiest_destination_ports"] == expected.busiest()
    by_egress: dict[tuple[str, str], dict[tuple[str, str], int]] = collections.defaultdict(dict)
    for labels, ports in found["conntrack_snat_destination_ports"].items():
        address, l4, dst, dport = labels
        by_egress[address, l4][dst, dport] = ports
    in_use = expected.in_use()
    assert by_egress.keys() == in_use.keys()
    for egress, shown in by_egress.items():
        assert shown.items() <= in_use[egress].items()
        assert sorted(shown.values()) == sorted(in_use[egress].values())[-3:]
    # By the rules: the comparison above must not be of empty tables.
    connections = found["conntrack_nat_connections"]
    assert connections["ipv4", "udp", "dnat"] == 9
    assert connections["ipv4", "udp", "both"] == 6
    assert connections["ipv6", "udp", "dnat"] == 3
    assert connections["ipv6", "udp", "both"] == 2
    assert connections["ipv4", "tcp", "snat"] == connections["ipv6", "tcp", "snat"] == 5
    snat = found["conntrack_snat_connections"]
    pool = sum(snat.get((f"10.77.2.{n}", "udp"), 0) for n in (101, 102, 103))
    assert pool == 30 + 4 + 2 + 3 + 4 + 5
    assert snat["10.77.1.1", "udp"] == 6
    assert snat["10.77.2.1", "udp"] == 7 + 3 + 5 + 22
    assert snat["fd77:1::1", "udp"] == 2
    # Each zone has all ports for itself.
    assert by_egress["10.77.2.1", "udp"]["10.77.2.2", "9100"] == 11
    assert by_egress["10.77.2.1", "udp"]["10.77.2.2", "6001"] == 12
    assert by_egress["10.77.1.1", "udp"] == {("10.77.1.3", "7000"): 6}
    to_backends = [e for e in entries if e.l3protocol == "ipv4" and e.dport == 8000]
    backends = collections.Counter(e.backend for e in to_backends)
    assert sorted(backends.values()) == [3, 3, 3]


def test_each_entry_holds_a_different_port(used: Network) -> None:
    _, entries = nat(used.router)
    for destinations in conntrack_l.translated(entries).ports.values():
        for zones in destinations.values():
            for ports in zones.values():
                assert len(set(ports)) == len(ports)


def test_filters_and_limits_leave_the_sums_alone(used: Network) -> None:
    whole, _ = nat(used.router)
    less, _ = nat(used.router, "--limit.keys=1", "--filter.exclude=l4protocol=udp")
    name = "conntrack_snat_connections"
    assert less["conntrack_nat_connections"] == whole["conntrack_nat_connections"]
    assert sum(less[name].values()) == sum(whole[name].values())
    assert len([row for row in less[name] if row[0] != "other"]) == 1
    busiest = "conntrack_snat_busiest_destination_ports"
    assert max(less[busiest].values()) == max(whole[busiest].values())
    assert len(less["conntrack_snat_destination_ports"]) == 1
    off = write(used.router, "--collector.nat=off")
    assert not [family for family in off if "nat" in family]
    none = write(used.router, "--nat.destinations=0")
    assert "conntrack_snat_destination_ports" not in none
    assert none[busiest] == whole[busiest]


def test_top_shows_who_uses_the_ports(used: Network) -> None:
    by = "--aggregate.by=l4protocol,egress,dst,dport"
    done = run("top", by, "--limit.by=connections", "-n", "100", prefix=inside(used.router))
    assert done.returncode == 0, done.stderr
    head = next(line for line in done.stdout.splitlines() if "EGRESS" in line)
    assert {"DESTINATION", "PORT", "EGRESS", "CONNECTIONS"} <= {*head.split()}
    _, entries = nat(used.router)
    summed = conntrack_l.summed(entries, ("dst", "l4protocol", "dport", "egress"))
    for (dst, l4, dport, egress), (connections, *_) in summed.items():
        cells = [cell for cell in (dst, l4, dport, egress, str(connections)) if cell]
        assert re.search(r"\s+".join(map(re.escape, cells)), done.stdout), cells


def statistics(namespace: str) -> dict[str, int]:
    """Return the sums over all CPUs of `conntrack -S`."""
    sums: collections.Counter[str] = collections.Counter()
    for name, value in re.findall(r"(\w+)=(\d+)", check(*inside(namespace), "conntrack", "-S")):
        sums[{"chaintoolong": "chain_toolong"}.get(name, name)] += int(value)
    del sums["cpu"]
    return dict(sums)


def test_the_statistics_are_what_conntrack_prints(used: Network) -> None:
    end = time.monotonic() + 30
    while True:
        before = statistics(used.router)
        found = write(used.router)["conntrack_stat_total"]
        if before == statistics(used.router):
            break
        assert time.monotonic() < end, "the statistics keep changing"
    assert {event: count for (event,), count in found.items()} == before
    assert len(before) == 10
    assert "conntrack_stat_total" not in write(used.router, "--collector.source=procfs")


def test_the_kernel_refuses_when_the_metric_reads_all_ports(used: Network) -> None:
    """Of a rule with 1,000 ports.

    Since Linux 4.19 nf_nat_l4proto_unique_tuple() tries 128 ports from a random one on,
    then 64, 32 and 16 from others, and gives up: the packet is dropped and counted by
    insert_failed. So it takes many packets until the last free ports are found.
    """
    every = LAST - FIRST + 1
    egress = "10.77.2.1", "udp"
    towards = (*egress, "10.77.2.2", "6000")

    def look() -> tuple[int, int]:
        found = write(used.router)
        ports = found["conntrack_snat_destination_ports"].get(towards, 0)
        if ports > 20:
            assert found["conntrack_snat_busiest_destination_ports"][egress] == ports
        return ports, found["conntrack_stat_total"]["insert_failed",]

    _, failed = look()
    send(used.client, "10.77.2.2", 6000, every // 2)
    assert look() == (every // 2, failed)  # none is refused yet
    # Each datagram gets a port or is refused.
    send(used.client, "10.77.2.2", 6000, every // 2)
    ports, refused = look()
    assert ports + refused - failed == every
    end = time.monotonic() + 120
    while ports < every:
        assert time.monotonic() < end, f"{ports} ports are in use"
        # A refused datagram leaves no entry: the next one of that socket tries again.
        send(used.client, "10.77.2.2", 6000, every - ports, 4)
        ports, refused = look()
        assert ports <= every
    assert refused > failed
    # With all ports in use every new connection is refused.
    send(used.client, "10.77.2.2", 6000, 50)
    assert look() == (every, refused + 50)
    _, entries = nat(used.router)
    ((_, held),) = conntrack_l.translated(entries).ports[egress]["10.77.2.2", "6000"].items()
    assert sorted(held) == list(range(FIRST, LAST + 1))
