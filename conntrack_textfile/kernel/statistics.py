"""What the kernel counts of a table: its size, and its own trouble with it.

The answer to IPCTNL_MSG_CT_GET_STATS_CPU is a message for each CPU that there can be, with
a number of 32 bits for each event (ctnetlink_ct_stat_cpu_fill_info() in
net/netfilter/nf_conntrack_netlink.c), that to IPCTNL_MSG_CT_GET_STATS a single message.
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
    """The numbers by event, over all CPUs; {} where the kernel does not give them.

    Each wraps at 2^32 on its CPU. The sum modulo 2^32 does not show that: it falls
    only where the sum itself comes to 2^32, to nearly 0. Prometheus takes that for a
    counter that began anew, and misses a little. The plain sum would fall to what the other
    CPUs have, which would count once more.
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
    """How many entries are in a table, and how many fit; None for what is not said.

    The second is there since Linux 5.9. Raises SourceError and OSError.
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
    """Add the numbers of a datagram; whether more follow."""
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
    """Messages, or attributes: what their headers say of the type, and what follows.

    Not by ctnetlink.py: to import the pure engine takes longer than the reading of a
    small table. Raises ValueError and struct.error where the lengths do not add up.
    """
    while data:
        length, kind, *_ = struct.unpack_from(header, data)
        if not struct.calcsize(header) <= length <= len(data):
            raise ValueError("lengths that do not add up")
        yield kind, data[struct.calcsize(header) : length]
        data = data[length + 3 & ~3 :]
