"""What can go wrong, by stage. Each message says for people what failed, why, and what to do."""

from __future__ import annotations

import contextlib
import os

_STDERR = 2


class UsageError(Exception):
    """The command line, or a file that it names, is wrong: exit status 2."""


class EngineError(Exception):
    """The engine asked for is not there."""


class SourceError(Exception):
    """The table cannot be read."""


class OutputError(Exception):
    """The text cannot be written."""


class StateError(Exception):
    """The state file cannot be used."""


class DamagedStateError(StateError):
    """A state file of ours is of no use: a new one may take its place."""


class ForeignStateError(StateError):
    """What is named as the state file is something else, and is left as it is."""


class ListenError(Exception):
    """The text cannot be served."""


def tell(line: str) -> None:
    """Write a line to standard error. What becomes of it changes nothing else.

    Not by sys.stderr: what that cannot write it keeps, tries again at the end,
    and then makes the exit status 120.
    """
    rest = f"{line}\n".encode(errors="backslashreplace")
    with contextlib.suppress(OSError):
        while rest:
            rest = rest[os.write(_STDERR, rest) :]
