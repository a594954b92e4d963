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
        """All but NETLINK_NETFILTER sockets."""
        self.events: dict[str, socket.socket] = {}
        """Of DESTROY events, by network namespace; "" is that of the process."""
        self.dumps: dict[str, list[socket.socket]] = {}
        """For dumps, by network namespace."""
        self.netlink: list[socket.socket] = []
        """All in events and dumps."""


def take() -> Passed:
    """Take the passed sockets, and close those without a use.

    FileDescriptorName=netns=NAME is that of a socket in a network namespace. Raises SourceError.
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
        if netns and groups == 0:
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
    """Return the passed sockets of any family; [] if LISTEN_PID is not this process.

    Each with the FileDescriptorName= of its unit, "" if not given.
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
