"""What the engine makes of a reading: sums by group, how they are added, and what it skipped."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, TypeVar

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence
    from typing import Protocol

# A value for each label that is kept, in the order of labels.LABELS.
Group = tuple[str, ...]

# Connections by l3protocol, l4protocol, and the kernel's name of a state or flag.
Counts = dict[tuple[str, str, str], int]


class Egress(NamedTuple):
    """What is sent from an address that sources are translated to, by one protocol."""

    address: str
    l4protocol: str
    connections: int

    ports: int
    """The most source ports, or ids of ICMP, that are in use towards one destination.

    0 for a protocol that has neither.
    """

    destinations: list[tuple[str, str, int]]
    """The busiest: address, port, and source ports in use towards it, largest first.

    The port of ICMP is "0".
    """


class Nat(NamedTuple):
    """The translated entries of the table."""

    connections: Counts  # the last name is snat, dnat or both
    egress: list[Egress]  # for each protocol the last is "other", where there are more


class Sums(NamedTuple):
    """What is summed. "Sent" is the original direction."""

    connections: int
    sent_packets: int
    sent_bytes: int
    reply_packets: int
    reply_bytes: int


class Rows(NamedTuple):
    """Groups with their sums, by columns: a million groups fit in memory."""

    groups: Sequence[Group]
    columns: tuple[Sequence[int], ...]  # one for each field of Sums


if TYPE_CHECKING:

    class Groups(Protocol):
        """The groups of one reading, which the engine holds."""

        def __len__(self) -> int: ...

        def rows(self, limit: int, by: str) -> Rows:
            """The largest groups by bytes, packets or connections; all where limit is 0.

            They ascend by the values of their labels, and of equally large ones the
            first are taken. Nothing else can be asked for after it: the rest is freed.
            """

        def largest(
            self, limit: int, by: str, without: Collection[bytes] = ()
        ) -> list[tuple[bytes, Sums]]:
            """The keys and sums of the largest groups that are not in a collection of keys."""

        def get(self, keys: Iterable[bytes]) -> list[Sums | None]:
            """The sums of groups by their keys, None for a group that is not there."""

        def labels(self, key: bytes) -> Group:
            """The values of the labels of a group's key."""

    class Translations(Protocol):
        """The translations of one reading, which the engine holds."""

        def nat(self, limit: int, destinations: int) -> Nat:
            """The busiest egress addresses by ports, then connections, and their destinations.

            The others are one of each protocol, "other", with the sum of connections
            and the most ports. A limit of 0 is none; destinations are of each, and
            may be 0.
            """


class Tally(NamedTuple):
    """The sums of one whole reading of the table."""

    groups: Groups

    protocols: dict[Group, Sums]
    """The sums by l3protocol and l4protocol, of what the filters left.

    Of several network namespaces together by netns before these.
    """

    filtered: int
    """Entries that filters took out. They are in no group."""

    # Of the whole table, whatever the filters:

    malformed: int
    """Entries that could not be read. They are in no other number."""

    first_malformed: bytes
    """The beginning of the first of these, empty where there is none."""

    uncounted: int
    """Entries without accounting. In the sums they are connections without packets and bytes."""

    states: Counts
    """Entries by state, of the protocols that have states. An offloaded entry has none."""

    flags: Counts
    """Entries that are unreplied, assured, offload or hw_offload."""

    nat: Translations | None
    """The translated entries, None where the plan does not count them."""

    @property
    def entries(self) -> int:
        """How many entries were read."""
        return self.filtered + sum(sums.connections for sums in self.protocols.values())


_Key = TypeVar("_Key")


def add(sums: dict[_Key, list[int]], key: _Key, row: Sequence[int]) -> None:
    """Add a row of five to what is summed under a key."""
    into = sums.get(key)
    if into is None:
        sums[key] = list(row)
    else:  # written out, since there may be a million of them
        into[0] += row[0]
        into[1] += row[1]
        into[2] += row[2]
        into[3] += row[3]
        into[4] += row[4]
