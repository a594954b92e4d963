"""The text of the connection table: net/nf_conntrack under a proc root."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

from conntrack_textfile.files import regular

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
