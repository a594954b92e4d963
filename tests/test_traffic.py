"""The counters against the kernel: real connections, with nftables' counters as the truth.

nftables counts by direction what the same hooks of the same namespace see, so what
is counted here is to be equal to the byte. Modes are serve, and one-shot runs
between which a socket that is held, as systemd holds one, keeps the events.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import ctypes
import json
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING, Any

import docopt
import prometheus_client
import pytest

import conntrack_textfile
from conntrack_textfile.kernel import events, uapi
from tests.conftest import need
from tests.netns import check, inside, namespaces, sysctl
from tests.program import COMMAND, Serving, running, serving
from tests.test_prometheus import Api
from tests.waiting import until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

MODES = ("serve", "write")
FIELDS = ("connections", "sent_packets", "sent_bytes", "reply_packets", "reply_bytes")
PORT, PROMETHEUS_PORT = 9095, 9090
SOL_NETLINK, NETLINK_BROADCAST_ERROR = 270, 4  # include/uapi/linux/netlink.h

# Scrapes are no traffic. What is counted by nothing else is counted once: on loopback
# a packet passes the output hook, and is tracked there.
RULES = f"""
table inet t {{
    counter original {{ }}
    counter reply {{ }}
    chain untracked {{
        type filter hook output priority raw;
        tcp dport {{ {PORT}, {PROMETHEUS_PORT} }} notrack
        tcp sport {{ {PORT}, {PROMETHEUS_PORT} }} notrack
    }}
    chain zones {{
        type filter hook output priority raw + 1;
        meta mark 1 ct zone set 1
        meta mark 2 ct zone set 2
    }}
    chain counted {{
        type filter hook output priority 100;
        ct direction original counter name original
        ct direction reply counter name reply
    }}
}}
"""

Sums = tuple[int, ...]  # of FIELDS, or of all but the first


class Table:
    """The connection table of a namespace of its own."""

    def __init__(self, namespace: str) -> None:
        self.namespace = namespace
        # Sockets belong to the namespace that their thread was in when it made them.
        self._thread = concurrent.futures.ThreadPoolExecutor(
            1, initializer=_enter, initargs=(f"/run/netns/{namespace}",)
        )

    def within(self, function: Callable[..., Any], *args: Any) -> Any:
        """The result of a function that is called in the namespace."""
        return self._thread.submit(function, *args).result(120)

    def run(self, *argv: str, text: str | None = None) -> str:
        """Run a program in it that must succeed; its standard output."""
        return check(*inside(self.namespace), *argv, text=text)

    def sysctl(self, **values: int) -> None:
        sysctl(
            self.namespace, **{f"net__netfilter__nf_conntrack_{k}": v for k, v in values.items()}
        )

    def truth(self) -> Sums:
        """Packets and bytes, sent and reply."""
        found = json.loads(self.run("nft", "-j", "list", "counters"))["nftables"]
        by_name = {one["counter"]["name"]: one["counter"] for one in found if "counter" in one}
        return tuple(
            by_name[name][what] for name in ("original", "reply") for what in ("packets", "bytes")
        )

    def entries(self) -> int:
        return int(self.run("conntrack", "-C"))

    def generate(self, turn: int, tcp: int, udp: int) -> subprocess.Popen[bytes]:
        """Begin to make connections."""
        script = str(Path(__file__).with_name("traffic.py"))
        numbers = map(str, (turn, tcp, udp))
        return subprocess.Popen([*inside(self.namespace), sys.executable, script, *numbers])

    def make(self, turn: int, tcp: int, udp: int) -> None:
        assert self.generate(turn, tcp, udp).wait(120) == 0


def _enter(path: str) -> None:
    """Take this thread, and no other, into a network namespace (setns(2))."""
    with open(path, "rb") as file:
        if ctypes.CDLL(None, use_errno=True).setns(file.fileno(), 0):
            raise OSError(ctypes.get_errno(), "setns")


@pytest.fixture
def table() -> Iterator[Table]:
    """One in which connections end soon after they are closed."""
    need("nft", "ip", "conntrack", "sysctl", root=True)
    with namespaces("t") as (name,):
        made = Table(name)
        made.sysctl(acct=1, events=1, timestamp=1, udp_timeout=1, udp_timeout_stream=1)
        made.sysctl(tcp_timeout_time_wait=1, tcp_timeout_close=1)
        made.run("nft", "-f", "-", text=RULES)
        yield made


class Metrics:
    """What was published at one moment."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.samples = {
            (name, labels): float(value) if "." in value or "e" in value else int(value)
            for name, labels, value in re.findall(
                r"^(\w+)(?:{(.*)})? ([^ \n]+)$", text, re.MULTILINE
            )
        }

    def __getitem__(self, name: str) -> float:
        return self.samples[f"conntrack_{name}", ""]

    def sums(self, family: str = "traffic") -> Sums:
        """The sums over all series."""
        found = dict.fromkeys((f"conntrack_{family}_{field}_total" for field in FIELDS), 0)
        for (name, _), value in self.samples.items():
            if name in found:
                found[name] += int(value)
        return tuple(found.values())

    def counters(self) -> dict[tuple[str, str], float]:
        kinds = set(re.findall(r"^# TYPE (conntrack_\w+) counter$", self.text, re.MULTILINE))
        return {key: value for key, value in self.samples.items() if key[0] in kinds}


class Counting:
    """Readings in one of the modes; of each is asserted what holds of all."""

    def __init__(self, table: Table, read: Callable[[], str], *, every: bool = False) -> None:
        """How to read, and whether it sees every snapshot that is taken."""
        self._table = table
        self._read = read
        self._every = every
        self._before: dict[tuple[str, str], float] = {}
        self._from = table.truth()

    def read(self) -> Metrics:
        """One that began after now. No counter has fallen, none is more than the truth."""
        found = Metrics(self._read())
        now = found.counters()
        assert now
        for key, value in self._before.items():
            assert now[key] >= value, key
        if self._every and self._before:
            for key in now.keys() - self._before.keys():
                assert now[key] == 0, key  # as increase() needs it
        self._before = now
        carried = self.carried()
        for family in ("traffic", "protocol_traffic"):
            for field, value, most in zip(FIELDS[1:], found.sums(family)[1:], carried, strict=True):
                assert value <= most, (family, field)
        return found

    def carried(self) -> Sums:
        """The truth since the start."""
        return tuple(b - a for a, b in zip(self._from, self._table.truth(), strict=True))

    def until(self, condition: Callable[[Metrics], object], seconds: float = 30) -> Metrics:
        """The first reading for which something holds."""
        end = time.monotonic() + seconds
        while True:
            found = self.read()
            if condition(found):
                return found
            assert time.monotonic() < end, (found.text[:6000], self.carried())

    def until_equal(self, connections: int | None = None) -> Metrics:
        """The reading that is equal to the truth, in both sums; it must come."""

        def equal(found: Metrics) -> bool:
            group, protocol = found.sums(), found.sums("protocol_traffic")
            return group == protocol and group[1:] == self.carried()

        found = self.until(equal)
        if connections is not None:
            assert found.sums()[0] == connections
        return found


def options(tmp_path: Path) -> list[str]:
    return ["--aggregate.by=src,dst,l4protocol,dport", f"--state.file={tmp_path / 'state'}"]


@contextlib.contextmanager
def counting(mode: str, table: Table, tmp_path: Path, *args: str) -> Iterator[Counting]:
    """Counting that has begun: what comes now is to be counted."""
    args = (*options(tmp_path), *args)
    if mode == "serve":
        with served(table, *args) as found:
            yield found
    else:
        with held(table, 1 << 25) as sock:
            found = Counting(table, lambda: one_shot(table, sock, *args).stdout, every=True)
            found.read()
            yield found


@contextlib.contextmanager
def served(table: Table, *args: str) -> Iterator[Counting]:
    with server(table, *args):
        found = Counting(table, lambda: table.within(fresh))
        found.read()
        yield found


def server(
    table: Table, *args: str, prefix: Sequence[str] = ()
) -> contextlib.AbstractContextManager[Serving]:
    args = (f"--web.listen-address=127.0.0.1:{PORT}", *args)
    if not any(arg.startswith("--collector.interval") for arg in args):
        args = ("--collector.interval=0.25", *args)  # not to wait
    return serving(*args, prefix=[*inside(table.namespace), *prefix])


def fresh() -> str:
    """A scrape of a snapshot that was begun after now."""
    now, end = time.time(), time.monotonic() + 60
    while True:
        with urllib.request.urlopen(f"http://127.0.0.1:{PORT}/metrics", timeout=30) as answer:
            text: str = answer.read().decode()
        found = Metrics(text)
        name = "snapshot_timestamp_seconds"
        if (
            ("conntrack_" + name, "") in found.samples
            and found[name] - found["snapshot_duration_seconds"] > now
            # Else it is stale, after three intervals: a busy machine can be that late.
            and found["snapshot_success"] == 1
        ):
            return text
        assert time.monotonic() < end, text[:4000]
        time.sleep(0.05)


@contextlib.contextmanager
def held(table: Table, buffer_bytes: int) -> Iterator[socket.socket]:
    """A socket that gets events, whoever reads them."""
    with table.within(events.listen, buffer_bytes) as sock:
        yield sock


def one_shot(
    table: Table, sock: socket.socket | None, *args: str
) -> subprocess.CompletedProcess[str]:
    """A run of write that is passed a socket, as by systemd: as descriptor 3."""
    argv = [*COMMAND, "write", "--log.level=info", *args]
    if sock is not None:
        hand = f'exec 3<&{sock.fileno()}; LISTEN_PID=$$ LISTEN_FDS=1 exec "$@"'
        argv = ["bash", "-c", hand, "bash", *argv]
    done = subprocess.run(
        [*inside(table.namespace), *argv],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        pass_fds=[sock.fileno()] if sock else [],
    )
    assert done.returncode == 0, done.stderr
    return done


@pytest.mark.parametrize("mode", MODES)
def test_many_short_connections_count_to_the_byte(mode: str, table: Table, tmp_path: Path) -> None:
    tcp, udp, turns = 6_000, 9_000, 2
    each_second = ["--collector.interval=1"] if mode == "serve" else []
    with counting(mode, table, tmp_path, *each_second) as found:
        for turn in range(turns):
            traffic = table.generate(turn, tcp, udp)
            while mode == "serve" and traffic.poll() is None:
                found.read()
            assert traffic.wait(120) == 0
            found.read()
        made = turns * (tcp + udp)
        last = found.until(lambda now: now["events_received_total"] == made)
        last = found.until_equal(made)
    assert last["events_lost_total"] == last["events_duplicate_total"] == 0
    assert last["connections_ended_unseen_total"] == last["connections_ended_uncounted_total"] == 0
    assert last["tracked_connections"] == 0
    assert last["events_listening"] == 1


def test_increases_in_prometheus_add_up_to_the_truth(table: Table, tmp_path: Path) -> None:
    """What a series grows by is compared by its raw samples.

    increase() extrapolates to the ends of its range, so its result is near that
    number and not equal to it. It counts what comes after the first sample of a
    series: hence that has to be 0.
    """
    need("prometheus")
    settings = {
        "global": {"scrape_interval": "1s"},
        "scrape_configs": [
            {
                "job_name": "conntrack",
                "static_configs": [{"targets": [f"127.0.0.1:{PORT}"]}],
            }
        ],
    }
    (tmp_path / "prometheus.yml").write_text(json.dumps(settings))  # JSON is YAML
    address = f"127.0.0.1:{PROMETHEUS_PORT}"
    argv = [
        *inside(table.namespace),
        *("prometheus", f"--config.file={tmp_path}/prometheus.yml", "--log.level=warn"),
        *(f"--storage.tsdb.path={tmp_path}/data", f"--web.listen-address={address}"),
    ]
    api = Api(address)

    def increases(family: str) -> Sums:
        grown = []
        for field in FIELDS:
            expr = f"conntrack_{family}_{field}_total[1h]"
            found = table.within(lambda expr=expr: api.get("query", query=expr))["result"]
            for series in found:
                values = [int(value) for _, value in series["values"]]
                assert values[0] == 0, series["metric"]
                assert values == sorted(values)
            grown.append(sum(int(series["values"][-1][1]) for series in found))
        return tuple(grown)

    with (
        # So a scrape, each second, misses no snapshot and no 0 of a new series.
        counting("serve", table, tmp_path, "--collector.interval=2") as found,
        running(*argv, log=tmp_path / "prometheus.log"),
    ):
        up = "conntrack_events_listening == 1"
        until(lambda: table.within(api.query, up))
        made = 0
        for turn in range(3):
            table.make(turn, 1000, 2000)
            made += 3000
            found.read()
        last = found.until_equal(made)

        def all_scraped() -> bool:
            return all(
                increases(family) == last.sums() for family in ("traffic", "protocol_traffic")
            )

        until(all_scraped)
        for function in ("rate", "increase"):
            expr = f"sum({function}(conntrack_traffic_sent_bytes_total[1m])) > 0"
            assert table.within(api.query, expr)


@pytest.mark.parametrize("mode", MODES)
def test_a_long_flow_counts_across_snapshots(mode: str, table: Table, tmp_path: Path) -> None:
    with flow(table) as ends:
        send(*ends, 5000)  # before the start: that is no traffic
        with counting(mode, table, tmp_path) as found:
            for number in range(20 if mode == "write" else 5):
                send(*ends, 1000 * (number + 1))
                found.read()
            last = found.until_equal(0)
    assert last["connections_zeroed_total"] == 0


def test_serve_that_is_killed_goes_on_where_it_stopped(table: Table, tmp_path: Path) -> None:
    args = options(tmp_path)
    with flow(table) as ends, contextlib.ExitStack() as stack:
        send(*ends, 5000)
        stack.enter_context(server(table, *args))
        found = Counting(table, lambda: table.within(fresh))
        for turn in range(2):
            for number in range(10):
                send(*ends, 1000 * (number + 1))
                found.read()
            table.make(turn, 0, 100)
            last = found.until_equal(100 * (turn + 1))
            assert last["runs_interrupted_total"] == turn
            send(*ends, 12345)
            stack.close()  # by SIGKILL
            send(*ends, 54321)
            stack.enter_context(server(table, *args))
        found.until_equal(200)


def test_other_filters_bring_no_traffic_from_before(table: Table, tmp_path: Path) -> None:
    with held(table, 1 << 25) as sock, flow(table) as ends:
        args = [*options(tmp_path), "--filter.exclude=dport=7777"]
        found = Counting(table, lambda: one_shot(table, sock, *args).stdout)
        found.read()
        table.make(0, 0, 100)
        assert found.until(lambda now: now.sums()[0] == 100).sums()[0] == 100
        before = found.carried()
        send(*ends, 100_000)
        assert found.read().sums()[1:] == before
        args.pop()
        assert found.read().sums()[1:] == before
        without = found.carried()
        send(*ends, 5000)
        wanted = tuple(a - b + c for a, b, c in zip(found.carried(), without, before, strict=True))
        assert found.until(lambda now: now.sums()[1:] == wanted).sums()[0] == 100


@contextlib.contextmanager
def flow(table: Table) -> Iterator[tuple[socket.socket, socket.socket]]:
    """A TCP connection: its two ends."""
    with table.within(socket.create_server, ("127.0.1.1", 7777)) as server:
        client = table.within(socket.create_connection, ("127.0.1.1", 7777))
        accepted, _ = server.accept()
        with client, accepted:
            yield client, accepted


def send(one: socket.socket, other: socket.socket, size: int) -> None:
    """Send so many bytes there and half as many back."""
    for a, b, wanted in ((one, other, size), (other, one, size // 2)):
        a.sendall(bytes(wanted))
        left = wanted
        while left:
            left -= len(b.recv(left))


@pytest.mark.parametrize("mode", MODES)
def test_the_table_is_flushed_in_the_middle_of_traffic(
    mode: str, table: Table, tmp_path: Path
) -> None:
    with counting(mode, table, tmp_path) as found:
        traffic = table.generate(0, 10_000, 10_000)
        flushed = 0
        while traffic.poll() is None or flushed < 3:
            table.run("conntrack", "-F")
            flushed += 1
            found.read()
        assert traffic.returncode == 0
        table.run("conntrack", "-F")  # what was taken up in the middle would live for long
        found.until(lambda now: not now["tracked_connections"])
        last = found.read()
        # What was on its way as its connection was removed is counted by nobody.
        on_its_way = found.carried()[0] - last.sums()[1]
        assert on_its_way <= 100 * flushed
    assert last.sums()[0] >= 20_000
    assert last["events_lost_total"] == 0
    assert last["connections_ended_unseen_total"] == 0


@pytest.mark.parametrize("mode", MODES)
def test_the_table_is_flushed_in_the_middle_of_a_dump(
    mode: str, table: Table, tmp_path: Path
) -> None:
    table.sysctl(udp_timeout=600, udp_timeout_stream=600)
    with counting(mode, table, tmp_path) as found:
        for turn in range(3):
            table.make(turn, 0, 20_000)
            found.read()
            flushing = threading.Timer(0.15 * turn, table.run, ("conntrack", "-F"))
            flushing.start()
            while flushing.is_alive():
                found.read()
            flushing.join()
            found.until(lambda now: not now["tracked_connections"])
        last = found.until_equal(60_000)
    assert last["events_lost_total"] == 0


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("timestamps", [True, False], ids=["timestamps", "plain"])
def test_a_tuple_that_is_made_anew_counts_anew(
    mode: str, timestamps: bool, table: Table, tmp_path: Path
) -> None:
    """The kernel tells one from the next by its start alone: it gives them one CTA_ID.

    Without nf_conntrack_timestamp, one that carried the same as the one before looks
    like its event sent twice, and one that a dump shows soon after counts when it is
    seen next. What is counted is then never more than the truth.
    """
    table.sysctl(timestamp=int(timestamps), udp_timeout=600)
    made = 0
    with counting(mode, table, tmp_path) as found, pair(table) as (one, other):
        for number in range(100):
            for _ in range(number % 3 + 1):
                one.sendto(bytes(100 + number % 7), other.getsockname())
            if number % 20 == 10:
                found.read()
            table.run("conntrack", "-F")
            made += 1
        if timestamps:
            last = found.until_equal(made)
            assert last["events_duplicate_total"] == 0
        else:
            last = found.until(lambda now: now["events_received_total"] == made)
            last = found.read()
            assert 0 < last.sums()[0] <= made


@contextlib.contextmanager
def pair(table: Table) -> Iterator[tuple[socket.socket, socket.socket]]:
    """Two UDP sockets. To a port that nobody has there would be answers of ICMP."""

    def bound(port: int) -> socket.socket:
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        sock.bind(("127.0.0.9", port))
        return sock

    with table.within(bound, 9999) as one, table.within(bound, 9998) as other:
        yield one, other


@pytest.mark.parametrize("mode", MODES)
def test_expired_entries_at_the_start_are_no_traffic(
    mode: str, table: Table, tmp_path: Path
) -> None:
    for turn in range(20):
        table.make(turn, 0, 20_000)
        time.sleep(1.1)  # udp_timeout, and that of a stream
        if table.entries() > 1000:  # the kernel has not come to reap them yet
            break
    else:
        raise AssertionError("they are always reaped at once")
    with counting(mode, table, tmp_path) as found:
        found.until(lambda _: not table.entries())
        found.read()
        last = found.until_equal(0)
    assert last.sums()[1:] == (0, 0, 0, 0)


@pytest.mark.parametrize("mode", MODES)
def test_equal_tuples_in_zones_count_apart(mode: str, table: Table, tmp_path: Path) -> None:
    with counting(mode, table, tmp_path) as found, pair(table) as (one, other):
        for number in range(30):
            for mark in (0, 1, 2):
                one.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, mark)
                for _ in range(mark + 1):
                    one.sendto(bytes(100 * number), other.getsockname())
        assert table.entries() == 3
        found.read()
        found.until(lambda now: now["tracked_connections"] == 0)
        last = found.until_equal(3)
    assert last["events_received_total"] == 3


@pytest.mark.parametrize("mode", MODES)
def test_accounting_is_switched_off_and_on(mode: str, table: Table, tmp_path: Path) -> None:
    """Connections that were made meanwhile count as connections, and as uncounted."""
    with counting(mode, table, tmp_path) as found:
        table.make(0, 500, 500)
        found.read()
        before = found.carried()
        table.sysctl(acct=0)
        table.make(1, 500, 500)
        found.read()
        without = found.carried()
        table.sysctl(acct=1)
        table.make(2, 500, 500)
        wanted = tuple(a - b + c for a, b, c in zip(found.carried(), without, before, strict=True))
        last = found.until(lambda now: now["events_received_total"] == 3000)
        last = found.read()
    assert last.sums() == last.sums("protocol_traffic") == (3000, *wanted)
    assert last["connections_ended_uncounted_total"] == 1000


@pytest.mark.parametrize("mode", MODES)
def test_somebody_else_zeroes_the_counters(mode: str, table: Table, tmp_path: Path) -> None:
    with counting(mode, table, tmp_path) as found, flow(table) as ends:
        for number in range(6):
            send(*ends, 20_000 >> number)
            table.make(number, 0, 300)
            found.read()
            table.run("conntrack", "-L", "-z")
            send(*ends, 10)  # less than before
        last = found.until(lambda now: now["tracked_connections"] == 1)
        last = found.read()
    assert last["connections_zeroed_total"] >= 5
    assert last.sums()[0] == 1 + 6 * 300


@pytest.mark.parametrize("mode", MODES)
def test_with_a_small_buffer_what_is_lost_is_counted(
    mode: str, table: Table, tmp_path: Path
) -> None:
    table.sysctl(udp_timeout=600, udp_timeout_stream=600)
    made, bursts = 5000, 3
    with contextlib.ExitStack() as stack:
        if mode == "serve":
            args = (*options(tmp_path), "--collector.event-buffer=4096")
            process = stack.enter_context(server(table, *args))
            found = Counting(table, lambda: table.within(fresh))
        else:
            sock = stack.enter_context(held(table, 4096))
            log: list[str] = []

            def run() -> str:
                done = one_shot(table, sock, *options(tmp_path))
                log.append(done.stderr)
                return done.stdout

            found = Counting(table, run)
        last = found.read()
        for turn in range(bursts):
            table.make(turn, 0, made)
            table.run("conntrack", "-F")
            lost = last["events_lost_total"]
            last = found.read()
            last = found.read()
            ended = last["events_received_total"] + last["events_lost_total"]
            assert ended == made * (turn + 1)
            assert last["events_received_total"] > turn
            assert last["events_lost_total"] > lost
        warnings = re.findall(
            ".*events of ended connections were lost.*",
            "\n".join(process.lines if mode == "serve" else log),
        )
    assert len(warnings) == (1 if mode == "serve" else bursts)
    assert all("--collector.event-buffer" in line for line in warnings)


@contextlib.contextmanager
def stalled(table: Table) -> Iterator[socket.socket]:
    """A listener in reliable mode that does not read.

    The kernel keeps the connections whose events it does not take, and sends them
    again, to everybody, for as long as that is so.
    """
    destroy = 1 << (uapi.NFNLGRP_CONNTRACK_DESTROY - 1)
    with table.within(
        socket.socket, socket.AF_NETLINK, socket.SOCK_RAW, uapi.NETLINK_NETFILTER
    ) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.setsockopt(SOL_NETLINK, NETLINK_BROADCAST_ERROR, 1)
        sock.bind((0, destroy))
        yield sock


@pytest.mark.parametrize("mode", MODES)
def test_events_that_come_twice_count_once(mode: str, table: Table, tmp_path: Path) -> None:
    table.sysctl(timestamp=0)  # by it the same connection could be told from another
    made = 2000
    with counting(mode, table, tmp_path) as found:
        with stalled(table):
            table.make(0, 0, made)
            found.until(lambda now: now["events_received_total"] >= made)
            # Longer than any memory of some seconds, or for several runs.
            end = time.monotonic() + (12 if mode == "serve" else 3)
            while time.monotonic() < end:
                last = found.read()
            assert last["events_duplicate_total"]
        before = last["events_duplicate_total"]
        found.until(lambda now: now["events_duplicate_total"] >= before + made - 100)
        last = found.until_equal(made)
    assert last["events_lost_total"] == 0


@pytest.mark.parametrize("mode", MODES)
def test_a_listener_that_stalls_from_before_the_start(
    mode: str, table: Table, tmp_path: Path
) -> None:
    """What ended before the start is no traffic when its event is sent again."""
    made = 500
    with stalled(table) as sock, held(table, 1 << 25) as other:
        table.make(0, 0, made)

        def gone() -> bool:
            assert "udp" not in table.run("conntrack", "-L")
            return events.buffer(other).used >= made * 256  # their events were sent

        until(gone)
        with counting(mode, table, tmp_path) as found:
            sock.close()
            found.until(lambda now: now["events_received_total"] >= made - 100)
            last = found.until_equal(0)
    assert last.sums() == (0, 0, 0, 0, 0)


@pytest.mark.parametrize("mode", MODES)
def test_without_events_readings_alone_count(mode: str, table: Table, tmp_path: Path) -> None:
    """All of what lives from one reading to the next, and of the rest nothing."""
    with contextlib.ExitStack() as stack:
        if mode == "serve":
            table.sysctl(events=0)
            found = stack.enter_context(served(table, *options(tmp_path)))
        else:
            found = Counting(table, lambda: one_shot(table, None, *options(tmp_path)).stdout)
            found.read()
        ends = stack.enter_context(flow(table))
        for number in range(5):
            send(*ends, 1000 * number)
            found.read()
        last = found.until_equal(1)
        assert last["events_listening"] == 0
        table.sysctl(udp_timeout=600)
        table.make(0, 0, 300)
        last = found.until_equal(301)
        table.run("conntrack", "-D", "-p", "udp")
        last = found.until(lambda now: now["connections_ended_unseen_total"] == 300)
    assert last["events_received_total"] == last["events_lost_total"] == 0
    assert last["tracked_connections"] == 1


@pytest.mark.parametrize("mode", MODES)
def test_from_procfs_there_are_no_counters(mode: str, table: Table, tmp_path: Path) -> None:
    if not Path("/proc/net/nf_conntrack").exists():
        pytest.skip("needs a kernel with CONFIG_NF_CONNTRACK_PROCFS")
    args = [*options(tmp_path), "--collector.source=procfs"]
    table.make(0, 0, 10)
    if mode == "serve":
        with server(table, *args) as process:
            for _ in range(3):
                text = table.within(fresh)
            log = process.log
    else:
        done = one_shot(table, None, *args)
        text, log = done.stdout, done.stderr
    assert 'source="procfs"' in text
    assert "_total_connections" in text
    assert not re.search("traffic|conntrack_events|tracked", text)
    assert len(re.findall("so there are no counters", log)) == 1


def test_net_admin_alone_is_enough_for_counters(table: Table, tmp_path: Path) -> None:
    need("/usr/bin/python3", "setpriv", root=True)
    # A Python and a copy of the code that every user may read.
    with tempfile.TemporaryDirectory() as directory:
        site = Path(directory)
        site.chmod(0o755)
        for module in (conntrack_textfile, docopt, prometheus_client):
            assert module.__file__
            shutil.copytree(Path(module.__file__).parent, site / module.__name__)
        other = (
            f'cd {site}; shift {len(COMMAND)}; exec /usr/bin/python3 -S -m conntrack_textfile "$@"'
        )
        prefix = [
            *("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"),
            *("--inh-caps=-all,+net_admin", "--ambient-caps=+net_admin"),
            *("sh", "-c", other, "sh"),
        ]
        with server(table, options(tmp_path)[0], prefix=prefix) as process:
            status = Path(f"/proc/{process.process.pid}/status").read_text()
            assert re.search(r"^Uid:\s+65534\s", status, re.MULTILINE)
            found = Counting(table, lambda: table.within(fresh))
            found.read()
            table.make(0, 200, 200)
            found.until(lambda now: now["events_received_total"] == 400)
            last = found.until_equal(400)
    assert last["events_listening"] == 1
    assert last["event_buffer_bytes"] >= 1 << 25


def test_where_a_large_buffer_is_refused_it_is_as_large_as_permitted(tmp_path: Path) -> None:
    """Root of a user namespace of its own may listen; more than rmem_max it may not have."""
    need("unshare", "nft", "ip", root=True)
    rules = tmp_path / "rules"
    rules.write_text(RULES)
    start = f'ip link set lo up; nft -f {rules}; exec "$@"'
    prefix = ["unshare", "--user", "--map-root-user", "--net", "sh", "-c", start, "sh"]
    args = ("--collector.interval=1", f"--web.listen-address=127.0.0.1:{PORT}")
    with (
        serving(*args, *options(tmp_path), prefix=prefix) as process,
        concurrent.futures.ThreadPoolExecutor(
            1, initializer=_enter, initargs=(f"/proc/{process.process.pid}/ns/net",)
        ) as inside_of_it,
    ):
        inside_of_it.submit(fresh).result(60)

        found = Metrics(inside_of_it.submit(fresh).result(60))
    permitted = int(Path("/proc/sys/net/core/rmem_max").read_text())
    assert found["events_listening"] == 1
    assert found["event_buffer_bytes"] == 2 * permitted < 1 << 26
