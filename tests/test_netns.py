"""--netns: live tables of several network namespaces, with the same tuples in each."""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests import conntrack_l
from tests.conftest import need
from tests.netns import check
from tests.program import Serving, run, serving
from tests.test_traffic import RULES
from tests.waiting import until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

FIELDS = ("connections", "sent_packets", "sent_bytes", "reply_packets", "reply_bytes")
TRAFFIC = str(Path(__file__).with_name("traffic.py"))
SHORT = ("udp_timeout", "udp_timeout_stream", "tcp_timeout_time_wait", "tcp_timeout_close")

# PACKETS: send them on two connections, whose tuples are the same in each namespace.
TALK = """
import socket, sys
for port in (5001, 5002):
    server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    server.bind(("127.0.0.1", port))
    client = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    client.bind(("127.0.0.1", port + 1000))
    for _ in range(int(sys.argv[1])):
        client.sendto(b"x" * 100, ("127.0.0.1", port))
        server.sendto(b"y" * 7, server.recvfrom(1 << 16)[1])
"""

Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


class Host:
    """Named namespaces for one test: its own /run/netns, in a mount namespace."""

    def __init__(self, pid: int) -> None:
        self.prefix = ["nsenter", f"--target={pid}", "--mount", f"--wd={os.getcwd()}"]

    def ip(self, *lines: str) -> None:
        """Run commands of ip(8)."""
        check(*self.prefix, "ip", "-batch", "-", text="".join(f"{line}\n" for line in lines))

    def inside(self, name: str, *argv: str, text: str | None = None) -> str:
        """Run a program in a namespace and return its standard output."""
        return check(*self.prefix, "ip", "netns", "exec", name, *argv, text=text)

    def sysctl(self, name: str, **values: int) -> None:
        settings = [f"net.netfilter.nf_conntrack_{key}={value}" for key, value in values.items()]
        self.inside(name, "sysctl", "-qw", *settings)

    def add(self, *names: str, track: bool = True) -> None:
        """Create namespaces, with connection tracking, accounting and events unless not track."""
        self.ip(*[f"netns add {name}" for name in names])
        for name in names if track else ():
            check(*self.prefix, "ip", "-n", name, "link", "set", "lo", "up")
            self.sysctl(name, acct=1, timestamp=1, events=1)
            self.inside(name, "nft", "-f", "-", text=RULES)

    def remove(self, *names: str) -> None:
        self.ip(*[f"netns del {name}" for name in names])

    def talk(self, name: str, packets: int) -> None:
        """Send packets on two connections, which are the same in each namespace."""
        self.inside(name, sys.executable, "-c", TALK, str(packets))

    def prints(self, name: str) -> conntrack_l.Expected:
        """Return what conntrack -L prints."""
        return conntrack_l.read(self.inside(name, "conntrack", "-L", "-o", "extended"))

    def truth(self, name: str) -> list[int]:
        """Return packets and bytes, sent and reply, as counted by nftables."""
        found = json.loads(self.inside(name, "nft", "-j", "list", "counters"))["nftables"]
        by_name = {one["counter"]["name"]: one["counter"] for one in found if "counter" in one}
        kinds = ("original", "reply")
        return [by_name[kind][what] for kind in kinds for what in ("packets", "bytes")]

    def write(self, *args: str, engine: str = "compiled") -> subprocess.CompletedProcess[str]:
        return run(
            "write", *args, prefix=[*self.prefix, "env", f"CONNTRACK_TEXTFILE_ENGINE={engine}"]
        )


@pytest.fixture
def host() -> Iterator[Host]:
    need("ip", "nft", "conntrack", "sysctl", "nsenter", "unshare", root=True)
    os.makedirs("/run/netns", exist_ok=True)
    keep = "mount -t tmpfs tmpfs /run/netns && echo && read -r _ || true"
    process = subprocess.Popen(
        ["unshare", "--mount", "--propagation=private", "sh", "-c", keep],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert process.stdin
    assert process.stdout
    with process:
        assert process.stdout.readline() == b"\n"
        yield Host(process.pid)
        # The mount namespace ends with its last process, and the named namespaces with it.
        process.stdin.close()


def samples(text: str) -> Samples:
    """Parse an exposition: the value of each series by name and labels."""
    return {
        (name, tuple(re.findall(r'(\w+)="((?:[^"\\]|\\.)*)"', labels))): float(value)
        for name, labels, value in re.findall(r"^(\w+)(?:{(.*)})? (\S+)$", text, re.MULTILINE)
    }


def of(found: Samples, name: str, netns: str) -> dict[tuple[str, ...], float]:
    """Return the series of a family in a namespace, by the values of the other labels."""
    return {
        tuple(value for label, value in labels[1:]): number
        for (family, labels), number in found.items()
        if family == name and labels[:1] == (("netns", netns),)
    }


@contextlib.contextmanager
def served(
    host: Host, *args: str, interval: float = 0.5
) -> Iterator[tuple[Serving, Callable[[], Samples]]]:
    """Run serve in the mount namespace; yield it and a function that scrapes it."""
    # It listens in the network namespace of this process.
    argv = (f"--collector.interval={interval}", *args)
    with serving(*argv, prefix=host.prefix) as process:

        def published() -> Samples:
            # Status 503 until there is a first snapshot.
            got = ["curl", "-s", "-f", f"{process.url}/metrics"]
            return samples(subprocess.run(got, capture_output=True, text=True, check=False).stdout)

        yield process, published


@pytest.mark.parametrize("engine", ["pure", "compiled"])
def test_gauges_of_three_namespaces_with_the_same_tuples(host: Host, engine: str) -> None:
    names = ("blue", "green", "red")
    host.add(*names)
    for packets, name in enumerate(names, 2):
        host.talk(name, packets)
    done = host.write(*(f"--netns={name}" for name in reversed(names)), engine=engine)
    assert (done.returncode, done.stderr) == (0, "")
    found = samples(done.stdout)
    for name in names:
        expected = host.prints(name)
        assert len(expected.sums) == 2
        for field, family in enumerate(FIELDS):
            assert of(found, f"conntrack_{family}", name) == {
                (src, dst, l3, l4, "unknown", dport): sums[field]
                for (src, dst, l3, l4, dport), sums in expected.sums.items()
            }
            assert of(found, f"conntrack_total_{family}", name) == {(): expected.totals[field]}
        assert of(found, "conntrack_flag_connections", name) == expected.flags
        for family, number in (
            *(("conntrack_snapshot_success", 1), ("conntrack_entries", 2)),
            *(("conntrack_accounting_enabled", 1), ("conntrack_uncounted_entries", 0)),
            *(("conntrack_aggregated_keys", 2), ("conntrack_exported_keys", 2)),
        ):
            assert of(found, family, name) == {(): number}
        assert of(found, "conntrack_entries_limit", name)[()] == float(
            Path("/proc/sys/net/netfilter/nf_conntrack_max").read_text()
        )
    # All series have the label, as the first one, but for build_info.
    without = {name for name, labels in found if not labels or labels[0][0] != "netns"}
    assert without == {"conntrack_textfile_build_info"}
    assert len({sum(of(found, "conntrack_sent_packets", name).values()) for name in names}) == 3


def test_counters_of_three_namespaces_are_those_of_the_kernel(host: Host) -> None:
    names = ("blue", "green", "red")
    host.add(*names)
    for name in names:
        host.sysctl(name, **dict.fromkeys(SHORT, 1))
        host.talk(name, 3)  # before the counters
    before = {name: host.truth(name) for name in names}
    made = {"blue": (30, 8), "green": (50, 40), "red": (1, 200)}
    with served(host, *(f"--netns={name}" for name in names)) as (_, published):

        def ready() -> bool:
            found = published()
            return all(of(found, "conntrack_events_listening", name) == {(): 1} for name in names)

        until(ready)
        running = [
            subprocess.Popen(
                [*host.prefix, "ip", "netns", "exec", name, sys.executable, TRAFFIC, "1"]
                + [str(number) for number in made[name]]
            )
            for name in names
        ]
        assert [process.wait(120) for process in running] == [0, 0, 0]

        def carried(found: Samples, family: str, name: str) -> list[float]:
            return [
                sum(of(found, f"conntrack_{family}_{field}_total", name).values())
                for field in FIELDS
            ]

        def ended() -> bool:
            for name in names:
                host.inside(name, "conntrack", "-L")  # a dump reaps expired entries
            return all(host.inside(name, "conntrack", "-C").strip() == "0" for name in names)

        until(ended)

        def expected(name: str) -> list[int]:
            now = host.truth(name)
            return [a - b for a, b in zip(now, before[name], strict=True)]

        for name in names:
            truth = expected(name)
            for family in ("traffic", "protocol_traffic"):
                until(lambda: carried(published(), family, name)[1:] == truth)  # noqa: B023
        # Without groups where it is stale, after three intervals.
        found = until(lambda: carried(found := published(), "traffic", names[0])[0] and found)
        for name, (tcp, udp) in made.items():
            assert carried(found, "traffic", name)[0] == tcp // 2 * 2 + udp // 2 * 2
            assert of(found, "conntrack_events_lost_total", name) == {(): 0}


def test_all_follows_namespaces_that_come_and_go(host: Host) -> None:
    host.add("stays", "goes")
    for name in ("stays", "goes"):
        host.talk(name, 5)
    host.ip("link add v0 netns goes type veth peer name v1 netns stays")
    with served(host, "--netns=all") as (_, published):
        until(lambda: of(published(), "conntrack_connections", "goes"))
        host.talk("goes", 11)
        until(lambda: sum(of(published(), "conntrack_traffic_sent_packets_total", "goes").values()))
        host.remove("goes")
        host.add("comes")
        until(lambda: of(published(), "conntrack_snapshot_success", "comes"))
        host.talk("comes", 9)

        def both() -> Samples | None:
            found = published()
            there = of(found, "conntrack_connections", "comes").values()
            gone = not of(found, "conntrack_snapshot_success", "goes")
            carried = of(found, "conntrack_traffic_sent_packets_total", "comes").values()
            return found if gone and list(there) == [1, 1] and sum(carried) == 18 else None

        found = until(both)
        assert of(found, "conntrack_connections", "goes") == {}
        assert list(of(found, "conntrack_connections", "stays").values()) == [1, 1]
        # Its counters stay: they must not fall.
        assert sum(of(found, "conntrack_traffic_sent_packets_total", "goes").values()) == 22
        assert of(found, "conntrack_entries", "goes") == {}

        # No socket keeps the namespace: its end of the veth pair is gone, and so the other.
        until(lambda: "v1" not in host.inside("stays", "ip", "link"))


def test_when_all_fail_serve_logs_it_and_goes_on_when_they_are_back(host: Host) -> None:
    host.add("blue")
    host.talk("blue", 3)
    family = "conntrack_snapshot_success"
    with served(host, "--netns=blue") as (process, published):
        until(lambda: of(published(), family, "blue") == {(): 1})
        host.remove("blue")
        # The last good snapshot is served for three intervals.
        until(lambda: of(published(), family, "blue") == {(): 0})
        until(lambda: not of(published(), "conntrack_total_connections", "blue"))
        assert of(published(), "conntrack_entries", "blue") == {}
        assert process.log.count("there is no /run/netns/blue") == 1
        host.add("blue")
        host.talk("blue", 4)
        found = until(
            lambda: len(of(found := published(), "conntrack_connections", "blue")) == 2 and found
        )
        assert of(found, family, "blue") == {(): 1}


def test_a_name_that_is_given_to_another_namespace_begins_anew(host: Host, tmp_path: Path) -> None:
    argv = ("--netns=all", f"--state.file={tmp_path / 'state'}")
    host.add("blue")
    for packets in (4, 5):
        host.talk("blue", packets)
        assert host.write(*argv).returncode == 0
    found = samples(host.write(*argv).stdout)
    family = "conntrack_protocol_traffic_sent_packets_total"
    assert of(found, family, "blue") == {("ipv4", "udp"): 10}
    host.remove("blue")
    host.add("blue")
    host.talk("blue", 100)  # before the new baseline, and more than before
    for packets in (0, 0, 3):
        host.talk("blue", packets)
        found = samples(host.write(*argv).stdout)
        assert of(found, family, "blue")[("ipv4", "udp")] >= 10
    found = samples(host.write(*argv).stdout)
    assert of(found, family, "blue") == {("ipv4", "udp"): 16}
    assert sum(of(found, "conntrack_traffic_sent_packets_total", "blue").values()) == 16


def test_one_that_fails_does_not_cost_the_others(host: Host, tmp_path: Path) -> None:
    host.add("blue")
    host.talk("blue", 3)
    file = tmp_path / "out.prom"
    state = f"--state.file={tmp_path / 'state'}"
    done = host.write("--netns=blue", "--netns=nope", "--netns=/etc/passwd", state, str(file))
    assert done.returncode == 0
    one, other = done.stderr.splitlines()
    assert "network namespace /etc/passwd: cannot enter /etc/passwd: it is not a network" in one
    assert "network namespace nope: there is no /run/netns/nope" in other
    found = samples(file.read_text())
    success = {name: of(found, "conntrack_snapshot_success", name) for name in ("blue", "nope")}
    assert success == {"blue": {(): 1}, "nope": {(): 0}}
    assert of(found, "conntrack_snapshot_success", "/etc/passwd") == {(): 0}
    assert list(of(found, "conntrack_connections", "blue").values()) == [1, 1]
    assert of(found, "conntrack_total_connections", "nope") == {}

    before = file.read_text()
    done = host.write("--netns=nope", state, str(file))
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert file.read_text() == before


def test_a_namespace_that_fails_for_a_time_keeps_its_ledger(host: Host, tmp_path: Path) -> None:
    argv = ("--netns=blue", "--netns=host", f"--state.file={tmp_path / 'state'}")
    host.add("blue")
    host.talk("blue", 3)
    assert host.write(*argv).returncode == 0
    check(*host.prefix, "mount", "--bind", "/etc/passwd", "/run/netns/blue")
    family = "conntrack_protocol_traffic_sent_packets_total"
    found = samples(host.write(*argv).stdout)
    assert of(found, "conntrack_snapshot_success", "blue") == {(): 0}
    check(*host.prefix, "umount", "/run/netns/blue")
    host.talk("blue", 4)
    for _ in range(2):
        found = samples(host.write(*argv).stdout)
    assert of(found, family, "blue") == {("ipv4", "udp"): 8}


def test_a_state_from_before_netns_is_not_continued_and_says_so(host: Host, tmp_path: Path) -> None:
    state = f"--state.file={tmp_path / 'state'}"
    host.add("blue")
    for argv, what in (([], None), (["--netns=blue"], "without"), ([], "with")):
        done = host.write(state, *argv)
        lines = [line for line in done.stderr.splitlines() if "the state" in line]
        said = f'msg="the state is of a run {what} --netns: counting from 0"'
        assert [said in line for line in lines] == ([True] if what else []), done.stderr
        again = host.write(state, *argv)
        assert "the state" not in again.stderr


def test_the_limit_holds_over_all_together(host: Host) -> None:
    names = ("blue", "green", "red")
    host.add(*names)
    for packets, name in enumerate(names, 2):
        host.talk(name, packets)
    done = host.write(*(f"--netns={name}" for name in names), "--limit.keys=3")
    found = samples(done.stdout)
    assert "3 of 6 keys are beyond --limit.keys" in done.stderr
    kept = {
        name: [group for group in of(found, "conntrack_sent_bytes", name) if group[0] != "other"]
        for name in names
    }
    assert {name: len(groups) for name, groups in kept.items()} == {"blue": 0, "green": 1, "red": 2}
    for name in names:
        expected = host.prints(name)
        for field, family in enumerate(FIELDS):
            series = of(found, f"conntrack_{family}", name)
            assert sum(series.values()) == expected.totals[field]
        keys = [of(found, f"conntrack_{what}_keys", name)[()] for what in ("exported", "folded")]
        assert keys == [len(kept[name]), 2 - len(kept[name])]


TRANSLATED = """
table ip nat {
    chain p {
        type nat hook postrouting priority 100
        udp dport 5001 snat to 127.0.0.9
    }
}
"""


def test_nat_and_kernel_statistics_are_by_namespace(host: Host) -> None:
    host.add("blue", "green", "red")
    for name in ("blue", "green"):
        host.inside(name, "nft", "-f", "-", text=TRANSLATED)
    for name in ("blue", "green", "red"):
        host.talk(name, 2)
    argv = ("--netns=blue", "--netns=green", "--netns=red")
    found = samples(host.write(*argv).stdout)
    for name, number in (("blue", 1), ("green", 1), ("red", 0)):
        kinds = {("ipv4", "udp", "snat"): 1} if number else {}
        assert of(found, "conntrack_nat_connections", name) == kinds
        for family in ("conntrack_snat_connections", "conntrack_snat_busiest_destination_ports"):
            assert of(found, family, name) == ({("127.0.0.9", "udp"): 1} if number else {})
        ports = {("127.0.0.9", "udp", "127.0.0.1", "5001"): 1} if number else {}
        assert of(found, "conntrack_snat_destination_ports", name) == ports
        assert of(found, "conntrack_stat_total", name)[("insert_failed",)] == 0
    assert of(found, "conntrack_stat_total", "blue").keys() >= {("early_drop",), ("drop",)}
    # --limit.keys holds over all namespaces together.
    found = samples(host.write(*argv, "--limit.keys=1").stdout)
    egress = [of(found, "conntrack_snat_connections", name) for name in ("blue", "green")]
    assert egress == [{("127.0.0.9", "udp"): 1}, {("other", "udp"): 1}]
    shown = [of(found, "conntrack_snat_destination_ports", name) for name in ("blue", "green")]
    assert [len(rows) for rows in shown] == [1, 0]


def test_a_process_and_a_path_are_namespaces_too(host: Host) -> None:
    host.add("blue")
    host.talk("blue", 3)
    inside = [*host.prefix, "ip", "netns", "exec", "blue", "sleep", "600"]
    with subprocess.Popen(inside) as process:
        names = (f"pid:{process.pid}", f"/proc/{process.pid}/ns/net", "/run/netns/blue")
        done = host.write(*(f"--netns={name}" for name in names), "--netns=host")
        process.terminate()
    assert done.returncode == 0
    found = samples(done.stdout)
    for name in names:
        assert list(of(found, "conntrack_connections", name).values()) == [1, 1]
    assert of(found, "conntrack_snapshot_success", "host") == {(): 1}


def test_accounting_is_switched_on_inside(host: Host) -> None:
    host.add("blue")
    host.sysctl("blue", acct=0)
    done = host.write("--netns=blue", "--configure.nf_conntrack_acct")
    assert (done.returncode, done.stderr) == (0, "")
    assert of(samples(done.stdout), "conntrack_accounting_enabled", "blue") == {(): 1}
    assert host.inside("blue", "sysctl", "-n", "net.netfilter.nf_conntrack_acct") == "1\n"


def test_names_that_cannot_be_listed_are_a_failure_in_a_line(host: Host) -> None:
    # Not by its mode: root may list any directory.
    check(*host.prefix, "umount", "/run/netns")
    check(*host.prefix, "sh", "-euc", "mount -t tmpfs tmpfs /run && touch /run/netns")
    line = "cannot list the network namespaces: /run/netns: Not a directory"
    for command in ("write", "top"):
        done = run(command, "--netns=all", prefix=host.prefix)
        assert (done.returncode, done.stderr.count("\n")) == (1, 1), done.stderr
        assert line in done.stderr
    done = run("check", "--netns=all", prefix=host.prefix)
    assert (done.returncode, "Traceback" in done.stderr) == (1, False)
    assert line in done.stdout
    with served(host, "--netns=all") as (process, published):
        until(lambda: of(published(), "conntrack_snapshot_success", "all") == {(): 0})
        assert process.log.count(line) == 1


def test_top_has_a_column(host: Host) -> None:
    host.add("blue", "red")
    host.talk("red", 3)
    done = run("top", "--netns=all", "--aggregate.by=dport", prefix=host.prefix)
    assert done.returncode == 0
    _, head, *rows = done.stdout.splitlines()
    assert head.split() == ["NETNS", "PORT", "CONNECTIONS", "SENT", "REPLY"]
    assert [row.split()[:3] for row in rows] == [["red", "5001", "1"], ["red", "5002", "1"]]


# PYTHON STATE TRAFFIC NAME...: make sockets as conntrack-events@.socket does, pass them to
# three runs of write (socket activation), and let connections end between the runs.
ACTIVATED = """
import json, os, socket, subprocess, sys, tempfile, time
from conntrack_textfile.kernel.namespace import Namespace
python, state, flows, *names = sys.argv[1:]
passed = []
for name in names:
    for groups in (4, 0, 0):
        made = socket.AF_NETLINK, socket.SOCK_RAW, 12
        sock = Namespace("/run/netns/" + name).run(lambda: socket.socket(*made))
        sock.bind((0, groups))
        sock.setsockopt(socket.SOL_SOCKET, 33, 1 << 25)  # SO_RCVBUFFORCE
        passed.append((name, sock))

def run():
    files = [tempfile.TemporaryFile("w+") for _ in range(2)]
    pid = os.fork()
    if not pid:
        for file, fd in zip(files, (1, 2)):
            os.dup2(file.fileno(), fd)
        high = [os.dup2(sock.fileno(), 100 + at) for at, (_, sock) in enumerate(passed)]
        for at, fd in enumerate(high):
            os.dup2(fd, 3 + at)
        os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS=str(len(passed)),
            LISTEN_FDNAMES=":".join("netns=" + name for name, _ in passed))
        os.execvp("setpriv", ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups",
            "--inh-caps=" + CAPS, "--ambient-caps=" + CAPS, "--bounding-set=-all," + CAPS,
            python, "-m", "conntrack_textfile", "write", "--state.file=" + state,
            *("--netns=" + name for name in names)])
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    return [status, *(file.seek(0) or file.read() for file in files)]

# dac_read_search: this Python may be in a directory that only root can search.
CAPS = "+net_admin,+dac_read_search"
runs = [run()]
inside = [["ip", "netns", "exec", name] for name in names]
made = [subprocess.Popen([*of, python, flows, "1", "500", "500"]) for of in inside]
assert [process.wait() for process in made] == [0] * len(names)
for of in inside:
    end = time.monotonic() + 60
    while True:
        # A dump has the kernel remove what has expired.
        subprocess.run([*of, "conntrack", "-L"], check=True, capture_output=True)
        left = subprocess.run([*of, "conntrack", "-C"], check=True, capture_output=True)
        if int(left.stdout) == 0:
            break
        assert time.monotonic() < end, left
        time.sleep(0.1)
runs += [run(), run()]
print(json.dumps(runs))
"""


def test_sockets_passed_by_systemd_need_no_right_to_enter(host: Host, tmp_path: Path) -> None:
    names = ("blue", "green", "red")
    host.add(*names)
    for name in names:
        host.sysctl(name, **dict.fromkeys(SHORT, 1))
    before = {name: host.truth(name) for name in names}
    state = tmp_path / "run"
    state.mkdir()
    state.chmod(0o777)
    for directory in [tmp_path, *tmp_path.parents][:3]:
        directory.chmod(directory.stat().st_mode | 0o111)
    argv = [sys.executable, "-c", ACTIVATED, sys.executable, str(state / "state"), TRAFFIC, *names]
    done = subprocess.run([*host.prefix, *argv], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    runs = json.loads(done.stdout)
    assert [status for status, *_ in runs] == [0, 0, 0], runs
    assert [errors for _, _, errors in runs] == ["", "", ""]
    found = samples(runs[-1][1])
    for name in names:
        assert of(found, "conntrack_events_received_total", name) == {(): 1000}
        assert of(found, "conntrack_events_listening", name) == {(): 1}
        families = [f"conntrack_traffic_{field}_total" for field in FIELDS]
        now = host.truth(name)
        assert [sum(of(found, family, name).values()) for family in families] == [
            1000,
            *[a - b for a, b in zip(now, before[name], strict=True)],
        ]
        assert of(found, "conntrack_entries_limit", name)
        # Sysctls cannot be read from outside.
        assert of(found, "conntrack_accounting_enabled", name) == {}


def unprivileged(caps: str) -> list[str]:
    """The prefix of a command that runs as nobody with these capabilities."""
    user = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
    return [*user, f"--inh-caps={caps}", f"--ambient-caps={caps}"]


def test_without_rights_and_sockets_the_error_names_the_capability(host: Host) -> None:
    need("setpriv")
    host.add("blue")
    caps = "+net_admin,+dac_read_search"
    done = run("write", "--netns=blue", prefix=[*host.prefix, *unprivileged(caps)])
    assert done.returncode == 1
    assert (
        "no permission to enter /run/netns/blue: run as root or with CAP_SYS_ADMIN" in done.stderr
    )
    with_admin = unprivileged(f"{caps},+sys_admin")
    done = run("write", "--netns=blue", prefix=[*host.prefix, *with_admin])
    assert (done.returncode, done.stderr) == (0, "")


def test_the_namespace_of_another_users_process_needs_the_right_to_trace_it(host: Host) -> None:
    need("setpriv")
    host.add("blue")
    inside = [*host.prefix, "ip", "netns", "exec", "blue", "sleep", "600"]
    with subprocess.Popen(inside) as process:
        of = f"--netns=pid:{process.pid}"
        caps = "+net_admin,+dac_read_search,+sys_admin"
        failed = run("write", of, prefix=[*host.prefix, *unprivileged(caps)])
        done = run("write", of, prefix=[*host.prefix, *unprivileged(f"{caps},+sys_ptrace")])
        process.terminate()
    assert failed.returncode == 1
    path = f"/proc/{process.pid}/ns/net"
    assert f"no permission to open {path}: under /proc it takes CAP_SYS_PTRACE" in failed.stderr
    assert done.returncode == 0, done.stderr


MANY = 200


def test_two_hundred_namespaces(host: Host, record_property: Callable[[str, object], None]) -> None:
    """One of eight has connections. Time and memory are reported; the bounds are generous."""
    names = [f"n{number:03}" for number in range(MANY)]
    host.ip(*[f"netns add {name}" for name in names])
    busy = names[::8]
    script = f"""
        for name in {" ".join(busy)}; do
            ip -n $name link set lo up
            ip netns exec $name sh -euc 'printf %s "$1" | nft -f -
                sysctl -qw net.netfilter.nf_conntrack_icmp_timeout=600
                ping -q -c 1 127.0.0.1' sh "$1"
        done
    """
    check(*host.prefix, "sh", "-euc", script, "sh", RULES)
    with served(host, "--netns=all", interval=1.5) as (process, published):
        first = until(published)
        pid = process.process.pid
        # The first snapshot reads each table twice, for the baseline: measure a later one.
        second = until(lambda: newer(published(), first))
        before = cpu(pid)
        found = until(lambda: newer(published(), second))
        seconds = cpu(pid) - before
        assert set(of_all(found).values()) == {1}
        assert sum(sum(of(found, "conntrack_entries", name).values()) for name in busy) > 0
        durations = [
            number
            for (name, _), number in found.items()
            if name == "conntrack_snapshot_duration_seconds"
        ]
        status = Path(f"/proc/{pid}/status").read_text()
        rss = int(re.findall(r"^VmRSS:\s+(\d+) kB$", status, re.MULTILINE)[0]) / 1024
        threads = int(re.findall(r"^Threads:\s+(\d+)$", status, re.MULTILINE)[0])
        descriptors = len(os.listdir(f"/proc/{pid}/fd"))
    record_property("seconds of CPU", seconds)
    record_property("seconds", sum(durations))
    record_property("MiB", rss)
    print(f"{seconds:.2f} s of CPU, {rss:.0f} MiB, {descriptors} descriptors, {threads} threads")
    assert sum(durations) < 20
    assert rss < 400
    assert MANY < descriptors < MANY + 50
    assert threads < 20


def of_all(found: Samples) -> dict[str, float]:
    """Return conntrack_snapshot_success of each namespace."""
    return {
        labels[0][1]: number
        for (name, labels), number in found.items()
        if name == "conntrack_snapshot_success"
    }


def newer(found: Samples, before: Samples) -> Samples | None:
    """Return the samples if they are of a later snapshot than those before."""
    family = "conntrack_snapshot_timestamp_seconds"
    if found and of(found, family, "n000") != of(before, family, "n000"):
        return found
    return None


def cpu(pid: int) -> float:
    """Return the CPU time of a process, in seconds."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


# The start of each program. collector() counts as serve and top do; its event sockets are
# open in another process too, as those of systemd are (here: duplicates in held).
PRELUDE = """
import json, os, select, socket, struct, subprocess, sys, time
from conntrack_textfile import options
from conntrack_textfile.collector import Collector
from conntrack_textfile.errors import SourceError
from conntrack_textfile.kernel import events
from conntrack_textfile.kernel.engine import make
from conntrack_textfile.kernel.namespace import Namespace
from conntrack_textfile.kernel.table import Table

held = []

def listen(table):
    sock = table.space.run(lambda: events.listen(1 << 22))
    held.append(sock.dup())
    return sock, True

def collector(argv):
    opts = options.parse(argv)
    plans = [opts.plan]
    made = Collector(opts, make(opts.plan), lambda: plans[-1])
    made.start_counting(listen)
    made.drain()
    return made, plans

def ip(*argv):
    subprocess.run(["ip", *argv], check=True)

TALK, RULES = sys.argv[1:]

def talk(packets):
    subprocess.run(["ip", "netns", "exec", "blue", sys.executable, "-c", TALK, str(packets)],
        check=True)
    subprocess.run(["ip", "netns", "exec", "blue", "conntrack", "-F"], check=True,
        capture_output=True)

def add():
    ip("netns", "add", "blue")
    ip("-n", "blue", "link", "set", "lo", "up")
    subprocess.run(["ip", "netns", "exec", "blue", "sh", "-euc",
        "printf %s \\"$1\\" | nft -f -; sysctl -qw net.netfilter.nf_conntrack_acct=1",
        "sh", RULES], check=True)

def remove(made):
    ip("netns", "del", "blue")
    try:
        made.take()
        sys.exit("it is there")
    except SourceError:
        pass
"""


def program(host: Host, text: str) -> Any:
    """Run PRELUDE and this program, and return the JSON that it prints."""
    argv = [sys.executable, "-c", PRELUDE + text, TALK, RULES]
    return json.loads(check(*host.prefix, *argv))


def test_a_deleted_namespace_takes_no_cpu_while_systemd_holds_its_socket(host: Host) -> None:
    """The event socket stays readable and is no longer read: epoll must not report it."""
    found = program(
        host,
        """
add()
one, _ = collector(["serve", "--netns=all"])
one.take()
inside = os.open("/run/netns/blue", os.O_RDONLY)
ip("netns", "del", "blue")
assert not one.take().success is False

def end():
    sent, other = [socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(2)]
    other.bind(("127.0.0.1", 0))
    sent.sendto(b"x", other.getsockname())
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 12) as sock:
        sock.send(struct.pack("=IHHIIBBH", 20, 0x102, 5, 1, 0, 0, 0, 0))
        sock.recv(4096)

Namespace(f"/proc/self/fd/{inside}").run(end)
waits = bool(select.select([held[0]], [], [], 30)[0])
before = time.process_time()
time.sleep(1)
print(json.dumps([waits, time.process_time() - before]))
""",
    )
    assert found[0]
    assert found[1] < 0.2


def test_a_namespace_that_goes_while_top_reads_it_had_traffic(host: Host) -> None:
    found = program(
        host,
        """
add()
one, _ = collector(["top", "--watch", "--netns=all", "--aggregate.by=dport"])
one.top(5)
talk(3)
read = Table.read

def gone(self, engine):
    ip("netns", "del", "blue")
    return read(self, engine)

Table.read = gone
talkers = one.top(5).talkers
print(json.dumps([[row.group, row.traffic[1]] for row in talkers.rows]))
""",
    )
    assert found == [[["blue", "5001"], 3], [["blue", "5002"], 3]]


def test_a_namespace_that_is_about_to_be_made_anew_is_no_failure(host: Host) -> None:
    """`ip netns add` makes the file first: a snapshot may come before the namespace is there."""
    found = program(
        host,
        """
add()
ip("netns", "add", "stays")
one, _ = collector(["serve", "--netns=all"])
one.take()
read = Table.read

def anew(self, engine):
    if self.name == "blue":
        ip("netns", "del", "blue")
        open("/run/netns/blue", "w").close()
    return read(self, engine)

Table.read = anew
snapshot = one.take()
print(json.dumps([snapshot.errors, [snapshot.parts[name].success for name in ("blue", "stays")]]))
""",
    )
    assert found == [{}, [None, True]]


@pytest.mark.parametrize(
    "change", ["labels=('dport', 'zone')", "networks=networks.parse_names('127.0.0.0/8 here')"]
)
def test_traffic_of_a_deleted_namespace_survives_a_change_of_plan(host: Host, change: str) -> None:
    """Deleted, then no snapshot works, then the plan changes before one works again."""
    found = program(
        host,
        f"""
from conntrack_textfile import networks
add()
one, plans = collector(["serve", "--netns=blue", "--aggregate.by=src,dport"])
one.take()
talk(2)
remove(one)
plans.append(plans[0]._replace({change}))
add()
for _ in range(5):  # new series are published as 0 at first
    traffic = one.take().traffic
rows = zip(traffic.groups.groups, traffic.groups.columns[1])
print(json.dumps([traffic.labels, [[group, sent] for group, sent in rows if sent],
    sum(traffic.groups.columns[1]), sum(traffic.protocols.columns[1])]))
""",
    )
    labels, groups, *sums = found
    assert all(len(group) == len(labels) for group, _ in groups)
    assert sums[0] == sums[1]
    if "networks" in change:
        assert sums[0] == 4


def test_what_the_last_namespace_had_is_saved_at_a_stop(host: Host) -> None:
    found = program(
        host,
        """
import tempfile
from conntrack_textfile import state
with tempfile.TemporaryDirectory() as directory:
    path = directory + "/state"
    add()
    one, _ = collector(["serve", "--netns=blue", "--aggregate.by=dport", "--state.file=" + path])
    one.take()
    talk(2)
    remove(one)
    one.stop()
    saved = state.load(path).numbers["counters"]["protocols"]
print(json.dumps(sum(sums[1] for _, sums, *_ in saved)))
""",
    )
    assert found == 4


def test_a_socket_without_destroy_events_is_not_used_for_events(host: Host) -> None:
    """A socket unit may subscribe to another group: there would be no events, silently."""
    found = program(
        host,
        """
from conntrack_textfile import activation
for at, groups in enumerate((1, 4, 0, 0)):
    sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 12)
    sock.bind((0, groups))
    os.dup2(sock.fileno(), 100 + at)
    sock.close()
    os.dup2(100 + at, 3 + at)
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS="4",
    LISTEN_FDNAMES=":".join(["netns=blue"] * 4))
passed = activation.take()
print(json.dumps([[sock.fileno() for sock in passed.events.values()],
    [sock.fileno() for sock in passed.dumps["blue"]], list(passed.events), passed.listeners]))
""",
    )
    assert found == [[4], [5, 6], ["blue"], []]


def test_an_event_socket_of_a_deleted_namespace_is_not_used_for_its_successor(host: Host) -> None:
    """systemd's socket keeps the deleted namespace: its events are of another table."""
    found = program(
        host,
        """
from conntrack_textfile.kernel.listener import listener
add()
passed = {}
passed["blue"] = Namespace("/run/netns/blue").run(lambda: events.listen(1 << 22))
ip("netns", "del", "blue")
add()
opts = options.parse(["serve", "--netns=blue"])
one = Collector(opts, make(opts.plan))
one.start_counting(listener(passed, 1 << 22, None))
one.take()
talk(1)
print(json.dumps(one.take().parts["blue"].traffic.totals["received"]))
""",
    )
    assert found == 2


def test_passed_sockets_without_cap_net_admin_are_an_error_in_a_line(host: Host) -> None:
    need("setpriv")
    found = program(
        host,
        """
add()
for at in range(2):
    sock = Namespace("/run/netns/blue").run(lambda: socket.socket(socket.AF_NETLINK, 3, 12))
    os.dup2(sock.fileno(), 100 + at)
caps = "+dac_read_search"
script = "import os, sys; os.dup2(100, 3); os.dup2(101, 4); os.environ.update("
script += "LISTEN_PID=str(os.getpid()), LISTEN_FDS='2', LISTEN_FDNAMES='netns=blue:netns=blue');"
script += "os.execvp(sys.argv[1], sys.argv[1:])"
done = subprocess.run([sys.executable, "-c", script, "setpriv", "--reuid=65534", "--regid=65534",
    "--clear-groups", "--inh-caps=" + caps, "--ambient-caps=" + caps,
    "--bounding-set=-all," + caps, sys.executable, "-m", "conntrack_textfile", "write",
    "--netns=blue"], capture_output=True, text=True, pass_fds=(100, 101))
print(json.dumps([done.returncode, done.stderr]))
""",
    )
    status, text = found
    assert status == 1, text
    assert text.count("\n") == 1, text
    assert "blue" in text
    assert "CAP_NET_ADMIN" in text
