"""The kernel's own settings and figures of connection tracking, from /proc/sys."""

from __future__ import annotations

import os
from typing import NamedTuple

from conntrack_textfile.files import regular

_DIRECTORY = ("sys", "net", "netfilter")


class Conntrack(NamedTuple):
    """What net.netfilter says; None for what cannot be read."""

    entries: int | None = None
    """nf_conntrack_count: entries in the table of this network namespace."""

    entries_limit: int | None = None
    """nf_conntrack_max: how many entries fit."""

    buckets: int | None = None
    """nf_conntrack_buckets: the size of the hash of the table."""

    events: bool | None = None
    """nf_conntrack_events: whether the kernel sends events of connections."""

    accounting: bool | None = None
    """nf_conntrack_acct: whether new connections get packet and byte counters."""


def read(proc_root: str) -> Conntrack:
    """Read the figures under a proc root such as /proc."""
    accounting = number(proc_root, "nf_conntrack_acct")
    events = number(proc_root, "nf_conntrack_events")
    return Conntrack(
        entries=number(proc_root, "nf_conntrack_count"),
        entries_limit=number(proc_root, "nf_conntrack_max"),
        buckets=number(proc_root, "nf_conntrack_buckets"),
        events=None if events is None else events != 0,
        accounting=None if accounting is None else accounting != 0,
    )


def enable_accounting(proc_root: str) -> None:
    """Set net.netfilter.nf_conntrack_acct=1 and check that it took.

    Raises OSError, also where the kernel took the value and kept another.
    """
    path = os.path.join(proc_root, *_DIRECTORY, "nf_conntrack_acct")
    if number(proc_root, "nf_conntrack_acct") == 1:
        return  # where it is set, it need not be writable
    fd = regular(path, os.O_WRONLY | os.O_CLOEXEC)  # open() would make a file that is not there
    try:
        os.write(fd, b"1\n")
    finally:
        os.close(fd)
    if number(proc_root, "nf_conntrack_acct") != 1:
        raise OSError(f"{path} does not keep the value")


def number(proc_root: str, name: str) -> int | None:
    """What a setting of net.netfilter says, None where it cannot be read or is no number."""
    try:
        path = os.path.join(proc_root, *_DIRECTORY, name)
        with open(path, "rb", buffering=0, opener=regular) as file:
            text = file.read(32).strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None
