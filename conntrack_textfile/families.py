"""The metric families: a row for each, with name, help, type, labels and the source of samples."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, NamedTuple

from conntrack_textfile import __version__
from conntrack_textfile.labels import NETNS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from conntrack_textfile.aggregate import Aggregate
    from conntrack_textfile.snapshot import Snapshot, Traffic
    from conntrack_textfile.tally import Nat

    Sample = tuple[tuple[str, ...], float]

_PYTHON = sys.version.partition(" ")[0]


class Family(NamedTuple):
    """A family with a fixed set of labels. Without samples it is not exposed.

    With --netns the first label is netns, but for a family about this process.
    """

    name: str
    help: str
    samples: Callable[[Snapshot], Iterable[Sample]]
    labels: tuple[str, ...] = ()
    type: str = "gauge"
    of_process: bool = False  # about this process: no label netns

    def labelled(self, snapshot: Snapshot) -> tuple[tuple[str, ...], list[Sample]]:
        """Return the label names, and the samples of a snapshot with their values."""
        if self.of_process or snapshot.parts is None:
            return self.labels, list(self.samples(snapshot))
        samples = [
            ((name, *values), value)
            for name, part in snapshot.parts.items()
            for values, value in self.samples(part)
        ]
        return (NETNS.name, *self.labels), samples


class GroupFamily(NamedTuple):
    """A family with the labels of the groups."""

    name: str
    help: str
    column: int  # field of tally.Sums
    type: str = "gauge"

    @property
    def total(self) -> str:
        """The name of the family of the sum over all groups of live connections."""
        return self.name.replace("conntrack_", "conntrack_total_")


def _value(
    name: str, help_: str, value: Callable[[Snapshot], float | None], type_: str = "gauge"
) -> Family:
    """A family of one sample without labels, absent if the value is None."""

    def samples(snapshot: Snapshot) -> Iterable[Sample]:
        found = value(snapshot)
        return () if found is None else [((), found)]

    return Family(name, help_, samples, type=type_)


def _live(name: str, help_: str, value: Callable[[Aggregate], float]) -> Family:
    """A family of one sample about live connections, absent without a recent reading."""
    return _value(name, help_, lambda s: None if s.live is None else value(s.live))


# The snapshot itself and the size of the table.
STATUS = (
    Family(
        "conntrack_textfile_build_info",
        "Always 1; the labels say what made these numbers.",
        lambda s: [((__version__, _PYTHON, s.engine, s.source), 1)],
        labels=("version", "python", "engine", "source"),
        of_process=True,
    ),
    _value(
        "conntrack_snapshot_success",
        "1 if the last reading of the table worked, 0 if it failed.",
        lambda s: None if s.success is None else int(s.success),
    ),
    _value(
        "conntrack_snapshot_timestamp_seconds",
        "Unix time of the last good reading of the table.",
        lambda s: s.timestamp,
    ),
    _value(
        "conntrack_snapshot_duration_seconds",
        "What the last good reading and counting of the table took.",
        lambda s: s.duration,
    ),
    _value(
        "conntrack_entries",
        "Entries in the whole table, filters or not, by the kernel's count (nf_conntrack_count).",
        lambda s: s.conntrack.entries,
    ),
    _value(
        "conntrack_entries_limit",
        "How many entries fit in the table (nf_conntrack_max).",
        lambda s: s.conntrack.entries_limit,
    ),
    _value(
        "conntrack_buckets",
        "Size of the hash of the table (nf_conntrack_buckets).",
        lambda s: s.conntrack.buckets,
    ),
    _value(
        "conntrack_accounting_enabled",
        "1 if new connections get packet and byte counters (nf_conntrack_acct), 0 if not.",
        lambda s: None if s.conntrack.accounting is None else int(s.conntrack.accounting),
    ),
)

# By group, in the order of the fields of tally.Sums.
GROUPS = (
    GroupFamily(
        "conntrack_connections",
        "Live connections.",
        0,
    ),
    GroupFamily(
        "conntrack_sent_packets",
        "Packets that live connections sent in their original direction.",
        1,
    ),
    GroupFamily(
        "conntrack_sent_bytes",
        "Bytes that live connections sent in their original direction.",
        2,
    ),
    GroupFamily(
        "conntrack_reply_packets",
        "Packets that live connections sent in their reply direction.",
        3,
    ),
    GroupFamily(
        "conntrack_reply_bytes",
        "Bytes that live connections sent in their reply direction.",
        4,
    ),
)

# By group and by protocol, in the order of the fields of tally.Sums.
_TRAFFIC = (
    ("connections", "Connections first seen since the counters began."),
    ("sent_packets", "Packets sent in the original direction, by ended connections too."),
    ("sent_bytes", "Bytes sent in the original direction, by ended connections too."),
    ("reply_packets", "Packets sent in the reply direction, by ended connections too."),
    ("reply_bytes", "Bytes sent in the reply direction, by ended connections too."),
)

TRAFFIC_GROUPS = tuple(
    GroupFamily(f"conntrack_traffic_{name}_total", help_, column, "counter")
    for column, (name, help_) in enumerate(_TRAFFIC)
)


def _protocol_samples(column: int) -> Callable[[Snapshot], Iterable[Sample]]:
    return lambda s: (
        zip(s.traffic.protocols.groups, s.traffic.protocols.columns[column], strict=True)
        if s.traffic
        else ()
    )


def _traffic(
    name: str, help_: str, value: Callable[[Traffic], float | None], type_: str = "counter"
) -> Family:
    """A family of one sample about the counters, absent without counters."""
    return _value(name, help_, lambda s: None if s.traffic is None else value(s.traffic), type_)


TRAFFIC = (
    *(
        Family(
            f"conntrack_protocol_traffic_{name}_total",
            help_,
            _protocol_samples(column),
            labels=("l3protocol", "l4protocol"),
            type="counter",
        )
        for column, (name, help_) in enumerate(_TRAFFIC)
    ),
    _traffic(
        "conntrack_counters_start_timestamp_seconds",
        "Unix time at which the counters began at 0.",
        lambda t: t.started,
        "gauge",
    ),
    _traffic(
        "conntrack_tracked_connections",
        "Connections whose counters are remembered from one reading to the next.",
        lambda t: t.tracked,
        "gauge",
    ),
    _traffic(
        "conntrack_events_listening",
        "1 if the kernel sends events of ended connections, 0 if not: what a connection carried "
        "after the last reading is then in no counter.",
        lambda t: None if t.listening is None else int(t.listening),
        "gauge",
    ),
    _traffic(
        "conntrack_events_received_total",
        "Events of ended connections that were read.",
        lambda t: t.totals["received"],
    ),
    _traffic(
        "conntrack_events_lost_total",
        "Events of ended connections that did not fit into the buffer.",
        lambda t: t.totals["lost"],
    ),
    _traffic(
        "conntrack_events_duplicate_total",
        "Events that the kernel sent twice; they were counted once.",
        lambda t: t.totals["duplicate"],
    ),
    _traffic(
        "conntrack_connections_ended_unseen_total",
        "Connections that were gone from the table without an event; what they carried after "
        "the last reading is in no counter.",
        lambda t: t.totals["ended_unseen"],
    ),
    _traffic(
        "conntrack_connections_ended_uncounted_total",
        "Connections that ended without packet and byte counters.",
        lambda t: t.totals["ended_uncounted"],
    ),
    _traffic(
        "conntrack_connections_zeroed_total",
        "Times that somebody else has zeroed the counters of a connection.",
        lambda t: t.totals["zeroed"],
    ),
    _traffic(
        "conntrack_series_evicted_total",
        "Keys that lost the series of their counters to others, or by an hour without traffic.",
        lambda t: t.totals["evicted"],
    ),
    _traffic(
        "conntrack_runs_interrupted_total",
        "Runs that were killed or failed before they had saved and written what they had read.",
        lambda t: t.totals["interrupted"],
    )._replace(of_process=True),
    _traffic(
        "conntrack_event_buffer_bytes",
        "Size of the receive buffer of events.",
        lambda t: t.buffer.size if t.buffer else None,
        "gauge",
    ),
    _traffic(
        "conntrack_event_buffer_used_bytes",
        "How much of the receive buffer of events is used.",
        lambda t: t.buffer.used if t.buffer else None,
        "gauge",
    ),
)


def _nat(
    name: str, help_: str, labels: tuple[str, ...], samples: Callable[[Nat], Iterable[Sample]]
) -> Family:
    """A family about translated entries, absent with --collector.nat=off."""
    return Family(
        name,
        help_,
        lambda s: samples(s.live.nat) if s.live and s.live.nat else (),
        labels,
    )


# Translated entries of the whole table.
NAT = (
    _nat(
        "conntrack_nat_connections",
        "Connections whose source (snat), destination (dnat) or both are translated, "
        "in the whole table: filters leave them alone.",
        ("l3protocol", "l4protocol", "nat"),
        lambda nat: nat.connections.items(),
    ),
    _nat(
        "conntrack_snat_connections",
        "Connections by the address that their source is translated to, in the whole table.",
        ("address", "l4protocol"),
        lambda nat: [((row.address, row.l4protocol), row.connections) for row in nat.egress],
    ),
    _nat(
        "conntrack_snat_busiest_destination_ports",
        "The most source ports that an address has in use towards one destination address and "
        "port: of 64,512 by default. It is what runs out.",
        ("address", "l4protocol"),
        lambda nat: [((row.address, row.l4protocol), row.ports) for row in nat.egress if row.ports],
    ),
    _nat(
        "conntrack_snat_destination_ports",
        "Source ports that an address has in use towards its busiest destinations.",
        ("address", "l4protocol", "dst", "dport"),
        lambda nat: [
            ((row.address, row.l4protocol, dst, dport), ports)
            for row in nat.egress
            for dst, dport, ports in row.destinations
        ],
    ),
)

# Statistics of the kernel.
STATISTICS = (
    Family(
        "conntrack_stat_total",
        "What the kernel counts of its work on the table since it was booted, over all CPUs "
        "and modulo 2^32 (conntrack -S).",
        lambda s: [((event,), count) for event, count in s.statistics.items()],
        labels=("event",),
        type="counter",
    ),
)

# Live connections, not by group.
LIVE = (
    _live(
        "conntrack_malformed_entries",
        "Entries that could not be read; they are in no other number.",
        lambda live: live.malformed,
    ),
    _live(
        "conntrack_uncounted_entries",
        "Entries without packet and byte counters, made while accounting was off, "
        "in the whole table.",
        lambda live: live.uncounted,
    ),
    Family(
        "conntrack_state_connections",
        "Connections by the kernel's name of their state, in the whole table: "
        "filters and limits leave them alone.",
        lambda s: s.live.states.items() if s.live else (),
        labels=("l3protocol", "l4protocol", "state"),
    ),
    Family(
        "conntrack_flag_connections",
        "Connections that are unreplied, assured, offload or hw_offload, in the whole table: "
        "filters and limits leave them alone.",
        lambda s: s.live.flags.items() if s.live else (),
        labels=("l3protocol", "l4protocol", "flag"),
    ),
    _live(
        "conntrack_filtered_connections",
        "Connections that filters took out; they are in no key and no total.",
        lambda live: live.filtered,
    ),
    _live(
        "conntrack_aggregated_keys",
        "Keys (combinations of the labels) that connections were summed up to.",
        lambda live: live.keys,
    ),
    _live(
        "conntrack_exported_keys",
        "Keys with series of their own.",
        lambda live: live.exported,
    ),
    _live(
        "conntrack_folded_keys",
        "Keys beyond the limit, summed up as other.",
        lambda live: live.folded,
    ),
    *(
        _live(
            group.total,
            (f"{group.help[:-1]} that filters left" if group.column == 0 else group.help[:-1])
            + ", all keys together.",
            lambda live, column=group.column: live.totals[column],  # type: ignore[misc]
        )
        for group in GROUPS
    ),
)
