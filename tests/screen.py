"""A program on a pseudoterminal, which a test types into and reads."""

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
from typing import TYPE_CHECKING, Any

from tests.waiting import until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

# A shell with job control that does not change the mode of the terminal. It prints the exit
# status of the program, or 148 and 147 when SIGTSTP or SIGSTOP stopped it; then it waits
# for Enter to continue the program.
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
        """All output so far."""
        return self._bytes.decode(errors="replace")

    @property
    def frames(self) -> list[list[str]]:
        """The lines of each complete frame: from cursor home to the clearing of the rest."""
        found = re.findall(r"\x1b\[H(.*?)\x1b\[J", self.text, re.DOTALL)
        return [one.replace("\x1b[K", "").split("\r\n") for one in found]

    def type(self, keys: str) -> None:
        os.write(self.leader, keys.encode())

    def resize(self, columns: int, lines: int) -> None:
        fcntl.ioctl(self.leader, termios.TIOCSWINSZ, struct.pack("=4H", lines, columns, 0, 0))

    def mode(self) -> list[Any]:
        """Return the mode of the terminal (termios(3))."""
        return list(termios.tcgetattr(self.leader))

    def wait_for(self, what: Callable[[list[str]], object]) -> list[str]:
        """Return the first frame that meets a condition: the current one or a later one."""
        seen = max(0, len(self.frames) - 1)

        def found() -> list[str] | None:
            return next((frame for frame in self.frames[seen:] if what(frame)), None)

        try:
            frame: list[str] = until(found)
        except AssertionError as error:
            raise AssertionError(f"{error}; the screen:\n{self.text[-2000:]}") from None
        return frame

    def wait_for_frames(self, number: int) -> None:
        """Wait for n frames since the start."""
        until(lambda: len(self.frames) >= number)

    def pid(self) -> int:
        """Return the PID of the program."""
        at = self.wait_for_text("pid=")
        self.wait_for_text("\n", at)
        return int(self.text[at:].split()[0])

    def wait_for_status(self, after: int = 0) -> int:
        """Return the next status that the shell prints."""
        at = self.wait_for_text("status=", after)
        self.wait_for_text("\n", at)
        return int(self.text[at:].split()[0])

    def wait_for_text(self, text: str, after: int = 0) -> int:
        """Wait for a text after a position of the output; return the position of its end."""

        def end() -> int:
            at = self.text.find(text, after)
            assert at >= 0, f"no {text!r} in {self.text[after:][-2000:]!r}"
            return at + len(text)

        return int(until(end))

    def close(self) -> None:
        """Close the terminal: SIGHUP for the program and its shell."""
        self._closed = True
        self._thread.join()
        os.close(self.leader)

    def _collect(self) -> None:
        with contextlib.suppress(OSError):  # EIO: no process has the other end
            while not self._closed:
                if select.select([self.leader], [], [], 0.05)[0]:
                    self._bytes += os.read(self.leader, 65536)


@contextlib.contextmanager
def screen(
    argv: Sequence[str], size: tuple[int, int] = (80, 24), **environ: str
) -> Iterator[Screen]:
    """Run a program on a terminal; size is columns and lines."""
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
