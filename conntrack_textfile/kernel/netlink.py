"""ctnetlink requests, and the datagrams of their dumps and answers.

Format: struct nlmsghdr (netlink(7)) and struct nfgenmsg
(include/uapi/linux/netfilter/nfnetlink.h).
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import struct
from typing import TYPE_CHECKING

from conntrack_textfile.kernel import uapi
from conntrack_textfile.kernel.namespace import OWN

if TYPE_CHECKING:
    from collections.abc import Iterator

    from conntrack_textfile.kernel.namespace import Namespace

# The kernel fills datagrams up to the size of the buffer, at most 32 KiB
# (netlink_recvmsg() in net/netlink/af_netlink.c).
_BUFFER = memoryview(bytearray(1 << 16))
_RECEIVE_BUFFER_BYTES = 1 << 22
TIMEOUT_SECONDS = 10

_REQUEST = struct.Struct("=IHHII4x")


def _request(kind: int) -> bytes:
    """A dump request for IPv4 and IPv6 (AF_UNSPEC)."""
    return _REQUEST.pack(_REQUEST.size, kind, uapi.NLM_F_REQUEST | uapi.NLM_F_DUMP, 1, 0)


# Never IPCTNL_MSG_CT_GET_CTRZERO: it zeroes the counters for all readers.
DUMP_REQUEST = _request(uapi.IPCTNL_MSG_CT_GET)
# Connections that have left the table, but whose DESTROY event did not reach a listener in
# reliable mode (NETLINK_BROADCAST_ERROR). The kernel sends it again, to all listeners.
DYING_REQUEST = _request(uapi.IPCTNL_MSG_CT_GET_DYING)
# The statistics of each CPU.
STATISTICS_REQUEST = _request(uapi.IPCTNL_MSG_CT_GET_STATS_CPU)
# Entries and limit of the table, in one message: not a dump.
SIZE_REQUEST = _REQUEST.pack(_REQUEST.size, uapi.IPCTNL_MSG_CT_GET_STATS, uapi.NLM_F_REQUEST, 1, 0)


@contextlib.contextmanager
def dump(request: bytes = DUMP_REQUEST, space: Namespace = OWN) -> Iterator[socket.socket]:
    """Send a request, and yield the socket to read its datagrams from.

    Its receive timeout is TIMEOUT_SECONDS. Raises OSError, and SourceError where the
    namespace cannot be entered.
    """
    with space.socket() as sock:
        # Not settimeout(): it calls poll(2) before each recvmsg(2).
        timeout = struct.pack("ll", TIMEOUT_SECONDS, 0)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, timeout)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _RECEIVE_BUFFER_BYTES)
        sock.sendto(request, (0, 0))
        yield sock


def datagram(sock: socket.socket, buffer: memoryview = _BUFFER) -> memoryview:
    """Return the next datagram, empty if not from the kernel. The next call overwrites it.

    Raises TimeoutError after TIMEOUT_SECONDS without one, and OSError.
    """
    try:
        size, _, flags, sender = sock.recvmsg_into([buffer])
    except BlockingIOError:
        raise TimeoutError from None
    if sender[0] != 0:  # nl_pid of the kernel
        return buffer[:0]
    if flags & socket.MSG_TRUNC:
        raise OSError(errno.EMSGSIZE, os.strerror(errno.EMSGSIZE))
    return buffer[:size]
