"""What ctnetlink is asked: the requests, and the datagrams of its dumps and answers."""

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

# The kernel makes datagrams as large as there is room for, up to 32 KiB.
_BUFFER = memoryview(bytearray(1 << 16))
_RECEIVE_BUFFER_BYTES = 1 << 22
SILENCE_SECONDS = 10

_REQUEST = struct.Struct("=IHHII4x")


def _request(kind: int) -> bytes:
    """A message that asks for a list of both families."""
    return _REQUEST.pack(_REQUEST.size, kind, uapi.NLM_F_REQUEST | uapi.NLM_F_DUMP, 1, 0)


# It changes nothing: IPCTNL_MSG_CT_GET_CTRZERO would zero the counters for everybody.
DUMP_REQUEST = _request(uapi.IPCTNL_MSG_CT_GET)
# Connections that are out of the table, and whose DESTROY some listener in reliable
# mode has not taken: it is sent again, to all.
DYING_REQUEST = _request(uapi.IPCTNL_MSG_CT_GET_DYING)
# What it counts of its own trouble, by CPU.
STATISTICS_REQUEST = _request(uapi.IPCTNL_MSG_CT_GET_STATS_CPU)
# The figures of the table, in one message.
SIZE_REQUEST = _REQUEST.pack(_REQUEST.size, uapi.IPCTNL_MSG_CT_GET_STATS, uapi.NLM_F_REQUEST, 1, 0)


@contextlib.contextmanager
def dump(request: bytes = DUMP_REQUEST, space: Namespace = OWN) -> Iterator[socket.socket]:
    """A netlink socket on which the kernel sends a list of both families. Raises OSError."""
    with space.socket() as sock:
        # Not settimeout(): that would poll(2) before every datagram.
        silence = struct.pack("ll", SILENCE_SECONDS, 0)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, silence)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _RECEIVE_BUFFER_BYTES)
        sock.sendto(request, (0, 0))
        yield sock


def datagram(sock: socket.socket, buffer: memoryview = _BUFFER) -> memoryview:
    """The next datagram, in a buffer that the next call overwrites.

    Raises TimeoutError where the kernel is silent, other OSError where it fails.
    """
    try:
        size, _, flags, sender = sock.recvmsg_into([buffer])
    except BlockingIOError:
        raise TimeoutError from None
    if sender[0] != 0:  # only the kernel has port 0
        return buffer[:0]
    if flags & socket.MSG_TRUNC:
        raise OSError(errno.EMSGSIZE, os.strerror(errno.EMSGSIZE))
    return buffer[:size]
