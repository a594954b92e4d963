from __future__ import annotations

import os
import pty
import re
import select
import signal
import subprocess
import time
from typing import TYPE_CHECKING

import pytest

from conntrack_textfile import top
from conntrack_textfile.snapshot import Snapshot
from conntrack_textfile.sysctl import Conntrack
from tests.conftest import DATA
from tests.program import COMMAND, run
from tests.test_ranking import connections

if TYPE_CHECKING:
    from pathlib import Path

SAMPLE = f"--path.procfs={DATA / 'kernel-6.18'}"


TABLE = "table 50 of 200 (25.0%)"

Rows = dict[tuple[str, ...], tuple[int, ...]]


def snapshot(rows: Rows) -> Snapshot:
    shown = connections(rows, "src", "dport")
    return Snapshot(True, "procfs", "pure", Conntrack(50, 200, True), 0.0, 0.1, shown)


def test_a_table_is_aligned_and_the_largest_stand_first() -> None:
    rows: Rows = {("10.0.0.1", "53"): (1, 1, 10, 1, 20), ("::1", "44000"): (70, 1, 3000, 1, 9)}
    lines = list(top.table(snapshot(rows), 9))
    assert lines[0].endswith("71 connections in 2 keys   2.9 KiB sent, 29 B reply   " + TABLE)
    assert lines[1:] == [
        "SOURCE     PORT  CONNECTIONS     SENT  REPLY",
        "::1       44000           70  2.9 KiB    9 B",
        "10.0.0.1     53            1     10 B   20 B",
    ]


def test_rates_are_of_live_connections_alone() -> None:
    before = top.carried(
        connections({("a", "1"): (1, 0, 100, 0, 0), ("b", "1"): (1, 0, 900, 0, 0)}, "src", "dport")
    )
    rows: Rows = {("a", "1"): (1, 0, 2148, 0, 7), ("b", "1"): (1, 0, 10, 0, 7)}
    rows["c", "1"] = (1, 0, 1, 0, 1)
    lines = list(top.table(snapshot(rows), 9, None, before, 2.0))
    assert [re.split("  +", line)[3:] for line in lines[2:]] == [
        ["2.1 KiB", "7 B", "1.0 KiB", "4 B"],
        ["10 B", "7 B", "-", "4 B"],
        ["1 B", "1 B", "-", "-"],
    ]


def test_a_narrow_screen_has_whole_columns_and_the_rates() -> None:
    names = ("src", "dst", "l3protocol", "l4protocol", "l7protocol", "dport")
    values = ("2001:db8:1:2:3:4:5:6", "2001:db8:9:8:7:6:5:4", "ipv6", "tcp", "unknown", "44000")
    shown = connections({values: (123, 0, 5 << 40, 0, 7 << 30)}, *names)
    taken = Snapshot(True, "procfs", "pure", Conntrack(50, 200, True), 0.0, 0.1, shown)
    before: top.Bytes = {values: (4 << 40, 6 << 30)}
    heads = {}
    for width in (200, 80, 60):
        _, head, row = top.table(taken, 9, width, before, 1.0)
        assert max(len(head), len(row)) <= width
        assert re.search(r"  1\.0 TiB +1\.0 GiB$", row)
        heads[width] = head.split()
    assert len(heads[200]) == 11
    assert heads[80] == ["SOURCE", "DESTINATION", "L4", "PORT", "SENT/s", "REPLY/s"]
    assert heads[60] == heads[80]
    assert row.startswith("2001:db8:1:")
    assert "…" in row


def test_a_name_cannot_move_the_cursor() -> None:
    lines = list(top.table(snapshot({("\x1b[2Jx", "1"): (1, 0, 1, 0, 0)}), 9))
    assert lines[2].startswith("'\\x1b[2Jx'  ")


def test_top_is_plain_text_where_there_is_no_terminal() -> None:
    done = run("top", SAMPLE, "-n", "2")
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert len(lines) == 5
    assert lines[0].endswith("table 91 of 262144 (0.0%)")
    assert "91 connections in 83 keys, 3 uncounted   " in lines[0]
    assert lines[1].split() == [
        *("SOURCE", "DESTINATION", "L3", "L4", "SERVICE", "PORT", "CONNECTIONS", "SENT", "REPLY"),
    ]
    assert lines[2].split()[:7] == ["10.77.1.2", "10.77.2.2", "ipv4", "tcp", "unknown", "8002", "2"]
    assert lines[4] == "and 81 more"
    assert "\x1b" not in done.stdout


@pytest.mark.parametrize("zone", ["XXX-99", "XXX99", ":/nonexistent", ""])
def test_a_clock_of_any_zone_is_shown(monkeypatch: pytest.MonkeyPatch, zone: str) -> None:
    monkeypatch.setenv("TZ", zone)
    done = run("top", SAMPLE)
    assert (done.returncode, done.stderr) == (0, "")
    assert re.match(r"[0-9]{2}:[0-9]{2}:[0-9]{2}   91 connections", done.stdout)


def test_top_of_an_empty_table(tmp_path: Path) -> None:
    (tmp_path / "net").mkdir()
    (tmp_path / "net" / "nf_conntrack").touch()
    done = run("top", f"--path.procfs={tmp_path}")
    assert done.returncode == 0
    assert "0 connections in 0 keys" in done.stdout


def test_watch_goes_on_with_rates_until_it_is_interrupted() -> None:
    argv = [*COMMAND, "top", "--watch", "--collector.interval=0.2", SAMPLE, "-n", "1"]
    process = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        text = ""
        while text.count("and 82 more") < 2:
            text += process.stdout.readline()
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=10)
        assert (process.returncode, err) == (130, "")
        assert text.count("SENT/s") == 1  # there are none of the first
        assert text.endswith("   0 B      0 B\nand 82 more\n")
        assert out.count("SENT/s") < 3
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize(("height", "rows"), [(1, 1), (2, 1), (3, 1), (9, 7), (99, 40)])
def test_a_frame_is_no_larger_than_the_screen(height: int, rows: int) -> None:
    lines = top.frame(["x" * 200] * 40, height, 50)
    assert len(lines) == rows + 1
    assert lines[0] == "\x1b[H" + "x" * 49 + "\x1b[K"


def test_watch_keeps_to_the_size_of_a_terminal() -> None:
    leader, follower = pty.openpty()
    argv = ["sh", "-c", f"stty rows 9 cols 50; exec {' '.join(COMMAND)} top --watch {SAMPLE}"]
    process = subprocess.Popen(argv, stdin=follower, stdout=follower, stderr=follower)
    os.close(follower)
    try:
        text, end = b"", time.monotonic() + 20
        while b"\x1b[J" not in text and time.monotonic() < end:
            if select.select([leader], [], [], 1)[0]:
                text += os.read(leader, 65536)
        lines = re.sub(r"\x1b\[[HKJ]", "", text.decode()).split("\r\n")
        assert text.startswith(b"\x1b[H")
        assert len(lines) <= 9 + 1
        assert max(map(len, lines)) == 49
    finally:
        process.kill()
        process.wait()
        os.close(leader)


def test_watch_ends_when_nobody_reads_any_more() -> None:
    argv = [*COMMAND, "top", "--watch", "--collector.interval=0.1", SAMPLE]
    with subprocess.Popen(argv, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.stdout.close()
        assert process.wait(10) == 0
