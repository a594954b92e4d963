"""The tracker and its event socket, with real events in a network namespace."""

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

RULES = """
table inet t {
    chain o {
        type filter hook output priority 0
        ct state new accept
    }
}
"""

# The beginning of each program. ends() creates UDP connections and deletes them.
PRELUDE = """
import json, os, socket, struct, sys, time
from conntrack_textfile import activation
from conntrack_textfile.kernel import events, namespace, source
from conntrack_textfile.kernel.engine import make
from conntrack_textfile.kernel.tracker import Drain, Tracker
from conntrack_textfile.plan import Plan

sink = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
sink.bind(("127.0.0.1", 0))
made = []

def lives(count):
    for _ in range(count):
        made.append(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        made[-1].sendto(b"x", sink.getsockname())
        sink.recv(9)

def flush():
    made.clear()
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 12) as sock:
        sock.send(struct.pack("=IHHIIBBH", 20, 0x102, 5, 1, 0, 0, 0, 0))
        sock.recv(4096)

def ends(count):
    lives(count)
    flush()

def totals(reading):
    rows = list(reading.traffic.protocols.values())
    return [sum(row[i] for row in rows) for i in (0, 1, 2)]

flush()  # the connections of the program before
engine = make(Plan(labels=("dst",)))

def tracker(sock, saved=b"", **more):
    found = Tracker(engine.ledger(saved), sock, events.buffer(sock).drops if sock else 0, **more)
    found.ledger.baseline = not saved
    return found

def dump(of):
    return source.read("netlink", "/proc", engine, of)
"""


@pytest.fixture(scope="module")
def namespace() -> Iterator[str]:
    need("ip", "nft", "sysctl", root=True)
    with namespaces("tracker") as (name,):
        sysctl(
            name,
            net__netfilter__nf_conntrack_acct=1,
            # With the default, 2, connections older than the first listener send no event.
            net__netfilter__nf_conntrack_events=1,
            net__netfilter__nf_conntrack_udp_timeout=600,
            net__netfilter__nf_conntrack_udp_timeout_stream=600,
        )
        check(*inside(name), "nft", "-f", "-", text=RULES)
        yield name


def run(namespace: str, program: str, engine: str = "compiled") -> object:
    """Run a program, and return the JSON that it prints."""
    quiet = ["-W", "error", "-W", "ignore::ResourceWarning"]  # sockets live to the end
    argv = [sys.executable, *quiet, "-c", PRELUDE + program]
    prefix = [*inside(namespace), "env", f"CONNTRACK_TEXTFILE_ENGINE={engine}"]
    done = subprocess.run(
        [*prefix, *argv], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return json.loads(done.stdout)


ENGINES = pytest.mark.parametrize("engine", ["pure", "compiled"])


@ENGINES
def test_connections_that_end_between_readings_are_in_the_second(
    namespace: str, engine: str
) -> None:
    program = """
lives(5)
of = tracker(events.listen(1 << 22))
dump(of), dump(of)
first = of.reading(listening=True, save=False)
flush()
ends(50)
lives(7)
dump(of)
second = of.reading(listening=True, save=False)
print(json.dumps([totals(first), totals(second), first.tracked, second.tracked,
    second.statistics["received"], second.statistics["lost"], second.buffer.size > 1 << 22]))
"""
    assert run(namespace, program, engine) == [[0, 0, 0], [57, 57, 57 * 29], 5, 7, 55, 0, True]


@ENGINES
def test_events_beyond_the_receive_buffer_are_counted_as_lost(namespace: str, engine: str) -> None:
    """Received and lost add up to the events that were sent."""
    program = """
of = tracker(events.listen(4096))
dump(of), dump(of)
of.reading(listening=True, save=False)
ends(500)
first = of.reading(listening=True, save=False)
second = of.reading(listening=True, save=False)
numbers = first.statistics
print(json.dumps([numbers["received"] + numbers["lost"], numbers["lost"] > 0,
    totals(first)[0] == numbers["received"], second.statistics["lost"]]))
"""
    assert run(namespace, program, engine) == [500, True, True, 0]


def test_the_drain_thread_keeps_the_receive_buffer_from_overflow(namespace: str) -> None:
    program = """
of = tracker(events.listen(1 << 20))
dump(of), dump(of)
of.reading(listening=True, save=False)
Drain().add(of)
for _ in range(40):
    ends(100)
    end = time.monotonic() + 20
    while events.buffer(of.socket).used and time.monotonic() < end:
        time.sleep(0.001)
found = of.reading(listening=True, save=False)
print(json.dumps([totals(found)[0], found.statistics["lost"], found.buffer.used]))
"""
    assert run(namespace, program) == [4000, 0, 0]


@ENGINES
def test_after_the_last_reading_events_wait_for_the_next_run(namespace: str, engine: str) -> None:
    program = """
sock = events.listen(1 << 22)
of = tracker(sock)
dump(of), dump(of)
of.reading(listening=True, save=False)
Drain().add(of)
ends(20)
last = of.reading(listening=True, save=True, last=True)
ends(30)
time.sleep(0.2)
after = of.reading(listening=True, save=False, last=True)
again = tracker(sock, last.ledger)
dump(again)
print(json.dumps([totals(last)[0], totals(after)[0],
    totals(again.reading(listening=True, save=False))[0]]))
"""
    assert run(namespace, program, engine) == [20, 0, 30]


@ENGINES
def test_events_of_connections_that_ended_unseen_are_no_traffic(
    namespace: str, engine: str
) -> None:
    """On a socket that systemd held open during runs without it."""
    program = """
sock = events.listen(1 << 22)
lives(10)
flush()
of = tracker(None, bytes(engine.ledger(b"").save()))
of.ledger.baseline = False
dump(of)
saved = of.reading(listening=False, save=True).ledger
again = tracker(sock, saved, stale=True)
dump(again)
first = totals(again.reading(listening=True, save=False))
ends(3)
print(json.dumps([first, totals(again.reading(listening=True, save=False))[0]]))
"""
    assert run(namespace, program, engine) == [[0, 0, 0], 3]


def test_is_listening_needs_the_destroy_group(namespace: str) -> None:
    program = """
found = []
for groups in (4, 1 | 4, 1, 0):
    sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 12)
    sock.bind((0, groups))
    found.append(events.is_listening(sock))
found.append(events.is_listening(events.listen(1 << 20)))
for kind in ((socket.AF_NETLINK, socket.SOCK_RAW, 0), (socket.AF_INET, socket.SOCK_STREAM)):
    found.append(events.is_listening(socket.socket(*kind)))
closed = socket.socket()
closed.close()
found.append(events.is_listening(closed))
print(json.dumps(found))
"""
    bound = [True, True, False, False]
    assert run(namespace, program) == [*bound, True, *[False] * 3]


def test_a_socket_of_another_namespace_is_not_ours(namespace: str) -> None:
    """A socket of another namespace has the events of another table."""
    program = """
import ctypes
sock = events.listen(1 << 20)
ours = events.is_in(sock, namespace.OWN.identity())
before = namespace.OWN.identity()
assert before == namespace.OWN.identity()
assert ctypes.CDLL(None, use_errno=True).unshare(0x40000000) == 0  # CLONE_NEWNET
print(json.dumps([ours, events.is_in(sock, namespace.OWN.identity()),
    [a == b for a, b in zip(before, namespace.OWN.identity())]]))
"""
    assert run(namespace, program) == [True, False, [True, False, False]]


def test_listening_without_privileges_is_a_permission_error(namespace: str) -> None:
    need("setpriv")
    program = """
import ctypes
try:
    events.listen(1 << 20)
except OSError as error:
    print(json.dumps(type(error).__name__))
"""
    argv = [sys.executable, "-c", PRELUDE + program]
    drop = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--bounding-set=-all")
    done = subprocess.run(
        [*inside(namespace), *drop, *argv], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout) == (0, '"PermissionError"\n'), done.stderr


@ENGINES
def test_new_connections_with_the_same_tuple_and_id_are_counted(
    namespace: str, engine: str
) -> None:
    """Without another listener an equal event is no duplicate."""
    program = """
of = tracker(events.listen(1 << 24))
dump(of), dump(of)
of.reading(listening=True, save=False)
one = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
one.bind(("127.0.0.1", 0))
# Deleted by its tuple: a flush looks at the tables of all namespaces.
from tests.flows import Flow, tuple_
flow = Flow("127.0.0.1", "127.0.0.1", one.getsockname()[1], sink.getsockname()[1], 17)
body = struct.pack("!BBH", socket.AF_INET, 0, 0) + tuple_(1, flow)
delete = struct.pack("=IHHII", 16 + len(body), 0x102, 5, 1, 0) + body
with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 12) as sock:
    for _ in range(200):
        one.sendto(b"x", sink.getsockname())
        sink.recv(9)
        sock.send(delete)
        assert struct.unpack_from("=i", sock.recv(4096), 16) == (0,)
found = of.reading(listening=True, save=False)
print(json.dumps([totals(found), found.statistics["duplicate"]]))
"""
    assert run(namespace, program, engine) == [[200, 200, 200 * 29], 0]


@ENGINES
def test_events_repeated_for_a_listener_in_reliable_mode_count_once(
    namespace: str, engine: str
) -> None:
    """The kernel repeats events that a listener in reliable mode has no room for."""
    program = """
from conntrack_textfile.kernel import ledger
ledger.REMEMBER_SECONDS = 1  # of both engines
stalled = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 12)
stalled.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
stalled.setsockopt(270, 4, 1)  # SOL_NETLINK, NETLINK_BROADCAST_ERROR
stalled.bind((0, 4))
of = tracker(events.listen(1 << 26))
dump(of), dump(of)
of.reading(listening=True, save=False)
Drain().add(of)
ends(1000)
time.sleep(3)  # longer than REMEMBER_SECONDS
stalled.close()
end = time.monotonic() + 60
found = 0
while time.monotonic() < end:
    time.sleep(1)  # the kernel tries again each tenth of a second
    dump(of)
    reading = of.reading(listening=True, save=False)
    found += totals(reading)[0]
    if not reading.statistics["received"]:
        break
print(json.dumps([found, of.ledger.statistics["duplicate"] > 100]))
"""
    assert run(namespace, program, engine) == [1000, True]


@ENGINES
def test_a_flush_in_the_middle_of_a_dump(namespace: str, engine: str) -> None:
    program = """
of = tracker(events.listen(1 << 24))
dump(of), dump(of)
of.reading(listening=True, save=False)
lives(300)
from conntrack_textfile.kernel import netlink
decoder = engine.netlink(of.ledger)
with of.dump(), netlink.dump() as sock:
    first = True
    done = False
    while not done:
        datagram = netlink.datagram(sock)
        with of.locked():
            done = decoder.feed(datagram)
        if first:
            flush()
            first = False
decoder.finish()
print(json.dumps([totals(of.reading(listening=True, save=False)), len(of.ledger)]))
"""
    assert run(namespace, program, engine) == [[300, 300, 300 * 29], 0]


FAULTS = """
def fails(call):
    try:
        call()
    except (OSError, MemoryError):
        return True
    return False

def fault(*_):
    raise OSError("fault")

of = tracker(events.listen(1 << 22))
dump(of), dump(of)
of.reading(listening=True, save=False)
ends(20)
"""


@ENGINES
def test_a_reading_that_fails_loses_nothing(namespace: str, engine: str) -> None:
    """The next one has the traffic and statistics of both."""
    program = """
buffer, events.buffer = events.buffer, fault
failed = [fails(lambda: of.reading(listening=True, save=True))]
events.buffer = buffer
failed.append(fails(lambda: of.replacing(fault).__enter__()))
found = of.reading(listening=True, save=False)
print(json.dumps([failed, totals(found)[0], found.statistics["received"]]))
"""
    assert run(namespace, FAULTS + program, engine) == [[True, True], 20, 20]


def test_a_failed_drain_leaves_no_baseline_and_no_dump(namespace: str) -> None:
    """In a baseline, new connections would not count from 0."""
    program = """
again = tracker(of.socket, of.reading(listening=True, save=True).ledger, stale=True)
drain, again.ledger.drain = again.ledger.drain, fault
failed = [fails(again.drain)]
found = [again.ledger.baseline]
again.ledger.drain = drain

def read():
    with again.dump():
        again.ledger.drain = fault

failed.append(fails(read))
print(json.dumps([failed, found, again.ledger._in_dump]))
"""
    assert run(namespace, FAULTS + program, "pure") == [[True, True], [False], False]
