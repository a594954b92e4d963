"""The exposition: a snapshot as text that Prometheus reads.

The only place that knows the names of metrics, their help and the order of
labels. Format: https://prometheus.io/docs/instrumenting/exposition_formats/
(text, version 0.0.4).
"""

from __future__ import annotations

import itertools
import sys
from typing import TYPE_CHECKING

from conntrack_textfile import __version__

if TYPE_CHECKING:
    from collections.abc import Iterator

    from conntrack_textfile.policy import Connections
    from conntrack_textfile.snapshot import Snapshot

# Name and help of the family of each field of tally.Sums, with labels and in total.
_SUMS = (
    (
        "conntrack_connections",
        "Live connections.",
        "conntrack_total_connections",
        "Live connections that filters left, all keys together.",
    ),
    (
        "conntrack_sent_packets",
        "Packets that live connections sent in their original direction.",
        "conntrack_total_sent_packets",
        "Packets that live connections sent in their original direction, all keys together.",
    ),
    (
        "conntrack_sent_bytes",
        "Bytes that live connections sent in their original direction.",
        "conntrack_total_sent_bytes",
        "Bytes that live connections sent in their original direction, all keys together.",
    ),
    (
        "conntrack_reply_packets",
        "Packets that live connections sent in their reply direction.",
        "conntrack_total_reply_packets",
        "Packets that live connections sent in their reply direction, all keys together.",
    ),
    (
        "conntrack_reply_bytes",
        "Bytes that live connections sent in their reply direction.",
        "conntrack_total_reply_bytes",
        "Bytes that live connections sent in their reply direction, all keys together.",
    ),
)

_PYTHON = sys.version.partition(" ")[0]

# Lines joined to one piece of output: large enough to be cheap to write, small
# enough that the whole text is never in memory.
_LINES = 1024

_ESCAPES = str.maketrans({"\\": r"\\", '"': r"\"", "\n": r"\n"})


def render(snapshot: Snapshot) -> Iterator[bytes]:
    """The whole text of a snapshot, in pieces that end at the end of a line."""
    yield render_status(snapshot)
    if snapshot.connections is not None:
        yield from render_connections(snapshot.connections)


def render_status(snapshot: Snapshot) -> bytes:
    """The families about the snapshot itself and about the table: short, always there."""
    return "".join([*_about_the_snapshot(snapshot), *_about_the_table(snapshot)]).encode()


def render_connections(connections: Connections) -> Iterator[bytes]:
    """The families about the connections, totals first, in pieces."""
    yield "".join(_about_the_connections(connections)).encode()
    yield from _series(connections)


def _about_the_snapshot(snapshot: Snapshot) -> Iterator[str]:
    yield _gauge(
        "conntrack_textfile_build_info",
        "Always 1; the labels say what made these numbers.",
        1,
        f'{{version="{__version__}",python="{_PYTHON}",'
        f'engine="{snapshot.engine}",source="{snapshot.source}"}}',
    )
    yield _gauge(
        "conntrack_snapshot_success",
        "1 if the last reading of the table worked, 0 if it failed.",
        int(snapshot.success),
    )
    yield _gauge(
        "conntrack_snapshot_timestamp_seconds",
        "Unix time of the last good reading of the table.",
        snapshot.timestamp,
    )
    yield _gauge(
        "conntrack_snapshot_duration_seconds",
        "What the last good reading and counting of the table took.",
        snapshot.duration,
    )


def _about_the_table(snapshot: Snapshot) -> Iterator[str]:
    conntrack = snapshot.conntrack
    yield _gauge(
        "conntrack_entries",
        "Entries in the whole table, filters or not, by the kernel's count (nf_conntrack_count).",
        conntrack.entries,
    )
    yield _gauge(
        "conntrack_entries_limit",
        "How many entries fit in the table (nf_conntrack_max).",
        conntrack.entries_limit,
    )
    yield _gauge(
        "conntrack_accounting_enabled",
        "1 if new connections get packet and byte counters (nf_conntrack_acct), 0 if not.",
        None if conntrack.accounting is None else int(conntrack.accounting),
    )


def _about_the_connections(connections: Connections) -> Iterator[str]:
    yield _gauge(
        "conntrack_malformed_entries",
        "Entries that could not be read; they are in no other number.",
        connections.malformed,
    )
    yield _gauge(
        "conntrack_uncounted_entries",
        "Entries without packet and byte counters, made while accounting was off, "
        "in the whole table.",
        connections.uncounted,
    )
    yield _counts(
        "conntrack_state_connections",
        "Connections by the kernel's name of their state, in the whole table: "
        "filters and limits leave them alone.",
        "state",
        connections.states,
    )
    yield _counts(
        "conntrack_flag_connections",
        "Connections that are unreplied, assured, offload or hw_offload, in the whole table: "
        "filters and limits leave them alone.",
        "flag",
        connections.flags,
    )
    yield _gauge(
        "conntrack_filtered_connections",
        "Connections that filters took out; they are in no key and no total.",
        connections.filtered,
    )
    yield _gauge(
        "conntrack_aggregated_keys",
        "Keys (combinations of the labels) that connections were summed up to.",
        connections.keys,
    )
    yield _gauge(
        "conntrack_exported_keys",
        "Keys with series of their own.",
        connections.exported,
    )
    yield _gauge(
        "conntrack_folded_keys",
        "Keys beyond the limit, summed up as other.",
        connections.folded,
    )
    for (_, _, name, text), total in zip(_SUMS, connections.totals, strict=True):
        yield _gauge(name, text, total)


def _series(connections: Connections) -> Iterator[bytes]:
    if not connections.labels:
        return
    template = ",".join(f'{name}="%s"' for name in connections.label_names)
    if template:
        template = "{" + template + "}"
    # The one thing that is kept for every series, since five families share it.
    labels = [template % tuple(map(_escaped, values)) for values in connections.labels]
    for (name, text, _, _), column in zip(_SUMS, connections.columns, strict=True):
        yield _head(name, text).encode()
        samples = zip(labels, column, strict=True)
        while piece := "".join(
            [f"{name}{label} {value}\n" for label, value in itertools.islice(samples, _LINES)]
        ):
            yield piece.encode()


def _counts(name: str, text: str, label: str, counts: dict[tuple[str, str, str], int]) -> str:
    """A family by layer 3, layer 4 and one more label, or nothing where there is no sample."""
    return "".join(
        [
            _head(name, text) if counts else "",
            *[
                f'{name}{{l3protocol="{l3}",l4protocol="{l4}",{label}="{value}"}} {count}\n'
                for (l3, l4, value), count in counts.items()
            ],
        ]
    )


def _gauge(name: str, text: str, value: float | None, labels: str = "") -> str:
    """A family of one sample, or nothing where there is no value."""
    return "" if value is None else f"{_head(name, text)}{name}{labels} {value}\n"


def _head(name: str, text: str) -> str:
    return f"# HELP {name} {text}\n# TYPE {name} gauge\n"


def _escaped(value: str) -> str:
    return value if value.isalnum() else value.translate(_ESCAPES)
