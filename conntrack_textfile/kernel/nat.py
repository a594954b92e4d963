"""Translated entries (SNAT, DNAT) and the source ports that they use.

The reply tuple of an entry without translation is the original tuple reversed. The
kernel keeps reply tuples unique in the zone of their direction: each entry with SNAT
uses one port of its egress address towards its destination. So the number of
these entries is the number of ports in use. Each zone has ports of its own: of
the same destination in several zones, the largest number counts.

nat.pxi is the same in C.
"""

from __future__ import annotations

import heapq
from typing import NamedTuple

from conntrack_textfile import networks
from conntrack_textfile.kernel.uapi import ID_OF
from conntrack_textfile.plan import OTHER
from conntrack_textfile.protocols import WITH_PORTS, l3protocol, l4protocol
from conntrack_textfile.tally import Egress, Nat

SNAT, DNAT, BOTH = "snat", "dnat", "both"

Tuple = tuple[bytes, int, bytes, int]  # source, its port, destination, its port


class _Egress(NamedTuple):
    """An address that sources are translated to, and a protocol."""

    l3: int
    address: bytes
    l4: int


class Translations:
    """See tally.Translations."""

    def __init__(self) -> None:
        self._connections: dict[tuple[int, int, str], int] = {}
        self._egress: dict[_Egress, int] = {}
        # By address and port of the destination and zone.
        self._ports: dict[_Egress, dict[tuple[bytes, int, int], int]] = {}

    def add(self, l3: int, l4: int, original: Tuple, reply: Tuple, zone: int) -> None:
        """Count an entry if it is translated. zone: that of the reply direction."""
        snat = reply[2:] != original[:2]
        dnat = reply[:2] != original[2:]
        if not snat and not dnat:
            return
        kind = l3, l4, (BOTH if dnat else SNAT) if snat else DNAT
        self._connections[kind] = self._connections.get(kind, 0) + 1
        if snat:
            egress = _Egress(l3, reply[2], l4)
            self._egress[egress] = self._egress.get(egress, 0) + 1
            if l4 in WITH_PORTS or l4 in ID_OF:
                ports = self._ports.setdefault(egress, {})
                destination = reply[0], reply[1], zone
                ports[destination] = ports.get(destination, 0) + 1

    def nat(self, limit: int, destinations: int) -> Nat:
        """See tally.Translations."""
        most = {egress: max(ports.values()) for egress, ports in self._ports.items()}

        def order(egress: _Egress) -> tuple[int, int, bytes, int, int]:
            address = egress.address.ljust(16, b"\0")
            return -most.get(egress, 0), -self._egress[egress], address, egress.l3, egress.l4

        kept = sorted(heapq.nsmallest(limit or len(self._egress), self._egress, key=order))
        others: dict[int, tuple[int, int]] = {}
        for egress in self._egress.keys() - set(kept):
            connections, ports = others.get(egress.l4, (0, 0))
            others[egress.l4] = (
                connections + self._egress[egress],
                max(ports, most.get(egress, 0)),
            )
        return Nat(
            {
                (l3protocol(l3), l4protocol(l4), name): count
                for (l3, l4, name), count in sorted(self._connections.items())
            },
            [
                *(
                    Egress(
                        _text(egress.address),
                        l4protocol(egress.l4),
                        self._egress[egress],
                        most.get(egress, 0),
                        self._busiest(egress, destinations),
                    )
                    for egress in kept
                ),
                *(Egress(OTHER, l4protocol(l4), *sums, []) for l4, sums in sorted(others.items())),
            ],
        )

    def _busiest(self, egress: _Egress, count: int) -> list[tuple[str, str, int]]:
        most: dict[tuple[bytes, int], int] = {}
        for (address, port, _), ports in self._ports.get(egress, {}).items():
            most[address, port] = max(ports, most.get((address, port), 0))
        busiest = heapq.nsmallest(count, most.items(), key=lambda item: (-item[1], item[0]))
        return [(_text(dst), str(dport), ports) for (dst, dport), ports in busiest]


def _text(address: bytes) -> str:
    return networks.text_of(address, len(address) * 8)
