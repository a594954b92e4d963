"""The state file: what one run leaves to the next, and the lock file beside it.

A magic line, a header (version, sizes, checksum), numbers as JSON, and the ledgers
as the engine saves them. It is replaced atomically, by textfile.replace().
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import stat
import struct
from typing import TYPE_CHECKING, Any, NamedTuple

from conntrack_textfile import textfile
from conntrack_textfile.errors import DamagedStateError, ForeignStateError, StateError

if TYPE_CHECKING:
    from collections.abc import Iterator

_MAGIC = b"conntrack-textfile state\n"
_VERSION = 2
_CHECKSUM_SIZE = 32
_HEADER = struct.Struct(f"<HQQ{_CHECKSUM_SIZE}s")  # version, sizes of numbers and ledger, checksum
_MAX_SIZE = 1 << 34
_MAX_DIGITS = 18  # of the count in the lock file


class State(NamedTuple):
    """The content of a state file. numbers: as counting.Counting saves them."""

    numbers: dict[str, Any]
    ledger: bytes  # of all tables, one after the other


def is_ours(path: str) -> bool:
    """Return whether a file may be replaced: it does not exist, or is a state file.

    Raises StateError where it cannot be read.
    """
    try:
        fd = _open(path)
    except ForeignStateError:
        return False
    if fd is not None:
        os.close(fd)
    return True


def load(path: str) -> State | None:
    """Read a state file; None where it does not exist or is empty.

    Raises DamagedStateError; StateError where it is not a state file or cannot be read.
    """
    fd = _open(path)
    if fd is None:
        return None
    with open(fd, "rb") as file:
        try:
            size = os.fstat(fd).st_size
            if size > _MAX_SIZE:
                raise DamagedStateError(f"{path} is too large")
            data = file.read(size)
        except OSError as error:
            raise StateError(f"cannot read {path}: {error.strerror}") from None
    return _parse(path, data) if data else None


def _open(path: str) -> int | None:
    """Open a state file, or the beginning of one; None where it does not exist.

    Raises ForeignStateError for any other file, and StateError.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise StateError(f"cannot read {path}: {error.strerror}") from None
    fault = _fault(fd)
    if fault:
        os.close(fd)
        raise ForeignStateError(f"{path} is {fault}")
    return fd


def _fault(fd: int) -> str:
    """Return what a file is instead of a state file, "" where it is one."""
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        return "not a regular file"
    try:
        ours = _MAGIC.startswith(os.pread(fd, len(_MAGIC), 0))
    except OSError as error:
        return f"not readable ({error.strerror})"
    return "" if ours else "not a state file of conntrack-textfile"


def _parse(path: str, data: bytes) -> State:
    view = memoryview(data)[len(_MAGIC) :]
    if len(view) < _HEADER.size:
        raise DamagedStateError(f"{path} is cut off")
    version, numbers_size, ledger_size, checksum = _HEADER.unpack_from(view)
    if version not in (1, _VERSION):
        raise DamagedStateError(f"{path} has version {version}, unknown to this program")
    view = view[_HEADER.size :]
    numbers, ledger = view[:numbers_size], view[numbers_size:]
    if len(ledger) != ledger_size or _checksum(numbers, ledger) != checksum:
        raise DamagedStateError(f"{path} is damaged")
    state = State(json.loads(bytes(numbers)), bytes(ledger))
    return _of_version_1(state) if version == 1 else state


def _of_version_1(state: State) -> State:
    """Convert a state of version 1, which had one table."""
    one = {**state.numbers, "ledger": len(state.ledger)}
    boot, *_ = one.get("table") or [""]
    return State(
        {"boot": boot, "tables": {"": one}, "counters": one.pop("counters", None)}, state.ledger
    )


def save(path: str, state: State) -> None:
    """Replace a state file, whole or not at all, with mode 0600. Raises OutputError."""
    numbers = json.dumps(state.numbers, separators=(",", ":")).encode()
    checksum = _checksum(numbers, state.ledger)
    header = _HEADER.pack(_VERSION, len(numbers), len(state.ledger), checksum)
    textfile.replace(path, [_MAGIC, header, numbers, state.ledger], 0o600)


class Run:
    """The only run that uses a state file.

    While it reads events, the lock file has the count of interrupted runs, this one
    included; the end of the run empties it. So each run that was killed is counted once.
    """

    def __init__(self, fd: int, name: str) -> None:
        """Read the count of a lock file that is locked. Raises StateError for another file."""
        self._fd = fd
        self._name = name
        text = os.pread(fd, _MAX_DIGITS + 1, 0)
        if text and not (text.isdigit() and len(text) <= _MAX_DIGITS):
            raise StateError(f"{name} is not a lock file of conntrack-textfile: remove it")
        self.interrupted = int(text or b"0")
        """The interrupted runs that the lock file counts; 0 after a run that ended properly."""

    def begin(self, interrupted: int) -> None:
        """Write the count, before the first event is read. Raises StateError.

        interrupted: all runs that were killed before this one.
        """
        self._write(b"%d" % (interrupted + 1))

    def end(self) -> None:
        """Empty the lock file: all that was read is saved. Raises StateError."""
        self._write(b"")

    def _write(self, text: bytes) -> None:
        try:
            os.pwrite(self._fd, text, 0)  # a count is never shorter than the one before
            if not text:
                os.ftruncate(self._fd, 0)
        except OSError as error:
            raise StateError(f"cannot write {self._name}: {error.strerror}") from None


@contextlib.contextmanager
def run(path: str) -> Iterator[Run]:
    """Lock a state file against other runs, by flock(2) on the file PATH.lock.

    Raises StateError where another run has the lock, or where PATH may not be replaced:
    then no lock file is made.
    """
    fd = _open(path)
    if fd is not None:
        os.close(fd)
    name = f"{path}.lock"
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
    try:
        fd = os.open(name, flags, 0o600)
    except FileNotFoundError:
        directory = os.path.dirname(path) or "."
        raise StateError(f"cannot open {name}: there is no directory {directory}") from None
    except OSError as error:
        raise StateError(f"cannot open {name}: {textfile.reason(error)}") from None
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            found = Run(fd, name)
        except BlockingIOError:
            raise StateError(f"another run uses {path}: wait for its end") from None
        except OSError as error:
            raise StateError(f"cannot use {name}: {error.strerror}") from None
        yield found
    finally:
        os.close(fd)


def _checksum(numbers: bytes | memoryview, ledger: bytes | memoryview) -> bytes:
    """Return the checksum of both, and of the boundary between them."""
    hashed = hashlib.blake2b(b"%d " % len(numbers), digest_size=_CHECKSUM_SIZE)
    hashed.update(numbers)
    hashed.update(ledger)
    return hashed.digest()
