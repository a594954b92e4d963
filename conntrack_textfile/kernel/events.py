"""The socket on which the kernel sends DESTROY events: made here, or handed over by systemd.

An event costs some 1,280 bytes of its receive buffer until it is read. Those that
do not fit are lost, and the socket counts them.
"""

from __future__ import annotations

import contextlib
import os
import socket
import struct
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from conntrack_textfile.errors import SourceError
from conntrack_textfile.kernel import uapi
from conntrack_textfile.kernel.namespace import OWN, cookie

if TYPE_CHECKING:
    from conntrack_textfile.kernel.namespace import Namespace

BUFFER_BYTES = 1 << 25
"""What serve asks for by default: some 50,000 events, as the kernel doubles it."""

_DESTROY_MASK = 1 << (uapi.NFNLGRP_CONNTRACK_DESTROY - 1)

# include/uapi/asm-generic/socket.h and linux/sock_diag.h
_SO_RCVBUFFORCE = 33
_SO_PROTOCOL = 38
_SO_DOMAIN = 39
_SO_MEMINFO = 55
_MEMINFO = struct.Struct("=9I")
_SK_MEMINFO_RMEM_ALLOC = 0
_SK_MEMINFO_RCVBUF = 1
_SK_MEMINFO_DROPS = 8


class Buffer(NamedTuple):
    """The receive buffer of a socket."""

    used: int  # bytes
    size: int  # bytes, as the kernel reckons: twice of what was asked for
    drops: int  # events that were lost since the socket was made, modulo 2**32


def listen(buffer_bytes: int) -> socket.socket:
    """A socket that gets DESTROY events from now on. Raises OSError, as without CAP_NET_ADMIN."""
    sock = socket.socket(
        socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, uapi.NETLINK_NETFILTER
    )
    try:
        try:
            sock.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, buffer_bytes)
        except PermissionError:  # then up to net.core.rmem_max
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer_bytes)
        # Never NETLINK_BROADCAST_ERROR: a slow listener would fill the table.
        sock.bind((0, _DESTROY_MASK))
    except BaseException:
        sock.close()
        raise
    return sock


def is_listening(sock: socket.socket) -> bool:
    """Whether a socket that was handed over gets DESTROY events."""
    of = groups(sock)
    return of > 0 and of & _DESTROY_MASK != 0


def is_in(sock: socket.socket, identity: list[str]) -> bool:
    """Whether a socket that was handed over is in the network namespace of an identity."""
    return cookie(sock) == identity[-1]


def groups(sock: socket.socket) -> int:
    """The mask of the groups whose events a socket of netfilter gets, -1 for any other socket."""
    with contextlib.suppress(OSError):
        domain = sock.getsockopt(socket.SOL_SOCKET, _SO_DOMAIN)
        protocol = sock.getsockopt(socket.SOL_SOCKET, _SO_PROTOCOL)
        if (domain, protocol) == (socket.AF_NETLINK, uapi.NETLINK_NETFILTER):
            return int(sock.getsockname()[1])
    return -1


def others_listen(sock: socket.socket, space: Namespace = OWN) -> bool:
    """Whether a socket beside ours gets DESTROY events in a network namespace.

    Without one no event comes twice. Whether it is in reliable mode is not to be seen.
    """
    try:
        return any(inode != os.fstat(sock.fileno()).st_ino for inode in listeners(space))
    except (OSError, SourceError):
        return True


def listeners(space: Namespace = OWN) -> list[int]:
    """The inodes of the sockets that get DESTROY events in a network namespace.

    Raises OSError and SourceError.
    """
    text = space.run(Path("/proc/thread-self/net/netlink").read_text)
    rows = [line.split() for line in text.splitlines()[1:]]
    return [
        int(row[-1])
        for row in rows
        if row[1] == str(uapi.NETLINK_NETFILTER) and int(row[3], 16) & _DESTROY_MASK
    ]


def buffer(sock: socket.socket) -> Buffer:
    """How full the receive buffer is, and what did not fit."""
    numbers = _MEMINFO.unpack(sock.getsockopt(socket.SOL_SOCKET, _SO_MEMINFO, _MEMINFO.size))
    return Buffer(
        numbers[_SK_MEMINFO_RMEM_ALLOC], numbers[_SK_MEMINFO_RCVBUF], numbers[_SK_MEMINFO_DROPS]
    )
