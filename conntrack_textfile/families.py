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

    With --netns the first label is netns, except for a family about this process.
    """

    name: str
    help: str
    samples: Callable[[Snapshot], Iterable[Sample]]
    labels: tuple[str, ...] = ()
    type: str = "gauge"
    of_process: bool = False  # about this process

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
    """A family of one sample about live connections, absent where the last reading is too old."""
    return _value(name, help_, lambda s: None if s.live is None else value(s.live))


# The snapshot itself and the size of the table.
STATUS = (
    Family(
        "conntrack_textfile_build_info",
        "Always 1; labels for the version, the Python version, the engine and the source.",
        lambda s: [((__version__, _PYTHON, s.engine, s.source), 1)],
        labels=("version", "python", "engine", "source"),
        of_process=True,
    ),
    _value(
        "conntrack_snapshot_success",
        "1 if the last snapshot succeeded, 0 if it failed.",
        lambda s: None if s.success is None else int(s.success),
    ),
    _value(
        "conntrack_snapshot_timestamp_seconds",
        "Unix time of the last successful snapshot.",
        lambda s: s.timestamp,
    ),
    _value(
        "conntrack_snapshot_duration_seconds",
        "Duration of the last successful snapshot.",
        lambda s: s.duration,
    ),
    _value(
        "conntrack_entries",
        "Entries in the whole table, before filters, from the kernel (nf_conntrack_count).",
        lambda s: s.conntrack.entries,
    ),
    _value(
        "conntrack_entries_limit",
        "Maximum number of entries in the table (nf_conntrack_max).",
        lambda s: s.conntrack.entries_limit,
    ),
    _value(
        "conntrack_buckets",
        "Buckets of the hash table (nf_conntrack_buckets).",
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
        "Packets of live connections in the original direction.",
        1,
    ),
    GroupFamily(
        "conntrack_sent_bytes",
        "Bytes of live connections in the original direction.",
        2,
    ),
    GroupFamily(
        "conntrack_reply_packets",
        "Packets of live connections in the reply direction.",
        3,
    ),
    GroupFamily(
        "conntrack_reply_bytes",
        "Bytes of live connections in the reply direction.",
        4,
    ),
)

# By group and by protocol, in the order of the fields of tally.Sums.
_TRAFFIC_SUMS = (
    ("connections", "Connections first seen since the counters started."),
    ("sent_packets", "Packets of live and ended connections in the original direction."),
    ("sent_bytes", "Bytes of live and ended connections in the original direction."),
    ("reply_packets", "Packets of live and ended connections in the reply direction."),
    ("reply_bytes", "Bytes of live and ended connections in the reply direction."),
)

TRAFFIC_GROUPS = tuple(
    GroupFamily(f"conntrack_traffic_{name}_total", help_, column, "counter")
    for column, (name, help_) in enumerate(_TRAFFIC_SUMS)
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
        for column, (name, help_) in enumerate(_TRAFFIC_SUMS)
    ),
    _traffic(
        "conntrack_counters_start_timestamp_seconds",
        "Unix time at which the counters started at 0.",
        lambda t: t.started,
        "gauge",
    ),
    _traffic(
        "conntrack_tracked_connections",
        "Connections whose packets and bytes of the last dump are kept, to add the difference.",
        lambda t: t.tracked,
        "gauge",
    ),
    _traffic(
        "conntrack_events_listening",
        "1 if the kernel sends events of ended connections, 0 if not: traffic of a connection "
        "after the last dump is then in no counter.",
        lambda t: None if t.listening is None else int(t.listening),
        "gauge",
    ),
    _traffic(
        "conntrack_events_received_total",
        "Events of ended connections that were received.",
        lambda t: t.totals["received"],
    ),
    _traffic(
        "conntrack_events_lost_total",
        "Events of ended connections that were lost because the receive buffer was full.",
        lambda t: t.totals["lost"],
    ),
    _traffic(
        "conntrack_events_duplicate_total",
        "Events that the kernel sent again; the connection is counted once.",
        lambda t: t.totals["duplicate"],
    ),
    _traffic(
        "conntrack_connections_ended_unseen_total",
        "Connections that left the table without an event; their traffic after the last dump is "
        "in no counter.",
        lambda t: t.totals["ended_unseen"],
    ),
    _traffic(
        "conntrack_connections_ended_uncounted_total",
        "Connections that ended without packet and byte counters.",
        lambda t: t.totals["ended_uncounted"],
    ),
    _traffic(
        "conntrack_connections_zeroed_total",
        "Times that another program zeroed the counters of a connection (conntrack -L -z).",
        lambda t: t.totals["zeroed"],
    ),
    _traffic(
        "conntrack_series_evicted_total",
        "Keys whose counter series were evicted, for a larger key or after an hour of no traffic.",
        lambda t: t.totals["evicted"],
    ),
    _traffic(
        "conntrack_runs_interrupted_total",
        "Runs that were killed or failed after reading events and before saving them.",
        lambda t: t.totals["interrupted"],
    )._replace(of_process=True),
    _traffic(
        "conntrack_event_buffer_bytes",
        "Size of the receive buffer of the event socket.",
        lambda t: t.buffer.size if t.buffer else None,
        "gauge",
    ),
    _traffic(
        "conntrack_event_buffer_used_bytes",
        "Used part of the receive buffer of the event socket.",
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
        "Connections whose source (snat), destination (dnat) or both are translated, in the whole "
        "table, before filters.",
        ("l3protocol", "l4protocol", "nat"),
        lambda nat: nat.connections.items(),
    ),
    _nat(
        "conntrack_snat_connections",
        "Connections by the address that their source is translated to, in the whole table, before "
        "filters.",
        ("address", "l4protocol"),
        lambda nat: [((row.address, row.l4protocol), row.connections) for row in nat.egress],
    ),
    _nat(
        "conntrack_snat_busiest_destination_ports",
        "Source ports that an address uses towards its busiest destination address and port, of "
        "64,512 by default.",
        ("address", "l4protocol"),
        lambda nat: [((row.address, row.l4protocol), row.ports) for row in nat.egress if row.ports],
    ),
    _nat(
        "conntrack_snat_destination_ports",
        "Source ports that an address uses towards each of its busiest destinations.",
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
        "Statistics of the table by the kernel since boot, summed over all CPUs, modulo 2^32 "
        "(conntrack -S).",
        lambda s: [((event,), count) for event, count in s.statistics.items()],
        labels=("event",),
        type="counter",
    ),
)

# Live connections, not by group.
LIVE = (
    _live(
        "conntrack_malformed_entries",
        "Entries that could not be parsed; no other metric includes them.",
        lambda live: live.malformed,
    ),
    _live(
        "conntrack_uncounted_entries",
        "Entries without packet and byte counters, created while accounting was disabled, in the "
        "whole table.",
        lambda live: live.uncounted,
    ),
    Family(
        "conntrack_state_connections",
        "Connections by state, as named by the kernel, in the whole table, before filters.",
        lambda s: s.live.states.items() if s.live else (),
        labels=("l3protocol", "l4protocol", "state"),
    ),
    Family(
        "conntrack_flag_connections",
        "Connections that are unreplied, assured, offload or hw_offload, in the whole table, "
        "before filters.",
        lambda s: s.live.flags.items() if s.live else (),
        labels=("l3protocol", "l4protocol", "flag"),
    ),
    _live(
        "conntrack_filtered_connections",
        "Connections removed by filters; they are in no key and no total.",
        lambda live: live.filtered,
    ),
    _live(
        "conntrack_aggregated_keys",
        "Keys (combinations of label values) of the live connections.",
        lambda live: live.keys,
    ),
    _live(
        "conntrack_exported_keys",
        "Keys with series of their own.",
        lambda live: live.exported,
    ),
    _live(
        "conntrack_folded_keys",
        "Keys beyond the limit, folded into other.",
        lambda live: live.folded,
    ),
    *(
        _live(
            group.total,
            f"{group.help[:-1]}, all keys together, after filters.",
            lambda live, column=group.column: live.totals[column],  # type: ignore[misc]
        )
        for group in GROUPS
    ),
)
