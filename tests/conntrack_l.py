"""An independent parser of `conntrack -L -o extended`, as the oracle of tests.

Beside each capture of the proc file is conntrack-L.txt, the same entries as conntrack-tools
prints them from netlink. No code is shared with the package: tokens are read into
dictionaries, and addresses by the ipaddress module.
"""

from __future__ import annotations

import ipaddress
from collections import Counter, defaultdict
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    Address = ipaddress.IPv4Address | ipaddress.IPv6Address

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


class Entry(NamedTuple):
    src: Address
    dst: Address
    l3protocol: str
    l4protocol: str
    dport: int
    zone: int
    mark: int
    egress: Address | None  # None where the source is not translated
    backend: Address | None
    sums: tuple[int, ...]  # connections, sent packets and bytes, reply packets and bytes
    counted: bool  # whether it has packet and byte counters
    state: str
    flags: tuple[str, ...]
    # Ports of the original and the reply tuple. For ICMP sport and reply_dport are the id.
    sport: int = 0
    reply_sport: int = 0
    reply_dport: int = 0
    reply_zone: int = 0


class Translated(NamedTuple):
    """Counts of entries with NAT."""

    connections: dict[tuple[str, str, str], int]
    """By l3protocol, l4protocol and kind: snat, dnat or both."""

    snat: dict[tuple[str, str], int]
    """Connections by egress address and l4protocol."""

    ports: dict[tuple[str, str], dict[tuple[str, str], dict[int, list[int]]]]
    """Source ports in use: by egress address and l4protocol, destination, and reply zone."""

    def in_use(self) -> dict[tuple[str, str], dict[tuple[str, str], int]]:
        """Return the number of ports in use towards each destination, of the fullest zone."""
        return {
            egress: {to: max(map(len, zones.values())) for to, zones in found.items()}
            for egress, found in self.ports.items()
        }

    def busiest(self) -> dict[tuple[str, str], int]:
        """Return the most ports in use towards one destination."""
        return {egress: max(found.values()) for egress, found in self.in_use().items()}


class Expected(NamedTuple):
    """What a snapshot of the same table must contain."""

    sums: dict[tuple[str, ...], list[int]]
    """By src, dst, l3protocol, l4protocol and dport."""

    entries: int
    uncounted: int
    states: dict[tuple[str, str, str], int]
    flags: dict[tuple[str, str, str], int]

    @property
    def totals(self) -> list[int]:
        """The sums over all groups."""
        return [sum(column) for column in zip(*self.sums.values(), strict=True)]


def entries(text: str) -> list[Entry]:
    """Parse the entries, in the order of the output."""
    # Not the summary line ("conntrack v1.4.7 ...: N flow entries have been shown").
    return [_entry(line.split()) for line in text.splitlines() if line.startswith("ipv")]


def _entry(tokens: list[str]) -> Entry:
    values: defaultdict[str, list[str]] = defaultdict(list)
    for token in tokens:
        name, equals, value = token.partition("=")
        if equals:
            values[name].append(value)
    name = tokens[2] if tokens[2] in KERNEL_NAMES else IANA_NAMES[tokens[3]]
    src, reply_src = map(ipaddress.ip_address, values["src"])
    dst, reply_dst = map(ipaddress.ip_address, values["dst"])
    counters = [0, 0, 0, 0]
    if values["packets"]:
        for i in (0, 1):
            counters[2 * i] = int(values["packets"][i])
            counters[2 * i + 1] = int(values["bytes"][i])
    stateful = name in ("tcp", "sctp", "dccp") and tokens[5].replace("_", "").isupper()
    return Entry(
        src=src,
        dst=dst,
        l3protocol=tokens[0],
        l4protocol=name,
        dport=int(values["dport"][0]) if values["dport"] else 0,
        # Zone 0 is not printed.
        zone=int((values["zone-orig"] or values["zone"] or ["0"])[0]),
        mark=int(values["mark"][0]) if values["mark"] else 0,
        egress=None if reply_dst == src else reply_dst,
        backend=None if reply_src == dst else reply_src,
        sums=(1, *counters),
        counted=bool(values["packets"]),
        state=tokens[5] if stateful else "",
        flags=tuple(token.strip("[]").lower() for token in tokens if token.startswith("[")),
        sport=int((values["sport"] or values["id"] or ["0"])[0]),
        reply_sport=int(values["sport"][1]) if values["sport"] else 0,
        reply_dport=int((values["dport"] or values["id"] or ["0"])[-1]),
        reply_zone=int((values["zone-reply"] or values["zone"] or ["0"])[0]),
    )


def value(entry: Entry, label: str) -> str:
    """Return the value of a label that is a field of the entry."""
    found = getattr(entry, label)
    return "" if found is None else str(found)


def add(sums: dict[tuple[str, ...], list[int]], group: tuple[str, ...], row: Iterable[int]) -> None:
    """Add a row of five numbers to the sums of a group."""
    sums[group] = [a + b for a, b in zip(sums.get(group, [0] * 5), row, strict=True)]


def summed(found: Iterable[Entry], labels: Sequence[str]) -> dict[tuple[str, ...], list[int]]:
    """Return the sums by labels."""
    sums: dict[tuple[str, ...], list[int]] = {}
    for entry in found:
        add(sums, tuple(value(entry, label) for label in labels), entry.sums)
    return sums


def translated(found: Iterable[Entry]) -> Translated:
    """Count entries with NAT, by comparing the two tuples of each."""
    connections: Counter[tuple[str, str, str]] = Counter()
    snat: Counter[tuple[str, str]] = Counter()
    ports: dict[tuple[str, str], dict[tuple[str, str], dict[int, list[int]]]] = {}
    for entry in found:
        kinds = []
        if entry.egress is not None or entry.sport != entry.reply_dport:
            kinds.append("snat")
        if entry.backend is not None or entry.dport != entry.reply_sport:
            kinds.append("dnat")
        if kinds:
            kind = kinds[0] if len(kinds) == 1 else "both"
            connections[entry.l3protocol, entry.l4protocol, kind] += 1
        if "snat" in kinds:
            egress = str(entry.egress or entry.src), entry.l4protocol
            snat[egress] += 1
            if entry.l4protocol in {"tcp", "udp", "sctp", "udplite", "dccp", "icmp", "icmpv6"}:
                to = str(entry.backend or entry.dst), str(entry.reply_sport)
                zones = ports.setdefault(egress, {}).setdefault(to, {})
                zones.setdefault(entry.reply_zone, []).append(entry.reply_dport)
    return Translated(dict(connections), dict(snat), ports)


def read(text: str) -> Expected:
    """Parse and sum up the output."""
    found = entries(text)
    states: Counter[tuple[str, str, str]] = Counter()
    flags: Counter[tuple[str, str, str]] = Counter()
    for entry in found:
        if entry.state:
            states[entry.l3protocol, entry.l4protocol, entry.state] += 1
        for flag in entry.flags:
            flags[entry.l3protocol, entry.l4protocol, flag] += 1
    return Expected(
        summed(found, ("src", "dst", "l3protocol", "l4protocol", "dport")),
        len(found),
        sum(not entry.counted for entry in found),
        dict(states),
        dict(flags),
    )


def regrouped(expected: Expected) -> dict[tuple[str, ...], list[int]]:
    """Return the sums by source network (/24 and /64), destination and l4protocol.

    Without ICMP. Addresses in 10.77.2.0/24 are named "servers".
    """
    sums: dict[tuple[str, ...], list[int]] = {}
    for (src, dst, l3, l4, _), row in expected.sums.items():
        if l4 == "icmp":
            continue
        length = 24 if l3 == "ipv4" else 64
        network = str(ipaddress.ip_network(f"{src}/{length}", strict=False))
        servers = ipaddress.ip_network("10.77.2.0/24")
        group = (
            "servers" if ipaddress.ip_address(src) in servers else network,
            "servers" if ipaddress.ip_address(dst) in servers else dst,
            l4,
        )
        add(sums, group, row)
    return sums
