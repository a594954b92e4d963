"""The tally: the engine's sums of one reading by group, and the number of skipped entries."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, TypeVar

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence
    from typing import Protocol

# The values of a plan's labels, in the order of labels.LABELS.
Group = tuple[str, ...]

# Entries by l3protocol, l4protocol, and a state, flag or NAT type.
Counts = dict[tuple[str, str, str], int]


class Egress(NamedTuple):
    """The connections of one protocol whose source is translated to an egress address."""

    address: str
    l4protocol: str
    connections: int

    ports: int
    """The source ports (ICMP ids) in use towards the destination that has the most of them.

    0 for a protocol without ports and ids.
    """

    destinations: list[tuple[str, str, int]]
    """The busiest destinations, those with the most source ports in use first.

    Address, port ("0" for ICMP), and source ports in use.
    """


class Nat(NamedTuple):
    """The translated entries of the table."""

    connections: Counts  # the types are snat, dnat and both
    egress: list[Egress]  # with an "other" for each protocol where the limit cut some


class Sums(NamedTuple):
    """The sums of a group. "Sent" is the original direction."""

    connections: int
    sent_packets: int
    sent_bytes: int
    reply_packets: int
    reply_bytes: int


def lacks_counters(sums: Sequence[int]) -> bool:
    """Return whether no connection of a group has counters: with them it has at least a packet."""
    return sums[0] > 0 and not any(sums[1:])


class Rows(NamedTuple):
    """Groups with their sums. By columns, as a million rows would take too much memory."""

    groups: Sequence[Group]
    columns: tuple[Sequence[int], ...]  # one for each field of Sums

    @staticmethod
    def of(sums: Mapping[Group, Sequence[int]]) -> Rows:
        """Return groups with their sums as rows."""
        columns = tuple(zip(*sums.values(), strict=True)) or ((),) * len(Sums._fields)
        return Rows(list(sums), columns)

    def pairs(self) -> Iterable[tuple[Group, tuple[int, ...]]]:
        """Return each group with its sums."""
        return zip(self.groups, zip(*self.columns, strict=True), strict=True)

    @property
    def totals(self) -> Sums:
        """The sums over all groups."""
        return Sums(*map(sum, self.columns))


if TYPE_CHECKING:

    class Groups(Protocol):
        """The groups of one reading, held by the engine."""

        def __len__(self) -> int: ...

        def rows(self, limit: int, by: str) -> Rows:
            """Return the largest groups by bytes, packets or connections; all where limit is 0.

            Sorted by the values of the labels; of equally large groups the first are
            taken. It frees the groups: no method can be called after it.
            """

        def largest(
            self, limit: int, by: str, without: Collection[bytes] = ()
        ) -> list[tuple[bytes, Sums]]:
            """Return key and sums of the largest groups, without the groups of some keys."""

        def get(self, keys: Iterable[bytes]) -> list[Sums | None]:
            """Return the sums for each key, None for a key without a group."""

        def labels(self, key: bytes) -> Group:
            """Return the group of a key."""

    class Translations(Protocol):
        """The translated entries of one reading, held by the engine."""

        def nat(self, limit: int, destinations: int) -> Nat:
            """Return the busiest egress addresses, by ports, then connections.

            limit: of addresses, 0 for none. The others are an "other" for each protocol,
            with the sum of connections and the most ports.
            destinations: the limit for each address.
            """


class Tally(NamedTuple):
    """The sums of one whole reading of the table."""

    groups: Groups

    protocols: dict[Group, Sums]
    """The sums by l3protocol and l4protocol, of entries that pass the filters.

    In a merged tally by netns, l3protocol and l4protocol.
    """

    filtered: int
    """Entries that the filters dropped. They are in no group."""

    # Of the whole table, whatever the filters:

    malformed: int
    """Entries that could not be parsed. They are in no other number."""

    first_malformed: bytes
    """The beginning of the first malformed entry, empty where there is none."""

    uncounted: int
    """Entries without accounting. In the sums they are connections with 0 packets and bytes."""

    states: Counts
    """Entries by state, of the protocols that have states. An offloaded entry has none."""

    flags: Counts
    """Entries by flag: unreplied, assured, offload, hw_offload."""

    nat: Translations | None
    """The translated entries, None where the plan does not count them."""

    @property
    def entries(self) -> int:
        """The number of parsed entries."""
        return self.filtered + sum(sums.connections for sums in self.protocols.values())


_Key = TypeVar("_Key")


def add(sums: dict[_Key, list[int]], key: _Key, row: Sequence[int]) -> None:
    """Add a row of Sums to those of a key."""
    into = sums.get(key)
    if into is None:
        sums[key] = list(row)
    else:  # unrolled: there may be a million rows
        into[0] += row[0]
        into[1] += row[1]
        into[2] += row[2]
        into[3] += row[3]
        into[4] += row[4]
