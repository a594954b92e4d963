"""The terminal view: one snapshot as a table, largest first, and rates between two."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from conntrack_textfile.aggregate import measure, rank
from conntrack_textfile.labels import BY_NAME, ROWS
from conntrack_textfile.tally import Rows
from conntrack_textfile.units import binary

if TYPE_CHECKING:
    from collections.abc import Iterator

    from conntrack_textfile.aggregate import Aggregate
    from conntrack_textfile.snapshot import Snapshot

_HEADS = {name: row.title.upper() for name, row in BY_NAME.items()}
# What is left out first where the screen is narrow; the totals only beside rates.
_LEFT_OUT = sorted(
    [(2, "CONNECTIONS"), (4, "SENT"), (5, "REPLY")]
    + [(row.left_out, _HEADS[row.name]) for row in ROWS if row.left_out]
)
_ADDRESSES = {_HEADS[name] for name in ("src", "dst", "egress", "backend")}
_RIGHT = {"CONNECTIONS", "SENT", "REPLY", "SENT/s", "REPLY/s"} | {
    _HEADS[row.name] for row in ROWS if row.number
}
_SHORTEST = 8  # columns of an address

Bytes = dict[tuple[str, ...], tuple[int, int]]  # sent and reply, by the values of the labels


def byte_counts(connections: Aggregate) -> Bytes:
    """The bytes of every series, to be compared with those of the next snapshot."""
    _, _, sent, _, reply = connections.columns
    return dict(zip(connections.groups, zip(sent, reply, strict=True), strict=True))


def table(
    snapshot: Snapshot,
    count: int,
    width: int | None = None,
    before: Bytes | None = None,
    seconds: float = 0,
) -> Iterator[str]:
    """Lines: what the table holds, a head, and the largest rows, aligned, and how many more.

    With the bytes of a snapshot so many seconds before also the rates. They are
    of live connections: what ended in between is not in them, and where more
    ended than came, or a series is new, there is no rate.
    """
    connections = snapshot.live
    assert connections is not None
    yield _summary(snapshot, connections)
    labels, live = connections.labels, Rows(connections.groups, connections.columns)
    (ranking,) = rank(labels, live, [labels], measure("bytes", connections.totals), count)
    heads = [_HEADS[label] for label in ranking.labels] + ["CONNECTIONS", "SENT", "REPLY"]
    rows = []
    for values, sums in ranking.rows:
        row = [*map(_printable, values), str(sums.connections)]
        row += [binary(sums.sent_bytes), binary(sums.reply_bytes)]
        if before is not None:
            old = before.get(values)
            for i, now in enumerate((sums.sent_bytes, sums.reply_bytes)):
                grown = -1 if old is None else now - old[i]
                row.append("-" if grown < 0 else binary(grown / seconds))
        rows.append(row)
    if before is not None:
        heads += ["SENT/s", "REPLY/s"]
    lines = [heads, *rows]
    if width is not None:
        lines = _fitted(lines, width)
    widths = _widths(lines)
    for line in lines:
        yield "  ".join(
            cell.rjust(room) if head in _RIGHT else cell.ljust(room)
            for cell, room, head in zip(line, widths, lines[0], strict=True)
        ).rstrip()
    if ranking.others:
        yield f"and {ranking.others} more"


def _widths(lines: list[list[str]]) -> list[int]:
    return [max(map(len, column)) for column in zip(*lines, strict=True)]


def _fitted(lines: list[list[str]], width: int) -> list[list[str]]:
    """Lines with less in them, where they would be wider: half a number would be a wrong one."""
    for _, head in _LEFT_OUT:
        excess = sum(_widths(lines)) + 2 * (len(lines[0]) - 1) - width
        if excess <= 0:
            return lines
        if head in lines[0] and (head not in ("SENT", "REPLY") or f"{head}/s" in lines[0]):
            at = lines[0].index(head)
            lines = [line[:at] + line[at + 1 :] for line in lines]
    widths = _widths(lines)
    excess = sum(widths) + 2 * (len(lines[0]) - 1) - width
    # What is still too wide the addresses give up, the longest first.
    addresses = {at: widths[at] for at, head in enumerate(lines[0]) if head in _ADDRESSES}
    while excess > 0 and max(addresses.values(), default=0) > _SHORTEST:
        addresses[max(addresses, key=addresses.__getitem__)] -= 1
        excess -= 1
    for at, room in addresses.items():
        for line in lines:
            if len(line[at]) > room:
                line[at] = line[at][: room - 1] + "…"
    return lines


def frame(lines: list[str], height: int, width: int) -> list[str]:
    """Lines cut to a screen, with what puts them over those before."""
    # Home, each line to its end, and what is below.
    kept = [f"{line[: max(1, width - 1)]}\x1b[K" for line in lines[: max(1, height - 2)]]
    return ["\x1b[H" + kept[0], *kept[1:], "\x1b[J"]


def _summary(snapshot: Snapshot, connections: Aggregate) -> str:
    totals, conntrack = connections.totals, snapshot.conntrack
    counted = f", {connections.uncounted} uncounted" if connections.uncounted else ""
    assert snapshot.timestamp is not None
    parts = [
        time.strftime("%H:%M:%S", time.localtime(snapshot.timestamp)),
        f"{totals.connections} connections in {connections.keys} keys{counted}",
        f"{binary(totals.sent_bytes)} sent, {binary(totals.reply_bytes)} reply",
    ]
    if conntrack.entries is not None and conntrack.entries_limit:
        fill = conntrack.entries / conntrack.entries_limit
        parts.append(f"table {conntrack.entries} of {conntrack.entries_limit} ({fill:.1%})")
    return "   ".join(parts)


def _printable(value: str) -> str:
    """A name from a file may hold what would move the cursor of a terminal."""
    return value if value.isprintable() else ascii(value)
