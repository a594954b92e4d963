"""The textfile: finished text to a file that is old or new, never partial.

The text goes to a temporary file in the same directory, which is flushed to the
disk and then renamed over the old one. node_exporter reads only names that end
in .prom, so it never sees the temporary one.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import stat
from typing import TYPE_CHECKING

from conntrack_textfile.errors import OutputError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

STDOUT = 1


def stream(pieces: Iterable[bytes]) -> bool:
    """Write to standard output. A reader that has seen enough (| head) ends it quietly.

    Gives whether there is a reader still. Raises OutputError.
    """
    try:
        for piece in pieces:
            _write(STDOUT, piece)
    except BrokenPipeError:
        return False
    except OSError as error:
        raise OutputError(f"cannot write to standard output: {error.strerror}") from error
    return True


def replace(file: str, pieces: Iterable[bytes]) -> None:
    """Put the text in place of the file, whole or not at all. Mode 0644.

    A symbolic link is followed: the file it names is replaced, the link stays.
    Raises OutputError; the old file is then as it was.
    """
    path = os.path.realpath(file)
    directory, name = os.path.split(path)
    if file.endswith("/") and not os.path.isdir(path):
        raise OutputError(f"cannot write {file}: there is no directory {path}")
    try:
        _check(path, file)
        _sweep(directory, name)
        with _temporary(directory, name) as (temporary, fd):
            for piece in pieces:
                _write(fd, piece)
            os.fchmod(fd, 0o644)
            os.fsync(fd)
            os.rename(temporary, path)
    except OSError as error:
        if file.startswith("/dev/"):
            raise OutputError(f"cannot write {file}: use - for standard output") from None
        if not os.path.isdir(directory):
            raise OutputError(f"cannot write {file}: there is no directory {directory}") from None
        raise OutputError(f"cannot write {file}: {error.strerror}") from error


def _check(path: str, file: str) -> None:
    """Refuse what a rename would destroy."""
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        return
    if stat.S_ISDIR(mode):
        raise OutputError(f"cannot write {file}: it is a directory; name a file in it")
    if not stat.S_ISREG(mode):
        # A rename would put a plain file in the place of /dev/null.
        raise OutputError(f"cannot write {file}: not a regular file; use - for standard output")


@contextlib.contextmanager
def _temporary(directory: str, name: str) -> Iterator[tuple[str, int]]:
    """A new file that is gone afterwards, unless it was renamed."""
    path, fd = _create(directory, name)
    try:
        yield path, fd
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
        raise
    finally:
        os.close(fd)


def _create(directory: str, name: str) -> tuple[str, int]:
    """A new file under a lock, which says to _sweep() that its writer lives."""
    while True:
        path = os.path.join(directory, f".{name}.{os.urandom(8).hex()}.tmp")
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(fd, fcntl.LOCK_EX)
        if os.fstat(fd).st_nlink:
            return path, fd
        os.close(fd)  # another run swept it before it was locked


def _sweep(directory: str, name: str) -> None:
    """Remove the temporary files of runs that were killed: the kernel took back their locks."""
    temporary = re.compile(rf"\.{re.escape(name)}\.[0-9a-f]{{16}}\.tmp")
    with contextlib.suppress(OSError):
        for entry in filter(temporary.fullmatch, os.listdir(directory)):
            path = os.path.join(directory, entry)
            with contextlib.suppress(OSError):
                fd = os.open(path, os.O_WRONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
                try:
                    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    os.unlink(path)
                finally:
                    os.close(fd)


def _write(fd: int, piece: bytes) -> None:
    view = memoryview(piece)
    while view:
        view = view[os.write(fd, view) :]
