"""Processes and their sockets, as /proc shows them (proc(5))."""

from __future__ import annotations

import contextlib
import os

# include/net/tcp_states.h
_TCP_LISTEN = "0A"


def holders(proc_root: str, inodes: list[int]) -> list[str]:
    """Return the process that holds each socket, as "COMM (pid N)"; the first if several share it.

    inodes: of the sockets. A socket whose process this user cannot see is "socket INODE".
    """
    wanted = {f"socket:[{inode}]": f"socket {inode}" for inode in inodes}
    for pid in pids(proc_root):
        directory = os.path.join(proc_root, pid, "fd")
        with contextlib.suppress(OSError):
            for name in os.listdir(directory):
                with contextlib.suppress(OSError):
                    link = os.readlink(os.path.join(directory, name))
                    if wanted.get(link, "").startswith("socket "):
                        wanted[link] = f"{comm(proc_root, pid)} (pid {pid})"
    return sorted(set(wanted.values()))


def pids(proc_root: str) -> list[str]:
    """Return the numbers of all processes, lowest first; [] without a procfs."""
    with contextlib.suppress(OSError):
        return sorted(filter(str.isdecimal, os.listdir(proc_root)), key=int)
    return []


def comm(proc_root: str, pid: str) -> str:
    """Return the name of a process, truncated by the kernel to 15 bytes; "" if it has ended."""
    path = os.path.join(proc_root, pid, "comm")
    # prctl(PR_SET_NAME) takes any bytes, from any user.
    with contextlib.suppress(OSError), open(path, errors="surrogateescape") as file:
        return file.read().strip()
    return ""


def listening(proc_root: str, port: int) -> list[int]:
    """Return the inodes of the TCP sockets that listen on a port (/proc/net/tcp, proc(5))."""
    inodes: list[int] = []
    for name in ("tcp", "tcp6"):
        with contextlib.suppress(OSError), open(os.path.join(proc_root, "net", name)) as file:
            rows = [line.split() for line in file][1:]
            inodes += [
                int(row[9])
                for row in rows
                if row[3] == _TCP_LISTEN and int(row[1].rpartition(":")[2], 16) == port
            ]
    return inodes
