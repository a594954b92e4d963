"""The collector from one snapshot to the next, and over restarts, on a live table."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from tests.conftest import need
from tests.netns import check, inside, namespaces, sysctl

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

RULES = """
table inet t {
    chain o {
        type filter hook output priority 0
        ct state new accept
    }
}
"""

# begin() is what serve does at its start, value() what is published of a group.
PRELUDE = """
import json, os, socket, struct, sys
from conntrack_textfile import options, state
from conntrack_textfile.collector import Collector
from conntrack_textfile.errors import OutputError
from conntrack_textfile.kernel import events, sysctl
from conntrack_textfile.kernel.engine import make

PATH = sys.argv[1]
sinks, kept = {}, []  # a source port that is closed may be given again

def send(port):
    if port not in sinks:
        sinks[port] = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        sinks[port].bind(("127.0.0.1", port))
    one = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    kept.append(one)
    one.sendto(b"x", ("127.0.0.1", port))
    sinks[port].recv(9)

def begin(sock, saved, *, held=False, interrupted=0, path=PATH):
    opts = options.parse(["serve", "--state.file=" + path, "--aggregate.by=dport"])
    collector = Collector(opts, make(opts.plan))
    collector.start_counting(lambda _: (sock, held), saved, interrupted=interrupted)
    return collector

def value(snapshot, port):
    groups, columns = snapshot.traffic.groups
    return dict(zip(groups, columns[1])).get((str(port),))
"""


@pytest.fixture(scope="module")
def namespace() -> Iterator[str]:
    need("ip", "nft", "sysctl", root=True)
    with namespaces("collector") as (name,):
        sysctl(
            name,
            net__netfilter__nf_conntrack_acct=1,
            net__netfilter__nf_conntrack_udp_timeout=600,
        )
        check(*inside(name), "nft", "-f", "-", text=RULES)
        yield name


def run(namespace: str, directory: Path, program: str) -> object:
    """What a program printed as JSON."""
    quiet = ["-W", "error", "-W", "ignore::ResourceWarning"]  # sockets live to the end
    argv = [sys.executable, *quiet, "-c", PRELUDE + program, str(directory / "state")]
    done = subprocess.run(
        [*inside(namespace), *argv], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_what_came_before_a_stop_is_0_at_first_after_it(namespace: str, tmp_path: Path) -> None:
    program = """
sock = events.listen(1 << 22)
one = begin(sock, None)
one.take()
send(5001)
one.take()
send(5001), send(5002)
one.stop()
two = begin(sock, state.load(PATH), held=True)
found = [two.take() for _ in range(2)]
print(json.dumps([[value(s, 5001), value(s, 5002)] for s in found]))
"""
    assert run(namespace, tmp_path, program) == [[2, 0], [2, 1]]


def test_what_could_not_be_saved_is_0_at_first_when_it_can(namespace: str, tmp_path: Path) -> None:
    """The snapshot is not shown then, and its traffic is in the next."""
    program = """
directory = os.path.dirname(PATH) + "/sub"
os.mkdir(directory)
one = begin(events.listen(1 << 22), None, path=directory + "/state")
one.take()
os.rename(directory, directory + "2")
send(5003)
try:
    one.take()
except OutputError as error:
    failed = "no directory" in str(error)
os.rename(directory + "2", directory)
print(json.dumps([failed, *[value(one.take(), 5003) for _ in range(2)]]))
"""
    assert run(namespace, tmp_path, program) == [True, 0, 1]


def test_what_a_snapshot_that_was_not_shown_had_is_0_at_first_in_the_next(
    namespace: str, tmp_path: Path
) -> None:
    """There was no memory for it after its traffic was counted, or to render it."""
    program = """
from conntrack_textfile import aggregate

def fault(*_):
    raise MemoryError

one = begin(events.listen(1 << 22), None)
one.take()
send(5010)
fold, aggregate.fold = aggregate.fold, fault
try:
    one.take()
except MemoryError:
    one.failure(None)
aggregate.fold = fold
found = [value(one.take(), 5010)]
one.failure(None)
print(json.dumps([*found, *[value(one.take(), 5010) for _ in range(2)]]))
"""
    assert run(namespace, tmp_path, program) == [0, 0, 1]


def test_a_snapshot_that_is_under_way_at_a_stop_does_not_count(
    namespace: str, tmp_path: Path
) -> None:
    """Its events would be in no state, and nobody would see what it saves as published."""
    program = """
import threading
from conntrack_textfile.kernel.table import Table

one = begin(events.listen(1 << 22), None)
one.take()
read, reads, stopped, counted = Table.read, *[threading.Event() for _ in range(3)]

def slow(self, engine):
    tally = read(self, engine)
    reads.set()
    stopped.wait()
    return tally

def count(*args):
    counted.set()

Table.read = slow
threading.Thread(target=one.take, daemon=True).start()
reads.wait()
send(5011)
one.stop()
one._counting.count = count
stopped.set()
late = counted.wait(1)
two = begin(None, state.load(PATH))
Table.read = read
print(json.dumps([late, value(two.take(), 5011)]), flush=True)
os._exit(0)  # as serve does: the thread never ends
"""
    assert run(namespace, tmp_path, program) == [False, 0]


def test_an_interrupted_run_is_in_the_number(namespace: str, tmp_path: Path) -> None:
    program = """
one = begin(None, None, interrupted=3)
print(json.dumps([one.take().traffic.totals["interrupted"],
    begin(None, state.load(PATH), interrupted=5).take().traffic.totals["interrupted"],
    begin(None, state.load(PATH)).take().traffic.totals["interrupted"]]))
"""
    assert run(namespace, tmp_path, program) == [3, 5, 5]


def test_losses_of_a_held_socket_are_counted_once(namespace: str, tmp_path: Path) -> None:
    """Its number is of all time, and two runs read it."""
    program = """
def flush():
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 12) as sock:
        sock.send(struct.pack("=IHHIIBBH", 20, 0x102, 5, 1, 0, 0, 0, 0))
        sock.recv(4096)

flush()
sock = events.listen(4096)
for _ in range(100):
    send(5004)
begin(sock, None, held=True).take()
flush()
lost = []
for _ in range(3):
    one = begin(sock, state.load(PATH), held=True)
    taken = one.take()
    lost.append(taken.traffic.totals["lost"])
print(json.dumps([lost[0] > 0, lost[0] + taken.traffic.totals["received"], len(set(lost))]))
"""
    assert run(namespace, tmp_path, program) == [True, 100, 1]


def test_without_a_socket_readings_alone_count(namespace: str, tmp_path: Path) -> None:
    program = """
one = begin(None, None)
one.take()
send(5005)
found = [one.take() for _ in range(2)]
print(json.dumps([value(found[1], 5005), found[1].traffic.listening, found[1].traffic.buffer]))
"""
    assert run(namespace, tmp_path, program) == [1, False, None]


@pytest.mark.parametrize("change", ["labels=('dport', 'zone')", "include=(Filter(l4protocol=17),)"])
def test_other_labels_and_filters_begin_anew(namespace: str, tmp_path: Path, change: str) -> None:
    """What was there before is no traffic of theirs, and what comes after is."""
    program = f"""
from conntrack_textfile.filters import Filter
opts = options.parse(["top", "--aggregate.by=dport"])
plans = [opts.plan]
one = Collector(opts, make(opts.plan), lambda: plans[-1])
sock = events.listen(1 << 22)
one.start_counting(lambda _: (sock, False))
send(5006)
one.top(5)
send(5007)
found = [one.top(5)]
plans.append(opts.plan._replace({change}))
send(5008)
found.append(one.top(5))
send(5009)
found += [one.top(5), one.top(5)]
one.close()

def traffic(snapshot):
    rows = {{row.group[-1 if len(row.group) == 1 else 0]: row.traffic[0]
        for row in snapshot.talkers.rows}}
    ports = [rows.get(str(port), 0) for port in range(5006, 5010)]
    totals = snapshot.talkers.totals
    return [totals and totals[0], ports, list(snapshot.traffic.labels)]

print(json.dumps([traffic(snapshot) for snapshot in found]))
"""
    labels = ["dport", "zone"] if "zone" in change else ["dport"]
    assert run(namespace, tmp_path, program) == [
        [1, [0, 1, 0, 0], ["dport"]],
        [None, [0, 0, 0, 0], labels],
        [1, [0, 0, 0, 1], labels],
        [0, [0, 0, 0, 0], labels],
    ]


def test_an_interval_has_groups_that_have_no_series(namespace: str, tmp_path: Path) -> None:
    """A scan takes all slots of the counters, and who talks then is to be seen all the same."""
    program = """
opts = options.parse(["serve", "--aggregate.by=dport", "--limit.keys=1"])
plans = [opts.plan]
one = Collector(opts, make(opts.plan), lambda: plans[-1], interval_groups=3)
sock = events.listen(1 << 22)
one.start_counting(lambda _: (sock, False))
send(5101)
found = [one.take()]
for port in (5102, 5103, 5103):
    send(port)
found.append(one.take())
for port in range(5104, 5109):
    send(port)
found.append(one.take())
plans.append(opts.plan._replace(known_ports=True))
found += [one.take(), one.take()]

def traffic(snapshot):
    if snapshot.interval is None:
        return None
    groups, columns = snapshot.interval
    return dict(zip([group[0] for group in groups], columns[0]))

print(json.dumps([traffic(snapshot) for snapshot in found]))
"""
    assert run(namespace, tmp_path, program) == [
        None,  # since the baseline, and not since a snapshot
        {"5102": 1, "5103": 2},
        {"5104": 1, "5105": 1, "5106": 1, "other": 2},
        None,  # of two plans
        {},
    ]


def test_an_interval_that_could_not_be_saved_is_not_the_next(
    namespace: str, tmp_path: Path
) -> None:
    """Its traffic is in the counters once, and in no interval: that began before the failure."""
    program = """
directory = os.path.dirname(PATH) + "/sub"
os.mkdir(directory)
opts = options.parse(["serve", "--state.file=" + directory + "/state", "--aggregate.by=dport"])
one = Collector(opts, make(opts.plan), interval_groups=3)
sock = events.listen(1 << 22)
one.start_counting(lambda _: (sock, False))
one.take()
one.take()
os.rename(directory, directory + "2")
send(5012)
try:
    one.take()
except OutputError:
    os.rename(directory + "2", directory)
send(5013)
found = []
for _ in range(2):
    taken = one.take()
    found.append(taken.interval and list(taken.interval.groups))
    protocols = dict(zip(taken.traffic.protocols.groups, taken.traffic.protocols.columns[1]))
print(json.dumps([found, protocols["ipv4", "udp"]]))
"""
    assert run(namespace, tmp_path, program) == [[None, []], 2]


def test_a_namespace_deleted_during_its_baseline_has_no_traffic_from_before(
    namespace: str, tmp_path: Path
) -> None:
    """Its sockets keep it alive, and its connections end after its name has gone."""
    program = """
from conntrack_textfile.errors import SourceError
from conntrack_textfile.kernel import namespace
from conntrack_textfile.kernel.table import Table

namespace.DIRECTORY = os.path.dirname(PATH) + "/netns"
os.mkdir(namespace.DIRECTORY)
for name in ("deleted", "there"):
    os.symlink(f"/proc/{os.getpid()}/ns/net", f"{namespace.DIRECTORY}/{name}")
send(5020)
opts = options.parse(["serve", "--netns=all", "--aggregate.by=dport"])
one = Collector(opts, make(opts.plan))
one.start_counting(lambda table: (table.space.run(lambda: events.listen(1 << 22)), False))
read = Table.read

def deleted(self, engine):
    if self.name == "deleted":
        os.unlink(self.space.path)
        raise SourceError("deleted")
    return read(self, engine)

Table.read = deleted
errors = one.take().errors
with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 12) as sock:  # conntrack -F
    sock.send(struct.pack("=IHHIIBBH", 20, 0x102, 5, 1, 0, 0, 0, 0))
    sock.recv(4096)
found = [one.take().traffic for _ in range(3)][-1]
received = one._counting._counters.health["deleted"].totals["received"]
print(json.dumps([errors, received > 0, sum(found.protocols.columns[0])]))
"""
    assert run(namespace, tmp_path, program) == [{}, True, 0]
