"""The tally, what a connection table sums up to by key, and the engines that make it."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from conntrack_textfile.errors import EngineError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
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

# Protocols whose entries have a state, and the kernel's names of these in the
# order of their numbers: tcp_conntrack_names, dccp_state_names and
# sctp_conntrack_names in net/netfilter/nf_conntrack_proto_*.c.
STATES = {
    6: (
        *("NONE", "SYN_SENT", "SYN_RECV", "ESTABLISHED", "FIN_WAIT", "CLOSE_WAIT", "LAST_ACK"),
        *("TIME_WAIT", "CLOSE", "SYN_SENT2"),
    ),
    33: (
        *("NONE", "REQUEST", "RESPOND", "PARTOPEN", "OPEN", "CLOSEREQ", "CLOSING", "TIMEWAIT"),
        *("IGNORE", "INVALID"),
    ),
    132: (
        *("NONE", "CLOSED", "COOKIE_WAIT", "COOKIE_ECHOED", "ESTABLISHED", "SHUTDOWN_SENT"),
        *("SHUTDOWN_RECD", "SHUTDOWN_ACK_SENT", "HEARTBEAT_SENT", "HEARTBEAT_ACKED"),
    ),
}
UNKNOWN_STATE = "unknown"  # of a kernel to come

# What an entry can be besides. The last three exclude one another, as where the
# kernel prints them: of an entry that is offloaded it does not say more.
FLAGS = ("unreplied", "assured", "offload", "hw_offload")

# By layer 3 (4 or 6) and protocol number.
Subtotals = dict[tuple[int, int], "Sums"]

_At = TypeVar("_At")

# Entries by layer 3, protocol number, and name of the state or flag.
Counts = dict[tuple[int, int, str], int]


class Sums(NamedTuple):
    """What is summed, for one key or for all. "Sent" is the original direction."""

    connections: int
    sent_packets: int
    sent_bytes: int
    reply_packets: int
    reply_bytes: int


class Tally(NamedTuple):
    """The sums of one whole reading of the table, by columns: a million keys fit in memory."""

    keys: Sequence[Key]
    """IPv4 before IPv6, then in ascending order."""

    columns: tuple[Sequence[int], ...]
    """Five, one for each field of Sums: a number for each key, in the order of the keys."""

    subtotals: Subtotals
    """The sums over the keys of each layer 3 and protocol."""

    malformed: int
    """Entries that could not be read. They are in no sum."""

    uncounted: int
    """Entries without accounting. In the sums they are connections without packets and bytes."""

    states: Counts
    """Entries by state, of the protocols in STATES. An offloaded entry has none."""

    flags: Counts
    """Entries by each of FLAGS."""

    @property
    def sums(self) -> dict[Key, Sums]:
        """Key to sums."""
        return {
            key: Sums(*row)
            for key, row in zip(self.keys, zip(*self.columns, strict=True), strict=True)
        }


def add(sums: dict[_At, list[int]], at: _At, row: Sequence[int]) -> None:
    """Add a row of five to what is summed there."""
    into = sums.get(at)
    if into is None:
        sums[at] = list(row)
    else:  # written out, since there may be a million of them
        into[0] += row[0]
        into[1] += row[1]
        into[2] += row[2]
        into[3] += row[3]
        into[4] += row[4]


class Gathered:
    """What the pure engine gathers entry by entry, and makes its tally of."""

    def __init__(self) -> None:
        self.sums: dict[Key, list[int]] = {}
        self.malformed = 0
        self.uncounted = 0
        self.marks: dict[tuple[int, int, str, bool, str], int] = {}

    def mark(self, l3: int, l4: int, state: str, unreplied: bool, flag: str) -> None:  # noqa: FBT001
        """Count what an entry is besides its sums; "" where it has no state or other flag."""
        mark = l3, l4, state, unreplied, flag
        self.marks[mark] = self.marks.get(mark, 0) + 1

    def tally(self) -> Tally:
        """All that was gathered, in order."""
        keys = sorted(self.sums, key=lambda key: (len(key[0]), key))
        columns = tuple([self.sums[key][field] for key in keys] for field in range(5))
        subtotals: dict[tuple[int, int], list[int]] = {}
        for (src, _, l4, _), row in self.sums.items():
            add(subtotals, (4 if len(src) == 4 else 6, l4), row)
        states: Counts = {}
        flags: Counts = {}
        for (l3, l4, state, unreplied, flag), count in self.marks.items():
            for counts, name in (
                (states, state),
                (flags, "unreplied" if unreplied else ""),
                (flags, flag),
            ):
                if name:
                    counts[l3, l4, name] = counts.get((l3, l4, name), 0) + count
        return Tally(
            keys,
            columns,
            {at: Sums(*subtotals[at]) for at in sorted(subtotals)},
            self.malformed,
            self.uncounted,
            dict(sorted(states.items())),
            dict(sorted(flags.items())),
        )


class Engine(NamedTuple):
    """What turns bytes into a tally. All engines give the same for the same bytes."""

    name: str
    text: Callable[[], TextCounter]
    netlink: Callable[[], NetlinkCounter]


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
