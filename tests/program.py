"""The command, run as its users run it: as a process of its own."""

from __future__ import annotations

import contextlib
import re
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

COMMAND = [sys.executable, "-W", "error", "-m", "conntrack_textfile"]


def run(
    *args: str, prefix: Sequence[str] = (), timeout: float = 60
) -> subprocess.CompletedProcess[str]:
    """Run the command to its end. A prefix such as ("ip", "netns", "exec", NAME) runs it there."""
    return subprocess.run(
        [*prefix, *COMMAND, *args], capture_output=True, text=True, timeout=timeout, check=False
    )


class Serving:
    """A running serve: its process, the port it took, and what it logged."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.lines: list[str] = []
        threading.Thread(target=self._collect, daemon=True).start()
        self.port = int(self.wait_for_log(r"listening on \S*:(\d+)")[1])

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def log(self) -> str:
        return "".join(self.lines)

    def wait_for_log(self, pattern: str, seconds: float = 15) -> re.Match[str]:
        """The first match of a pattern in the log, which may still have to come."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if found := re.search(pattern, self.log):
                return found
            time.sleep(0.02)
        raise AssertionError(f"no {pattern!r} in the log:\n{self.log}")

    def _collect(self) -> None:
        assert self.process.stderr is not None
        with contextlib.suppress(ValueError):  # closed at the end
            for line in self.process.stderr:
                self.lines.append(line)


@contextlib.contextmanager
def serving(*args: str, prefix: Sequence[str] = ()) -> Iterator[Serving]:
    """Run serve on a port of loopback that the kernel chooses, and end it afterwards."""
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
