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
from conntrack_textfile.labels import DEFAULT, LABELS
from tests.builders import CONNTRACK, aggregated, proc_root, taken
from tests.conftest import DATA
from tests.program import COMMAND, run

if TYPE_CHECKING:
    from pathlib import Path

    from conntrack_textfile.snapshot import Snapshot
    from tests.builders import Series

SAMPLE = f"--path.procfs={DATA / 'kernel-6.18'}"


TABLE = "table 50 of 200 (25.0%)"


def snapshot(rows: Series) -> Snapshot:
    return taken(aggregated(rows, "src", "dport"))


def test_a_table_is_aligned_and_the_largest_stand_first() -> None:
    rows: Series = {("10.0.0.1", "53"): (1, 1, 10, 1, 20), ("::1", "44000"): (70, 1, 3000, 1, 9)}
    lines = list(top.table(snapshot(rows), 9))
    assert lines[0].endswith("71 connections in 2 keys   2.9 KiB sent, 29 B reply   " + TABLE)
    assert lines[1:] == [
        "SOURCE     PORT  CONNECTIONS     SENT  REPLY",
        "::1       44000           70  2.9 KiB    9 B",
        "10.0.0.1     53            1     10 B   20 B",
    ]


def test_rates_are_of_live_connections_alone() -> None:
    before = top.byte_counts(
        aggregated({("a", "1"): (1, 0, 100, 0, 0), ("b", "1"): (1, 0, 900, 0, 0)}, "src", "dport")
    )
    rows: Series = {("a", "1"): (1, 0, 2148, 0, 7), ("b", "1"): (1, 0, 10, 0, 0)}
    rows["c", "1"] = (1, 0, 1, 0, 1)
    lines = list(top.table(snapshot(rows), 9, None, before, 2.0))
    assert [re.split("  +", line)[3:] for line in lines[2:]] == [
        ["2.1 KiB", "7 B", "1.0 KiB", "4 B"],
        ["10 B", "0 B", "-", "0 B"],
        ["1 B", "1 B", "-", "-"],
    ]


def test_a_narrow_screen_has_whole_columns_and_the_rates() -> None:
    names = ("src", "dst", "l3protocol", "l4protocol", "l7protocol", "dport")
    values = ("2001:db8:1:2:3:4:5:6", "2001:db8:9:8:7:6:5:4", "ipv6", "tcp", "unknown", "44000")
    shown = taken(aggregated({values: (123, 0, 5 << 40, 0, 7 << 30)}, *names))
    before: top.Bytes = {values: (4 << 40, 6 << 30)}
    heads = {}
    for width in (200, 80, 60):
        _, head, row = top.table(shown, 9, width, before, 1.0)
        assert max(len(head), len(row)) <= width
        assert re.search(r"  1\.0 TiB +1\.0 GiB$", row)
        heads[width] = head.split()
    assert len(heads[200]) == 11
    assert heads[80] == ["SOURCE", "DESTINATION", "L4", "PORT", "SENT/s", "REPLY/s"]
    assert heads[60] == heads[80]
    assert row.startswith("2001:db8:1:")
    assert "…" in row


def test_a_narrow_screen_has_the_totals_where_there_are_no_rates() -> None:
    values = ("2001:db8:1:2:3:4:5:6", "2001:db8:9:8:7:6:5:4", "ipv6", "tcp", "unknown", "44000")
    shown = taken(aggregated({values: (123, 0, 5 << 40, 0, 7 << 30)}, *DEFAULT))
    _, head, row = top.table(shown, 9, 60)
    assert head.split() == ["SOURCE", "DESTINATION", "L4", "PORT", "SENT", "REPLY"]
    assert max(len(head), len(row)) <= 60
    assert re.search(r"  5\.0 TiB +7\.0 GiB$", row)


def test_on_a_narrow_screen_all_addresses_get_shorter_and_no_number_is_cut() -> None:
    address = "2001:db8:1:2:3:4:5:6"
    values = (address, "10.0.0.1", "tcp", "443", address, address)
    names = ("src", "dst", "l4protocol", "dport", "egress", "backend")
    shown = taken(aggregated({values: (1, 0, 1 << 20, 0, 1 << 30)}, *names))
    for width in (75, 90):
        _, head, row = top.table(shown, 9, width)
        assert max(len(head), len(row)) <= width
        cells = row.split()
        assert [cells[at][-1] for at in (0, 4, 5)] == ["…"] * 3
        assert cells[1] == "10.0.0.1"
        assert row.endswith("1.0 MiB  1.0 GiB")


def test_nothing_is_left_out_that_fits() -> None:
    values = ("10.0.0.1", "2001:db8:9:8:7:6:5:4", "ipv4", "tcp", "https", "443")
    shown = taken(aggregated({values: (1, 0, 1 << 20, 0, 1 << 30)}, *DEFAULT))
    whole = list(top.table(shown, 9))[1:]
    width = max(map(len, whole))
    assert list(top.table(shown, 9, width))[1:] == whole
    # Of a column less L3 alone is left out, and of an address not more than has to be.
    narrow = list(top.table(shown, 9, width - 1))[1:]
    assert narrow[0].split() == [head for head in whole[0].split() if head != "L3"]
    few = taken(aggregated({values[1:2]: (1, 0, 1 << 20, 0, 1 << 30)}, "dst"))
    full = max(map(len, list(top.table(few, 9))[1:]))
    for width in (full - 13 - 1, full - 13 - 5):  # and without CONNECTIONS
        row = list(top.table(few, 9, width))[2]
        assert len(row) == width
        assert row.partition("…")[0] == values[1][: 20 - (full - 13 - width) - 1]


def test_the_last_line_says_how_many_more_there_are() -> None:
    rows: Series = {(f"10.0.0.{n}", "53"): (1, 1, n, 1, n) for n in range(5)}
    lines = list(top.table(snapshot(rows), 2))
    assert [line.split()[0] for line in lines[2:-1]] == ["10.0.0.4", "10.0.0.3"]
    assert lines[-1] == "and 3 more"


def test_every_label_has_a_column() -> None:
    values = ("a", "b", "ipv4", "tcp", "dns", "53", "7", "42", "192.0.2.1", "")
    shown = taken(aggregated({values: (1, 0, 1, 0, 1)}, *LABELS))
    _, head, row = top.table(shown, 9)
    assert head.split()[:10] == [
        *("SOURCE", "DESTINATION", "L3", "L4", "SERVICE", "PORT", "ZONE", "MARK", "EGRESS"),
        "BACKEND",
    ]
    assert row.split()[:9] == list(values[:9])


def test_what_is_not_known_of_the_table_is_left_out() -> None:
    shown = snapshot({("a", "1"): (1, 0, 1, 0, 1)})
    for unknown in ({"entries": None}, {"entries_limit": None}):
        first = next(top.table(shown._replace(conntrack=CONNTRACK._replace(**unknown)), 9))
        assert first.endswith("1 B sent, 1 B reply")


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
    done = run("top", f"--path.procfs={proc_root(tmp_path)}")
    assert done.returncode == 0
    assert "0 connections in 0 keys" in done.stdout


def test_watch_goes_on_with_rates_until_it_is_interrupted() -> None:
    # What a shell starts in the background ignores the signal, and so do its children.
    argv = ["env", "--default-signal=INT", *COMMAND, "top", "--watch"]
    argv += ["--collector.interval=0.2", SAMPLE, "-n", "1"]
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


def test_hosts_have_their_names(tmp_path: Path) -> None:
    file = tmp_path / "hosts"
    file.write_text("10.77.1.2 laptop\nfd77:1::2 laptop\n")
    done = run("top", SAMPLE, f"--hosts.file={file}", "--aggregate.by=src")
    assert (done.returncode, done.stderr) == (0, "")
    assert {"laptop (10.77.1.2)", "laptop (fd77:1::2)"} <= {
        line.partition("  ")[0] for line in done.stdout.splitlines()
    }
