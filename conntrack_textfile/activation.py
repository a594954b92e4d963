"""Sockets passed by systemd: socket activation, sd_listen_fds(3)."""

from __future__ import annotations

import os
import socket
import stat
from typing import NamedTuple

_FIRST = 3  # SD_LISTEN_FDS_START
_MAX_DIGITS = 5  # of LISTEN_FDS


class Passed(NamedTuple):
    """A socket that systemd passed."""

    name: str  # FileDescriptorName= of its unit, "" if not given
    socket: socket.socket


def sockets() -> list[Passed]:
    """Return the passed sockets of any family; [] if LISTEN_PID is not this process.

    Removes LISTEN_* from the environment, so a second call returns []. Other
    descriptors are left open.
    """
    pid, count = os.environ.pop("LISTEN_PID", ""), os.environ.pop("LISTEN_FDS", "")
    names = os.environ.pop("LISTEN_FDNAMES", "").split(":")
    if pid != str(os.getpid()) or not count.isdecimal() or len(count) > _MAX_DIGITS:
        return []
    passed = []
    for at in range(int(count)):
        fd = _FIRST + at
        if _is_socket(fd):
            sock = socket.socket(fileno=fd)
            sock.set_inheritable(False)
            passed.append(Passed(names[at] if at < len(names) else "", sock))
    return passed


def _is_socket(fd: int) -> bool:
    try:
        return stat.S_ISSOCK(os.fstat(fd).st_mode)
    except OSError:
        return False
