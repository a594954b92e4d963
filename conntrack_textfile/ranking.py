"""The ranking: who is largest, for people to look at."""

from __future__ import annotations

import heapq
from typing import TYPE_CHECKING, NamedTuple

from conntrack_textfile.tally import Sums, add

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from conntrack_textfile.policy import Connections

_Sums = dict[tuple[str, ...], list[int]]


class Ranking(NamedTuple):
    """The largest, by some of the labels."""

    labels: tuple[str, ...]
    by: str  # "bytes", or "connections" where nothing has counters
    rows: list[tuple[tuple[str, ...], Sums]]  # values of the labels and sums, largest first
    others: int  # how many more there are


def rank(connections: Connections, wanted: Sequence[Sequence[str]], count: int) -> list[Ranking]:
    """The so many largest by each of some sets of labels that are kept.

    All sets in one pass, since it makes the labels of what may be many series.
    """
    by = "bytes" if any(connections.totals[1:]) else "connections"
    names = connections.label_names
    columns = connections.columns
    picked: list[tuple[list[int], _Sums]] = [
        ([names.index(label) for label in labels], {})
        for labels in wanted
        if tuple(labels) != names
    ]
    if picked:
        for values, row in zip(connections.labels, zip(*columns, strict=True), strict=True):
            for at, sums in picked:
                add(sums, tuple([values[i] for i in at]), row)
    found = []
    for labels in wanted:
        if tuple(labels) == names:  # every series is one of these
            rows: Iterable[Sequence[int]] = zip(*columns, strict=True)
            values_of: Sequence[tuple[str, ...]] = connections.labels
        else:
            _, sums = picked.pop(0)
            rows, values_of = sums.values(), list(sums)
        largest = heapq.nsmallest(
            count, ((-size(Sums(*row), by), index, row) for index, row in enumerate(rows))
        )
        ranked = [(values_of[index], Sums(*row)) for _, index, row in largest]
        found.append(Ranking(tuple(labels), by, ranked, len(values_of) - len(ranked)))
    return found


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
