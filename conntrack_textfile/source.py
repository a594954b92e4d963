"""The source: the bytes of the connection table, read from the kernel and counted.

A reading is whole or it is nothing: when it fails in the middle it starts again
from the beginning, and what was counted until then is thrown away.
"""

from __future__ import annotations

import errno
import os
import stat
from typing import TYPE_CHECKING

from conntrack_textfile.errors import SourceError

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Iterator

    from conntrack_textfile.tally import Engine, Tally

# What is read at once. Of the proc file the kernel gives a page or so at a time;
# datagrams it makes as large as there is room for, up to 32 KiB.
_BUFFER = memoryview(bytearray(1 << 17))
_RECEIVE_BUFFER = 1 << 22
_NETFILTER = 12  # NETLINK_NETFILTER
_MSG_TRUNC = 0x20
_SILENCE = 10  # seconds

# ENOBUFS: a datagram was lost. EINTR: the table changed under the dump.
_TRANSIENT = {errno.EINTR, errno.EAGAIN, errno.EIO, errno.ENOBUFS}
_ATTEMPTS = 5
_SECONDS = 5.0


def read(wanted: str, proc_root: str, engine: Engine) -> tuple[str, Tally]:
    """Read and count the whole table; also the source that was used.

    "netlink" asks the kernel, "procfs" reads the file under a proc root such as
    /proc, and "auto" tries netlink first where that root is the live /proc.
    Raises SourceError.
    """
    if wanted == "netlink":
        return wanted, _read_netlink(engine)
    if wanted == "procfs" or not _is_live(proc_root):
        return "procfs", _read_procfs(proc_root, engine)
    try:
        return "netlink", _read_netlink(engine)
    except SourceError as error:
        netlink = error
    try:
        return "procfs", _read_procfs(proc_root, engine)
    except SourceError as procfs:
        raise SourceError(f"{netlink}; and {procfs}") from procfs


def _is_live(proc_root: str) -> bool:
    """Whether a proc root is the live /proc, by whatever name."""
    try:
        return os.path.samefile(proc_root, "/proc")
    except OSError:
        return False


def _read_procfs(proc_root: str, engine: Engine) -> Tally:
    path = os.path.join(proc_root, "net", "nf_conntrack")

    def attempt() -> Tally:
        counter = engine.text()
        for block in _blocks(path):
            counter.feed(block)
        return counter.finish()

    try:
        return retrying(attempt)
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


def _read_netlink(engine: Engine) -> Tally:
    def attempt() -> Tally:
        counter = engine.netlink()
        with _dump() as dump:
            while not counter.feed(_datagram(dump)):
                pass
        return counter.finish()

    try:
        return retrying(attempt)
    except PermissionError:
        raise SourceError(
            "no permission to dump the table by netlink: run as root or with CAP_NET_ADMIN"
        ) from None
    except TimeoutError:
        raise SourceError(
            f"the kernel was silent for {_SILENCE} seconds in a dump of the table by netlink"
        ) from None
    except OSError as error:
        raise SourceError(f"cannot dump the table by netlink: {error.strerror}") from error


def retrying(attempt: Callable[[], Tally]) -> Tally:
    """The result of attempt(), called again after errors that pass: EINTR and the like.

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


def _blocks(path: str) -> Iterator[memoryview]:
    """The file in blocks. Each is gone with the next."""
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


def _dump() -> socket.socket:
    """A netlink socket on which the kernel sends the table of both families."""
    # Imported here, as what reads a file need not pay for it.
    import socket
    import struct

    from conntrack_textfile.ctnetlink import DUMP_REQUEST

    dump = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETFILTER)
    try:
        # Not settimeout(): that would poll(2) before every datagram.
        silence = struct.pack("ll", _SILENCE, 0)
        dump.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, silence)
        dump.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _RECEIVE_BUFFER)
        dump.sendto(DUMP_REQUEST, (0, 0))
    except BaseException:
        dump.close()
        raise
    return dump


def _datagram(dump: socket.socket) -> memoryview:
    """The next datagram. It is gone with the next call."""
    try:
        size, _, flags, sender = dump.recvmsg_into([_BUFFER])
    except BlockingIOError:
        raise TimeoutError from None
    if sender[0] != 0:  # only the kernel has port 0
        return _BUFFER[:0]
    if flags & _MSG_TRUNC:
        raise OSError(errno.EMSGSIZE, os.strerror(errno.EMSGSIZE))
    return _BUFFER[:size]
