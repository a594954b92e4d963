"""Benchmarks of the ledger and of events: the part of tests/bench.py that needs root.

Medians of five runs of the compiled engine, in processes with only the wheel installed,
in network namespaces of their own.
"""

from __future__ import annotations

import json
import os
import re
import socket
import statistics
import struct
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent.parent))

if TYPE_CHECKING:
    from tests.bench import Plain

RUNS = 5
EVENTS = 400_000
SERVE_SECONDS = 60
RATE = 10_000  # connections a second

# A reading; with "ledger" in argv also the ledger, its memory, and the state file.
READING = """
import os, resource, sys, time
from conntrack_textfile import state
from conntrack_textfile.kernel import source
from conntrack_textfile.kernel.engine import make
from conntrack_textfile.kernel.tracker import Tracker
from conntrack_textfile.plan import Plan

def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

engine = make(Plan())
tracker = Tracker(engine.ledger(b""), None, 0) if "ledger" in sys.argv else None
source.read("netlink", "/proc", engine, tracker)
before = time.process_time()
_, tally = source.read("netlink", "/proc", engine, tracker)
print(time.process_time() - before)
if tracker:
    del tally
    reading = tracker.reading(listening=False, save=True)
    path = sys.argv[-1]
    before = time.perf_counter()
    state.save(path, state.State({"a": 1}, tracker.ledger.save()))
    print(time.perf_counter() - before)
    before = time.perf_counter()
    again = engine.ledger(state.load(path).ledger)
    print(time.perf_counter() - before)
    assert len(again) == len(tracker.ledger)
    print(len(again))
    saved = state.load(path).ledger
    del reading, again
    before = resident()
    again = engine.ledger(saved)
    print((resident() - before) / 2**20)
"""

# Drain a socket: print the number of events and the CPU time.
DRAINING = """
import socket, sys, time
from conntrack_textfile.kernel.engine import make
from conntrack_textfile.plan import Plan

ledger = make(Plan()).ledger(b"")
before = time.process_time()
ledger.drain(int(sys.argv[1]), 1000)
print(ledger.statistics["received"], time.process_time() - before)
"""


def report(what: str, figure: str) -> None:
    print(f"| {what} | {figure} |", flush=True)


def run(argv: list[str], **more: object) -> list[float]:
    done = subprocess.run(argv, capture_output=True, text=True, check=True, **more)  # type: ignore[call-overload]
    return [float(word) for word in done.stdout.split()]


def reading(installed: Plain, inside: list[str], directory: Path) -> None:
    """Measure readings of a namespace with a million live entries."""
    argv = [*inside, installed.python, "-c", READING]
    path = str(directory / "state")
    pairs = [(run(argv)[0], run([*argv, "ledger", path])) for _ in range(RUNS)]
    bare = statistics.median(without for without, _ in pairs)
    cpu, written, read, count, memory = (
        statistics.median(numbers) for numbers in zip(*[with_ for _, with_ in pairs], strict=True)
    )
    name = f"{int(count):,} live connections"
    report(
        f"{name}: a dump with the ledger against one without, CPU",
        f"**{cpu / bare:.2f}** ({cpu:.2f} s, {bare:.2f} s)",
    )
    report(f"{name}: memory of the ledger", f"**{memory:.0f} MiB**")
    size = os.stat(path).st_size / 2**20
    report(f"{name}: state file of {size:.0f} MiB, written; read", f"{written:.2f} s; {read:.2f} s")


def draining(installed: Plain, inside: list[str]) -> None:
    """Measure drain() on a socket with queued events."""
    # A child process fills the namespace, flushes it and measures.
    argv = [*inside, sys.executable, __file__, "--drain", installed.python]
    rates = [run(argv) for _ in range(RUNS)]
    count = statistics.median(count for count, _ in rates)
    rate = statistics.median(count / seconds for count, seconds in rates)
    report(f"draining {count:,.0f} buffered events, compiled", f"**{rate:,.0f} events/s**")


def drain(python: str) -> None:
    """Fill an event socket by a flush of the table, then measure drain()."""
    from conntrack_textfile.kernel import events
    from tests.bench import fill_live_table

    sock = events.listen((1 << 30) - 1)
    fill_live_table(EVENTS, 10_000)
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 12) as netlink:
        # A flush: IPCTNL_MSG_CT_DELETE without a tuple, with NLM_F_REQUEST and NLM_F_ACK.
        netlink.send(struct.pack("=IHHIIBBH", 20, 0x102, 5, 1, 0, 0, 0, 0))
        netlink.recv(4096)
    sock.set_inheritable(True)
    argv = [python, "-c", DRAINING, str(sock.fileno())]
    print(*run(argv, close_fds=False))


def serving(installed: Plain, inside: list[str], directory: Path) -> None:
    argv = [*inside, sys.executable, __file__, "--serve", installed.command, str(directory)]
    done = subprocess.run(argv, stdout=subprocess.PIPE, text=True, check=True)
    found = json.loads(done.stdout)
    report(
        f"`serve` with {found['rate']:,.0f} new short connections a second for "
        f"{found['seconds']:.0f} s: made; counted; events lost; of one core",
        f"{found['made']:,}; **{found['counted']:,}**; {found['lost']:,}; "
        f"{100 * found['cpu'] / found['seconds']:.0f}%",
    )


def serve(command: str, directory: Path) -> None:
    """Run serve while a loop creates and deletes connections by ctnetlink."""
    argv = [command, "serve", "--web.listen-address=127.0.0.1:0", "--collector.interval=1"]
    argv += ["--aggregate.by=src,l4protocol", f"--state.file={directory / 'serve'}"]
    with subprocess.Popen(argv, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        port = 0
        while not port:
            if found := re.search(r"listening on \S*:(\d+)", process.stderr.readline()):
                port = int(found[1])
        time.sleep(3)  # the baseline

        def value(name: str) -> int:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as answer:
                text = answer.read().decode()
            pattern = rf"^{name}(?:{{.*}})? (\d+)$"
            return sum(int(number) for number in re.findall(pattern, text, re.MULTILINE))

        total = "conntrack_protocol_traffic_connections_total"
        before = value(total)
        made, started = 0, time.monotonic()
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 12) as netlink:
            while (now := time.monotonic() - started) < SERVE_SECONDS:
                if made > now * RATE:
                    time.sleep(0.001)
                    continue
                for _ in range(100):
                    connect(netlink, made)
                    made += 1
        seconds = time.monotonic() - started
        deadline = time.monotonic() + 10
        while value(total) - before < made and time.monotonic() < deadline:
            time.sleep(0.5)
        with open(f"/proc/{process.pid}/stat") as file:
            fields = file.read().rpartition(")")[2].split()
        cpu = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
        counted, lost = value(total) - before, value("conntrack_events_lost_total")
        process.terminate()
    report_ = {"made": made, "rate": made / seconds, "seconds": seconds}
    print(json.dumps({**report_, "counted": counted, "lost": lost, "cpu": cpu}))


def connect(netlink: socket.socket, number: int) -> None:
    """Create and delete a connection: the kernel sends its DESTROY event."""
    from tests.flows import Flow, attribute, tuple_

    sport, src = 1024 + number % 60000, f"10.0.{number // 60000 % 200}.{number % 97}"
    there = tuple_(1, Flow(src, "192.0.2.1", sport, 53, 17))
    body = struct.pack("!BBH", socket.AF_INET, 0, 0) + there
    more = tuple_(2, Flow(src, "192.0.2.1", sport, 53, 17), reply=True)
    more += attribute(7, struct.pack("!I", 60)) + attribute(3, struct.pack("!I", 0xE))
    netlink.send(
        struct.pack("=IHHII", 16 + len(body + more), 0x100, 0x601, 1, 0)
        + body
        + more
        + struct.pack("=IHHII", 16 + len(body), 0x102, 1, 1, 0)
        + body
    )


if __name__ == "__main__":
    if sys.argv[1] == "--drain":
        drain(sys.argv[2])
    elif sys.argv[1] == "--serve":
        serve(sys.argv[2], Path(sys.argv[3]))
