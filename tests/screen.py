"""A program on a terminal of its own: a pseudoterminal that tests type into and look at."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import termios
import threading
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

SECONDS = 60  # that something may take on a busy machine

# A shell with job control that leaves the mode of the terminal alone. It says how the
# program ended or that it was stopped (by SIGTSTP 148, by
# SIGSTOP 147), and then waits for Enter to continue it.
SHELL = """
set -m
sh -c 'echo "pid=$$"; exec "$@"' sh "$@"
status=$?
while echo "status=$status"; [ $status = 148 ] || [ $status = 147 ]; do
    read -r _
    fg >/dev/null
    status=$?
done
read -r _
"""


class Screen:
    """The terminal of a program under a shell."""

    def __init__(self, leader: int) -> None:
        self.leader = leader
        self._bytes = b""
        self._closed = False
        self._thread = threading.Thread(target=self._collect)
        self._thread.start()

    @property
    def text(self) -> str:
        """All that was written."""
        return self._bytes.decode(errors="replace")

    @property
    def frames(self) -> list[list[str]]:
        """The lines of each frame, from home to where the rest is cleared, that is whole."""
        found = re.findall(r"\x1b\[H(.*?)\x1b\[J", self.text, re.DOTALL)
        return [one.replace("\x1b[K", "").split("\r\n") for one in found]

    def type(self, keys: str) -> None:
        os.write(self.leader, keys.encode())

    def resize(self, columns: int, lines: int) -> None:
        fcntl.ioctl(self.leader, termios.TIOCSWINSZ, struct.pack("=4H", lines, columns, 0, 0))

    def mode(self) -> list[Any]:
        """How the terminal treats keys."""
        return list(termios.tcgetattr(self.leader))

    def wait_for(self, what: Callable[[list[str]], object]) -> list[str]:
        """The first frame from now on, or the last there is, of which something is true."""
        seen = max(0, len(self.frames) - 1)
        end = time.monotonic() + SECONDS
        while time.monotonic() < end:
            for frame in self.frames[seen:]:
                if what(frame):
                    return frame
            time.sleep(0.02)
        raise AssertionError(f"not seen in {SECONDS} s, at last:\n" + self.text[-2000:])

    def wait_for_frames(self, number: int) -> None:
        """Until there are so many."""
        end = time.monotonic() + SECONDS
        while len(self.frames) < number:
            assert time.monotonic() < end, f"not {number} frames in {SECONDS} s"
            time.sleep(0.02)

    def pid(self) -> int:
        """The process of the program."""
        at = self.wait_for_text("pid=")
        self.wait_for_text("\n", at)
        return int(self.text[at:].split()[0])

    def wait_for_status(self, after: int = 0) -> int:
        """The exit status, as the shell has it."""
        at = self.wait_for_text("status=", after)
        self.wait_for_text("\n", at)
        return int(self.text[at:].split()[0])

    def wait_for_text(self, text: str, after: int = 0) -> int:
        """Where a text ends that was written after a place."""
        end = time.monotonic() + SECONDS
        while time.monotonic() < end:
            at = self.text.find(text, after)
            if at >= 0:
                return at + len(text)
            time.sleep(0.02)
        raise AssertionError(f"no {text!r} in {self.text[after:][-2000:]!r}")

    def close(self) -> None:
        """Hang up, on the program and on its shell."""
        self._closed = True
        self._thread.join()
        os.close(self.leader)

    def _collect(self) -> None:
        with contextlib.suppress(OSError):  # when nobody has the other end
            while not self._closed:
                if select.select([self.leader], [], [], 0.05)[0]:
                    self._bytes += os.read(self.leader, 65536)


@contextlib.contextmanager
def screen(
    argv: Sequence[str], size: tuple[int, int] = (80, 24), **environ: str
) -> Iterator[Screen]:
    """Run a program on a terminal of so many columns and lines."""
    leader, follower = pty.openpty()
    shown = Screen(leader)
    shown.resize(*size)
    process = subprocess.Popen(
        ["setsid", "--ctty", "env", "--default-signal", "sh", "-c", SHELL, "sh", *argv],
        stdin=follower,
        stdout=follower,
        stderr=follower,
        env={**os.environ, "TERM": "xterm", **environ},
    )
    os.close(follower)
    try:
        yield shown
    finally:
        shown.close()
        process.kill()
        process.wait()
