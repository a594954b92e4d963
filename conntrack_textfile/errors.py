"""What can go wrong, by stage. Each message says for people what failed, why, and what to do."""

from __future__ import annotations


class UsageError(Exception):
    """The command line, or a file that it names, is wrong: exit status 2."""


class EngineError(Exception):
    """The engine asked for is not there."""


class SourceError(Exception):
    """The table cannot be read."""


class OutputError(Exception):
    """The text cannot be written."""


class ListenError(Exception):
    """The text cannot be served."""
