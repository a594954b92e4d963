"""The connection table as a ctnetlink dump: the socket, the request and the datagrams."""

from __future__ import annotations

import errno
import os
import socket
import struct

from conntrack_textfile.kernel import uapi

# The kernel makes datagrams as large as there is room for, up to 32 KiB.
_BUFFER = memoryview(bytearray(1 << 16))
_RECEIVE_BUFFER_BYTES = 1 << 22
SILENCE_SECONDS = 10

# Both families. It changes nothing: IPCTNL_MSG_CT_GET_CTRZERO would zero the
# counters for everybody.
DUMP_REQUEST = struct.pack(
    "=IHHII4x", 20, uapi.IPCTNL_MSG_CT_GET, uapi.NLM_F_REQUEST | uapi.NLM_F_DUMP, 1, 0
)


def dump() -> socket.socket:
    """A netlink socket on which the kernel sends the table of both families. Raises OSError."""
    sock = socket.socket(
        socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, uapi.NETLINK_NETFILTER
    )
    try:
        # Not settimeout(): that would poll(2) before every datagram.
        silence = struct.pack("ll", SILENCE_SECONDS, 0)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, silence)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _RECEIVE_BUFFER_BYTES)
        sock.sendto(DUMP_REQUEST, (0, 0))
    except BaseException:
        sock.close()
        raise
    return sock


def datagram(sock: socket.socket) -> memoryview:
    """The next datagram. It is overwritten by the next call.

    Raises TimeoutError where the kernel is silent, other OSError where it fails.
    """
    try:
        size, _, flags, sender = sock.recvmsg_into([_BUFFER])
    except BlockingIOError:
        raise TimeoutError from None
    if sender[0] != 0:  # only the kernel has port 0
        return _BUFFER[:0]
    if flags & socket.MSG_TRUNC:
        raise OSError(errno.EMSGSIZE, os.strerror(errno.EMSGSIZE))
    return _BUFFER[:size]
