"""top --watch against the kernel: its rates are of all traffic, and nothing but traffic."""

from __future__ import annotations

import contextlib
import json
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from conntrack_textfile.top import LABEL_KEYS
from tests import talkers
from tests.conftest import need
from tests.netns import inside, namespaces
from tests.program import COMMAND
from tests.screen import screen
from tests.test_traffic import RULES, Table

if TYPE_CHECKING:
    from collections.abc import Iterator

IDLE = 40
KEY = {label: key for key, label in LABEL_KEYS.items()}

# Snapshots as top takes them, each after a line on standard input, "l" with other labels.
# Each is printed: its first three rows as shown, its totals, and the traffic of all rows.
PROGRAM = """
import json, sys
from conntrack_textfile import options, top, watch
from conntrack_textfile.collector import Collector
from conntrack_textfile.kernel.engine import make

opts = options.parse(["top", "--watch", "--aggregate.by=src,dport", *sys.argv[1:]])
plan = opts.plan
collector = Collector(opts, make(plan), lambda: plan)
watch.measure(collector)
for line in sys.stdin:
    if line == "l\\n":
        plan = plan._replace(labels=("src", "l4protocol"))
    talkers = collector.top(3).talkers
    rows = {"|".join(row.group): row.traffic for row in talkers.rows}
    first = [row.group for row in top.ranked(talkers, "bytes")[:3]]
    print(json.dumps([first, talkers.totals, rows]), flush=True)
collector.close()
"""


@pytest.fixture
def table() -> Iterator[Table]:
    need("nft", "ip", "conntrack", "sysctl", root=True)
    with namespaces("watch") as (name,):
        made = Table(name)
        made.sysctl(acct=1, events=1, timestamp=1, udp_timeout=600, udp_timeout_stream=600)
        made.sysctl(tcp_timeout_time_wait=1, tcp_timeout_close=1)
        made.run("nft", "-f", "-", text=RULES)
        yield made


@contextlib.contextmanager
def running(table: Table, *argv: str) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [*inside(table.namespace), *argv],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        with process:
            yield process
            process.kill()
    finally:
        process.kill()


def said(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline()


def say(process: subprocess.Popen[str], line: str = "") -> None:
    assert process.stdin is not None
    process.stdin.write(f"{line}\n")
    process.stdin.flush()


@contextlib.contextmanager
def talking(table: Table) -> Iterator[subprocess.Popen[str]]:
    script = str(Path(talkers.__file__))
    with running(table, sys.executable, script, str(IDLE)) as process:
        assert int(said(process)) == IDLE
        yield process


@pytest.mark.parametrize("engine", ["compiled", "pure"])
def test_rates_are_exact_and_the_largest_are_seen_beyond_the_limit(
    table: Table, engine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ended connections too, and whatever the idle ones had before."""
    monkeypatch.setenv("CONNTRACK_TEXTFILE_ENGINE", engine)
    argv = [sys.executable, "-W", "error", "-c", PROGRAM, "--limit.keys=2"]
    with talking(table) as talk, running(table, *argv) as watch:

        def take(what: str = "") -> list[Any]:
            say(watch, what)
            found: list[Any] = json.loads(said(watch))
            return found

        first, totals, _ = take()
        assert totals is None  # of one snapshot there are none
        assert len(first) == 3
        before = table.truth()
        take()
        say(talk)
        time.sleep(1)
        frames = [take()]
        for _ in range(3):
            time.sleep(1)
            frames.append(take())
        for found, *_ in frames:
            # The scan sends less in a second than each of the idle ones had sent at once.
            assert found[:2] == [["127.0.0.2", "8001"], ["127.0.0.3", "8002"]]
        say(talk)
        downloads, scans = map(int, said(talk).split())
        assert min(downloads, scans) > 4
        # What is under way is in a later one.
        end = time.monotonic() + 30
        while True:
            frames.append(take())
            truth = table.truth()
            carried = [sum(column) for column in zip(*[f[1] for f in frames], strict=True)]
            if carried[1:] == [now - then for now, then in zip(truth, before, strict=True)]:
                break
            assert time.monotonic() < end, (carried, truth, before)
            time.sleep(0.2)
        assert carried[0] == downloads + scans
        rows = [frame[2].get("127.0.0.2|8001", [0] * 5) for frame in frames]
        assert sum(row[0] for row in rows) == downloads
        # Of each the answer, and its headers.
        assert 1 < sum(row[4] for row in rows) / (downloads * talkers.PIECE) < 1.1
        # With other labels it begins anew: what was there is no traffic.
        assert take("l")[1] is None
        assert take()[1] == [0, 0, 0, 0, 0]


def rates(frame: list[str], source: str) -> dict[str, str]:
    """The columns of the row of a source, where there are rates."""
    heads = [line for line in frame if line.startswith("SOURCE") and "REPLY/s" in line]
    rows = [line for line in frame if line.startswith(f"{source} ")]
    if not heads or not rows:
        return {}
    cells = [re.split("  +", line) for line in (heads[0], rows[0])]
    return dict(zip(*cells, strict=True))


def test_the_view_shows_who_downloads_and_who_scans(table: Table) -> None:
    table.sysctl(tcp_timeout_time_wait=120)  # many that were there before
    top = [*inside(table.namespace), *COMMAND, "top", "--watch", "--aggregate.by=src"]
    top.append("--collector.interval=1")
    with talking(table) as talk:
        say(talk)
        time.sleep(2)
        with screen(top, (80, 24)) as shown:
            frame = shown.wait_for(lambda frame: "127.0.0.2" in " ".join(frame))
            assert "/s" not in " ".join(frame[:-1])  # at once, with what is live
            for keys in ("", KEY["l4protocol"], "/127.0.0.2 127.0.0.3\n", "/\x15\n"):
                shown.type(keys)
                if keys:
                    shown.wait_for(lambda frame: not rates(frame, "127.0.0.2"))
                first = len(shown.frames)
                shown.wait_for(lambda frame: rates(frame, "127.0.0.2"))
                shown.wait_for_frames(first + 2)
                for frame in shown.frames[first:]:
                    scanned, downloaded = rates(frame, "127.0.0.3"), rates(frame, "127.0.0.2")
                    if not downloaded:
                        continue
                    # As fast as it was made, at most: a busy machine makes them late.
                    assert 5 < float(scanned["NEW/s"]) < 1.5 * talkers.PER_SECOND, frame
                    number, unit = downloaded["REPLY/s"].split()
                    kib = float(number) * {"KiB": 1, "MiB": 1024}[unit]
                    assert 100 < kib < 1.5 * 10 * talkers.PIECE / 1024, frame
                    at = [line.split(" ")[0] for line in frame].index("SOURCE")
                    assert frame[at + 1].startswith("127.0.0.2 ")
            shown.type("q")
            assert shown.wait_for_status() == 0


def test_without_events_it_says_what_is_missing(table: Table) -> None:
    table.sysctl(events=0)
    argv = [*COMMAND, "top", "--watch", "--collector.interval=0.2"]
    with running(table, "sh", "-c", 'exec "$@" 2>&1', "sh", *argv) as watch:
        text = ""
        while text.count("   rates of live connections only\n") < 2:
            text += said(watch)
        assert text.count("the kernel sends no events") == 1  # and not in each frame
