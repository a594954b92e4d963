"""The tally, what a connection table sums up to by key, and the engines that make it."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Collection
    from typing import Protocol

    class TextCounter(Protocol):
        """Counts the lines of the proc file. See procfile.Counter."""

        def feed(self, block: bytes | memoryview) -> None: ...  # noqa: D102
        def finish(self) -> Tally: ...  # noqa: D102

    class NetlinkCounter(Protocol):
        """Counts the messages of a ctnetlink dump. See ctnetlink.Counter."""

        def feed(self, datagram: bytes | memoryview) -> bool: ...  # noqa: D102
        def finish(self) -> Tally: ...  # noqa: D102


# What entries are summed by: source and destination address of the original
# direction (packed, 4 bytes for IPv4 and 16 for IPv6, network order), the IP
# protocol number, and the destination port (0 where the protocol has none).
Key = tuple[bytes, bytes, int, int]

# Protocols whose entries have a destination port.
WITH_PORTS = frozenset({6, 17, 33, 132, 136})  # tcp, udp, dccp, sctp, udplite


class Sums(NamedTuple):
    """What is summed, for one key or for all. "Sent" is the original direction."""

    connections: int
    sent_packets: int
    sent_bytes: int
    reply_packets: int
    reply_bytes: int


class Tally(NamedTuple):
    """The sums of one whole reading of the table, by columns: a million keys fit in memory."""

    keys: Collection[Key]
    """IPv4 before IPv6, then in ascending order."""

    columns: tuple[Collection[int], ...]
    """Five, one for each field of Sums: a number for each key, in the order of the keys."""

    malformed: int
    """Entries that could not be read. They are in no sum."""

    uncounted: int
    """Entries without accounting. In the sums they are connections without packets and bytes."""

    @property
    def sums(self) -> dict[Key, Sums]:
        """Key to sums."""
        return {
            key: Sums(*row)
            for key, row in zip(self.keys, zip(*self.columns, strict=True), strict=True)
        }


def tally(sums: dict[Key, list[int]], malformed: int, uncounted: int) -> Tally:
    """Put sums that were gathered by key into order."""
    keys = sorted(sums, key=lambda key: (len(key[0]), key))
    columns = tuple([sums[key][field] for key in keys] for field in range(5))
    return Tally(keys, columns, malformed, uncounted)


class Engine(NamedTuple):
    """What turns bytes into a tally. All engines give the same for the same bytes."""

    name: str
    text: Callable[[], TextCounter]
    netlink: Callable[[], NetlinkCounter]


class EngineError(Exception):
    """The engine asked for is not there. The message says what to do."""


def engine() -> Engine:
    """The compiled engine where it was built, else the pure one.

    The environment variable CONNTRACK_TEXTFILE_ENGINE, "pure" or "compiled",
    forces one. Raises EngineError.
    """
    wanted = os.environ.get("CONNTRACK_TEXTFILE_ENGINE", "")
    if wanted not in ("", "pure", "compiled"):
        raise EngineError(f"CONNTRACK_TEXTFILE_ENGINE must be pure or compiled, not {wanted!r}")
    if wanted != "pure":
        try:
            from conntrack_textfile import _speedups
        except ImportError as error:
            if wanted:
                raise EngineError(
                    f"there is no compiled engine ({error}): install with a C compiler at hand, "
                    "or unset CONNTRACK_TEXTFILE_ENGINE"
                ) from None
        else:
            return Engine("compiled", _speedups.TextCounter, _speedups.NetlinkCounter)
    from conntrack_textfile import ctnetlink, procfile

    return Engine("pure", procfile.Counter, ctnetlink.Counter)
