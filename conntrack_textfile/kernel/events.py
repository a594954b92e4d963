"""Sockets that receive DESTROY events: made here, or passed by systemd.

An event occupies about 1,280 bytes of the receive buffer (skb->truesize) until it is
read. The kernel drops events that do not fit, and counts the drops of the socket.
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
"""The default of serve: room for some 50,000 events, as the kernel doubles it."""

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
    size: int  # bytes: twice what was requested (socket(7), SO_RCVBUF)
    drops: int  # events dropped since the socket was made, modulo 2**32


def listen(buffer_bytes: int) -> socket.socket:
    """Return a socket that receives DESTROY events from now on.

    buffer_bytes: the requested receive buffer; without CAP_NET_ADMIN in the initial user
    namespace net.core.rmem_max limits it. Raises OSError, for example without CAP_NET_ADMIN.
    """
    sock = socket.socket(
        socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, uapi.NETLINK_NETFILTER
    )
    try:
        try:
            sock.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, buffer_bytes)
        except PermissionError:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer_bytes)
        # Never NETLINK_BROADCAST_ERROR: then the kernel keeps ended connections in the
        # table until a slow listener has their events.
        sock.bind((0, _DESTROY_MASK))
    except BaseException:
        sock.close()
        raise
    return sock


def is_listening(sock: socket.socket) -> bool:
    """Whether a socket receives DESTROY events."""
    mask = groups(sock)
    return mask > 0 and mask & _DESTROY_MASK != 0


def is_in(sock: socket.socket, identity: list[str]) -> bool:
    """Whether a socket is in a network namespace, by its Namespace.identity()."""
    return cookie(sock) == identity[-1]


def groups(sock: socket.socket) -> int:
    """Return the mask of multicast groups of a NETLINK_NETFILTER socket, -1 for another socket."""
    with contextlib.suppress(OSError):
        domain = sock.getsockopt(socket.SOL_SOCKET, _SO_DOMAIN)
        protocol = sock.getsockopt(socket.SOL_SOCKET, _SO_PROTOCOL)
        if (domain, protocol) == (socket.AF_NETLINK, uapi.NETLINK_NETFILTER):
            return int(sock.getsockname()[1])
    return -1


def others_listen(sock: socket.socket, space: Namespace = OWN) -> bool:
    """Whether another socket in the network namespace receives DESTROY events.

    Only then can the kernel send an event twice: where the other listener is in reliable
    mode, which cannot be read. True if unknown.
    """
    try:
        return any(inode != os.fstat(sock.fileno()).st_ino for inode in listeners(space))
    except (OSError, SourceError):
        return True


def listeners(space: Namespace = OWN) -> list[int]:
    """Return the inodes of the sockets that receive DESTROY events in a network namespace.

    From /proc/net/netlink (netlink_native_seq_show() in net/netlink/af_netlink.c).
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
    """Return the state of the receive buffer of a socket (SO_MEMINFO). Raises OSError."""
    numbers = _MEMINFO.unpack(sock.getsockopt(socket.SOL_SOCKET, _SO_MEMINFO, _MEMINFO.size))
    return Buffer(
        numbers[_SK_MEMINFO_RMEM_ALLOC], numbers[_SK_MEMINFO_RCVBUF], numbers[_SK_MEMINFO_DROPS]
    )
