"""The tally: what a connection table sums up to, by key."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

# What entries are summed by: source and destination address of the original
# direction (packed, 4 bytes for IPv4 and 16 for IPv6, network order), the IP
# protocol number, and the destination port (0 where the protocol has none).
Key = tuple[bytes, bytes, int, int]


class Sums(NamedTuple):
    """What is summed, for one key or for all. "Sent" is the original direction."""

    connections: int
    sent_packets: int
    sent_bytes: int
    reply_packets: int
    reply_bytes: int


class Tally(NamedTuple):
    """The sums of one whole reading of the table."""

    sums: Mapping[Key, Sequence[int]]
    """Key to its five sums: the fields of Sums, in their order."""

    malformed: int
    """Entries that could not be read. They are in no sum."""

    uncounted: int
    """Entries without accounting. In the sums they are connections without packets and bytes."""
