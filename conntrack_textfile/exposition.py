"""The exposition: a snapshot as text in the exposition format of Prometheus.

Format: https://prometheus.io/docs/instrumenting/exposition_formats/ (text,
version 0.0.4).
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

from conntrack_textfile import families

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from conntrack_textfile.families import Family, GroupFamily
    from conntrack_textfile.snapshot import Snapshot
    from conntrack_textfile.tally import Group

# Lines in a piece of output: the whole text is never in memory.
_LINES = 1024

_ESCAPES = str.maketrans({"\\": r"\\", '"': r"\"", "\n": r"\n"})


def render(snapshot: Snapshot) -> Iterator[bytes]:
    """Yield the whole text of a snapshot, in UTF-8, in pieces of whole lines."""
    yield render_status(snapshot)
    yield from render_connections(snapshot)


def render_status(snapshot: Snapshot) -> bytes:
    """Return the families of the snapshot itself and of the size of the table."""
    return _text(families.STATUS, snapshot)


def render_connections(snapshot: Snapshot) -> Iterator[bytes]:
    """Yield the other families, those by group last, in pieces of whole lines."""
    yield _text((*families.LIVE, *families.NAT, *families.STATISTICS, *families.TRAFFIC), snapshot)
    live, traffic = snapshot.live, snapshot.traffic
    if live is not None:
        yield from _series(families.GROUPS, live.labels, live.groups, live.columns)
    if traffic is not None:
        groups, columns = traffic.groups
        yield from _series(families.TRAFFIC_GROUPS, traffic.labels, groups, columns)


def _text(rows: Iterable[Family], snapshot: Snapshot) -> bytes:
    lines: list[str] = []
    for row in rows:
        names, samples = row.labelled(snapshot)
        if samples:
            labels = _labeller(names)
            lines.append(_head(row))
            lines += [f"{row.name}{labels(values)} {value}\n" for values, value in samples]
    return "".join(lines).encode()


def _series(
    rows: Iterable[GroupFamily],
    names: Sequence[str],
    groups: Sequence[Group],
    columns: Sequence[Iterable[int]],
) -> Iterator[bytes]:
    if not groups:
        return
    # Kept for all series, since the families share them.
    labels = list(map(_labeller(names), groups))
    for row in rows:
        yield _head(row).encode()
        name = row.name
        samples = zip(labels, columns[row.column], strict=True)
        while piece := "".join(
            [f"{name}{label} {value}\n" for label, value in itertools.islice(samples, _LINES)]
        ):
            yield piece.encode()


def _labeller(names: Sequence[str]) -> Callable[[tuple[str, ...]], str]:
    """Return a function that formats the label values of a series: {name="value",...}."""
    template = ",".join([f'{name}="%s"' for name in names])
    if template:
        template = f"{{{template}}}"
    quotes = 2 * len(names)

    def text(values: tuple[str, ...]) -> str:
        made = template % values
        # Few values need escapes: one check of the whole text is quicker.
        if made.count('"') != quotes or "\\" in made or "\n" in made:
            made = template % tuple([value.translate(_ESCAPES) for value in values])
        return made

    return text


def _head(row: Family | GroupFamily) -> str:
    return f"# HELP {row.name} {row.help}\n# TYPE {row.name} {row.type}\n"
