"""Build ctnetlink messages as the kernel sends them, of synthetic connections.

Layout and numbers: include/uapi/linux/netfilter/nfnetlink_conntrack.h.
"""

from __future__ import annotations

import socket
import struct
from typing import NamedTuple

NEW, DESTROY = 0x100, 0x102


class Flow(NamedTuple):
    """One observation of a connection."""

    src: str = "10.0.0.1"
    dst: str = "192.0.2.1"
    sport: int = 40000
    dport: int = 443
    l4: int = 6
    zone: int = 0
    id: int = 1
    start: int = 0  # nanoseconds; 0 where nf_conntrack_timestamp is off
    counters: tuple[int, int, int, int] | None = (0, 0, 0, 0)


def attribute(kind: int, payload: bytes) -> bytes:
    """Return a struct nlattr with its payload, padded to four bytes."""
    return struct.pack("=HH", 4 + len(payload), kind) + payload + bytes(-len(payload) % 4)


def nested(kind: int, *inner: bytes) -> bytes:
    """Return an attribute of attributes (NLA_F_NESTED)."""
    return attribute(kind | 0x8000, b"".join(inner))


def tuple_(kind: int, flow: Flow, *, reply: bool = False) -> bytes:
    """Return CTA_TUPLE_ORIG or CTA_TUPLE_REPLY, without NAT."""
    v6 = ":" in flow.src
    family = socket.AF_INET6 if v6 else socket.AF_INET
    addresses = [socket.inet_pton(family, address) for address in (flow.src, flow.dst)]
    ports = [struct.pack("!H", port) for port in (flow.sport, flow.dport)]
    if reply:
        addresses.reverse()
        ports.reverse()
    return nested(
        kind,
        nested(1, *[attribute(2 * v6 + 1 + i, packed) for i, packed in enumerate(addresses)]),
        nested(
            2,
            attribute(1, bytes([flow.l4])),
            *[attribute(2 + i, port) for i, port in enumerate(ports)],
        ),
    )


def message(flow: Flow, kind: int = NEW) -> bytes:
    """Return a whole message: struct nlmsghdr, struct nfgenmsg and attributes."""
    family = socket.AF_INET6 if ":" in flow.src else socket.AF_INET
    parts = [
        tuple_(1, flow),
        tuple_(2, flow, reply=True),
        attribute(3, struct.pack("!I", 0xE)),  # CTA_STATUS
        attribute(12, struct.pack("!I", flow.id)),
    ]
    if flow.zone:
        parts.append(attribute(18, struct.pack("!H", flow.zone)))
    if flow.counters is not None:
        for number, (packets, octets) in ((9, flow.counters[:2]), (10, flow.counters[2:])):
            pair = [attribute(i, struct.pack("!Q", n)) for i, n in ((1, packets), (2, octets))]
            parts.append(nested(number, *pair))
    if flow.start:
        parts.append(nested(20, attribute(1, struct.pack("!Q", flow.start))))
    payload = struct.pack("!BBH", family, 0, 0) + b"".join(parts)
    return struct.pack("=IHHII", 16 + len(payload), kind, 2, 0, 0) + payload
