"""Completion in real shells, on a pseudo-terminal."""

from __future__ import annotations

import contextlib
import os
import pty
import re
import select
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from conntrack_textfile.options import described
from tests.conftest import need
from tests.netns import namespaces

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parent.parent
COMPLETION = ROOT / "completion"
COMMANDS = ("write", "serve", "top", "check")


def made() -> dict[str, Any]:
    code = compile((COMPLETION / "make.py").read_text(), "make.py", "exec")
    names: dict[str, Any] = {"__name__": "make"}
    exec(code, names)
    return names


def test_the_shipped_files_are_up_to_date() -> None:
    files = made()["FILES"]
    assert {file.name for file in COMPLETION.iterdir() if file.suffix != ".py"} - {
        "__pycache__"
    } == set(files)
    for name, make in files.items():
        assert (COMPLETION / name).read_text() == make()  # else: make completion


def test_every_option_is_in_every_shell() -> None:
    for command in COMMANDS:
        for option in described(command):
            for name in option.names:
                plain = name.lstrip("-")
                flag = "-l" if name.startswith("--") else "-s"
                assert re.search(rf"[' ]{name}[=' ]", (COMPLETION / f"{PROGRAM}.bash").read_text())
                assert re.search(rf"'\*?{name}[=\[]", (COMPLETION / f"_{PROGRAM}").read_text())
                assert f" {flag} {plain} " in (COMPLETION / f"{PROGRAM}.fish").read_text()


def test_completed_values_are_those_that_are_accepted() -> None:
    names = made()
    found = {row.names[-1]: names["choices"]("check", row) for row in described("check")}
    assert found["--collector.source"] == (["auto", "procfs", "netlink"], False)
    assert found["--collector.families"] == (["live", "traffic"], True)
    assert found["--limit.by"] == (["bytes", "packets", "connections"], False)
    assert found["--limit.keys"] == ([], False)
    assert found["--version"] == ([], False)


PROGRAM = "conntrack-textfile"


class Shell:
    """A shell on a pseudo-terminal, in which the command prints its arguments."""

    def __init__(self, process: subprocess.Popen[bytes], terminal: int) -> None:
        self.process = process
        self._terminal = terminal
        self._text = ""

    def send(self, text: str) -> None:
        os.write(self._terminal, text.encode())

    def wait(self, pattern: str, seconds: float = 60) -> re.Match[str]:
        """Wait for a pattern in the output since the last match."""
        end = time.monotonic() + seconds
        while True:
            found = re.search(pattern, self._text)
            if found:
                self._text = self._text[found.end() :]
                return found
            assert time.monotonic() < end, f"no {pattern!r} on the terminal: {self._text!r}"
            if select.select([self._terminal], [], [], 0.1)[0]:
                with contextlib.suppress(OSError):
                    self._text += os.read(self._terminal, 65536).decode(errors="replace")

    def arguments(self, line: str) -> list[str]:
        """Type a line with tabs. Return the arguments that the command got."""
        first, *rest = line.split("\t")
        self.send(first)
        for text in rest:
            self.send("\t")
            # The shell must have completed before more is typed: it echoes a mark after that.
            self.send("@")
            self.wait("@")
            self.send("\x7f")
            self.send(text)
        self.send("\r")
        return self.wait(r"GOT((?:<[^<>]*>)*)END")[1].strip("<>").split("><")


@contextlib.contextmanager
def terminal(argv: list[str], place: Path, setup: str) -> Iterator[Shell]:
    master, slave = pty.openpty()
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(place),
        "XDG_CONFIG_HOME": str(place),
        "TERM": "dumb",
        "LC_ALL": "C.UTF-8",
    }
    process = subprocess.Popen(
        argv, stdin=slave, stdout=slave, stderr=slave, cwd=place, env=environment,
        start_new_session=True,
    )  # fmt: skip
    os.close(slave)
    try:
        shell = Shell(process, master)
        shell.send(f"{setup}; echo RE''ADY\r")
        shell.wait("READY")
        yield shell
    finally:
        process.kill()
        process.wait(30)
        os.close(master)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    (tmp_path / "networks.txt").touch()
    (tmp_path / "folder").mkdir()
    return tmp_path


BY = "--limit.by=connections"
SHELLS = {
    "bash": (
        ["bash", "--norc", "--noprofile", "-i"],
        f"source {COMPLETION}/{PROGRAM}.bash; "
        f"{PROGRAM}() {{ printf 'GO''T'; printf '<%s>' \"$@\"; echo END; }}",
    ),
    "zsh": (
        ["zsh", "-f", "-i"],
        f"fpath=({COMPLETION} $fpath); autoload -U compinit; compinit -u -D; "
        f"{PROGRAM}() {{ printf 'GO''T'; printf '<%s>' \"$@\"; echo END; }}",
    ),
}


@pytest.mark.parametrize("name", SHELLS)
def test_a_tab_completes(name: str, place: Path) -> None:
    need(name)
    argv, setup = SHELLS[name]
    with terminal(argv, place, setup) as shell:
        for line, expected in (
            ("wr\t", ["write"]),
            ("chec\t", ["check"]),
            ("write --collector.so\tnetl\t", ["write", "--collector.source=netlink"]),
            ("write --collector.source pro\t", ["write", "--collector.source", "procfs"]),
            ("top --aggregate.by=src,l7\t", ["top", "--aggregate.by=src,l7protocol"]),
            ("serve --web.sys\t", ["serve", "--web.systemd-socket"]),
            ("serve --networks.f\tnet\t", ["serve", "--networks.file=networks.txt"]),
            ("write netw\t", ["write", "networks.txt"]),
            ("top --watc\t-n 5 --limit.by=conn\t", ["top", "--watch", "-n", "5", BY]),
            ("write --watc\t", ["write", "--watc"]),
        ):
            # In a list zsh adds a comma, and takes it away where no word follows.
            found = [word.rstrip(",") for word in shell.arguments(f"{PROGRAM} {line}")]
            assert found == expected, line


@pytest.mark.parametrize("name", SHELLS)
def test_a_tab_completes_network_namespaces(name: str, place: Path) -> None:
    need(name, "ip", root=True)
    argv, setup = SHELLS[name]
    with namespaces("tab") as (space,), terminal(argv, place, setup) as shell:
        for line, expected in (
            (f"write --netns={space[:-3]}\t", ["write", f"--netns={space}"]),
            ("write --netns=ho\t", ["write", "--netns=host"]),
            (f"check --netns {space[:-3]}\t", ["check", "--netns", space]),
        ):
            assert shell.arguments(f"{PROGRAM} {line}") == expected, line


def fish(line: str, place: Path) -> list[str]:
    """Return the completions of a line in fish."""
    setup = f"source {COMPLETION}/{PROGRAM}.fish; complete -C '{PROGRAM} {line}'"
    done = subprocess.run(
        ["fish", "--no-config", "-c", setup],
        cwd=place,
        env={**os.environ, "HOME": str(place), "LC_ALL": "C.UTF-8"},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stderr == ""
    return [word.partition("\t")[0] for word in done.stdout.splitlines()]


def test_fish_completes(place: Path) -> None:
    need("fish")
    assert set(COMMANDS) <= set(fish("", place))
    assert {word.rstrip("=") for word in fish("write --collector.so", place)} == {
        "--collector.source"
    }
    assert set(fish("write --collector.source=", place)) == {
        f"--collector.source={word}" for word in ("auto", "netlink", "procfs")
    }
    assert fish("top --aggregate.by=src,l7", place) == ["--aggregate.by=src,l7protocol"]
    assert fish("serve --web.sys", place) == ["--web.systemd-socket"]
    assert fish("serve --networks.file=net", place) == ["--networks.file=networks.txt"]
    assert fish("write netw", place) == ["networks.txt"]
    assert fish("serve netw", place) == []
    assert fish("write --watc", place) == []
    assert fish("top --watc", place) == ["--watch"]


def test_fish_completes_network_namespaces(place: Path) -> None:
    need("fish", "ip", root=True)
    with namespaces("tab") as (space,):
        assert fish(f"top --netns={space[:-3]}", place) == [f"--netns={space}"]
        assert fish("top --netns=ho", place) == ["--netns=host"]
