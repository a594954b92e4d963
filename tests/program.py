"""Programs as processes: the command, and the programs that tests run beside it."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING

from tests.waiting import until

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

COMMAND = [sys.executable, "-W", "error", "-m", "conntrack_textfile"]


def run(
    *args: str, prefix: Sequence[str] = (), timeout: float = 60
) -> subprocess.CompletedProcess[str]:
    """Run the command to its end.

    prefix: a command that runs another, such as ("ip", "netns", "exec", NAME).
    """
    return subprocess.run(
        [*prefix, *COMMAND, *args], capture_output=True, text=True, timeout=timeout, check=False
    )


class Serving:
    """A running serve: its process, its port, and its log."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.lines: list[str] = []
        self._reader = threading.Thread(target=self._collect, daemon=True)
        self._reader.start()
        self.port = int(self.wait_for_log(r"listening on \S*:(\d+)")[1])

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def log(self) -> str:
        return "".join(self.lines)

    def wait_for_log(self, pattern: str) -> re.Match[str]:
        """Wait for a line of the log; return the first match of the pattern."""

        def match() -> re.Match[str]:
            found = re.search(pattern, self.log)
            assert found, f"no {pattern!r} in the log:\n{self.log}"
            return found

        line: re.Match[str] = until(match)
        return line

    def stop(self) -> str:
        """End serve by SIGTERM; return its whole log."""
        self.process.terminate()
        assert self.process.wait(60) == 0
        self._reader.join()
        return self.log

    def _collect(self) -> None:
        assert self.process.stderr is not None
        with contextlib.suppress(ValueError):  # closed at the end
            for line in self.process.stderr:
                self.lines.append(line)


@contextlib.contextmanager
def serving(*args: str, prefix: Sequence[str] = ()) -> Iterator[Serving]:
    """Run serve on a port of loopback that the kernel chooses; kill it afterwards."""
    argv = [*prefix, *COMMAND, "serve", *args]
    if not any(arg.startswith("--web.listen-address") for arg in args):
        argv.append("--web.listen-address=127.0.0.1:0")
    process = subprocess.Popen(argv, stderr=subprocess.PIPE, text=True)
    try:
        yield Serving(process)
    finally:
        process.kill()
        process.wait(10)
        assert process.stderr is not None
        process.stderr.close()


@contextlib.contextmanager
def running(
    *argv: str, log: Path | None = None, fds: tuple[int, ...] = ()
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a program, with its output in a log; end it by SIGTERM afterwards."""
    with open(log or os.devnull, "wb") as out:
        process = subprocess.Popen(argv, stdout=out, stderr=out, pass_fds=fds)
        try:
            yield process
        finally:
            process.terminate()
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
                raise


def listen_address(process: subprocess.Popen[bytes]) -> str:
    """Return the address on which a program listens once it does.

    A program that is started with port 0 gets one from the kernel. A port that the test
    chose could be taken by another process before the program binds it.
    """

    def address() -> str:
        assert process.poll() is None, f"{process.args!r} ended with {process.returncode}"
        where = Path(f"/proc/{process.pid}")
        opened = set()
        for descriptor in (where / "fd").iterdir():
            with contextlib.suppress(FileNotFoundError):  # closed meanwhile
                opened.add(os.readlink(descriptor))
        for line in (where / "net/tcp").read_text().splitlines()[1:]:
            local, state, inode = (line.split()[at] for at in (1, 3, 9))
            if state == "0A" and f"socket:[{inode}]" in opened:  # TCP_LISTEN
                return f"127.0.0.1:{int(local.partition(':')[2], 16)}"
        return ""

    return str(until(address))
