"""Errors by stage. Each message says what failed, why, and what to do."""

from __future__ import annotations

import contextlib
import os

_STDERR = 2


class UsageError(Exception):
    """The command line, or a file that it names, is wrong: exit status 2."""


class EngineError(Exception):
    """The engine that CONNTRACK_TEXTFILE_ENGINE names is not available."""


class SourceError(Exception):
    """The connection table cannot be read."""


class OutputError(Exception):
    """The output cannot be written."""


class StateError(Exception):
    """The state file cannot be used."""


class DamagedStateError(StateError):
    """A state file of ours is damaged: it may be replaced."""


class ForeignStateError(StateError):
    """The file is not a state file of ours: it must not be replaced."""


class ListenError(Exception):
    """serve cannot listen on an address."""


def print_error(line: str) -> None:
    """Write a line to standard error, with unprintable characters escaped. Errors are ignored.

    Not with sys.stderr: it keeps what it could not write, and at exit tries again and
    makes the exit status 120.
    """
    text = "".join([c if c.isprintable() else ascii(c)[1:-1] for c in line])
    rest = f"{text}\n".encode()
    with contextlib.suppress(OSError):
        while rest:
            rest = rest[os.write(_STDERR, rest) :]
