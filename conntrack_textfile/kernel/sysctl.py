"""The net.netfilter.nf_conntrack_* sysctls (Documentation/networking/nf_conntrack-sysctl.rst)."""

from __future__ import annotations

import os
from typing import NamedTuple

from conntrack_textfile.files import regular

_DIRECTORY = ("sys", "net", "netfilter")


class Conntrack(NamedTuple):
    """Sysctls of net.netfilter; None for one that cannot be read."""

    entries: int | None = None
    """nf_conntrack_count: entries in the table of this network namespace."""

    entries_limit: int | None = None
    """nf_conntrack_max: the most entries of a table."""

    buckets: int | None = None
    """nf_conntrack_buckets: buckets of the hash table."""

    events: bool | None = None
    """nf_conntrack_events: whether the kernel sends conntrack events."""

    accounting: bool | None = None
    """nf_conntrack_acct: whether new connections get packet and byte counters."""


def read(proc_root: str) -> Conntrack:
    """Read the sysctls under a proc root such as /proc."""
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
    """Set net.netfilter.nf_conntrack_acct=1, unless it is set.

    Raises OSError, also where the sysctl reads back as another value.
    """
    path = os.path.join(proc_root, *_DIRECTORY, "nf_conntrack_acct")
    if number(proc_root, "nf_conntrack_acct") == 1:
        return  # then it need not be writable
    fd = regular(path, os.O_WRONLY | os.O_CLOEXEC)  # open() would set O_CREAT
    try:
        os.write(fd, b"1\n")
    finally:
        os.close(fd)
    if number(proc_root, "nf_conntrack_acct") != 1:
        raise OSError(f"{path} does not keep the value 1")


def number(proc_root: str, name: str) -> int | None:
    """Return a sysctl of net.netfilter, None if it cannot be read or is not a number."""
    try:
        path = os.path.join(proc_root, *_DIRECTORY, name)
        with open(path, "rb", buffering=0, opener=regular) as file:
            text = file.read(32).strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None
