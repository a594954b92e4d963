"""The terminal: keys from it, lines to it, and its state as it was on every way out.

The alternate screen and the keys' mode are given back at the end, whatever ends it,
before a stop (Ctrl-Z), and are taken again after it. Signals wake who waits for keys.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import select
import signal
import socket
import termios
from typing import TYPE_CHECKING, Any

from conntrack_textfile import textfile

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import FrameType

    _Handler = Callable[[int, FrameType | None], object] | int | None

STDIN, STDOUT = 0, textfile.STDOUT

# Of xterm, as all terminals have them: alternate screen and cursor.
_ENTER = b"\x1b[?1049h\x1b[?25l"
_LEAVE = b"\x1b[?25h\x1b[?1049l"
_KEY = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|O.)|.", re.DOTALL)
_BEGINNING = re.compile(r"\x1b(?:\[[0-?]*[ -/]*|O)$")  # of what an arrow key sends

_USUAL = 80, 24

_ENDING = (signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)


class _Ended(BaseException):
    """A signal that ends the process came."""

    def __init__(self, number: int) -> None:
        self.number = number


def is_usable() -> bool:
    """Whether standard output is a terminal whose lines can be written over."""
    return os.isatty(STDOUT) and os.environ.get("TERM") != "dumb"


@contextlib.contextmanager
def opened() -> Iterator[Terminal]:
    """The terminal, until the end of the block. Of a signal that ends it the process dies."""
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
            # A second signal must not stop what the first began.
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
    """What is made of standard input and output. Without a terminal as input there are no keys."""

    def __init__(self) -> None:
        self._keys = STDIN if os.isatty(STDIN) else None
        self._mode = termios.tcgetattr(STDIN) if self._keys is not None else None
        self._entered = self._stopped = False
        self._partly = b""
        self._woken, waker = socket.socketpair()
        self._waker = waker
        for end in (self._woken, waker):
            end.settimeout(0)
        self._old_waker = signal.set_wakeup_fd(waker.fileno(), warn_on_full_buffer=False)

    def handlers(self) -> dict[signal.Signals, _Handler]:
        """What to do at signals. A change of size wakes, and no more."""
        return {
            signal.SIGINT: signal.default_int_handler,
            **dict.fromkeys(_ENDING, self._end),
            signal.SIGWINCH: lambda *_: None,
            signal.SIGTSTP: self._stop,
            signal.SIGCONT: self._continue,
        }

    def size(self) -> tuple[int, int]:
        """Columns and lines: of a terminal that does not know them, or is gone, the usual."""
        try:
            size = os.get_terminal_size(STDOUT)
        except OSError:
            return _USUAL
        return size.columns or _USUAL[0], size.lines or _USUAL[1]

    def draw(self, lines: list[str]) -> bool:
        """Write lines over those before, with what is below cleared. Whether anybody reads."""
        if self._stopped:
            self.enter()
        text = "\n".join(f"{line}\x1b[K" for line in lines)
        return textfile.stream([f"\x1b[H{text}\x1b[J".encode()])

    def keys(self, seconds: float) -> list[str] | None:
        """The keys that were pressed; none when the time is up or a signal came.

        None when there are no more to come: the terminal is gone.
        """
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
        """Keys, of what they send. Those that send more than a letter have no use here."""
        text = (self._partly + data).decode(errors="ignore")
        beginning = _BEGINNING.search(text)
        rest = beginning[0] if beginning else ""
        self._partly = rest.encode()
        keys = _KEY.findall(text[: len(text) - len(rest)])
        return [key for key in keys if len(key) == 1]

    def enter(self) -> None:
        """Take the screen, and keys as they are pressed.

        In the background the kernel stops us here (SIGTTOU) until we have the terminal.
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
        """Give the terminal back as it was, unless that was done. It may be gone."""
        if not self._entered:  # as where we end while stopped: the shell has it
            return
        self._entered = False
        with contextlib.suppress(Exception):
            textfile.stream([_LEAVE])
        if self._mode is not None:
            with contextlib.suppress(termios.error):
                termios.tcflush(STDIN, termios.TCIFLUSH)  # keys are not for the shell
                _set(self._mode)

    def close(self) -> None:
        """Wake nobody any more."""
        signal.set_wakeup_fd(self._old_waker)
        self._woken.close()
        self._waker.close()

    def _end(self, number: int, _: FrameType | None) -> None:
        raise _Ended(number)

    def _stop(self, number: int, _: FrameType | None) -> None:
        """Stop as without us, with the terminal as it was."""
        self.leave()
        ours = signal.signal(number, signal.SIG_DFL)
        signal.raise_signal(number)
        signal.signal(number, ours)
        self._stopped = True

    def _continue(self, *_: object) -> None:
        """Take the terminal with the next frame, not here: what comes next may end us."""
        self._stopped = True


def _set(mode: list[Any]) -> None:
    """Set the mode of keys at once: to wait for the output could be for ever."""
    try:
        termios.tcsetattr(STDIN, termios.TCSANOW, mode)
    except termios.error as error:
        if error.args[0] != errno.EINTR:
            raise
        # We were stopped in the background (SIGTTOU), and continued.
        _set(mode)
