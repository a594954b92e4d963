"""The source: the connection table, read from the kernel and summed by an engine.

A reading is whole or it is nothing: when it fails in the middle it starts again
from the beginning, and what was counted until then is thrown away.
"""

from __future__ import annotations

import contextlib
import errno
import os
from typing import TYPE_CHECKING

from conntrack_textfile.errors import SourceError
from conntrack_textfile.kernel.namespace import OWN

if TYPE_CHECKING:
    from collections.abc import Callable

    from conntrack_textfile.kernel.engine import Engine
    from conntrack_textfile.kernel.namespace import Namespace
    from conntrack_textfile.kernel.tracker import Tracker
    from conntrack_textfile.tally import Tally

# ENOBUFS: a datagram was lost. EINTR: the table changed under the dump.
_TRANSIENT = {errno.EINTR, errno.EAGAIN, errno.EIO, errno.ENOBUFS}
# What nfnetlink_rcv_msg() answers where no module has registered the subsystem, and
# socket(2) where there is no nfnetlink.
_NO_CTNETLINK = {errno.EINVAL, errno.EPROTONOSUPPORT}
_ATTEMPTS = 5
_SECONDS = 5.0


def read(
    wanted: str,
    proc_root: str,
    engine: Engine,
    tracker: Tracker | None = None,
    space: Namespace = OWN,
) -> tuple[str, Tally]:
    """Read and count the whole table; also the source that was used.

    "netlink" asks the kernel, "procfs" reads the file under a proc root such as
    /proc, and "auto" tries netlink first where that root is the live /proc. A
    reading by netlink is entered in the ledger of a tracker. Another network namespace
    than our own is read by netlink alone. Raises SourceError.
    """
    if wanted == "netlink" or space.path:
        return "netlink", _read_netlink(engine, tracker, space)
    if not may_be_netlink(wanted, proc_root):
        return "procfs", _read_procfs(proc_root, engine)
    try:
        return "netlink", _read_netlink(engine, tracker, space)
    except SourceError as error:
        netlink = error
    try:
        return "procfs", _read_procfs(proc_root, engine)
    except SourceError as procfs:
        raise SourceError(f"{netlink}; and {procfs}") from procfs


def may_be_netlink(wanted: str, proc_root: str) -> bool:
    """Whether read() asks the kernel by netlink, at least at first."""
    return wanted == "netlink" or (wanted == "auto" and _is_live(proc_root))


def _is_live(proc_root: str) -> bool:
    """Whether a proc root is the live /proc, by whatever name."""
    try:
        return os.path.samefile(proc_root, "/proc")
    except OSError:
        return False


def _read_procfs(proc_root: str, engine: Engine) -> Tally:
    # Imported here, as the other source below: each costs time to import.
    from conntrack_textfile.kernel import procfs

    path = procfs.path_of(proc_root)

    def attempt() -> Tally:
        decoder = engine.text()
        for block in procfs.blocks(path):
            decoder.feed(block)
        return decoder.finish()

    try:
        tally = retrying(attempt)
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
    return _readable(tally, path, _line_fault)


def _read_netlink(engine: Engine, tracker: Tracker | None, space: Namespace) -> Tally:
    from conntrack_textfile.kernel import netlink, statistics

    def attempt() -> Tally:
        decoder = engine.netlink(tracker.ledger if tracker else None)
        with tracker.dump() if tracker else contextlib.nullcontext():
            # All namespaces share one hash, and each dump walks through all of it.
            if space.path and statistics.size(space)[0] == 0:
                return decoder.finish()
            with netlink.dump(space=space) as dump:
                done = False
                while not done:
                    datagram = netlink.datagram(dump)
                    with tracker.locked() if tracker else contextlib.nullcontext():
                        done = decoder.feed(datagram)
        return decoder.finish()

    try:
        tally = retrying(attempt)
    except PermissionError:
        raise SourceError(
            "no permission to dump the table by netlink: run as root or with CAP_NET_ADMIN"
        ) from None
    except TimeoutError:
        raise SourceError(
            f"the kernel was silent for {netlink.SILENCE_SECONDS} seconds in a dump of the table "
            "by netlink"
        ) from None
    except OSError as error:
        reason = f"cannot dump the table by netlink: {error.strerror}"
        if error.errno in _NO_CTNETLINK:
            reason += " (without the module nf_conntrack_netlink: modprobe nf_conntrack_netlink)"
        raise SourceError(reason) from error
    return _readable(tally, "the dump by netlink", _message_fault)


def _readable(tally: Tally, where: str, fault: Callable[[bytes], str]) -> Tally:
    """A tally of which at least something could be read. Logs the first malformed entry."""
    if tally.malformed:
        reason = fault(tally.first_malformed)
        if not tally.entries:
            raise SourceError(
                f"nothing of {where} could be read: {tally.malformed} malformed entries, "
                f"the first because {reason}"
            )
        # Imported here: most readings have nothing to say.
        from conntrack_textfile.logs import LOG

        LOG.debug("%d malformed entries, the first because %s", tally.malformed, reason)
    return tally


def _line_fault(line: bytes) -> str:
    """Why a line is no entry, and its beginning in printable characters."""
    # The pure engine says what the compiled one only finds.
    from conntrack_textfile.kernel import procfile

    return _fault(procfile.parse, line, ascii(line[:160].decode("latin-1")))


def _message_fault(message: bytes) -> str:
    """Why a message is no entry, and its beginning in hexadecimal."""
    from conntrack_textfile.kernel import ctnetlink

    return _fault(ctnetlink.parse, message, message[:80].hex())


def _fault(parse: Callable[[bytes], object], data: bytes, beginning: str) -> str:
    try:
        parse(data)
    except ValueError as error:
        return f"{error}: {beginning}"
    return beginning


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
