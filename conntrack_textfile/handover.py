"""Sockets that systemd hands over (sd_listen_fds(3))."""

from __future__ import annotations

import os
import socket
import stat
from typing import NamedTuple

_FIRST = 3  # SD_LISTEN_FDS_START


class Handed(NamedTuple):
    """One of them."""

    name: str  # FileDescriptorName= of its unit
    socket: socket.socket


def sockets() -> list[Handed]:
    """All of them, of whatever kind; none where this process was not handed any.

    Can be called once: the environment is not for children.
    """
    pid, count = os.environ.pop("LISTEN_PID", ""), os.environ.pop("LISTEN_FDS", "")
    names = os.environ.pop("LISTEN_FDNAMES", "").split(":")
    if pid != str(os.getpid()) or not count.isdecimal():
        return []
    found = []
    for number in range(_FIRST, _FIRST + int(count)):
        if _is_socket(number):
            sock = socket.socket(fileno=number)
            sock.set_inheritable(False)
            at = number - _FIRST
            found.append(Handed(names[at] if at < len(names) else "", sock))
    return found


def _is_socket(number: int) -> bool:
    try:
        return stat.S_ISSOCK(os.fstat(number).st_mode)
    except OSError:
        return False
