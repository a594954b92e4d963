"""Sockets passed by systemd (socket activation, sd_listen_fds(3)), sorted by use."""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import socket

_FIRST = 3  # SD_LISTEN_FDS_START
_MAX_DIGITS = 5  # of LISTEN_FDS


class Passed:
    """The passed sockets, by use."""

    def __init__(self) -> None:
        self.listeners: list[socket.socket] = []
        """Sockets other than NETLINK_NETFILTER ones: the listeners of serve."""
        self.events: dict[str, socket.socket] = {}
        """Sockets for DESTROY events, by network namespace; "" is that of the process."""
        self.dumps: dict[str, list[socket.socket]] = {}
        """Sockets for dump requests, by network namespace."""
        self.netlink: list[socket.socket] = []
        """All sockets in events and dumps."""


def take() -> Passed:
    """Sort the passed sockets by use, and close those without one.

    FileDescriptorName=netns=NAME of a socket unit names the network namespace of its sockets.
    Raises SourceError if the namespace of this process cannot be identified.
    """
    passed = Passed()
    if "LISTEN_FDS" not in os.environ:
        return passed
    # Imported here, as socket below: most runs of write have no passed sockets.
    from conntrack_textfile.kernel import events
    from conntrack_textfile.kernel.namespace import OWN

    for name, sock in sockets():
        kind, _, netns = name.partition("=")
        netns = netns if kind == "netns" else ""
        groups = events.groups(sock)
        if groups < 0:
            passed.listeners.append(sock)
            continue
        if netns and groups == 0:  # no multicast group: for requests
            passed.dumps.setdefault(netns, []).append(sock)
        elif (
            netns not in passed.events
            and events.is_listening(sock)
            and (netns or events.is_in(sock, OWN.identity()))
        ):
            passed.events[netns] = sock
        else:
            sock.close()
            continue
        passed.netlink.append(sock)
    return passed


def sockets() -> list[tuple[str, socket.socket]]:
    """Return (name, socket) of each passed socket; [] if LISTEN_PID is not this process.

    The name is the FileDescriptorName= of its unit, "" if not given.
    Removes LISTEN_* from the environment, so a second call returns []. Other
    descriptors are left open.
    """
    import socket

    pid, count = os.environ.pop("LISTEN_PID", ""), os.environ.pop("LISTEN_FDS", "")
    names = os.environ.pop("LISTEN_FDNAMES", "").split(":")
    if pid != str(os.getpid()) or not count.isdecimal() or len(count) > _MAX_DIGITS:
        return []
    found = []
    for at in range(int(count)):
        fd = _FIRST + at
        if _is_socket(fd):
            sock = socket.socket(fileno=fd)
            sock.set_inheritable(False)
            found.append((names[at] if at < len(names) else "", sock))
    return found


def _is_socket(fd: int) -> bool:
    try:
        return stat.S_ISSOCK(os.fstat(fd).st_mode)
    except OSError:
        return False
