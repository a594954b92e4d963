"""The socket on which the kernel sends DESTROY events: made here, or handed over by systemd.

An event costs some 1,280 bytes of its receive buffer until it is read. Those that
do not fit are lost, and the socket counts them.
"""

from __future__ import annotations

import contextlib
import os
import socket
import struct
from typing import NamedTuple

from conntrack_textfile.kernel import namespace, uapi

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
    """Whether a socket that was handed over gets the DESTROY events of our network namespace."""
    with contextlib.suppress(OSError):
        return (
            sock.getsockopt(socket.SOL_SOCKET, _SO_DOMAIN) == socket.AF_NETLINK
            and sock.getsockopt(socket.SOL_SOCKET, _SO_PROTOCOL) == uapi.NETLINK_NETFILTER
            and sock.getsockname()[1] & _DESTROY_MASK != 0
            and namespace.cookie(sock) == namespace.identity()[-1]
        )
    return False


def others_listen(sock: socket.socket) -> bool:
    """Whether a socket beside ours gets DESTROY events in our network namespace.

    Without one no event comes twice. Whether it is in reliable mode is not to be seen.
    """
    try:
        return any(inode != os.fstat(sock.fileno()).st_ino for inode in listeners())
    except OSError:
        return True


def listeners() -> list[int]:
    """The inodes of the sockets that get DESTROY events in our namespace. Raises OSError."""
    with open("/proc/net/netlink", encoding="ascii") as file:
        rows = [line.split() for line in file][1:]
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
