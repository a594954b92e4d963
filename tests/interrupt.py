"""Kill one-shot runs at every step, and check what they published.

    ip netns exec NAME python tests/interrupt.py DIRECTORY KILLS

It needs a network namespace of its own. The traffic is UDP over loopback; the event socket
is held as systemd holds one. A run is a fork of this process. SIGKILL comes to half of the
runs at a random line of the program, to the others after a random time. Prints the results
as JSON.
"""

from __future__ import annotations

import json
import os
import random
import re
import signal
import socket
import struct
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).parent.parent))

from conntrack_textfile import activation, cli, state
from conntrack_textfile.kernel import events, grouping, listener, netlink, tracker
from tests.flows import Flow, tuple_

if TYPE_CHECKING:
    from types import FrameType

PACKAGE = str(Path(cli.__file__).parent)
IPCTNL_MSG_CT_DELETE = 0x102
NLM_F_REQUEST_ACK = 5
HEADERS = 28  # bytes of IPv4 and UDP
PORTS = 4  # services, so that groups come and go under a limit of 2
# Before the first fork.
_IMPORTED = (activation, state, events, grouping, listener, netlink, tracker)


class Traffic:
    """Short connections and a long one, with the sums of what they sent."""

    def __init__(self) -> None:
        self.sinks = []
        for _ in range(PORTS):
            sink = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            sink.bind(("127.0.0.1", 0))
            self.sinks.append(sink)
        self.long = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.netlink = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 12)
        self.connections, self.packets, self.bytes = 1, 0, 0

    def send(self, sock: socket.socket, sink: socket.socket, size: int) -> None:
        sock.sendto(bytes(size), sink.getsockname())
        sink.recv(2048)
        self.packets += 1
        self.bytes += size + HEADERS

    def carry(self, rand: random.Random) -> None:
        """Send some packets over the long connection, and over connections that then end."""
        for _ in range(rand.randrange(3)):
            self.send(self.long, self.sinks[0], rand.randrange(500))
        for _ in range(rand.randrange(5)):
            sink = rand.choice(self.sinks)
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
                sock.bind(("127.0.0.1", 0))
                for _ in range(rand.randrange(1, 4)):
                    self.send(sock, sink, rand.randrange(500))
                self.connections += 1
                self.delete(sock.getsockname()[1], sink.getsockname()[1])

    def delete(self, sport: int, dport: int) -> None:
        """Delete an entry by its tuple: the kernel sends DESTROY, as at its timeout."""
        body = struct.pack("!BBH", socket.AF_INET, 0, 0)
        body += tuple_(1, Flow("127.0.0.1", "127.0.0.1", sport, dport, 17))
        size = 16 + len(body)
        self.netlink.send(
            struct.pack("=IHHII", size, IPCTNL_MSG_CT_DELETE, NLM_F_REQUEST_ACK, 1, 0) + body
        )
        answer = self.netlink.recv(4096)
        (error,) = struct.unpack_from("=i", answer, 16)
        assert error == 0, os.strerror(-error)


class Runs:
    """One-shot runs as forks of this process."""

    def __init__(self, directory: Path, held: socket.socket) -> None:
        self.prom = directory / "out.prom"
        self.argv = ["write", f"--state.file={directory / 'state'}", "--limit.keys=2"]
        self.argv += ["--aggregate.by=dport", str(self.prom)]
        self.held = held

    def begin(self, kill_at: int = 0, lines: int = -1) -> int:
        """Fork a run.

        kill_at: the executed line, counted from 1, at which SIGKILL comes; 0 for none.
        lines: a descriptor to which the number of executed lines is written; -1 for none.
        """
        pid = os.fork()
        if pid:
            return pid
        status = 1
        try:
            os.dup2(self.held.fileno(), 3)
            os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS="1", LISTEN_FDNAMES="events")
            passed = 0

            def trace(frame: FrameType, event: str, _: object) -> Any:
                nonlocal passed
                if not frame.f_code.co_filename.startswith(PACKAGE):
                    return None
                if event == "line":
                    passed += 1
                    if passed == kill_at:
                        os.kill(os.getpid(), signal.SIGKILL)
                return trace

            if kill_at or lines >= 0:
                sys.settrace(trace)
            status = cli.main(self.argv)
            sys.settrace(None)
            if lines >= 0:
                os.write(lines, struct.pack("=Q", passed))
        finally:
            os._exit(status)

    def whole(self) -> None:
        _, status = os.waitpid(self.begin(), 0)
        assert status == 0, "an undisturbed run failed"

    def lines(self) -> int:
        reader, writer = os.pipe()
        _, status = os.waitpid(self.begin(lines=writer), 0)
        assert status == 0
        found: int = struct.unpack("=Q", os.read(reader, 8))[0]
        return found

    def published(self) -> dict[str, int]:
        """Return the counters of the textfile."""
        text = self.prom.read_text()
        assert text.endswith("\n")
        return {
            name: int(value)
            for name, value in re.findall(r"^([a-z_]+_total(?:\{.*\})?) (\d+)$", text, re.MULTILINE)
        }


def main() -> None:
    directory, kills = Path(sys.argv[1]), int(sys.argv[2])
    rand = random.Random(kills)
    traffic, runs = Traffic(), Runs(directory, events.listen(1 << 24))
    traffic.send(traffic.long, traffic.sinks[0], 1)
    runs.whole()  # the baseline
    before_start = traffic.connections, traffic.packets, traffic.bytes
    runs.whole()
    lines = runs.lines()
    seconds = min(duration(runs) for _ in range(5))  # of a run that nothing has delayed
    before = runs.published()
    killed = 0
    for attempt in range(kills):
        traffic.carry(rand)
        if rand.randrange(8) == 0:
            runs.whole()
        elif attempt % 2:
            pid = runs.begin(kill_at=rand.randrange(1, lines + 1))
            killed += os.WIFSIGNALED(os.waitpid(pid, 0)[1])
        else:
            pid = runs.begin()
            time.sleep(rand.random() * seconds)
            os.kill(pid, signal.SIGKILL)
            killed += os.WIFSIGNALED(os.waitpid(pid, 0)[1])
        now = runs.published()
        check(before, now, traffic, before_start)
        before = now
    last = before
    for _ in range(3):
        traffic.carry(rand)
        runs.whole()
        before, last = last, runs.published()
        check(before, last, traffic, before_start)
    print(
        json.dumps(
            {
                "killed": killed,
                "interrupted": last["conntrack_runs_interrupted_total"],
                "sent": traffic.packets - before_start[1],
                "counted": sum_of(last, "conntrack_protocol_traffic_sent_packets_total"),
                "lines": lines,
                "files": sorted(os.listdir(directory)),
            }
        )
    )


def duration(runs: Runs) -> float:
    """Return the seconds of a run to its end."""
    started = time.monotonic()
    runs.whole()
    return time.monotonic() - started


def sum_of(published: dict[str, int], family: str) -> int:
    return sum(value for name, value in published.items() if name.startswith(family))


def check(
    before: dict[str, int], now: dict[str, int], traffic: Traffic, start: tuple[int, int, int]
) -> None:
    for name, value in now.items():
        if "dport=" in name and name not in before:
            assert value == 0, f"{name} begins at {value}: {before} -> {now}"
        assert value >= before.get(name, 0), f"{name} fell from {before[name]} to {value}"
    sent = traffic.connections, traffic.packets, traffic.bytes
    for name, all_, old in zip(
        ("connections", "sent_packets", "sent_bytes"), sent, start, strict=True
    ):
        counted = sum_of(now, f"conntrack_protocol_traffic_{name}_total")
        assert counted <= all_ - old, f"{counted} {name} of {all_ - old}"


if __name__ == "__main__":
    main()
