"""The kernel's statistics of a table (conntrack -S), and its size.

The answer to IPCTNL_MSG_CT_GET_STATS_CPU is a message for each possible CPU, with a __be32
for each event (ctnetlink_ct_stat_cpu_fill_info() in net/netfilter/nf_conntrack_netlink.c);
the answer to IPCTNL_MSG_CT_GET_STATS is one message (ctnetlink_stat_ct_fill_info()).
"""

from __future__ import annotations

import contextlib
import struct
from typing import TYPE_CHECKING

from conntrack_textfile.kernel import netlink, uapi
from conntrack_textfile.kernel.namespace import OWN

if TYPE_CHECKING:
    from collections.abc import Iterator

    from conntrack_textfile.kernel.namespace import Namespace


def read(space: Namespace = OWN) -> dict[str, int]:
    """Return the counts by event, summed over all CPUs modulo 2^32; {} if they cannot be read.

    The count of each CPU wraps at 2^32. Modulo 2^32 the sum falls only when it reaches 2^32
    itself, to nearly 0: a counter reset to Prometheus, which misses little. The plain sum
    would fall to that of the other CPUs, which rate() would then count again.

    Raises SourceError if the namespace cannot be entered.
    """
    sums: dict[str, int] = {}
    try:
        with netlink.dump(netlink.STATISTICS_REQUEST, space) as dump:
            while _add(bytes(netlink.datagram(dump)), sums):
                pass
    except (OSError, ValueError, struct.error):
        return {}
    return sums


def size(space: Namespace) -> tuple[int | None, int | None]:
    """Return the entries of a table and their limit, None for one that the kernel omits.

    The kernel sends the limit since Linux 5.9. Raises SourceError and OSError.
    """
    with netlink.dump(netlink.SIZE_REQUEST, space) as sock:
        answer = bytes(netlink.datagram(sock))
    numbers: dict[int, int] = {}
    with contextlib.suppress(ValueError, struct.error):
        for kind, message in _parts(answer, "=IHHII"):
            if kind == uapi.IPCTNL_MSG_CT_GET_STATS:
                for attribute, value in _parts(message[uapi.NFGENMSG_SIZE :], "=HH"):
                    numbers[attribute] = int.from_bytes(value, "big")
    entries = numbers.get(uapi.CTA_STATS_GLOBAL_ENTRIES)
    return entries, numbers.get(uapi.CTA_STATS_GLOBAL_MAX_ENTRIES)


def _add(datagram: bytes, sums: dict[str, int]) -> bool:
    """Add the counts of a datagram to sums. Return whether more datagrams follow."""
    for kind, message in _parts(datagram, "=IHHII"):
        if kind in (uapi.NLMSG_DONE, uapi.NLMSG_ERROR):
            return False
        if kind == uapi.IPCTNL_MSG_CT_GET_STATS_CPU:
            found = dict(_parts(message[uapi.NFGENMSG_SIZE :], "=HH"))
            for event, number in uapi.CTA_STATS.items():
                if number in found:
                    (value,) = struct.unpack("!I", found[number])
                    sums[event] = sums.get(event, 0) + value & 0xFFFFFFFF
    return True


def _parts(data: bytes, header: str) -> Iterator[tuple[int, bytes]]:
    """Split messages (struct nlmsghdr) or attributes (struct nlattr) into type and payload.

    Not with ctnetlink.py: to import the pure engine takes longer than to read a small
    table. Raises ValueError and struct.error for a length beyond the data.
    """
    while data:
        length, kind, *_ = struct.unpack_from(header, data)
        if not struct.calcsize(header) <= length <= len(data):
            raise ValueError("a length beyond the data")
        yield kind, data[struct.calcsize(header) : length]
        data = data[length + 3 & ~3 :]
