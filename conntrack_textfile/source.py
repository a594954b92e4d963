"""The source: the bytes of the connection table, read from the kernel and counted.

A reading is whole or it is nothing: when it fails in the middle it starts again
from the beginning, and what was counted until then is thrown away.
"""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

from conntrack_textfile import procfile

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from conntrack_textfile.tally import Tally

# Bytes asked for at once. The kernel's seq_file gives at most a page or so.
BLOCK = 1 << 18

_TRANSIENT = {errno.EINTR, errno.EAGAIN, errno.EIO}
_ATTEMPTS = 5
_SECONDS = 5.0


class SourceError(Exception):
    """The table cannot be read. The message says what failed, why, and what to do."""


def read(proc_root: str) -> Tally:
    """Read and count the whole table under a proc root such as /proc.

    Raises SourceError.
    """
    path = os.path.join(proc_root, "net", "nf_conntrack")
    try:
        return retrying(lambda: _count(path))
    except FileNotFoundError:
        if not os.path.isdir(proc_root):
            raise SourceError(f"there is no proc root {proc_root}: see --path.procfs") from None
        raise SourceError(
            f"there is no {path}: the module is not loaded (modprobe nf_conntrack), nothing is "
            "tracked in this network namespace, or the kernel was built without "
            "CONFIG_NF_CONNTRACK_PROCFS"
        ) from None
    except PermissionError:
        raise SourceError(
            f"no permission to read {path}: run as root or with CAP_DAC_READ_SEARCH"
        ) from None
    except OSError as error:
        raise SourceError(f"cannot read {path}: {error.strerror}") from error


def retrying(attempt: Callable[[], Tally]) -> Tally:
    """The result of attempt(), called again after errors that pass: EINTR, EAGAIN, EIO.

    Bounded by count and time; the last error is raised as it came.
    """
    try:
        return attempt()
    except OSError as error:
        if error.errno not in _TRANSIENT:
            raise
    # Imported here because it costs more than the reading of a small table.
    import tenacity

    return tenacity.Retrying(
        retry=tenacity.retry_if_exception(
            lambda error: isinstance(error, OSError) and error.errno in _TRANSIENT
        ),
        wait=tenacity.wait_exponential(multiplier=0.05, max=1),
        stop=tenacity.stop_after_attempt(_ATTEMPTS) | tenacity.stop_after_delay(_SECONDS),
        reraise=True,
    )(attempt)


def _count(path: str) -> Tally:
    counter = procfile.Counter()
    for block in _blocks(path):
        counter.feed(block)
    return counter.finish()


def _blocks(path: str) -> Iterator[bytes]:
    file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        # Not FileIO.read(): that takes EAGAIN for an end of file.
        while block := os.read(file, BLOCK):
            yield block
    finally:
        os.close(file)
