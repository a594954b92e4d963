"""Sockets that systemd hands over (sd_listen_fds(3))."""

from __future__ import annotations

import os
import socket
import stat

_FIRST = 3  # SD_LISTEN_FDS_START


def sockets() -> list[socket.socket]:
    """All of them, of whatever kind; none where this process was not handed any.

    Can be called once: the environment is not for children.
    """
    pid, count = os.environ.pop("LISTEN_PID", ""), os.environ.pop("LISTEN_FDS", "")
    os.environ.pop("LISTEN_FDNAMES", None)
    if pid != str(os.getpid()) or not count.isdecimal():
        return []
    found = []
    for number in range(_FIRST, _FIRST + int(count)):
        if _is_socket(number):
            found.append(socket.socket(fileno=number))
            found[-1].set_inheritable(False)
    return found


def _is_socket(number: int) -> bool:
    try:
        return stat.S_ISSOCK(os.fstat(number).st_mode)
    except OSError:
        return False
