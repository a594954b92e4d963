"""The ranking: who is largest, for people to look at."""

from __future__ import annotations

import heapq
from typing import TYPE_CHECKING, NamedTuple

from conntrack_textfile.tally import Sums

if TYPE_CHECKING:
    from collections.abc import Sequence

    from conntrack_textfile.policy import Connections


class Ranking(NamedTuple):
    """The largest, by some of the labels."""

    labels: tuple[str, ...]
    by: str  # "bytes", or "connections" where nothing has counters
    rows: list[tuple[tuple[str, ...], Sums]]  # values of the labels and sums, largest first
    others: int  # how many more there are


def rank(connections: Connections, labels: Sequence[str], count: int) -> Ranking | None:
    """The so many largest by some labels, or None where these are not kept."""
    if not set(labels) <= set(connections.label_names):
        return None
    at = [connections.label_names.index(label) for label in labels]
    sums: dict[tuple[str, ...], list[int]] = {}
    for values, *row in zip(connections.labels, *connections.columns, strict=True):
        into = sums.setdefault(tuple([values[i] for i in at]), [0, 0, 0, 0, 0])
        for field, value in enumerate(row):
            into[field] += value
    by = "bytes" if any(connections.totals[1:]) else "connections"
    rows = heapq.nsmallest(
        count,
        [(values, Sums(*row)) for values, row in sums.items()],
        key=lambda row: (-size(row[1], by), row[0]),
    )
    return Ranking(tuple(labels), by, rows, len(sums) - len(rows))


def size(sums: Sums, by: str) -> int:
    """What sums are ranked by: bytes of both directions, or connections."""
    return sums.sent_bytes + sums.reply_bytes if by == "bytes" else sums.connections


def human(number: float) -> str:
    """A number of bytes in a unit for people, as 1.5 MiB."""
    units = ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"]
    while number >= 1023.5 and len(units) > 1:
        number /= 1024
        del units[0]
    whole = units[0] == "B" or number >= 99.95
    return f"{number:.0f} {units[0]}" if whole else f"{number:.1f} {units[0]}"
