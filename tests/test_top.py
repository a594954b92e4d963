from __future__ import annotations

import re
import signal
import subprocess
from typing import TYPE_CHECKING

import pytest

from conntrack_textfile import columns, top
from conntrack_textfile.filters import Filter
from conntrack_textfile.labels import DEFAULT, LABELS, ROWS
from conntrack_textfile.networks import parse as network
from conntrack_textfile.top import View, press
from tests.builders import CONNTRACK, proc_root, watched
from tests.conftest import DATA
from tests.program import COMMAND, run

if TYPE_CHECKING:
    from pathlib import Path

    from conntrack_textfile.snapshot import Snapshot
    from tests.builders import Series

SAMPLE = f"--path.procfs={DATA / 'kernel-6.18'}"

LONG = ("2001:db8:1111:2222:3333:4444:5555:8a2e", "2001:db8:1111:2222:3333:4444:6666:8a2f")
LONGEST = (*LONG, "ipv6", "tcp", "https", "44000")


def shown(rows: Series) -> Snapshot:
    """Live connections before there are rates."""
    return watched(rows, None, "src", "dport")


def cells(line: str) -> list[str]:
    return re.split("  +", line.strip())


def test_a_table_is_aligned_and_the_largest_stand_first() -> None:
    rows: Series = {("10.0.0.1", "53"): (1, 1, 10, 1, 20), ("::1", "44000"): (70, 1, 3000, 1, 9)}
    first, *lines = top.plain(shown(rows), "bytes", 9)
    assert re.fullmatch(
        r"\d\d:\d\d:\d\d   71 connections in 2 keys   2.9 KiB sent, 29 B reply   "
        r"table 50 of 200 \(25.0%\)",
        first,
    )
    assert lines == [
        "SOURCE     PORT  CONNECTIONS     SENT  REPLY",
        "::1       44000           70  2.9 KiB    9 B",
        "10.0.0.1     53            1     10 B   20 B",
    ]


def test_rates_are_of_what_was_carried_whatever_is_live() -> None:
    live: Series = {("idle", "1"): (1, 9, 1 << 30, 9, 0), ("new", "1"): (3, 6, 700, 6, 800)}
    traffic: Series = {
        ("ended", "1"): (80, 400, 4096, 400, 10 << 20),
        ("new", "1"): (1, 6, 7, 6, 8),
    }
    snapshot = watched(live, traffic, "src", "dport")
    first, head, *rows = top.plain(snapshot, "bytes", 9)
    assert "   2.0 KiB/s sent, 5.0 MiB/s reply   40.5 new/s   4 connections in 2 keys   " in first
    assert cells(head)[2:] == ["LIVE", "NEW/s", "SENT", "REPLY", "SENT/s", "REPLY/s"]
    assert list(map(cells, rows)) == [
        ["ended", "1", "0", "40.0", "0 B", "0 B", "2.0 KiB", "5.0 MiB"],
        ["new", "1", "3", "0.5", "700 B", "800 B", "4 B", "4 B"],
        ["idle", "1", "1", "0", "1.0 GiB", "0 B", "0 B", "0 B"],
    ]


@pytest.mark.parametrize("rates", [False, True])
@pytest.mark.parametrize(
    ("by", "order"),
    [
        ("bytes", ["downloads", "pings", "scans"]),
        ("packets", ["pings", "downloads", "scans"]),
        ("connections", ["scans", "downloads", "pings"]),
    ],
)
def test_rows_are_sorted_by_the_measure(by: str, order: list[str], rates: bool) -> None:
    rows: Series = {
        ("downloads",): (2, 30, 1000, 300, 90000),
        ("pings",): (1, 5000, 9000, 5000, 9000),
        ("scans",): (400, 100, 4000, 0, 0),
    }
    live: Series = dict.fromkeys(rows, (1, 1, 1, 1, 1)) if rates else rows
    snapshot = watched(live, rows if rates else None, "src")
    assert [cells(line)[0] for line in top.table(snapshot, by, 3)[1:]] == order
    head = cells(top.table(snapshot, by, 3)[0])
    assert ("SENT PKT" in head) == (by == "packets")
    if rates and by == "packets":
        row = top.table(snapshot, by, 1)[1]
        assert dict(zip(head, cells(row), strict=True))["REPLY PKT/s"] == "2500"


def test_what_has_no_counters_is_unknown_and_not_nothing() -> None:
    live: Series = {("off",): (3, 0, 0, 0, 0), ("on",): (1, 5, 500, 5, 500)}
    traffic: Series = {("off",): (2, 0, 0, 0, 0)}
    _, _, *rows = top.plain(watched(live, traffic, "src"), "connections", 9)
    assert list(map(cells, rows)) == [
        ["off", "3", "1.0", "?", "?", "?", "?"],
        ["on", "1", "0", "500 B", "500 B", "0 B", "0 B"],
    ]
    only: Series = {("off",): (3, 0, 0, 0, 0), ("more",): (9, 0, 0, 0, 0)}
    first, _, *rows = top.plain(watched(only, traffic, "src"), "bytes", 9)
    assert "   ? sent, ? reply   1.0 new/s   12 connections in 2 keys   ? sent, ? reply   " in first
    # Where no bytes are known the connections are what there is to sort by.
    assert [cells(row)[0] for row in rows] == ["off", "more"]


def test_what_has_all_ended_is_ranked_by_its_bytes() -> None:
    traffic: Series = {("many",): (9, 9, 9, 9, 9), ("large",): (1, 9, 1 << 30, 9, 9)}
    first, _, *rows = top.plain(watched({}, traffic, "src"), "bytes", 9)
    assert [cells(row)[0] for row in rows] == ["large", "many"]
    assert "   512 MiB/s sent, 9 B/s reply   " in first


def test_the_last_line_says_how_many_more_are_live() -> None:
    rows: Series = {(f"10.0.0.{n}", "53"): (1, 1, n, 1, n) for n in range(5)}
    lines = top.plain(shown(rows), "bytes", 2)
    assert [line.split()[0] for line in lines[2:-1]] == ["10.0.0.4", "10.0.0.3"]
    assert lines[-1] == "and 3 more"
    ended: Series = {("ended", "1"): (1, 1, 999, 1, 999)}
    assert top.table(watched(rows, ended, "src", "dport"), "bytes", 2)[-1] == "and 4 more"


def test_every_label_has_a_column_and_a_key() -> None:
    values = tuple(f"value-of-{label}" for label in LABELS)
    snapshot = watched({values: (1, 1, 1, 0, 1)}, None, *LABELS)
    _, head, row = top.plain(snapshot, "bytes", 9)
    assert cells(head)[: len(LABELS)] == [row.title.upper() for row in ROWS]
    assert cells(row)[: len(LABELS)] == list(values)
    assert tuple(top.LABEL_KEYS.values()) == LABELS


def test_what_is_not_known_of_the_table_is_left_out() -> None:
    snapshot = shown({("a", "1"): (1, 1, 1, 0, 1)})
    for unknown in ({"entries": None}, {"entries_limit": None}):
        known = snapshot._replace(conntrack=CONNTRACK._replace(**unknown))
        assert top.plain(known, "bytes", 9)[0].endswith("1 B sent, 1 B reply")


def test_a_name_cannot_move_the_cursor() -> None:
    lines = top.plain(shown({("\x1b[2Jx", "1"): (1, 1, 1, 0, 0)}), "bytes", 9)
    assert lines[2].startswith("'\\x1b[2Jx'  ")


@pytest.mark.parametrize("by", ["bytes", "packets", "connections"])
@pytest.mark.parametrize("rates", [False, True])
@pytest.mark.parametrize("width", [30, 40, 50, 60, 80, 120, 200])
def test_no_width_has_half_a_number(by: str, rates: bool, width: int) -> None:
    rows: Series = {
        LONGEST: (123456, 987654321, 5 << 40, 1234567890, 7 << 30),
        ("路由器", "10.0.0.1", "ipv4", "udp", "dns", "53"): (7, 80, 9000, 1, 12),
    }
    snapshot = watched(rows, rows if rates else None, *DEFAULT, seconds=1)
    whole = top.table(snapshot, by, 9)
    numbers = {number for line in whole[1:] for number in cells(line)[6:]}
    lines = top.table(snapshot, by, 9, width)
    assert max(map(columns.width, lines)) <= width
    assert len({columns.width(line) for line in lines}) == 1
    names = re.findall("CONNECTIONS|LIVE|NEW/s|SENT|REPLY|BOTH", lines[0])
    assert names
    for line in lines[1:]:
        last = cells(line)[-len(names) :]
        if "BOTH" in names:
            assert re.fullmatch("([0-9]+|[0-9]+[.][0-9])( [KMGTPE]?i?B)?", last[0])
        else:
            assert set(last) <= numbers
    if width >= 60:
        assert all(line.count("…") <= 2 for line in lines)
    if by == "bytes":
        assert cells(lines[0])[-1] == ("REPLY/s" if rates else "REPLY")


def test_a_narrow_screen_keeps_the_measure_and_where_addresses_differ() -> None:
    rows: Series = {LONGEST: (123, 400, 5 << 40, 400, 7 << 30)}
    snapshot = watched(rows, rows, *DEFAULT, seconds=1)
    heads = {}
    for width in (200, 80, 60):
        head, row = top.table(snapshot, "bytes", 9, width)
        heads[width] = cells(head)
        if width < 200:
            source, destination = cells(row)[:2]
            assert re.fullmatch("(2001:.*)?…:(.*:)?8a2e", source)
            assert re.fullmatch("(2001:.*)?…:(.*:)?8a2f", destination)
        assert cells(row)[-2:] == ["5.0 TiB", "7.0 GiB"]
    assert len(heads[200]) == 12
    assert heads[80] == ["SOURCE", "DESTINATION", "L4", "PORT", "SENT/s", "REPLY/s"]
    assert heads[60] == heads[80]
    by_connections = cells(top.table(snapshot, "connections", 9, 60)[0])
    assert by_connections[-2:] == ["LIVE", "NEW/s"]
    by_packets = cells(top.table(snapshot, "packets", 9, 80)[0])
    assert by_packets[-2:] == ["SENT PKT/s", "REPLY PKT/s"]


def test_nothing_is_left_out_that_fits() -> None:
    rows: Series = {("10.0.0.1", LONG[0], "ipv4", "tcp", "https", "443"): (1, 1, 1 << 20, 0, 9)}
    snapshot = watched(rows, None, *DEFAULT)
    whole = top.table(snapshot, "bytes", 9)
    width = max(map(len, whole))
    assert top.table(snapshot, "bytes", 9, width) == whole
    # Of a column less L3 alone is left out, and of an address not more than has to be.
    narrow = top.table(snapshot, "bytes", 9, width - 1)
    assert cells(narrow[0]) == [head for head in cells(whole[0]) if head != "L3"]
    few = watched({(LONG[0],): (1, 1, 1 << 20, 0, 1 << 30)}, None, "dst")
    row = top.table(few, "bytes", 9, 56)[1]
    assert cells(row)[0] == LONG[0]
    row = top.table(few, "bytes", 9, 55)[1]
    assert cells(row)[0] == "2001:…:1111:2222:3333:4444:5555:8a2e"
    assert len(row) == 54


def test_of_labels_first_goes_what_no_row_has() -> None:
    names = ("src", "l4protocol", "egress", "backend")
    rows: Series = {
        ("10.0.0.1", "tcp", "", ""): (1, 1, 1 << 20, 0, 9),
        ("10.0.0.2", "tcp", "192.0.2.1", ""): (1, 1, 1 << 20, 0, 8),
    }
    snapshot = watched(rows, None, *names)
    head = top.table(snapshot, "bytes", 9, 59)[0]
    assert cells(head) == ["SOURCE", "L4", "EGRESS", "CONNECTIONS", "SENT", "REPLY"]
    assert "BACKEND" in top.table(snapshot, "bytes", 9, 80)[0]


VIEW = View("bytes", DEFAULT)


def pressed(keys: str, view: View = VIEW) -> View:
    for key in keys:
        view = press(view, key)
    return view


def test_keys_choose_the_measure_and_the_labels() -> None:
    assert [pressed(key).by for key in "bpc"] == ["bytes", "packets", "connections"]
    key = {label: key for key, label in top.LABEL_KEYS.items()}
    fewer = ("src", "dst", "l4protocol", "l7protocol", "dport")
    assert pressed(key["l3protocol"]).labels == fewer
    assert pressed(key["l3protocol"] * 2) == VIEW
    # In the order of the labels, whatever was pressed first.
    few = View("bytes", ("dport",))
    assert pressed(key["egress"] + key["src"], few).labels == ("src", "dport", "egress")
    assert pressed(key["dport"], few).labels == ()


def test_keys_pause_help_and_quit() -> None:
    assert pressed(" ").paused
    assert not pressed("  ").paused
    assert pressed(" c").paused
    assert not pressed(" 3").paused  # what was read has other labels
    assert pressed("?").help
    assert pressed("?x") == VIEW
    assert pressed("q").ended
    assert pressed("?q").ended
    assert pressed("xyz\x1b\n") == VIEW


def test_a_filter_is_typed_and_used() -> None:
    view = pressed("/dport=54\x7f3")
    assert (view.typed, view.filter, view.include) == ("dport=53", "", None)
    used = press(view, "\n")
    assert used == VIEW._replace(filter="dport=53", include=(Filter(dport=range(53, 54)),))
    assert pressed("/", used).typed == "dport=53"  # to go on with
    assert pressed("/\x7f\x7f6\x1b", used) == used
    assert pressed("/\x15\n", used) == VIEW
    assert pressed("/q").typed == "q"
    assert pressed(f"/{'x' * 900}").typed == "x" * 500


def test_a_wrong_filter_says_why_and_stays_to_be_mended() -> None:
    wrong = pressed("/dport=x\n")
    assert wrong.typed == "dport=x"
    assert "ports are N or N-M" in wrong.error
    lines = top.screen(shown({}), wrong, (80, 24), 2, [])
    assert lines[-1] == "/dport=x_"
    assert "'dport=x': ports are N or N-M" in lines[-2]
    mended = pressed("\x7f53", wrong)
    assert mended.error == ""
    assert press(mended, "\n").filter == "dport=53"


def test_words_of_a_filter_are_alternatives() -> None:
    lan = network("10.0.0.0/8")
    assert top.parse_filter("10.0.0.0/8 53") == (
        Filter(src=lan),
        Filter(dst=lan),
        Filter(dport=range(53, 54)),
    )
    assert top.parse_filter(" src=10.0.0.0/8,l4protocol=udp ") == (Filter(src=lan, l4protocol=17),)
    assert top.parse_filter("fd77::1") == (
        Filter(src=network("fd77::1")),
        Filter(dst=network("fd77::1")),
    )
    assert top.parse_filter("  ") is None
    for wrong in ("10.0.0.999", "65536", "src", "src=10.0.0.1,src=10.0.0.2", "٣"):
        with pytest.raises(ValueError, match=r"."):
            top.parse_filter(wrong)


def test_on_the_narrowest_screen_numbers_have_names() -> None:
    names = ("192.168.10.11", "2001:db8:8000:1234:5678:9abc:def0:1234")
    before: Series = {(name,): (1, 1, 1, 1, 1) for name in names}
    after: Series = {(name,): (2, 9, 3000, 9, 2 << 20) for name in names}
    snapshot = watched(before, after, "src")
    lines = top.screen(snapshot, VIEW, (20, 5), 2, [])
    assert cells(lines[1]) == ["SOURCE", "BOTH/s"]
    assert sorted(re.split(" +", line, maxsplit=1)[0] for line in lines[2:4]) == [
        *("192.….11", "…:1234")
    ]
    assert "MiB" in lines[2]
    # Connections have one number, and more room.
    counted = top.screen(snapshot, VIEW._replace(by="connections"), (26, 5), 2, [])
    assert cells(counted[1]) == ["SOURCE", "LIVE", "NEW/s"]


@pytest.mark.parametrize("size", [(60, 24), (80, 24), (200, 50), (20, 5), (9, 2), (1, 1), (80, 7)])
@pytest.mark.parametrize("keys", ["", "?", "/src=10.0.0.0/8", "/x\n", " c"])
def test_a_screen_is_as_large_as_the_terminal(size: tuple[int, int], keys: str) -> None:
    rows: Series = {(f"10.0.0.{n}", "53"): (1, 1, n, 1, n) for n in range(90)}
    snapshot = watched(rows, rows, "src", "dport")
    lines = top.screen(snapshot, pressed(keys), size, 2, ["something failed"])
    assert len(lines) <= size[1]
    # The last column is left alone: what is written there wraps.
    assert max(map(columns.width, lines)) < max(2, size[0])


def test_a_screen_says_how_it_is_made_and_no_part_of_it_is_cut() -> None:
    rows: Series = {("10.0.0.1", "53"): (1234, 5, 1 << 30, 5, 1 << 40)}
    snapshot = watched(rows, rows, "src", "dport")
    for width in (60, 80, 200):
        view = pressed("/53\n c")
        lines = top.screen(snapshot, view, (width, 24), 0.5, [])
        text = "   ".join(lines[: lines.index(next(line for line in lines if "SOURCE" in line))])
        for part in (
            "   by connections   every 0.5 s   filter 53   PAUSED   "
            "512 MiB/s sent, 512 GiB/s reply",
            "   617 new/s   1234 connections in 1 key   1.0 GiB sent, 1.0 TiB reply   "
            "table 50 of 200 (25.0%)",
        ):
            assert part in text
        assert lines[-1] == "q quit  ? help  bpc sort  / filter  1-9 labels  space pause"


def test_of_several_tables_the_fullest_is_named() -> None:
    of = watched({("10.0.0.1",): (1, 1, 1, 1, 1)}, None, "src")
    full = of._replace(conntrack=of.conntrack._replace(entries=190))
    summary = top.plain(of._replace(parts={"blue": of, "red\x1b": full}), "bytes", 9)[0]
    assert summary.endswith(r"fullest table 'red\x1b': 190 of 200 (95.0%)")


def test_of_several_tables_those_without_events_are_named() -> None:
    of = watched({("10.0.0.1",): (1, 1, 1, 1, 1)}, {}, "src")
    assert of.traffic is not None
    whole = of._replace(traffic=of.traffic._replace(listening=None))
    deaf = of._replace(traffic=of.traffic._replace(listening=False))
    assert top.notes(whole._replace(parts={"blue": of, "red": of})) == []
    (note,) = top.notes(whole._replace(parts={"blue": of, "gone": whole, "red": deaf}))
    assert note.startswith("in red: rates are of live connections only")


def test_a_screen_is_filled_but_not_beyond_the_rows_asked_for() -> None:
    rows: Series = {(f"10.0.0.{n}", "53"): (1, 1, n, 1, n) for n in range(90)}
    snapshot = shown(rows)
    lines = top.screen(snapshot, VIEW, (80, 50), 2, [])
    assert sum(line.startswith("10.0.0.") for line in lines) == 50 - 5
    lines = top.screen(snapshot, VIEW._replace(rows=3), (80, 50), 2, [])
    assert sum(line.startswith("10.0.0.") for line in lines) == 3
    assert "and 87 more" in lines


def test_what_rates_miss_is_said() -> None:
    rows: Series = {("a", "1"): (1, 1, 1, 1, 1)}
    good = watched(rows, rows, "src", "dport")
    assert top.notes(good) == []
    assert good.traffic is not None
    assert good.talkers is not None
    deaf = good._replace(traffic=good.traffic._replace(listening=False))
    assert "the kernel sends no events" in top.notes(deaf)[0]
    assert top.plain(deaf, "bytes", 1, watched=True)[0].endswith("rates of live connections only")
    procfs = good._replace(traffic=None, source="procfs", uncountable=True)
    (note,) = top.notes(procfs)
    assert note.startswith("no rates: the proc file")
    assert top.plain(procfs, "bytes", 1, watched=True)[0].endswith("only: no rates")
    assert "live connections only" not in top.plain(procfs, "bytes", 1)[0]
    unseen = good._replace(talkers=good.talkers._replace(ended_unseen=7))
    assert top.plain(unseen, "bytes", 1, watched=True)[0].endswith("   7 ended unseen")
    lost = good._replace(traffic=good.traffic._replace(lost=5))
    assert "5 events of ended connections were lost" in top.notes(lost)[0]
    off = good._replace(conntrack=CONNTRACK._replace(accounting=False))
    assert "accounting is off" in top.notes(off)[0]
    text = " ".join(top.screen(off, VIEW, (60, 24), 2, ["cannot read the table"]))
    assert "cannot read the table" in text
    assert "net.netfilter.nf_conntrack_acct=1" in text


def test_top_is_plain_text_where_there_is_no_terminal() -> None:
    done = run("top", SAMPLE, "-n", "2")
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert len(lines) == 5
    assert lines[0].endswith("table 91 of 262144 (<0.1%)")
    assert "91 connections in 83 keys, 3 uncounted   " in lines[0]
    assert lines[1].split() == [
        *("SOURCE", "DESTINATION", "L3", "L4", "SERVICE", "PORT", "CONNECTIONS", "SENT", "REPLY"),
    ]
    assert lines[2].split()[:7] == ["10.77.1.2", "10.77.2.2", "ipv4", "tcp", "unknown", "8002", "2"]
    assert lines[4] == "and 81 more"
    assert "\x1b" not in done.stdout


def test_the_limit_chooses_the_order_and_folds_nothing() -> None:
    done = run("top", SAMPLE, "--aggregate.by=l4protocol,dport", "--limit.by=connections")
    counts = [int(line.split()[2]) for line in done.stdout.splitlines()[2:-1]]
    assert counts == sorted(counts, reverse=True)
    assert counts[0] > counts[-1]
    folded = run("top", SAMPLE, "--limit.keys=1", "-n", "3")
    assert folded.stderr == ""
    assert folded.stdout.splitlines()[2:] == run("top", SAMPLE, "-n", "3").stdout.splitlines()[2:]


def test_a_note_is_logged_once_and_a_bounded_number_is_kept() -> None:
    known: list[str] = []
    for n in range(1000):
        new = [f"network namespace n{n}: gone"] + ["no events"] * (n == 0)
        assert top.unlogged([f"network namespace n{n}: gone", "no events"], known) == new
    assert len(known) == 100
    assert top.unlogged([], known) == []
    assert top.unlogged(["no events"], known) == []  # it came back


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


def test_watch_goes_on_until_it_is_interrupted_without_rates_of_the_proc_file() -> None:
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
        _, err = process.communicate(timeout=30)
        assert process.returncode == 130
        assert err.count("\n") == err.count("no rates: the proc file has no identity") == 1
        assert "/s" not in text
        assert text.count("   live connections only: no rates\n") == 2
    finally:
        process.kill()
        process.wait()


def test_watch_ends_when_nobody_reads_any_more() -> None:
    argv = [*COMMAND, "top", "--watch", "--collector.interval=0.1", SAMPLE]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.stdout.close()
        assert process.wait(30) == 0


def test_hosts_have_their_names(tmp_path: Path) -> None:
    file = tmp_path / "hosts"
    file.write_text("10.77.1.2 laptop\nfd77:1::2 laptop\n")
    done = run("top", SAMPLE, f"--hosts.file={file}", "--aggregate.by=src")
    assert (done.returncode, done.stderr) == (0, "")
    assert {"laptop (10.77.1.2)", "laptop (fd77:1::2)"} <= {
        line.partition("  ")[0] for line in done.stdout.splitlines()
    }
