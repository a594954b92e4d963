"""The view on a real terminal: its keys, its size, and that it is left as it was."""

from __future__ import annotations

import os
import re
import signal
import sys
import termios
import time
from typing import TYPE_CHECKING

import pytest

from conntrack_textfile import columns
from conntrack_textfile.terminal import Terminal
from conntrack_textfile.top import LABEL_KEYS
from tests.builders import Flow, proc_root, table
from tests.conftest import DATA
from tests.program import COMMAND
from tests.screen import screen
from tests.waiting import until

if TYPE_CHECKING:
    from pathlib import Path

SAMPLE = f"--path.procfs={DATA / 'kernel-6.18'}"
TOP = [*COMMAND, "top", "--watch", "--collector.interval=0.2", SAMPLE]

KEY = {label: key for key, label in LABEL_KEYS.items()}

ENTERED, LEFT = "\x1b[?1049h\x1b[?25l", "\x1b[?25h\x1b[?1049l"


def head(frame: list[str]) -> list[str]:
    """The heads of the columns, on the first line that has any."""
    return next((re.split("  +", line) for line in frame if re.search(r" (SENT|LIVE)\b", line)), [])


def test_keys_sort_and_choose_labels() -> None:
    with screen(TOP) as shown:
        assert "by bytes" in " ".join(shown.wait_for(lambda frame: "SOURCE" in head(frame)))
        shown.type("c")
        shown.wait_for(lambda frame: "by connections" in " ".join(frame))
        shown.type(KEY["src"] + KEY["dst"])
        frame = shown.wait_for(lambda frame: head(frame) and head(frame)[0] == "L3")
        assert head(frame)[:4] == ["L3", "L4", "SERVICE", "PORT"]
        row = frame[frame.index(next(line for line in frame if line.startswith("L3 "))) + 1]
        assert row.split()[0] in ("ipv4", "ipv6")
        shown.type(KEY["src"])
        shown.wait_for(lambda frame: head(frame) and head(frame)[0] == "SOURCE")
        # What arrow and function keys send is none of these keys.
        shown.type("\x1b[A\x1b[1;5C\x1bOP\x1b[15~")
        shown.type("?")
        frame = shown.wait_for(lambda frame: frame[-1].startswith("Any key"))
        assert [line for line in frame if "[x] src" in line]
        assert [line for line in frame if "[ ] dst" in line]
        shown.type("x")
        shown.wait_for(lambda frame: "SOURCE" in head(frame))


def test_a_filter_is_typed_and_a_wrong_one_ends_nothing() -> None:
    with screen([*TOP, "--filter.include=l4protocol=tcp"], (200, 40)) as shown:
        shown.wait_for(lambda frame: "tcp" in " ".join(frame))
        shown.type("/dport=1-x\n")
        shown.wait_for(lambda frame: "ports are N or N-M" in frame[-2])
        shown.type("\x7f\x7f\x7f8002\n")
        frame = shown.wait_for(lambda frame: "filter dport=8002" in frame[0])
        at = head(frame).index("PORT")
        rows = [re.split("  +", line) for line in frame if re.search("tcp|udp", line)]
        assert rows
        assert {re.split(" +", " ".join(row))[at] for row in rows} == {"8002"}
        shown.type("/\x15\n")  # and those of the command line again
        frame = shown.wait_for(lambda frame: "filter" not in frame[0] and "tcp" in " ".join(frame))
        assert " udp " not in " ".join(frame)


def test_space_pauses(tmp_path: Path) -> None:
    root = proc_root(tmp_path, table({Flow("10.0.0.1", "10.0.0.2"): (1, 1, 1, 1, 1)}))
    with screen([*TOP[:-1], f"--path.procfs={root}"]) as shown:
        shown.wait_for(lambda frame: "1 connections" in " ".join(frame))
        shown.type(" ")
        shown.wait_for(lambda frame: "PAUSED" in " ".join(frame))
        rows = table({Flow("10.0.0.1", "10.0.0.2"): (3, 1, 1, 1, 1)})
        (root / "net" / "nf_conntrack").write_bytes(rows)
        # Five intervals and more.
        shown.wait_for_frames(len(shown.frames) + 5)
        assert "1 connections" in " ".join(shown.frames[-1])
        shown.type(" ")
        shown.wait_for(lambda frame: "3 connections" in " ".join(frame))


def test_a_reading_that_fails_is_said_and_another_follows(tmp_path: Path) -> None:
    good = table({Flow("10.0.0.1", "10.0.0.2"): (1, 1, 1, 1, 1)})
    root = proc_root(tmp_path, good)
    with screen([*TOP[:-1], f"--path.procfs={root}"]) as shown:
        shown.wait_for(lambda frame: "10.0.0.1" in " ".join(frame))
        file = root / "net" / "nf_conntrack"
        file.rename(root / "gone")
        frame = shown.wait_for(lambda frame: "there is no" in " ".join(frame))
        assert "10.0.0.1" in " ".join(frame)
        (root / "gone").rename(file)
        shown.wait_for(lambda frame: "there is no" not in " ".join(frame))


@pytest.mark.parametrize("size", [(60, 24), (80, 24), (200, 50), (50, 9)])
def test_it_is_drawn_anew_in_another_size(size: tuple[int, int]) -> None:
    with screen([*TOP[:-2], "--collector.interval=900", SAMPLE], (100, 30)) as shown:
        shown.wait_for(lambda frame: len(frame) == 30)
        time.sleep(1.5)  # the second snapshot is early, and none is due now
        shown.resize(*size)
        frame = shown.wait_for(lambda frame: len(frame) == size[1])
        assert max(map(columns.width, frame)) <= size[0] - 1
        (at,) = [at for at, line in enumerate(frame) if line.startswith("SOURCE")]
        assert frame[at + 1].endswith("  19.5 MiB  19.1 MiB")


@pytest.mark.parametrize(
    ("charset", "name", "cut"),
    [("C.UTF-8", "gr\xfcn", "…"), ("C", "gr?n", "~"), ("POSIX", "gr?n", "~")],
)
def test_text_is_in_the_charset_of_the_locale(
    charset: str, name: str, cut: str, tmp_path: Path
) -> None:
    names = tmp_path / "names"
    names.write_text("10.77.1.2 gr\xfcn\n")
    with screen([*TOP, f"--networks.file={names}"], (50, 24), LC_ALL=charset) as shown:
        frame = shown.wait_for(lambda frame: "SOURCE" in head(frame))
        rows = " ".join(line for line in frame if " MiB" in line)
        assert name in rows
        assert cut in rows


WAYS = {"q": 0, "\x03": 130, "\x1c": 131, "TERM": 143, "HUP": 129, "INT": 130}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("keys", ["", "/src=", "?"])
def test_the_terminal_is_left_as_it_was(way: str, keys: str) -> None:
    if way == "q" and keys.startswith("/"):
        keys = "/src=\x1b"
    with screen(TOP) as shown:
        before = shown.mode()
        pid = shown.pid()
        shown.wait_for(lambda frame: "SOURCE" in head(frame))
        assert shown.mode() != before
        if keys:
            shown.type(keys)
            last = "src=_" if keys == "/src=" else "Any key" if keys == "?" else "bpc sort"
            shown.wait_for(lambda frame: last in " ".join(frame[-3:]))
        if len(way) == 1:
            shown.type(way)
        else:
            os.kill(pid, getattr(signal, f"SIG{way}"))
        assert shown.wait_for_status() == WAYS[way]
        assert shown.mode() == before
        assert shown.text.count(ENTERED) == 1
        after = shown.text.partition(ENTERED)[2]
        # Nothing after it but what the shell says.
        assert re.fullmatch(
            r"(\^C|\^\\|Terminated|Hangup|Quit|\(core dumped\)|\s)*status=\d+\s*",
            after.partition(LEFT)[2],
        )


def test_the_terminal_is_left_as_it_was_by_a_fault() -> None:
    program = """
from conntrack_textfile import terminal
with terminal.opened() as screen:
    screen.draw(["x"])
    raise ValueError("a fault")
"""
    with screen([sys.executable, "-W", "error", "-c", program]) as shown:
        before = shown.mode()
        assert shown.wait_for_status() == 1
        assert shown.mode() == before
        assert "ValueError: a fault" in shown.text.partition(LEFT)[2]


def test_it_can_be_stopped_and_goes_on() -> None:
    with screen(TOP) as shown:
        before = shown.mode()
        shown.wait_for(lambda frame: "SOURCE" in head(frame))
        at = 0
        for times in (1, 2):
            inside = shown.mode()
            shown.type("\x1a")
            assert shown.wait_for_status(at) == 148
            at = shown.wait_for_text("status=148", at)
            assert shown.mode() == before
            assert shown.text.count(LEFT) == times
            shown.resize(80 + times, 24)
            shown.type("\n")
            shown.wait_for_text(ENTERED, at)
            shown.type("c" if times == 1 else "p")
            shown.wait_for_text("by connections" if times == 1 else "by packets", at)
            assert shown.mode() == inside
        shown.type("q")
        assert shown.wait_for_status(at) == 0
        assert shown.mode() == before


def test_it_can_be_ended_while_it_is_stopped() -> None:
    with screen(TOP) as shown:
        before, pid = shown.mode(), shown.pid()
        shown.wait_for(lambda frame: "SOURCE" in head(frame))
        shown.type("\x1a")
        assert shown.wait_for_status() == 148
        at = shown.wait_for_text("status=148")
        # As a shell's kill does. It must not ask for the terminal, which is the shell's.
        os.kill(pid, signal.SIGTERM)
        os.kill(pid, signal.SIGCONT)
        until(lambda: f"({pid}) Z" in state(pid))
        assert shown.mode() == before
        assert ENTERED not in shown.text[at:]


def state(pid: int) -> str:
    """A process and its state, as "(pid) S"; a zombie until its shell looks."""
    with open(f"/proc/{pid}/stat", encoding="ascii", errors="replace") as file:
        return f"({pid}) {file.read().rpartition(') ')[2][0]}"


def test_it_goes_on_after_a_stop_that_nobody_sees_coming() -> None:
    with screen(TOP) as shown:
        before, pid = shown.mode(), shown.pid()
        shown.wait_for(lambda frame: "SOURCE" in head(frame))
        inside = shown.mode()
        os.kill(pid, signal.SIGSTOP)
        assert shown.wait_for_status() == 147
        at = shown.wait_for_text("status=147")
        termios.tcsetattr(shown.leader, termios.TCSANOW, before)  # as some shells do
        shown.type("\n")
        shown.wait_for_text(ENTERED, at)
        shown.type("c")
        shown.wait_for_text("by connections", at)
        assert shown.mode() == inside
        shown.type("q")
        assert shown.wait_for_status(at) == 0
        assert shown.mode() == before


def test_it_ends_when_its_terminal_is_gone() -> None:
    with screen(TOP) as shown:
        pid = shown.pid()
        shown.wait_for(lambda frame: "SOURCE" in head(frame))
    until(lambda: not os.path.exists(f"/proc/{pid}"))


def test_without_a_terminal_for_keys_it_is_shown_all_the_same() -> None:
    argv = ["sh", "-c", 'exec "$@" </dev/null', "sh", *TOP]
    with screen(argv) as shown:
        before = shown.mode()
        frames = len(shown.frames)
        shown.wait_for(lambda frame: "SOURCE" in head(frame))
        shown.wait_for_frames(frames + 3)
        shown.type("\x03")
        assert shown.wait_for_status() == 130
        assert shown.mode() == before


def test_a_dumb_terminal_gets_plain_text() -> None:
    with screen(TOP, TERM="dumb") as shown:
        shown.wait_for_text("and 63 more")
        assert "\x1b" not in shown.text


def test_output_that_is_no_terminal_is_plain() -> None:
    with screen(["sh", "-c", '"$@" | cat', "sh", *TOP, "-n", "1"]) as shown:
        at = shown.wait_for_text("and 82 more")
        shown.wait_for_text("and 82 more", at)
        assert "\x1b" not in shown.text


@pytest.mark.parametrize(
    ("pieces", "keys"),
    [
        ([b"bq"], ["b", "q"]),
        ([b"\x1b"], ["\x1b"]),
        ([b"\x1b[A\x1bOB2"], ["2"]),
        ([b"\x1b[1;5", b"Cx"], ["x"]),
        ([b"\x1b[", b"15~", b"y"], ["y"]),
        (["ä路".encode()], ["ä", "路"]),
        ([b"\xff\xfeq"], ["q"]),
        ([b"\r\n\x7f"], ["\r", "\n", "\x7f"]),
    ],
)
def test_bytes_are_keys(pieces: list[bytes], keys: list[str]) -> None:
    terminal = Terminal()
    try:
        assert [key for piece in pieces for key in terminal._split(piece)] == keys
    finally:
        terminal.close()


def test_what_is_logged_meanwhile_comes_after_it(tmp_path: Path) -> None:
    names = tmp_path / "networks"
    names.write_text("10.0.0.0/8 lan\n")
    with screen([*TOP, f"--networks.file={names}"]) as shown:
        shown.wait_for(lambda frame: "lan" in " ".join(frame))
        names.write_text("10.0.0.0/8 lan\nwrong\n")
        shown.wait_for(lambda frame: "going on with what was read before" in " ".join(frame))
        shown.type("q")
        assert shown.wait_for_status() == 0
        inside, _, after = shown.text.partition(LEFT)
        assert "level=error" not in inside
        assert "level=error" in after
        assert "going on with what was read before" in after
