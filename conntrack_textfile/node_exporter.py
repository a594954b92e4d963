"""The running node_exporter: its textfile directory, and which files its user can read."""

from __future__ import annotations

import contextlib
import os
import stat
from typing import NamedTuple

from conntrack_textfile import processes

DEBIAN = "/var/lib/prometheus/node-exporter"
"""The directory of Debian's package."""


class Reader(NamedTuple):
    """A running node_exporter."""

    pid: str
    uid: int
    groups: frozenset[int]
    directory: str


def find(proc_root: str) -> Reader | None:
    """Return the first node_exporter that runs, None if there is none."""
    for pid in processes.pids(proc_root):
        if not processes.comm(proc_root, pid).startswith(("node_exporter", "prometheus-node")):
            continue
        with contextlib.suppress(OSError, ValueError, KeyError):
            with open(os.path.join(proc_root, pid, "status")) as file:
                rows = dict(line.rstrip("\n").split(":\t", 1) for line in file if ":\t" in line)
            with open(os.path.join(proc_root, pid, "cmdline"), errors="surrogateescape") as file:
                words = file.read().split("\0")
            uid, gid = int(rows["Uid"].split()[1]), int(rows["Gid"].split()[1])
            groups = frozenset([gid, *map(int, rows["Groups"].split())])
            return Reader(pid, uid, groups, _directory(words))
    return None


def _directory(words: list[str]) -> str:
    """Return the textfile directory of a node_exporter command line, by default Debian's."""
    name = "--collector.textfile.directory"
    found = DEBIAN
    for n, word in enumerate(words):
        if word.lstrip("-").startswith(f"{name[2:]}="):
            found = word.partition("=")[2]
        elif word == name and n + 1 < len(words):
            found = words[n + 1]
    return found


def shows(file: str, directory: str) -> bool:
    """Return whether a .prom link in a directory leads to a file; True if it cannot be listed."""
    try:
        names = [name for name in os.listdir(directory) if name.endswith(".prom")]
    except PermissionError:
        return True
    except OSError:
        return False
    return any(os.path.realpath(os.path.join(directory, name)) == file for name in names)


def unreadable(directory: str, reader: Reader | None, *, listed: bool = True) -> str:
    """Return why the user of node_exporter cannot enter or list a directory, "" if it can."""
    where = os.path.realpath(directory)
    wanted = stat.S_IXOTH | (stat.S_IROTH if listed else 0)
    while True:
        if not _allowed(os.stat(where), wanted, reader):
            may, rights = ("list", "rx") if wanted & stat.S_IROTH else ("go through", "x")
            return f"the user of node_exporter may not {may} {where}: chmod o+{rights} {where}"
        if where == "/":
            return ""
        wanted, where = stat.S_IXOTH, os.path.dirname(where)


def _allowed(found: os.stat_result, wanted: int, reader: Reader | None) -> bool:
    """Return whether the reader has permissions on a file; without a reader, whether others have.

    wanted: permission bits as those of others, S_IROTH and S_IXOTH.
    """
    if reader is not None and reader.uid == 0:
        return True
    shift = 0
    if reader is not None and reader.uid == found.st_uid:
        shift = 6
    elif reader is not None and found.st_gid in reader.groups:
        shift = 3
    return (found.st_mode >> shift) & wanted == wanted
