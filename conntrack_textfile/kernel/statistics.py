"""What the kernel counts of its own trouble with the table: IPCTNL_MSG_CT_GET_STATS_CPU.

The answer is a message for each CPU that there can be, with a number of 32 bits for
each event (ctnetlink_ct_stat_cpu_fill_info() in net/netfilter/nf_conntrack_netlink.c).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from conntrack_textfile.kernel import ctnetlink, netlink, uapi
from conntrack_textfile.kernel.namespace import OWN

if TYPE_CHECKING:
    from conntrack_textfile.kernel.namespace import Namespace

_HEADER = uapi.NLMSG_HDRLEN + uapi.NFGENMSG_SIZE


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
    except (OSError, ValueError):
        return {}
    return sums


def _add(datagram: bytes, sums: dict[str, int]) -> bool:
    """Add the numbers of a datagram; whether more follow. Raises OSError and ValueError."""
    for kind, message in ctnetlink.messages(datagram):
        if kind == uapi.IPCTNL_MSG_CT_GET_STATS_CPU:
            found = ctnetlink.attributes_of(message[_HEADER:])
            for event, number in uapi.CTA_STATS.items():
                if number in found:
                    value = int.from_bytes(found[number], "big")
                    sums[event] = sums.get(event, 0) + value & 0xFFFFFFFF
        elif kind in (uapi.NLMSG_DONE, uapi.NLMSG_ERROR):
            ctnetlink.raise_error(message[uapi.NLMSG_HDRLEN :])
            return False
    return True
