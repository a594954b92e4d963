"""The metric families: a row for each, with name, help, labels and where the value comes from.

The only place that knows their names and order.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, NamedTuple

from conntrack_textfile import __version__

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from conntrack_textfile.aggregate import Aggregate
    from conntrack_textfile.snapshot import Snapshot

    Sample = tuple[tuple[str, ...], float]

_PYTHON = sys.version.partition(" ")[0]


class Family(NamedTuple):
    """A family with a fixed set of labels. One without samples is left out."""

    name: str
    help: str
    samples: Callable[[Snapshot], Iterable[Sample]]
    labels: tuple[str, ...] = ()
    type: str = "gauge"


class GroupFamily(NamedTuple):
    """A family with the labels of the groups: one of the columns of Sums, and its total."""

    name: str
    help: str
    total: str
    column: int  # of tally.Sums
    type: str = "gauge"


def _value(
    name: str, help_: str, value: Callable[[Snapshot], float | None], type_: str = "gauge"
) -> Family:
    """A family of one sample without labels, absent where there is no value."""

    def samples(snapshot: Snapshot) -> Iterable[Sample]:
        found = value(snapshot)
        return () if found is None else [((), found)]

    return Family(name, help_, samples, type=type_)


def _live(
    name: str, help_: str, value: Callable[[Aggregate], float], type_: str = "gauge"
) -> Family:
    """The same of the live connections, absent where no reading is fresh enough."""
    return _value(name, help_, lambda s: None if s.live is None else value(s.live), type_)


# The snapshot itself and the table: few, and always there.
STATUS = (
    Family(
        "conntrack_textfile_build_info",
        "Always 1; the labels say what made these numbers.",
        lambda s: [((__version__, _PYTHON, s.engine, s.source), 1)],
        labels=("version", "python", "engine", "source"),
    ),
    _value(
        "conntrack_snapshot_success",
        "1 if the last reading of the table worked, 0 if it failed.",
        lambda s: int(s.success),
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
        "conntrack_total_connections",
        0,
    ),
    GroupFamily(
        "conntrack_sent_packets",
        "Packets that live connections sent in their original direction.",
        "conntrack_total_sent_packets",
        1,
    ),
    GroupFamily(
        "conntrack_sent_bytes",
        "Bytes that live connections sent in their original direction.",
        "conntrack_total_sent_bytes",
        2,
    ),
    GroupFamily(
        "conntrack_reply_packets",
        "Packets that live connections sent in their reply direction.",
        "conntrack_total_reply_packets",
        3,
    ),
    GroupFamily(
        "conntrack_reply_bytes",
        "Bytes that live connections sent in their reply direction.",
        "conntrack_total_reply_bytes",
        4,
    ),
)

# The live connections together.
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
