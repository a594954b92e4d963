"""What `conntrack -L` says, summed up by other code than ours.

conntrack-L.txt stands beside each capture; its entries are those of the proc
file, printed by conntrack-tools from netlink. This reads it by dictionaries of
tokens and the ipaddress module, so that it shares nothing with the package.
"""

from __future__ import annotations

import ipaddress
from collections import Counter, defaultdict
from typing import NamedTuple

KERNEL_NAMES = {"tcp", "udp", "icmp", "icmpv6", "gre", "sctp", "udplite", "dccp"}
IANA_NAMES = {
    "4": "ipv4",
    "33": "dccp",
    "50": "esp",
    "51": "ah",
    "89": "ospf",
    "112": "vrrp",
    "253": "253",
}


class Expected(NamedTuple):
    sums: dict[tuple[str, str, str, str, str], list[int]]
    """(src, dst, l3protocol, l4protocol, dport) to the five sums."""

    entries: int
    uncounted: int
    states: dict[tuple[str, str, str], int]
    flags: dict[tuple[str, str, str], int]

    @property
    def totals(self) -> list[int]:
        return [sum(column) for column in zip(*self.sums.values(), strict=True)]


def read(text: str) -> Expected:
    sums: defaultdict[tuple[str, str, str, str, str], list[int]] = defaultdict(lambda: [0] * 5)
    states: Counter[tuple[str, str, str]] = Counter()
    flags: Counter[tuple[str, str, str]] = Counter()
    entries = uncounted = 0
    for line in text.splitlines():
        tokens = line.split()
        if not tokens or not tokens[0].startswith("ipv"):
            continue  # conntrack's own summary
        values: defaultdict[str, list[str]] = defaultdict(list)
        for token in tokens:
            name, equals, value = token.partition("=")
            if equals:
                values[name].append(value)
        name = tokens[2] if tokens[2] in KERNEL_NAMES else IANA_NAMES[tokens[3]]
        key = (
            str(ipaddress.ip_address(values["src"][0])),
            str(ipaddress.ip_address(values["dst"][0])),
            tokens[0],
            name,
            values["dport"][0] if values["dport"] else "0",
        )
        counters = [0, 0, 0, 0]
        if values["packets"]:
            for i in (0, 1):
                counters[2 * i] = int(values["packets"][i])
                counters[2 * i + 1] = int(values["bytes"][i])
        else:
            uncounted += 1
        if name in ("tcp", "sctp", "dccp") and tokens[5].replace("_", "").isupper():
            states[tokens[0], name, tokens[5]] += 1
        for token in tokens:
            if token.startswith("["):
                flags[tokens[0], name, token.strip("[]").lower()] += 1
        entries += 1
        sums[key] = [a + b for a, b in zip(sums[key], [1, *counters], strict=True)]
    return Expected(dict(sums), entries, uncounted, dict(states), dict(flags))


def regrouped(expected: Expected) -> dict[tuple[str, str, str], list[int]]:
    """By source network (/24 and /64), destination and protocol; without ICMP.

    Addresses in 10.77.2.0/24 are "servers".
    """
    sums: defaultdict[tuple[str, str, str], list[int]] = defaultdict(lambda: [0] * 5)
    for (src, dst, l3, l4, _), row in expected.sums.items():
        if l4 == "icmp":
            continue
        length = 24 if l3 == "ipv4" else 64
        network = str(ipaddress.ip_network(f"{src}/{length}", strict=False))
        servers = ipaddress.ip_network("10.77.2.0/24")
        key = (
            "servers" if ipaddress.ip_address(src) in servers else network,
            "servers" if ipaddress.ip_address(dst) in servers else dst,
            l4,
        )
        sums[key] = [a + b for a, b in zip(sums[key], row, strict=True)]
    return dict(sums)
