"""The source: the connection table, read from the kernel and summed by an engine.

A reading that fails in the middle is discarded and starts again from the beginning.
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

# ENOBUFS: a datagram was dropped. EINTR: the table changed during the dump (NLM_F_DUMP_INTR).
_TRANSIENT = {errno.EINTR, errno.EAGAIN, errno.EIO, errno.ENOBUFS}
# What nfnetlink_rcv_msg() answers where no module has registered the subsystem, and
# socket(2) where there is no nfnetlink.
_NO_CTNETLINK = {errno.EINVAL, errno.EPROTONOSUPPORT}
_ATTEMPTS = 5
_SECONDS = 5.0


def read(
    source: str,
    proc_root: str,
    engine: Engine,
    tracker: Tracker | None = None,
    space: Namespace = OWN,
) -> tuple[str, Tally]:
    """Read the whole table. Return the source used, "netlink" or "procfs", and the tally.

    source: "netlink", "procfs" (the file under proc_root, such as /proc), or "auto", which
        is netlink, then procfs, if proc_root is the live /proc, else procfs.
    tracker: updates its ledger in a dump by netlink.
    space: the network namespace; another than our own is read by netlink alone.

    Raises SourceError.
    """
    if source == "netlink" or space.path:
        return "netlink", _read_netlink(engine, tracker, space)
    if not may_be_netlink(source, proc_root):
        return "procfs", _read_procfs(proc_root, engine)
    try:
        return "netlink", _read_netlink(engine, tracker, space)
    except SourceError as error:
        netlink = error
    try:
        return "procfs", _read_procfs(proc_root, engine)
    except SourceError as procfs:
        raise SourceError(f"{netlink}; and {procfs}") from procfs


def may_be_netlink(source: str, proc_root: str) -> bool:
    """Whether read() uses netlink, or tries it first."""
    return source == "netlink" or (source == "auto" and _is_live(proc_root))


def _is_live(proc_root: str) -> bool:
    """Whether a proc root is the /proc of this machine, by any path."""
    try:
        return os.path.samefile(proc_root, "/proc")
    except OSError:
        return False


def _read_procfs(proc_root: str, engine: Engine) -> Tally:
    # Imported here, as netlink below: a run uses one of them.
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
            # All namespaces share one hash table, and each dump walks the whole of it.
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
            f"the kernel sent nothing for {netlink.TIMEOUT_SECONDS} seconds in a dump of the "
            "table by netlink: retry, or use --collector.source=procfs"
        ) from None
    except OSError as error:
        reason = f"cannot dump the table by netlink: {error.strerror}"
        if error.errno in _NO_CTNETLINK:
            reason += " (without the module nf_conntrack_netlink: modprobe nf_conntrack_netlink)"
        raise SourceError(reason) from error
    return _readable(tally, "the dump by netlink", _message_fault)


def _readable(tally: Tally, where: str, fault: Callable[[bytes], str]) -> Tally:
    """Return the tally. Log its first malformed entry.

    Raises SourceError if all entries are malformed.
    """
    if tally.malformed:
        reason = fault(tally.first_malformed)
        if not tally.entries:
            raise SourceError(
                f"nothing of {where} could be read: {tally.malformed} malformed entries, "
                f"the first because {reason}"
            )
        # Imported here: most tables have no malformed entry.
        from conntrack_textfile.logs import LOG

        LOG.debug("%d malformed entries, the first because %s", tally.malformed, reason)
    return tally


def _line_fault(line: bytes) -> str:
    """Describe why a line is malformed, with its beginning in ASCII."""
    # The compiled engine only counts; the pure one has the reason.
    from conntrack_textfile.kernel import procfile

    return _fault(procfile.parse, line, ascii(line[:160].decode("latin-1")))


def _message_fault(message: bytes) -> str:
    """Describe why a message is malformed, with its beginning in hexadecimal."""
    from conntrack_textfile.kernel import ctnetlink

    return _fault(ctnetlink.parse, message, message[:80].hex())


def _fault(parse: Callable[[bytes], object], data: bytes, beginning: str) -> str:
    try:
        parse(data)
    except ValueError as error:
        return f"{error}: {beginning}"
    return beginning


def retrying(attempt: Callable[[], Tally]) -> Tally:
    """Call attempt() until it returns, at most 6 times in about 5 seconds.

    Retries transient errors: EINTR, EAGAIN, EIO, ENOBUFS. Raises the last OSError.
    """
    try:
        return attempt()
    except OSError as error:
        if error.errno not in _TRANSIENT:
            raise
    # Imported here: the import takes longer than to read a small table.
    import tenacity

    return tenacity.Retrying(
        retry=tenacity.retry_if_exception(
            lambda error: isinstance(error, OSError) and error.errno in _TRANSIENT
        ),
        wait=tenacity.wait_exponential(multiplier=0.05, max=1),
        stop=tenacity.stop_after_attempt(_ATTEMPTS) | tenacity.stop_after_delay(_SECONDS),
        reraise=True,
    )(attempt)
