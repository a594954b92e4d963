"""The real kernel: real traffic through a namespace, counted by others as well."""

from __future__ import annotations

import contextlib
import ipaddress
import json
import os
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import docopt
import pytest
from prometheus_client.parser import text_string_to_metric_families

import conntrack_textfile
from conntrack_textfile.labels import LABELS
from tests import conntrack_l
from tests.conftest import need
from tests.netns import Network, check, inside, namespaces, network, sysctl
from tests.program import run

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

Seen = TypeVar("Seen")

FIELDS = ["connections", "sent_packets", "sent_bytes", "reply_packets", "reply_bytes"]

# Answers TCP and UDP on port 7001, and ends after a while by itself.
SERVER = """
import socket, threading, time
def tcp(listener):
    while True:
        peer, _ = listener.accept()
        with peer:
            size = 0
            while data := peer.recv(65536):
                size += len(data)
            peer.sendall(b"r" * (size // 2))
def udp(sock):
    while True:
        data, peer = sock.recvfrom(65536)
        sock.sendto(data * 2, peer)
for family, host in ((socket.AF_INET, "10.77.2.2"), (socket.AF_INET6, "fd77:2::2")):
    listener = socket.create_server((host, 7001), family=family)
    sock = socket.socket(family, socket.SOCK_DGRAM)
    sock.bind((host, 7001))
    threading.Thread(target=tcp, args=(listener,), daemon=True).start()
    threading.Thread(target=udp, args=(sock,), daemon=True).start()
print("ready", flush=True)
time.sleep(60)
"""

CLIENT = """
import socket
for host in ("10.77.2.2", "fd77:2::2"):
    for size in (10, 100_000, 3_000_000):
        with socket.create_connection((host, 7001), timeout=20) as sock:
            sock.sendall(b"x" * size)
            sock.shutdown(socket.SHUT_WR)
            while sock.recv(65536):
                pass
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    for size in (1, 500):
        with socket.socket(family, socket.SOCK_DGRAM) as sock:
            sock.settimeout(20)
            sock.connect((host, 7001))
            for _ in range(7):
                sock.send(b"x" * size)
                sock.recv(65536)
"""


@contextlib.contextmanager
def answering(namespace: str) -> Iterator[None]:
    argv = [*inside(namespace), sys.executable, "-c", SERVER]
    process = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        yield
    finally:
        process.kill()
        process.wait()
        if process.stdout:
            process.stdout.close()


def traffic(net: Network) -> None:
    with answering(net.server):
        check(*inside(net.client), sys.executable, "-c", CLIENT)
        for host in ("10.77.2.2", "fd77:2::2"):
            check(*inside(net.client), "ping", "-q", "-c", "3", "-i", "0.05", "-W", "2", host)


def conntrack_prints(namespace: str) -> str:
    return "".join(
        check(*inside(namespace), "conntrack", "-L", "-o", "extended", "-f", family)
        for family in ("ipv4", "ipv6")
    )


def write(namespace: str, *args: str) -> dict[str, dict[tuple[str, ...], int]]:
    """Family to labels to value, of a run in a namespace."""
    done = run("write", *args, prefix=inside(namespace))
    assert done.returncode == 0, done.stderr
    found: dict[str, dict[tuple[str, ...], int]] = {}
    for family in text_string_to_metric_families(done.stdout):
        for sample in family.samples:
            labels = tuple(sample.labels.values())
            found.setdefault(sample.name, {})[labels] = int(sample.value)
    return found


@pytest.fixture(scope="module")
def net() -> Iterator[Network]:
    need("ip", "nft", "conntrack", "ping", "sysctl", root=True)
    with network() as made:
        traffic(made)
        yield made


def settled(net: Network) -> tuple[dict[str, dict[tuple[str, ...], int]], str]:
    """Our output and conntrack's of one quiet table."""
    for _ in range(20):
        before = conntrack_prints(net.router)
        ours = write(net.router)
        after = conntrack_prints(net.router)
        if conntrack_l.read(before) == conntrack_l.read(after):
            return ours, before
        time.sleep(0.1)
    raise AssertionError("the table does not settle")


def test_sums_are_those_of_conntrack(net: Network) -> None:
    ours, printed = settled(net)
    expected = conntrack_l.read(printed)
    assert {key[3] for key in expected.sums} == {"tcp", "udp", "icmp", "icmpv6"}
    for field, name in enumerate(FIELDS):
        found = {
            (src, dst, l3, l4, dport): value
            for (src, dst, l3, l4, _, dport), value in ours[f"conntrack_{name}"].items()
        }
        assert found == {key: sums[field] for key, sums in expected.sums.items()}
        assert ours[f"conntrack_total_{name}"][()] == expected.totals[field]
    assert ours["conntrack_state_connections"] == expected.states
    assert ours["conntrack_flag_connections"] == expected.flags
    assert {("ipv4", "tcp", "TIME_WAIT"), ("ipv6", "tcp", "TIME_WAIT")} <= expected.states.keys()


def test_all_of_the_policy_on_a_live_table(net: Network, tmp_path: Path) -> None:
    networks = tmp_path / "networks"
    networks.write_text("10.77.2.0/24 servers\n")
    argv = [
        *("--filter.exclude=l4protocol=icmp", f"--networks.file={networks}"),
        *("--aggregate.by=src,dst,l4protocol", "--aggregate.src-prefix=24,64"),
    ]
    settled(net)
    expected = conntrack_l.regrouped(conntrack_l.read(conntrack_prints(net.router)))
    ours = write(net.router, *argv)
    for field, name in enumerate(FIELDS):
        assert ours[f"conntrack_{name}"] == {key: row[field] for key, row in expected.items()}
    assert ours["conntrack_filtered_connections"][()] > 0
    limited = write(net.router, "--limit.keys=1", *argv)
    for name in FIELDS:
        assert sum(limited[f"conntrack_{name}"].values()) == ours[f"conntrack_total_{name}"][()]
    assert limited["conntrack_folded_keys"][()] == len(expected) - 1


ODD = """
import socket, struct
for family, host in ((socket.AF_INET, "10.77.2.2"), (socket.AF_INET6, "fd77:2::2")):
    # AH is a header on the way to another protocol in IPv6.
    for protocol in (4, 50, 89, 112, 253, *([51] if family == socket.AF_INET else [])):
        with socket.socket(family, socket.SOCK_RAW, protocol) as sock:
            sock.sendto(b"x" * 24, (host, 0))
    with socket.socket(family, socket.SOCK_RAW, 47) as sock:
        sock.sendto(struct.pack("!HHI", 0x2000, 0x0800, 42) + b"x" * 20, (host, 0))
    with socket.socket(family, socket.SOCK_RAW, 132) as sock:
        init = struct.pack("!HHII", 4000, 38412, 0, 0)
        init += struct.pack("!BBHIIHHI", 1, 0, 20, 1, 65536, 1, 1, 1)
        sock.sendto(init, (host, 0))
    with socket.socket(family, socket.SOCK_DGRAM, 136) as sock:
        sock.sendto(b"x" * 20, (host, 7777))
    with socket.socket(family, socket.SOCK_RAW, 33) as sock:
        sock.sendto(struct.pack("!HHBBHI", 5, 5004, 3, 0, 0, 1) + b"x" * 8, (host, 0))
"""

ZONES = """
table inet z {
    chain c {
        type filter hook prerouting priority -300;
        udp dport 7005 ct zone set 5
        udp dport 7006 ct original zone set 6
    }
}
"""

IN_ZONES = """
import socket
for port in (7005, 7006, 7007):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.sendto(b"x", ("10.77.2.2", port))
"""


BY = ("src", "dst", "l4protocol", "dport", "zone", "mark", "egress", "backend")

# Some of the connections are marked, some translated, some both, some neither.
NAT = """
table inet marks {
    chain c {
        type filter hook prerouting priority -150;
        tcp dport 8080 ct mark set 0x2a01
        udp dport 7001 ct mark set 0xffffffff
    }
}
table inet translated {
    chain before {
        type nat hook prerouting priority -100;
        ip daddr 10.77.1.1 tcp dport 8080 dnat ip to 10.77.2.2:7001
        ip6 daddr fd77:1::1 tcp dport 8080 dnat ip6 to [fd77:2::2]:7001
        ip daddr 10.77.1.1 udp dport 8081 dnat ip to 10.77.2.2:7001
    }
    chain after {
        type nat hook postrouting priority 100;
        oifname "r2" udp dport 7001 masquerade
        oifname "r2" ct mark 0x2a01 masquerade
    }
}
"""

TRANSLATED = """
import socket
for host in ("10.77.1.1", "fd77:1::1"):
    for size in (10, 50_000):
        with socket.create_connection((host, 8080), timeout=20) as sock:
            sock.sendall(b"x" * size)
            sock.shutdown(socket.SHUT_WR)
            while sock.recv(65536):
                pass
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
    sock.settimeout(20)
    sock.connect(("10.77.1.1", 8081))
    sock.send(b"x")
    sock.recv(65536)
"""


@pytest.fixture(scope="module")
def translating() -> Iterator[Network]:
    """A router with zones, marks, masquerade and DNAT, and traffic through them."""
    need("ip", "nft", "conntrack", "ping", "sysctl", root=True)
    with network() as made:
        check(*inside(made.router), "nft", "-f", "-", text=ZONES + NAT)
        traffic(made)
        with answering(made.server):
            check(*inside(made.client), sys.executable, "-c", TRANSLATED)
        check(*inside(made.client), sys.executable, "-c", IN_ZONES)
        yield made


Sums = dict[tuple[str, ...], list[int]]


def by_labels(namespace: str, *args: str) -> Sums:
    """The five sums by labels, of a run in a namespace."""
    found = write(namespace, *args)
    columns = [found.get(f"conntrack_{name}", {}) for name in FIELDS]
    return {group: [column[group] for column in columns] for group in columns[0]}


def quiet(net: Network, look: Callable[[], Seen]) -> tuple[Seen, list[conntrack_l.Entry]]:
    """What is seen of a table, and conntrack's entries, which are the same before and after."""
    for _ in range(20):
        before = sorted(map(_still, conntrack_prints(net.router).splitlines()))
        seen = look()
        printed = conntrack_prints(net.router)
        if sorted(map(_still, printed.splitlines())) == before:
            return seen, conntrack_l.entries(printed)
        time.sleep(0.1)
    raise AssertionError("the table does not settle")


def _still(line: str) -> str:
    """A line without the seconds that it is still kept, and since when it is."""
    return re.sub(r"^((\S+ +){4})\d+ |delta-time=\d+ ", r"\1", line)


@pytest.mark.parametrize("engine", ["pure", "compiled"])
@pytest.mark.parametrize("source", ["procfs", "netlink"])
def test_zones_marks_and_translations_are_those_of_conntrack(
    translating: Network, monkeypatch: pytest.MonkeyPatch, engine: str, source: str
) -> None:
    monkeypatch.setenv("CONNTRACK_TEXTFILE_ENGINE", engine)
    argv = [f"--collector.source={source}", f"--aggregate.by={','.join(BY)}"]
    found, printed = quiet(translating, partial(by_labels, translating.router, *argv))
    assert found == conntrack_l.summed(printed, BY)
    # What the rules above were to bring about is there.
    seen = {group[2:] for group in found}
    assert {
        ("tcp", "8080", "0", "10753", "10.77.2.1", "10.77.2.2"),
        ("tcp", "8080", "0", "10753", "fd77:2::1", "fd77:2::2"),
        ("udp", "8081", "0", "0", "10.77.2.1", "10.77.2.2"),
        ("udp", "7001", "0", "4294967295", "10.77.2.1", ""),
        ("udp", "7001", "0", "4294967295", "fd77:2::1", ""),
        ("udp", "7005", "5", "0", "", ""),
        ("udp", "7006", "6", "0", "", ""),
        ("tcp", "7001", "0", "0", "", ""),
    } <= seen


@pytest.mark.parametrize("source", ["procfs", "netlink"])
def test_filters_by_zone_mark_and_translation_on_a_live_table(
    translating: Network, source: str
) -> None:
    servers = ipaddress.ip_network("10.77.2.0/24")
    cases: list[tuple[str, Callable[[conntrack_l.Entry], bool]]] = [
        ("egress=10.77.2.0/24", lambda entry: entry.egress is not None and entry.egress in servers),
        ("egress=::/0", lambda entry: entry.egress is not None and entry.egress.version == 6),
        ("backend=fd77:2::2", lambda entry: str(entry.backend) == "fd77:2::2"),
        (
            "backend=0.0.0.0/0,l4protocol=udp",
            lambda entry: entry.backend is not None and entry.l4protocol == "udp",
        ),
        ("zone=5", lambda entry: entry.zone == 5),
        ("zone=0", lambda entry: entry.zone == 0),
        ("mark=0x2a01", lambda entry: entry.mark == 0x2A01),
        ("mark=1/1", lambda entry: bool(entry.mark & 1)),
        ("mark=0/0xff00,zone=6", lambda entry: not entry.mark & 0xFF00 and entry.zone == 6),
    ]
    for text, meets in cases:
        for option, wanted in (("include", True), ("exclude", False)):
            argv = [f"--collector.source={source}", f"--aggregate.by={','.join(BY)}"]
            argv.append(f"--filter.{option}={text}")
            found, printed = quiet(translating, partial(by_labels, translating.router, *argv))
            kept = [entry for entry in printed if meets(entry) == wanted]
            assert 0 < len(kept) < len(printed), text
            assert found == conntrack_l.summed(kept, BY), text


def test_both_sources_and_both_engines_say_the_same_of_every_protocol(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    need("ip", "nft", "conntrack", "ping", "sysctl", root=True)
    with network() as net:
        sysctl(net.router, net__netfilter__nf_conntrack_checksum=0)
        check(*inside(net.router), "nft", "-f", "-", text=ZONES)
        traffic(net)
        check(*inside(net.client), sys.executable, "-c", ODD)
        check(*inside(net.client), sys.executable, "-c", IN_ZONES)
        seen = []
        for engine in ("pure", "compiled"):
            monkeypatch.setenv("CONNTRACK_TEXTFILE_ENGINE", engine)
            for source in ("procfs", "netlink"):
                by = f"--aggregate.by={','.join(LABELS)}"
                done = run("write", by, f"--collector.source={source}", prefix=inside(net.router))
                assert f'engine="{engine}",source="{source}"' in done.stdout
                # What the kernel counts of itself comes by netlink alone.
                own = re.compile("_info|_seconds |conntrack_stat_total")
                seen.append([line for line in done.stdout.splitlines() if not own.search(line)])
        printed = conntrack_l.read(conntrack_prints(net.router))
    assert seen[0] == seen[1] == seen[2] == seen[3]
    for protocol in ("esp", "ah", "ospf", "vrrp", "253", "ipv4", "gre", "sctp", "udplite", "dccp"):
        assert f'l4protocol="{protocol}"' in "".join(seen[0])
    assert f"conntrack_total_connections {printed.entries}" in seen[0]


def test_totals_are_those_of_nftables(net: Network) -> None:
    ours, _ = settled(net)
    listed = json.loads(check(*inside(net.router), "nft", "-j", "list", "counters"))
    counters = {
        item["counter"]["name"]: item["counter"] for item in listed["nftables"] if "counter" in item
    }
    for name in ("sent", "reply"):
        for unit in ("packets", "bytes"):
            assert ours[f"conntrack_total_{name}_{unit}"][()] == counters[name][unit]
    assert counters["sent"]["bytes"] > 6_000_000


def test_the_kernels_own_figures(net: Network) -> None:
    ours, _ = settled(net)
    count = int(check(*inside(net.router), "conntrack", "-C"))
    assert ours["conntrack_entries"][()] == count == ours["conntrack_total_connections"][()]
    limit = check("sysctl", "-n", "net.netfilter.nf_conntrack_max")
    assert ours["conntrack_entries_limit"][()] == int(limit)
    assert ours["conntrack_accounting_enabled"][()] == 1
    assert ours["conntrack_malformed_entries"][()] == 0


def test_entries_made_without_accounting_are_told() -> None:
    need("ip", "nft", "conntrack", "ping", "sysctl", root=True)
    with network(accounting=False) as net:
        check(*inside(net.client), "ping", "-q", "-c", "1", "10.77.2.2")
        ours = write(net.router)
        assert ours["conntrack_uncounted_entries"][()] == 1
        assert ours["conntrack_accounting_enabled"][()] == 0
        warned = run("write", prefix=inside(net.router)).stderr
        assert warned.count("\n") == warned.count("accounting is off") == 1
        done = run("write", "--configure.nf_conntrack_acct", prefix=inside(net.router))
        assert done.stderr == ""
        acct = check(*inside(net.router), "sysctl", "-n", "net.netfilter.nf_conntrack_acct")
        assert acct == "1\n"
        check(*inside(net.client), "ping", "-q", "-c", "1", "fd77:2::2")
        ours = write(net.router)
        assert ours["conntrack_accounting_enabled"][()] == 1
        assert ours["conntrack_total_connections"][()] == 2
        assert ours["conntrack_uncounted_entries"][()] == 1
        # An echo of 56 bytes of data under headers of 40 and 8.
        assert ours["conntrack_total_sent_bytes"][()] == 104


def test_an_empty_table_is_no_error() -> None:
    need("ip", "sysctl", root=True)
    with namespaces("empty") as (name,):
        sysctl(name, net__netfilter__nf_conntrack_acct=1)
        ours = write(name)
    for field in FIELDS:
        assert ours[f"conntrack_total_{field}"] == {(): 0}
        assert f"conntrack_{field}" not in ours


# Becomes another user after all is imported: that user may not be allowed to
# read this Python.
AS_NOBODY = """
import os, socket, sys
from conntrack_textfile import cli, logs
from conntrack_textfile.kernel import ctnetlink, netlink, procfs, source
os.setgroups([])
os.setresgid(65534, 65534, 65534)
os.setresuid(65534, 65534, 65534)
sys.exit(cli.main(["write"]))
"""


def test_without_rights_the_error_says_which_are_missing(net: Network) -> None:
    argv = [*inside(net.router), sys.executable, "-c", AS_NOBODY]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert "run as root or with CAP_NET_ADMIN" in done.stderr
    assert "run as root or with CAP_DAC_READ_SEARCH" in done.stderr


@pytest.mark.parametrize(
    ("capabilities", "source"),
    # This Python may lie where only root goes: net_admin alone could not start it.
    [("+dac_read_search", "procfs"), ("+net_admin,+dac_read_search", "netlink")],
)
def test_one_capability_is_enough(net: Network, capabilities: str, source: str) -> None:
    need("setpriv", root=True)
    user = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
    caps = [f"--inh-caps={capabilities}", f"--ambient-caps={capabilities}"]
    done = run("write", prefix=[*inside(net.router), *user, *caps])
    assert done.returncode == 0, done.stderr
    assert f'source="{source}"' in done.stdout
    assert re.search(r"^conntrack_total_connections [1-9]", done.stdout, re.MULTILINE)


def test_net_admin_alone_is_enough_for_netlink(net: Network) -> None:
    need("/usr/bin/python3", "setpriv", root=True)
    # A Python and a copy of the code that every user may read.
    with tempfile.TemporaryDirectory() as directory:
        site = Path(directory)
        site.chmod(0o755)
        for module in (conntrack_textfile, docopt):
            assert module.__file__
            shutil.copytree(Path(module.__file__).parent, site / module.__name__)
        user = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
        caps = ["--inh-caps=-all,+net_admin", "--ambient-caps=+net_admin"]
        python = ["/usr/bin/python3", "-S", "-m", "conntrack_textfile"]
        done = subprocess.run(
            [*inside(net.router), *user, *caps, *python, "write", "--collector.source=netlink"],
            cwd=site,
            env={**os.environ, "PYTHONPATH": directory},
            capture_output=True,
            text=True,
            check=False,
        )
    assert done.returncode == 0, done.stderr
    assert 'source="netlink"' in done.stdout
    assert re.search(r"^conntrack_total_connections [1-9]", done.stdout, re.MULTILINE)


def test_the_rights_of_the_one_shot_unit_are_enough(net: Network, tmp_path: Path) -> None:
    need("setpriv", root=True)
    file = tmp_path / "a.prom"
    bare = ["setpriv", "--bounding-set=-all,+net_admin", "--inh-caps=-all", "--no-new-privs"]
    done = run("write", str(file), prefix=[*inside(net.router), *bare])
    assert done.returncode == 0, done.stderr
    assert "conntrack_total_connections" in file.read_text()


# One packet from each of 200,000 sources, as in a flood with spoofed addresses.
FLOOD = """
import socket, struct
with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW) as sock:
    for n in range(200_000):
        src = struct.pack("!I", 0x0A000000 + n * 7)
        packet = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 28, 0, 0, 64, 17, 0, src, b"\\xc0\\0\\2\\1")
        sock.sendto(packet + struct.pack("!HHHH", 1024, 53, 8, 0), ("192.0.2.1", 0))
"""


def test_a_flood_of_spoofed_sources_is_held_by_the_default_limit(tmp_path: Path) -> None:
    need("ip", "nft", "sysctl", root=True)
    limited, unlimited = tmp_path / "limited.prom", tmp_path / "unlimited.prom"
    with namespaces("flood", "sink") as (name, sink):
        sysctl(name, net__netfilter__nf_conntrack_acct=1)
        sysctl(name, net__netfilter__nf_conntrack_udp_timeout=600)
        check("ip", "-n", name, "link", "add", "up0", "type", "veth", "peer", "name", "s0")
        check("ip", "-n", name, "link", "set", "s0", "netns", sink)
        check("ip", "-n", sink, "link", "set", "s0", "up")
        check("ip", "-n", name, "link", "set", "up0", "up")
        check("ip", "-n", name, "addr", "add", "dev", "up0", "192.0.2.2/24")
        neighbour = ["192.0.2.1", "lladdr", "02:00:00:00:00:01", "dev", "up0"]
        check("ip", "-n", name, "neigh", "add", *neighbour)
        hook = "type filter hook output priority 0; ct state new accept;"
        rules = "table inet t { chain c { " + hook + " }; }"
        check(*inside(name), "nft", "-f", "-", text=rules)
        check(*inside(name), sys.executable, "-c", FLOOD)
        seconds = []
        for file, *args in ((limited,), (unlimited, "--limit.keys=0")):
            before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
            done = run("write", *args, str(file), prefix=inside(name))
            assert done.returncode == 0, done.stderr
            seconds.append(resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before)
            assert ("190000 of 200000 keys are beyond --limit.keys" in done.stderr) != bool(args)
        assert "conntrack_total_connections 200000\n" in limited.read_text()
    text = limited.read_text()
    lines = [line for line in text.splitlines() if line.startswith("conntrack_connections{")]
    assert len(lines) == 10_001
    assert sum(int(line.rpartition(" ")[2]) for line in lines) == 200_000
    other = 'src="other",dst="other",l3protocol="ipv4",l4protocol="udp",l7protocol="other"'
    assert f'conntrack_sent_bytes{{{other},dport="other"}} {190_000 * 28}\n' in text
    assert text.count("\n") < 5 * 10_001 + 100
    assert limited.stat().st_size < 7_000_000
    assert unlimited.stat().st_size > 15 * limited.stat().st_size
    assert seconds[0] < seconds[1] / 2, seconds
