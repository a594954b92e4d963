"""The text of the connection table: net/nf_conntrack under a proc root."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

from conntrack_textfile.files import regular

if TYPE_CHECKING:
    from collections.abc import Iterator

# One read(2) returns at most a page or so (seq_read_iter() in fs/seq_file.c).
_BUFFER = memoryview(bytearray(1 << 17))


def path_of(proc_root: str) -> str:
    """Return the path of the table under a proc root such as /proc."""
    return os.path.join(proc_root, "net", "nf_conntrack")


def blocks(path: str) -> Iterator[memoryview]:
    """Read a file in blocks of at most 128 KiB, which need not end at a line end.

    The next block overwrites the one before. Raises OSError.
    """
    with open(path, "rb", opener=regular) as file:
        # Buffered, so that many small read(2) fill one block.
        while size := file.readinto(_BUFFER):
            yield _BUFFER[:size]
        if size is None:  # EAGAIN
            raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
