"""Files under a proc root: the text of the connection table, and what may be opened there."""

from __future__ import annotations

import errno
import os
import stat
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

# The kernel gives a page or so at a time.
_BUFFER = memoryview(bytearray(1 << 17))


def path_of(proc_root: str) -> str:
    """The path of the table's text."""
    return os.path.join(proc_root, "net", "nf_conntrack")


def blocks(path: str) -> Iterator[memoryview]:
    """The file in blocks of bounded size. Each is overwritten by the next. Raises OSError."""
    with open(path, "rb", opener=regular) as file:
        # Fills the buffer, with many small reads of what the kernel gives.
        while size := file.readinto(_BUFFER):
            yield _BUFFER[:size]
        if size is None:
            raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))


def regular(path: str, flags: int) -> int:
    """An opener for open() that refuses what is no regular file, as a FIFO, which would hang."""
    fd = os.open(path, flags | os.O_NONBLOCK | os.O_NOCTTY)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise OSError(errno.EINVAL, "it is not a regular file")
    return fd
