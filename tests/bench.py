"""Benchmarks: print the rows of docs/figures.md, mostly ratios of medians of five runs.

    make bench

Both sides of a ratio run in a virtual environment with only the wheel of this
checkout: Python takes twice as long to start in one with the development tools.

As root it also measures a table of a million live entries, in a network namespace
of its own. Meanwhile it raises nf_conntrack_max.
"""

from __future__ import annotations

import contextlib
import http.client
import os
import platform
import random
import re
import socket
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

RUNS = 5
ENTRIES = 1_000_000
KEYS = 158_000
OPTIONS = (
    "--limit.keys=100",
    "--aggregate.by=src,l4protocol",
    "--aggregate.src-prefix=24,64 --aggregate.dst-prefix=8,32 --aggregate.ports=known",
    "--aggregate.by=l3protocol,l4protocol,l7protocol",
    "--aggregate.by=src,l4protocol,l7protocol --aggregate.src-prefix=24,64",
    "--aggregate.by=src,dst,egress,backend,zone,mark",
    "--filter.exclude=dst=127.0.0.0/8 --filter.include=src=10.0.0.0/8,l4protocol=tcp",
)
NETWORKS = 100_000
LIMIT = Path("/proc/sys/net/netfilter/nf_conntrack_max")

NUMBERS = {"tcp": 6, "udp": 17, "icmp": 1, "icmpv6": 58, "sctp": 132, "gre": 47}
AFTER = {
    "tcp": "431999 ESTABLISHED ",
    "sctp": "208 ESTABLISHED ",
    "gre": "28 timeout=30, stream_timeout=180 ",
}

ENGINE = """
import sys, time
from conntrack_textfile.kernel.engine import make
from conntrack_textfile.networks import parse_names
from conntrack_textfile.plan import Plan
plan = Plan()
if len(sys.argv) > 2:
    with open(sys.argv[2]) as file:
        text = file.read()
    before = time.process_time()
    plan = Plan(networks=parse_names(text))
    print(time.process_time() - before)
decoder = make(plan).text()
used = 0
with open(sys.argv[1], "rb", buffering=0) as file:
    while block := file.read(1 << 18):
        before = time.process_time()
        decoder.feed(block)
        used += time.process_time() - before
before = time.process_time()
decoder.finish().groups.rows(0, "bytes")
print(used + time.process_time() - before)
"""

BARE_DUMP = """
import socket, struct
sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 12)
sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 22)
sock.sendto(struct.pack("=IHHII4x", 20, 0x101, 0x301, 1, 0), (0, 0))
buffer = bytearray(1 << 16)
while True:
    size = sock.recv_into(buffer)
    if buffer[4] == 3 or buffer[size - 16] == 3 and size > 36 and buffer[size - 20] == 20:
        break
"""


class Cost(NamedTuple):
    wall: float
    cpu: float
    memory: float  # MiB, the most at any time


def once(argv: Sequence[str]) -> Cost:
    started = time.perf_counter()
    process = subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0, argv
    wall = time.perf_counter() - started
    return Cost(wall, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024)


def measure(*commands: Sequence[str], runs: int = RUNS) -> list[Cost]:
    """Run the commands in turn, and return the medians of the costs of each."""
    costs: list[list[Cost]] = [[] for _ in commands]
    for run in range(runs + 1):
        for command, kept in zip(commands, costs, strict=True):
            cost = once(command)
            if run:  # the first warms up
                kept.append(cost)
    return [Cost(*map(statistics.median, zip(*kept, strict=True))) for kept in costs]


def report(what: str, figure: str) -> None:
    print(f"| {what} | {figure} |", flush=True)


def make_table(path: Path, entries: int, keys: int) -> None:
    """Write an nf_conntrack file of both families and several protocols."""
    rand = random.Random(1)
    made = []
    for _ in range(keys):
        kind = rand.choices(["tcp", "udp", "icmp", "sctp", "gre"], [70, 24, 3, 2, 1])[0]
        port = rand.choice([443, 80, 53, 22, 8080, 9200, rand.randrange(1, 65536)])
        made.append((rand.random() < 0.3, kind, rand.getrandbits(16), rand.getrandbits(20), port))
    with path.open("w") as file:
        for i in range(entries):
            v6, kind, a, b, port = made[i] if i < keys else rand.choice(made)
            if v6:
                src = f"fd77:0001:0000:0000:0000:0000:{a >> 8:04x}:{a & 255:04x}"
                dst = f"2001:0db8:0000:0000:0000:{b >> 16:04x}:{b >> 8 & 255:04x}:{b & 255:04x}"
                kind = "icmpv6" if kind == "icmp" else kind
            else:
                src = f"10.1.{a >> 8}.{a & 255}"
                dst = f"100.{b >> 16}.{b >> 8 & 255}.{b & 255}"
            l3, sport, n = "ipv6     10" if v6 else "ipv4     2", rand.randrange(1024, 1 << 16), i
            l4 = f"{kind:8} {NUMBERS[kind]} {AFTER.get(kind, '29 ')}"
            if kind in ("tcp", "udp", "sctp"):
                there, back = f"sport={sport} dport={port}", f"sport={port} dport={sport}"
            elif kind == "gre":
                there = back = "srckey=0x0 dstkey=0x0"
            else:
                there = back = f"type=8 code=0 id={sport}"
            file.write(
                f"{l3} {l4}src={src} dst={dst} {there} "
                f"packets={n} bytes={n * 700} src={dst} dst={src} {back} "
                f"packets={n} bytes={n * 300} [ASSURED] mark=0 zone=0 use=2\n"
            )


class Plain(NamedTuple):
    """A virtual environment with only the wheel installed."""

    python: str
    command: str

    def write(self, root: Path, *args: str) -> list[str]:
        return [self.command, "write", f"--path.procfs={root}", *args]


def plain(directory: Path) -> Plain:
    argv = [sys.executable, "-m", "build", "--wheel", "--outdir", str(directory), "."]
    subprocess.run(argv, check=True, stdout=subprocess.DEVNULL)
    (wheel,) = directory.glob("*.whl")
    assert "linux" in wheel.name, "it has no compiled engine"
    base = getattr(sys, "_base_executable", sys.executable)
    subprocess.run([base, "-m", "venv", str(directory / "venv")], check=True)
    tools = directory / "venv" / "bin"
    subprocess.run([tools / "pip", "install", "--quiet", wheel], check=True)
    return Plain(str(tools / "python3"), str(tools / "conntrack-textfile"))


def proc_root(directory: Path, entries: int, keys: int) -> Path:
    root = directory / f"{entries}-{keys}"
    (root / "net").mkdir(parents=True)
    # In a process of its own: ru_maxrss of a child starts with the memory of its parent.
    argv = [sys.executable, __file__, "--table", str(root / "net" / "nf_conntrack")]
    subprocess.run([*argv, str(entries), str(keys)], check=True)
    return root


def engines(installed: Plain, root: Path, directory: Path) -> None:
    argv = [installed.python, "-c", ENGINE, str(root / "net" / "nf_conntrack")]

    def cpu(engine: str, *args: str) -> list[float]:
        env = {**os.environ, "CONNTRACK_TEXTFILE_ENGINE": engine}
        done = subprocess.run([*argv, *args], env=env, capture_output=True, text=True, check=True)
        return list(map(float, done.stdout.split()))

    compiled = statistics.median(cpu("compiled")[0] for _ in range(RUNS))
    (pure,) = cpu("pure")  # once: it takes half a minute
    report(
        "pure against compiled engine, CPU, 1,000,000 entries, 158,000 keys",
        f"**{pure / compiled:.1f}** ({pure:.2f} s, {compiled:.2f} s)",
    )
    files = []
    for lines in (10, NETWORKS):
        files.append(directory / f"networks-{lines}")
        argv_of = [sys.executable, __file__, "--networks", str(files[-1]), str(lines)]
        subprocess.run(argv_of, check=True)  # as in proc_root()
    times = [[cpu("compiled", str(file)) for file in files] for _ in range(RUNS)]
    parsing = statistics.median(run[1][0] for run in times)
    few, many = (statistics.median(run[i][1] for run in times) for i in (0, 1))
    report(f"reading a networks file of {NETWORKS:,} lines, CPU", f"{parsing:.2f} s")
    report(
        "counting with that file against one of 10 lines of the same lengths, CPU",
        f"**{many / few:.2f}** ({many:.2f} s, {few:.2f} s)",
    )


def make_networks(path: Path, lines: int) -> None:
    """Write a networks file of IPv4 networks with ten prefix lengths."""
    rand = random.Random(2)
    made: set[tuple[int, int]] = set()
    while len(made) < lines:
        length = rand.choice((9, 12, 16, 18, 20, 22, 24, 26, 28, 32))
        made.add((rand.getrandbits(length), length))
    with path.open("w") as file:
        for i, (prefix, length) in enumerate(sorted(made)):
            address = (prefix << (32 - length)).to_bytes(4, "big")
            file.write(f"{socket.inet_ntoa(address)}/{length} network-{i}\n")


def whole_write(installed: Plain, root: Path, directory: Path) -> None:
    write = installed.write(root, "--limit.keys=0", str(directory / "out.prom"))
    cat = ["cat", str(root / "net" / "nf_conntrack")]
    python = [installed.python, "-c", "pass"]
    whole, reading, bare = measure(write, cat, python)
    report(
        "whole `write` of that file, no limit, against `cat` of it and `python3 -c pass`, wall",
        f"**{whole.wall / (reading.wall + bare.wall):.1f}** "
        f"({whole.wall:.2f} s, {reading.wall:.2f} + {bare.wall:.3f} s)",
    )
    report("peak memory of that `write`", f"**{whole.memory:.0f} MiB**")


def options(installed: Plain, root: Path, directory: Path) -> None:
    """Measure each set of options of the table in docs/keys.md against no options."""
    path = str(directory / "out.prom")
    for args in OPTIONS:
        chosen, none = measure(
            installed.write(root, *args.split(), path), installed.write(root, path)
        )
        report(
            f"`{args}` against no options, CPU",
            f"**{chosen.cpu / none.cpu:.2f}** ({chosen.cpu:.2f} s, {none.cpu:.2f} s), "
            f"{chosen.memory:.0f} MiB",
        )


def many_keys(installed: Plain, directory: Path) -> None:
    """Measure the limit and a choice of labels on a table where each entry is a key."""
    root = proc_root(directory, ENTRIES, ENTRIES)
    path = str(directory / "out.prom")
    limited, chosen, unlimited = measure(
        installed.write(root, path),
        installed.write(root, "--aggregate.by=src,l4protocol,dport", path),
        installed.write(root, "--limit.keys=0", path),
        runs=3,
    )
    report(
        "`write` of 1,000,000 entries with as many keys, 10,000 series, CPU",
        f"{limited.cpu:.2f} s, {limited.memory:.0f} MiB",
    )
    report(
        "the same by 3 labels, against that, CPU",
        f"**{chosen.cpu / limited.cpu:.2f}** ({chosen.cpu:.2f} s), {chosen.memory:.0f} MiB",
    )
    report("the same without a limit, CPU", f"{unlimited.cpu:.2f} s, {unlimited.memory:.0f} MiB")


def small(installed: Plain, directory: Path) -> None:
    root = proc_root(directory, 10_000, 1_400)
    write = installed.write(root, str(directory / "out.prom"))
    whole, bare, parser = measure(
        write,
        [installed.python, "-c", "pass"],
        [installed.python, "-c", "import docopt"],
        runs=21,
    )
    report(
        "`write` of 10,000 entries (1,400 keys) against `python3 -c pass`, CPU",
        f"**{whole.cpu / bare.cpu:.2f}** ({whole.cpu * 1000:.0f} ms, {bare.cpu * 1000:.0f} ms; "
        f"to import docopt alone takes {parser.cpu * 1000:.0f} ms)",
    )


def growth(installed: Plain, directory: Path, large: Path) -> None:
    roots = [proc_root(directory, 10**n, 14 * 10 ** (n - 2)) for n in (4, 5)]
    path = str(directory / "out.prom")
    costs = measure(*[installed.write(root, "--limit.keys=0", path) for root in [*roots, large]])
    for before, after, size in ((0, 1, "10,000 to 100,000"), (1, 2, "100,000 to 1,000,000")):
        report(
            f"whole `write`, no limit, {size} entries, wall",
            f"**{costs[after].wall / costs[before].wall:.1f}** times "
            f"({costs[before].wall:.2f} s, {costs[after].wall:.2f} s)",
        )


def scrapes(installed: Plain, root: Path) -> None:
    argv = [installed.command, "serve", f"--path.procfs={root}", "--web.listen-address=127.0.0.1:0"]
    argv += ["--web.max-requests=0", "--limit.keys=0"]
    process = subprocess.Popen(argv, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stderr is not None
        lines = iter(process.stderr.readline, "")  # with warnings before the address
        port = next(
            int(found[1]) for line in lines if (found := re.search(r"127\.0\.0\.1:(\d+)", line))
        )

        def scrape(encoding: str) -> float:
            started = time.perf_counter()
            with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port)) as client:
                client.request("GET", "/metrics", headers={"Accept-Encoding": encoding})
                answer = client.getresponse()
                assert answer.status == 200
                while answer.read(1 << 20):
                    pass
            return (time.perf_counter() - started) * 1000

        while True:
            with contextlib.suppress(AssertionError):
                scrape("gzip")
                break
        for encoding, name in (("identity", "plain"), ("gzip", "gzip")):
            alone = sorted(scrape(encoding) for _ in range(50))
            with ThreadPoolExecutor(40) as pool:
                crowd = sorted(pool.map(scrape, [encoding] * 120))
            report(
                f"a scrape of 158,000 keys, {name}: p50 and p99, alone; 40 at once",
                f"{alone[25]:.0f} ms, {alone[49]:.0f} ms; {crowd[60]:.0f} ms, {crowd[118]:.0f} ms",
            )
    finally:
        process.kill()
        process.communicate()


def memory_of_serve(installed: Plain, root: Path) -> None:
    """Measure the peak memory of serve after some snapshots: it holds two of them at a time."""
    for name, args in (("limit of 10,000 keys", []), ("no limit", ["--limit.keys=0"])):
        argv = [
            installed.command,
            "serve",
            f"--path.procfs={root}",
            "--web.listen-address=127.0.0.1:0",
        ]
        argv += ["--collector.interval=1", *args]
        with subprocess.Popen(argv, stderr=subprocess.DEVNULL) as process:
            time.sleep(25)
            status = Path(f"/proc/{process.pid}/status").read_text()
            process.kill()
        (most,) = (line.split()[1] for line in status.splitlines() if line.startswith("VmHWM"))
        report(f"peak memory of `serve` of that file, {name}", f"{int(most) / 1024:.0f} MiB")


def fill_live_table(entries: int, keys: int, *, translated: bool = False) -> None:
    """Create entries by ctnetlink in the namespace of this process.

    translated: with SNAT to one of 16 egress addresses, towards one of 250 destinations.
    """

    def attribute(kind: int, payload: bytes) -> bytes:
        return struct.pack("=HH", 4 + len(payload), kind) + payload + bytes(-len(payload) % 4)

    def nested(kind: int, *inner: bytes) -> bytes:
        return attribute(kind | 0x8000, b"".join(inner))

    def tuple_(kind: int, src: bytes, dst: bytes, sport: int, dport: int) -> bytes:
        return nested(
            kind,
            nested(1, attribute(1, src), attribute(2, dst)),
            nested(
                2,
                attribute(1, b"\x11"),
                attribute(2, struct.pack("!H", sport)),
                attribute(3, struct.pack("!H", dport)),
            ),
        )

    sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 12)
    with sock:
        for i in range(entries):
            key, sport = i % keys, 1024 + i // keys
            src, dst = struct.pack("!I", 0x0A000000 + key), bytes([192, 0, 2, key % 250])
            egress, port = src, sport
            if translated:
                egress, port = bytes([198, 51, 100, i // 250 % 16]), 1024 + i // 4000
            payload = (
                struct.pack("!BBH", socket.AF_INET, 0, 0)
                + tuple_(1, src, dst, sport, 53)
                + tuple_(2, dst, egress, 53, port)
                + attribute(7, struct.pack("!I", 36000))  # CTA_TIMEOUT
                + attribute(3, struct.pack("!I", 0xE))  # CTA_STATUS: seen, assured, confirmed
            )
            # NLM_F_REQUEST | NLM_F_CREATE | NLM_F_EXCL: the kernel answers only failures.
            sock.send(struct.pack("=IHHII", 16 + len(payload), 0x100, 0x601, i, 0) + payload)


@contextlib.contextmanager
def namespace() -> Iterator[list[str]]:
    """Make a network namespace with accounting and a large limit; yield its command prefix."""
    name = f"ctf-bench-{os.getpid()}"
    inside = ["ip", "netns", "exec", name]
    limit = LIMIT.read_text()
    subprocess.run(["ip", "netns", "add", name], check=True)
    try:
        LIMIT.write_text("1200000")
        subprocess.run([*inside, "sysctl", "-qw", "net.netfilter.nf_conntrack_acct=1"], check=True)
        subprocess.run([*inside, "ip", "link", "set", "lo", "up"], check=True)
        yield inside
    finally:
        subprocess.run(["ip", "netns", "del", name], check=False)
        LIMIT.write_text(limit)


def live(installed: Plain, directory: Path) -> None:
    sys.path.insert(0, str(Path(__file__).parent.parent))
    from tests import bench_counters

    with namespace() as inside:
        subprocess.run([*inside, sys.executable, __file__, "--fill"], check=True)
        proc = Path("/proc/sys/net/netfilter/nf_conntrack_count")
        count = subprocess.run([*inside, "cat", proc], capture_output=True, check=True)
        assert int(count.stdout) == ENTRIES, count.stdout
        for source, bare in (
            ("procfs", ["cat", "/proc/net/nf_conntrack"]),
            ("netlink", [installed.python, "-c", BARE_DUMP]),
        ):
            write = [installed.command, "write", f"--collector.source={source}"]
            write.append(f"{directory}/live.prom")
            ours, theirs = measure([*inside, *write], [*inside, *bare])
            report(
                f"live table, 1,000,000 entries, 10,000 keys: `write` from {source} against "
                + ("`cat`" if source == "procfs" else "a bare receive loop")
                + ", wall",
                f"**{ours.wall / theirs.wall:.2f}** ({ours.wall:.2f} s, {theirs.wall:.2f} s)",
            )
            text = (directory / "live.prom").read_text()
            assert f"conntrack_total_connections {ENTRIES}\n" in text
        bench_counters.reading(installed, inside, directory)
    with namespace() as inside:
        bench_counters.draining(installed, inside)
    with namespace() as inside:
        bench_counters.serving(installed, inside, directory)


def translated(installed: Plain) -> None:
    with namespace() as inside:
        subprocess.run([*inside, sys.executable, __file__, "--fill-translated"], check=True)
        write = [*inside, installed.command, "write", "--collector.source=netlink"]
        text = subprocess.run(write, capture_output=True, text=True, check=True).stdout
        counted = re.findall(r"^conntrack_snat_connections\{.*} (\d+)$", text, re.MULTILINE)
        assert sum(map(int, counted)) == ENTRIES
        with_nat, without = measure(write, [*write, "--collector.nat=off"])
        report(
            "1,000,000 live translated connections: `write` against `--collector.nat=off`, CPU",
            f"**{with_nat.cpu / without.cpu:.2f}** ({with_nat.cpu:.2f} s, {without.cpu:.2f} s), "
            f"{with_nat.memory:.0f} and {without.memory:.0f} MiB",
        )


@contextlib.contextmanager
def scratch() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


def main() -> None:
    if "--fill" in sys.argv:
        fill_live_table(ENTRIES, 10_000)
        return
    if "--fill-translated" in sys.argv:
        fill_live_table(ENTRIES, 10_000, translated=True)
        return
    if "--table" in sys.argv:
        path, entries, keys = sys.argv[2:]
        make_table(Path(path), int(entries), int(keys))
        return
    if "--networks" in sys.argv:
        path, lines = sys.argv[2:]
        make_networks(Path(path), int(lines))
        return
    # As for users. Without bytecode each run would compile the sources again.
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    cores = os.cpu_count()
    print(f"Linux {platform.release()}, {cores} cores, Python {platform.python_version()}")
    print("\n| what | measured |\n|---|---|")
    with scratch() as directory:
        installed = plain(directory / "plain")
        root = proc_root(directory, ENTRIES, KEYS)
        small(installed, directory / "small")
        engines(installed, root, directory)
        whole_write(installed, root, directory)
        options(installed, root, directory)
        many_keys(installed, directory / "many")
        if os.geteuid() == 0:
            translated(installed)  # before live(), which needs memory of its own
            live(installed, directory)
        growth(installed, directory / "growth", root)
        scrapes(installed, root)
        memory_of_serve(installed, root)


if __name__ == "__main__":
    main()
