"""Which table it is: the boot of the kernel and the network namespace."""

from __future__ import annotations

import os
import socket
import time

# include/uapi/asm-generic/socket.h, since Linux 5.14
_SO_NETNS_COOKIE = 71
_COOKIE_SIZE = 8


def identity() -> list[str]:
    """What is the same as long as the table of this process is: boot id, network namespace.

    The number of a namespace's inode is given again to another when it is gone; its
    cookie is not.
    """
    with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
        boot = file.read(64).strip()
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC) as sock:
        return [boot, os.readlink("/proc/self/ns/net"), cookie(sock)]


def cookie(sock: socket.socket) -> str:
    """The cookie of the network namespace that a socket is in, "" before Linux 5.14."""
    try:
        return sock.getsockopt(socket.SOL_SOCKET, _SO_NETNS_COOKIE, _COOKIE_SIZE).hex()
    except OSError:
        return ""


def seconds() -> int:
    """Seconds since the boot, also those in which the machine slept."""
    return int(time.clock_gettime(time.CLOCK_BOOTTIME))
