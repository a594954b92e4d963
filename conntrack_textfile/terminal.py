"""The terminal: key input, output of frames, and its mode, which is restored on every exit.

Mode and screen are restored at the end, also on a signal, and before a stop (Ctrl-Z),
and set again after it. Signals interrupt the wait for keys.
"""

from __future__ import annotations

import contextlib
import errno
import locale
import os
import re
import select
import signal
import socket
import termios
from typing import TYPE_CHECKING, Any

from conntrack_textfile import columns, textfile

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import FrameType

    _Handler = Callable[[int, FrameType | None], object] | int | None

STDIN, STDOUT = 0, textfile.STDOUT

# xterm control sequences, which all terminals implement: alternate screen and cursor.
_ENTER = b"\x1b[?1049h\x1b[?25l"
_LEAVE = b"\x1b[?25h\x1b[?1049l"
_KEY = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|O.)|.", re.DOTALL)
_BEGINNING = re.compile(r"\x1b(?:\[[0-?]*[ -/]*|O)$")  # an incomplete escape sequence

_DEFAULT_SIZE = 80, 24

_FATAL = (signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)


class _Ended(BaseException):
    """A fatal signal arrived."""

    def __init__(self, number: int) -> None:
        self.number = number


def is_usable() -> bool:
    """Whether standard output is a terminal that can move the cursor."""
    return os.isatty(STDOUT) and os.environ.get("TERM") != "dumb"


@contextlib.contextmanager
def opened() -> Iterator[Terminal]:
    """Set up the terminal, and restore it at the end. A fatal signal then kills the process."""
    before: dict[signal.Signals, _Handler] = {}
    terminal = Terminal()
    ended = 0
    try:
        for number, handler in terminal.handlers().items():
            old = signal.getsignal(number)
            if old not in (signal.SIG_IGN, None):  # by nohup, or a shell without job control
                before[number] = old
                signal.signal(number, handler)
        terminal.enter()
        yield terminal
    except _Ended as error:
        ended = error.number
    finally:
        try:
            # A second signal must not interrupt the restoration.
            for number in before:
                signal.signal(number, signal.SIG_IGN)
        finally:
            terminal.leave()
            terminal.close()
        for number, old in before.items():
            signal.signal(number, old)
        if ended:
            signal.signal(ended, signal.SIG_DFL)
            signal.raise_signal(ended)


class Terminal:
    """Standard input and output. Without a terminal as input there are no keys."""

    def __init__(self) -> None:
        self._keys = STDIN if os.isatty(STDIN) else None
        self._mode = termios.tcgetattr(STDIN) if self._keys is not None else None
        self._entered = self._stopped = False
        self._partly = b""  # the beginning of an escape sequence
        self._woken, waker = socket.socketpair()
        self._waker = waker
        for end in (self._woken, waker):
            end.settimeout(0)
        self._old_waker = signal.set_wakeup_fd(waker.fileno(), warn_on_full_buffer=False)

    def handlers(self) -> dict[signal.Signals, _Handler]:
        """Return the signal handlers. SIGWINCH only interrupts the wait for keys."""
        return {
            signal.SIGINT: signal.default_int_handler,
            **dict.fromkeys(_FATAL, self._end),
            signal.SIGWINCH: lambda *_: None,
            signal.SIGTSTP: self._stop,
            signal.SIGCONT: self._continue,
        }

    def size(self) -> tuple[int, int]:
        """Return columns and lines, 80 and 24 where they are unknown."""
        try:
            size = os.get_terminal_size(STDOUT)
        except OSError:
            return _DEFAULT_SIZE
        return size.columns or _DEFAULT_SIZE[0], size.lines or _DEFAULT_SIZE[1]

    def draw(self, lines: list[str]) -> bool:
        """Draw a frame over the last one. Return False once the terminal is gone."""
        if self._stopped:
            self.enter()
        text = "\n".join(f"{line}\x1b[K" for line in lines)
        return textfile.stream([_encoded(f"\x1b[H{text}\x1b[J")])

    def keys(self, seconds: float) -> list[str] | None:
        """Wait for keys. Return them, [] on timeout or a signal, None once the terminal is gone."""
        poll = select.poll()
        poll.register(self._woken, select.POLLIN)
        if self._keys is not None:
            poll.register(self._keys, select.POLLIN)
        ready = {descriptor for descriptor, _ in poll.poll(max(0.0, seconds) * 1000)}
        if self._woken.fileno() in ready:
            with contextlib.suppress(BlockingIOError):
                self._woken.recv(4096)
        if self._keys not in ready:
            return []
        try:
            data = os.read(STDIN, 1024)
        except InterruptedError:
            return []
        except OSError:
            data = b""
        return self._split(data) if data else None

    def _split(self, data: bytes) -> list[str]:
        """Split input into keys. Escape sequences (arrow keys) are dropped."""
        text = (self._partly + data).decode(errors="ignore")
        beginning = _BEGINNING.search(text)
        rest = beginning[0] if beginning else ""
        self._partly = rest.encode()
        keys = _KEY.findall(text[: len(text) - len(rest)])
        return [key for key in keys if len(key) == 1]

    def enter(self) -> None:
        """Switch to the alternate screen and to unbuffered keys without echo.

        In the background the kernel stops the process here (SIGTTOU).
        """
        self._stopped = False
        if self._mode is not None:
            mode = [*self._mode[:6], [*self._mode[6]]]
            mode[3] &= ~(termios.ICANON | termios.ECHO)
            mode[6][termios.VMIN], mode[6][termios.VTIME] = 1, 0
            _set(mode)
        self._entered = True
        textfile.stream([_ENTER])

    def leave(self) -> None:
        """Restore the terminal, once. Ignores errors: the terminal may be gone."""
        if not self._entered:  # ended while stopped: it is the shell's
            return
        self._entered = False
        with contextlib.suppress(Exception):
            textfile.stream([_LEAVE])
        if self._mode is not None:
            with contextlib.suppress(termios.error):
                termios.tcflush(STDIN, termios.TCIFLUSH)  # keys are not for the shell
                _set(self._mode)

    def close(self) -> None:
        """Close the wakeup descriptors."""
        signal.set_wakeup_fd(self._old_waker)
        self._woken.close()
        self._waker.close()

    def _end(self, number: int, _: FrameType | None) -> None:
        raise _Ended(number)

    def _stop(self, number: int, _: FrameType | None) -> None:
        """Restore the terminal, then stop the process."""
        self.leave()
        ours = signal.signal(number, signal.SIG_DFL)
        signal.raise_signal(number)
        signal.signal(number, ours)
        self._stopped = True

    def _continue(self, *_: object) -> None:
        """Set up the terminal with the next frame, not here: a fatal signal may follow."""
        self._stopped = True


def _encoded(text: str) -> bytes:
    """Encode text in the character set of the locale (LC_CTYPE), which should be the terminal's."""
    charset = locale.nl_langinfo(locale.CODESET)
    try:
        return text.encode(charset)
    except UnicodeEncodeError:
        return text.replace(columns.CUT, columns.CUT_ASCII).encode(charset, "replace")
    except LookupError:  # not one of Python's
        return text.encode(errors="replace")


def _set(mode: list[Any]) -> None:
    """Set the mode at once: waiting for pending output (TCSADRAIN) could take for ever."""
    try:
        termios.tcsetattr(STDIN, termios.TCSANOW, mode)
    except termios.error as error:
        if error.args[0] != errno.EINTR:
            raise
        # Stopped in the background (SIGTTOU), and continued.
        _set(mode)
