"""The view of top: a snapshot as a table, the largest rows first, and its key bindings.

Pure functions: a snapshot and a view give lines, a view and a key the next view.
"""

from __future__ import annotations

import itertools
import textwrap
import time
from typing import TYPE_CHECKING, NamedTuple

from conntrack_textfile import columns, filters, labels, networks
from conntrack_textfile.aggregate import MEASURES, measure
from conntrack_textfile.filters import Filter
from conntrack_textfile.gaps import NO_RATES, gaps
from conntrack_textfile.tally import Sums, lacks_counters
from conntrack_textfile.units import binary, percent

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from conntrack_textfile.gaps import Gap
    from conntrack_textfile.snapshot import Snapshot
    from conntrack_textfile.talkers import Talker, Talkers

    _Text = Callable[[int], str]
    _Measured = tuple[str, int, _Text, Callable[[float], str], bool]

ROWS = 20
"""Rows by default, where standard output is no terminal."""

RANKED = 500
"""Top N groups for each measure in a snapshot: more than a screen shows."""

# The key of each label, in the order of labels.LABELS.
LABEL_KEYS = dict(zip("1234567890-=", labels.LABELS, strict=False))
_SORT_KEYS = {by[0]: by for by in MEASURES}
ENTER, ESCAPE, BACKSPACE, CLEAR = "\n", "\x1b", "\x7f", "\x15"
# The last line of the screen: as many of them as fit.
_KEYS = ["q quit", "? help", "bpc sort", "/ filter", "1-9 labels", "space pause"]
_MAX_TYPED = 500  # characters
_KNOWN_NOTES = 100

_GAP = "  "  # between columns
_BETWEEN = "   "  # between parts of the summary
_SHORTEST = 8  # columns of an address
_UNKNOWN = "?"
# Heads of columns, and the fields of Sums that each adds up: 0 is the original direction, 2 the
# reply, as offsets to the field of packets or bytes.
_DIRECTIONS = (("SENT", (0,)), ("REPLY", (2,)))
_BOTH = (("BOTH", (0, 2)),)


class View(NamedTuple):
    """The state of the view."""

    by: str  # of MEASURES
    labels: tuple[str, ...]
    rows: int | None = None  # None: as many as fit
    include: tuple[Filter, ...] | None = None  # None: --filter.include of the command line
    filter: str = ""  # the text of include
    typed: str | None = None  # the text of the filter while it is edited
    error: str = ""  # of the edited filter
    paused: bool = False
    help: bool = False
    ended: bool = False


def press(view: View, key: str) -> View:
    """Return the view after a key."""
    if view.typed is not None:
        return _type(view, view.typed, key)
    if view.help:
        return view._replace(help=False, ended=key == "q")
    if key in LABEL_KEYS:
        changed = {LABEL_KEYS[key]}.symmetric_difference(view.labels)
        return view._replace(labels=tuple(x for x in labels.LABELS if x in changed), paused=False)
    if key == "/":
        return view._replace(typed=view.filter)
    return view._replace(
        by=_SORT_KEYS.get(key, view.by),
        paused=view.paused ^ (key == " "),
        help=key == "?",
        ended=key == "q",
    )


def _type(view: View, typed: str, key: str) -> View:
    if key == ESCAPE:
        return view._replace(typed=None, error="")
    if key == ENTER:
        try:
            include = parse_filter(typed)
        except ValueError as error:
            return view._replace(error=str(error))
        return view._replace(
            include=include, filter=typed.strip(), typed=None, error="", paused=False
        )
    if key in (BACKSPACE, "\b"):
        typed = typed[:-1]
    elif key == CLEAR:
        typed = ""
    elif key.isprintable():
        typed = (typed + key)[:_MAX_TYPED]
    return view._replace(typed=typed, error="")


def parse_filter(text: str) -> tuple[Filter, ...] | None:
    """Parse a filter: words as of --filter.include, of which one must match. None for no word.

    An address or a network alone matches source or destination, a number alone the
    destination port. Raises ValueError.
    """
    found: list[Filter] = []
    for word in text.split():
        if word.isdigit():
            found.append(Filter(dport=filters.parse_ports(word)))
        elif "=" not in word and (":" in word or "." in word):
            network = networks.parse(word)
            found += [Filter(src=network), Filter(dst=network)]
        else:
            found.append(filters.parse(word, labels.CONDITIONS))
    return tuple(found) or None


class _Column(NamedTuple):
    """A column of the table."""

    head: str
    cell: Callable[[Talker], str]
    left_out: int = 0  # order in which a narrow screen drops it, from 1; 0: never
    number: bool = True  # aligned to the right
    address: bool = False
    label: bool = False


def plain(snapshot: Snapshot, by: str, count: int, *, watched: bool = False) -> list[str]:
    """Return lines for standard output that is no terminal: the summary, and the largest rows.

    watched: whether snapshots with rates follow.
    """
    missing = [gap.short for gap in _gaps(snapshot)] if watched else []
    return [_BETWEEN.join([*_summary(snapshot), *missing]), *table(snapshot, by, count)]


def screen(
    snapshot: Snapshot, view: View, size: tuple[int, int], every: float, messages: list[str]
) -> list[str]:
    """Return the lines of a screen. size: columns and lines; every: interval in seconds."""
    width, height = size
    # A character in the last column leaves the wrap pending: do not use it.
    width -= 1
    if view.help:
        return [*_help(view, width)[: max(0, height - 1)], columns.cut("Any key goes back.", width)]
    state = [f"by {view.by}", f"every {every:g} s"]
    if view.filter:
        state.append(f"filter {columns.printable(view.filter)}")
    if view.paused:
        state.append("PAUSED")
    first, *rest = _summary(snapshot)
    above = _flow([first, *state, *rest], width)
    for note in [*messages, *notes(snapshot)]:
        above += _wrapped(columns.printable(note), width)
    below = _foot(view, width)
    if height < len(above) + len(below) + 4:  # a head, and three rows
        above = above[: max(1, height - 4)]
        below = below if view.typed is not None else []
    room = height - len(above) - len(below) - 2  # the head, and how many more there are
    rows = max(1, room) if view.rows is None else min(view.rows, max(1, room))
    lines = [*above, *table(snapshot, view.by, rows, width)]
    lines = lines[: max(1, height - len(below))]
    lines += [""] * (height - len(lines) - len(below))
    return [columns.cut(line, width) for line in [*lines, *below]][:height]


def _foot(view: View, width: int) -> list[str]:
    """Return the key bindings, or the filter while it is edited."""
    if view.typed is None:
        return _flow(_KEYS, width, _GAP)[:1]
    hint = view.error or "Enter uses it, Esc leaves it as it was"
    typed = f"/{view.typed}_"
    while columns.width(typed) > width:  # the cursor is at the end
        typed = typed[1:]
    return [*_wrapped(columns.printable(hint), width), typed]


def _help(view: View, width: int) -> list[str]:
    kept = [
        f"{key} [{'x' if label in view.labels else ' '}] {label}"
        for key, label in LABEL_KEYS.items()
    ]
    above = [
        "b p c  sort by bytes, packets or connections: by rates, once there are some",
        "space  pause, and go on",
        "/      filter, as --filter.include takes it (src=10.0.0.0/8,dport=443), in place of "
        "those of the command line; of several words any; an address alone is that of a "
        "source or destination, a number alone a port",
        "q      quit",
        "",
        "Labels to keep; rates begin anew after a change:",
    ]
    below = [
        "",
        "LIVE are live connections, NEW/s the new ones. SENT goes from the source, REPLY comes "
        "back to it, BOTH is their sum. /s is of all traffic since the last snapshot, that "
        "of ended connections too.",
        f"{_UNKNOWN} is unknown: the connection has no packet and byte counters.",
    ]
    texts = [line for text in above for line in _wrapped(text, width)]
    return [
        *texts,
        *_flow(kept, width),
        *(line for text in below for line in _wrapped(text, width)),
    ]


def _summary(snapshot: Snapshot) -> list[str]:
    live, talkers = snapshot.live, snapshot.talkers
    assert live is not None
    assert talkers is not None
    assert snapshot.timestamp is not None
    parts = [time.strftime("%H:%M:%S", time.localtime(snapshot.timestamp))]
    totals = live.totals
    known = not lacks_counters(totals)
    if talkers.totals is not None:
        rates_known = known or any(talkers.totals[1:])
        sent, reply = (
            f"{binary(talkers.totals[field] / talkers.seconds)}/s" if rates_known else _UNKNOWN
            for field in (2, 4)
        )
        parts.append(f"{sent} sent, {reply} reply")
        parts.append(f"{_rate(talkers.totals.connections / talkers.seconds)} new/s")
    counted = f", {live.uncounted} uncounted" if live.uncounted else ""
    keys = "1 key" if live.keys == 1 else f"{live.keys} keys"
    parts.append(f"{totals.connections} connections in {keys}{counted}")
    sent, reply = (binary(totals[f]) if known else _UNKNOWN for f in (2, 4))
    parts.append(f"{sent} sent, {reply} reply")
    for name, entries, limit in snapshot.fills[:1]:
        table = f"fullest table {columns.printable(name)}:" if name else "table"
        parts.append(f"{table} {entries} of {limit} ({percent(entries / limit)})")
    return parts


def notes(snapshot: Snapshot) -> list[str]:
    """Return what the user should know about these numbers: warnings and gaps, in full."""
    kinds = snapshot.warnings
    kinds.pop("counters", None)
    return [*kinds.values(), *(gap.long for gap in _gaps(snapshot))]


def unlogged(these: list[str], known: list[str]) -> list[str]:
    """Return the notes that are not among the known ones, and put these in front of them.

    Notes name network namespaces, which come and go: only the last ones stay known.
    """
    new = [note for note in these if note not in known]
    known[:] = list(dict.fromkeys([*these, *known]))[: max(_KNOWN_NOTES, len(these))]
    return new


def _gaps(snapshot: Snapshot) -> list[Gap]:
    if snapshot.traffic is None:
        return [NO_RATES]
    talkers = snapshot.talkers
    return gaps(snapshot, talkers.ended_unseen if talkers is not None else 0)


def table(snapshot: Snapshot, by: str, count: int, width: int | None = None) -> list[str]:
    """Return a head, the largest rows, and the number of further ones."""
    live, talkers = snapshot.live, snapshot.talkers
    assert live is not None
    assert talkers is not None
    # All connections with traffic may have ended.
    known = live.totals if talkers.totals is None else Sums(*map(max, live.totals, talkers.totals))
    shown = ranked(talkers, measure(by, known))[:count]
    kept, cells = _cells(_columns(talkers, by), shown)
    if width is not None:
        kept, cells = _fitted(kept, cells, width)
        if _label_room(kept, cells, width) < 0:
            # No room for names: one column for both directions.
            kept, cells = _cells(_columns(talkers, by, _BOTH), shown)
            kept, cells = _fitted(kept, cells, width)
    lines = _aligned(kept, cells, width)
    more = live.keys - sum(talker.live.connections > 0 for talker in shown)
    if more:
        lines.append(f"and {more} more")
    return lines


def _cells(kept: list[_Column], shown: list[Talker]) -> tuple[list[_Column], list[list[str]]]:
    """Return the columns, and the lines of their cells with the head first."""
    lines = [[column.cell(talker) for column in kept] for talker in shown]
    return kept, [[column.head for column in kept], *lines]


def _label_room(kept: list[_Column], cells: list[list[str]], width: int) -> int:
    """Return the width left after the numbers and the shortest labels; below 0 if too little."""
    widths = list(zip(_widths(cells), kept, strict=True))
    label_width = sum(room + len(_GAP) for room, column in widths if column.label)
    number_width = sum(room + len(_GAP) for room, column in widths if not column.label)
    return width + len(_GAP) - number_width - min(label_width, _SHORTEST + len(_GAP))


def ranked(talkers: Talkers, by: str) -> list[Talker]:
    """Sort by traffic, and groups without traffic by live connections, the largest first."""
    size = MEASURES[by]
    return sorted(talkers.rows, key=lambda row: (size(row.traffic), size(row.live)), reverse=True)


def _columns(
    talkers: Talkers, by: str, directions: Sequence[tuple[str, tuple[int, ...]]] = _DIRECTIONS
) -> list[_Column]:
    """Return the columns. Those of the measure that is sorted by are dropped last."""
    found = [
        _Column(
            row.title.upper(),
            lambda talker, at=at: columns.printable(talker.group[at]),  # type: ignore[misc]
            row.left_out,
            number=row.number,
            address=row.filter is networks.parse,
            label=True,
        )
        for at, row in enumerate(labels.BY_NAME[name] for name in talkers.labels)
    ]
    rates, seconds = talkers.totals is not None, talkers.seconds
    counts = by == "connections"
    found.append(
        _Column(
            "LIVE" if rates else "CONNECTIONS",
            lambda talker: str(talker.live.connections),
            0 if counts else 6 if rates else 2,
        )
    )
    if rates:
        new = _Column("NEW/s", lambda talker: _rate(talker.traffic.connections / seconds))
        found.append(new._replace(left_out=0 if counts else 5))
    # The unit behind SENT and REPLY, which sums they are of, and how totals and rates are shown.
    measured: list[_Measured] = [("", 2, binary, binary, by == "bytes")]
    if by == "packets":
        measured.insert(0, (" PKT", 1, str, _rate, True))
    for unit, first, text, _, wanted in measured:
        left_out = 2 if rates else 0 if wanted else 4
        for name, offsets in directions:
            fields = [first + offset for offset in offsets]
            found.append(_Column(f"{name}{unit}", _total(fields, text), left_out))
    for unit, first, _, text, wanted in measured if rates else ():
        for name, offsets in directions:
            fields = [first + offset for offset in offsets]
            cell = _speed(fields, seconds, text)
            found.append(_Column(f"{name}{unit}/s", cell, 0 if wanted else 4))
    return found


def _total(fields: list[int], text: _Text) -> Callable[[Talker], str]:
    def cell(talker: Talker) -> str:
        if lacks_counters(talker.live):
            return _UNKNOWN
        return text(sum(talker.live[field] for field in fields))

    return cell


def _speed(
    fields: list[int], seconds: float, text: Callable[[float], str]
) -> Callable[[Talker], str]:
    def cell(talker: Talker) -> str:
        traffic = talker.traffic
        if not any(traffic[1:]) and (traffic.connections or lacks_counters(talker.live)):
            return _UNKNOWN
        return text(sum(traffic[field] for field in fields) / seconds)

    return cell


def _rate(number: float) -> str:
    if 0 < number < 0.05:
        return "<0.1"
    return f"{number:.0f}" if number >= 99.95 or not number else f"{number:.1f}"


def _fitted(
    kept: list[_Column], cells: list[list[str]], width: int
) -> tuple[list[_Column], list[list[str]]]:
    """Drop columns and truncate addresses until the lines fit. Numbers are never cut."""
    # First labels that are empty in all rows, as egress without NAT.
    empty = [
        column.label and cells[1:] and not any(line[at] for line in cells[1:])
        for at, column in enumerate(kept)
    ]
    levels = [
        -1 if is_empty else column.left_out for column, is_empty in zip(kept, empty, strict=True)
    ]
    for level in sorted({*levels} - {0}):
        if _excess(cells, width) <= 0:
            return kept, cells
        left = [other != level for other in levels]
        kept = list(itertools.compress(kept, left))
        cells = [list(itertools.compress(line, left)) for line in cells]
        levels = list(itertools.compress(levels, left))
    excess = _excess(cells, width)
    # Then truncate addresses, the longest first.
    widths = _widths(cells)
    rooms = {at: widths[at] for at, column in enumerate(kept) if column.address}
    while excess > 0 and max(rooms.values(), default=0) > _SHORTEST:
        rooms[max(rooms, key=rooms.__getitem__)] -= 1
        excess -= 1
    cells = [cells[0]] + [
        [columns.cut_address(cell, rooms.get(at, 1 << 16)) for at, cell in enumerate(line)]
        for line in cells[1:]
    ]
    return kept, cells


def _aligned(kept: list[_Column], cells: list[list[str]], width: int | None) -> list[str]:
    """Return aligned lines. Where they are still too wide, labels are cut."""
    widths = _widths(cells)
    first = sum(column.label for column in kept)
    lines = []
    for line in cells:
        padded = [
            (columns.right if column.number else columns.left)(cell, room)
            for cell, room, column in zip(line, widths, kept, strict=True)
        ]
        names, numbers = _GAP.join(padded[:first]), _GAP.join(padded[first:])
        if width is not None and first:
            room = width - len(_GAP) - len(numbers)
            names = columns.left(columns.cut(names, room), min(room, columns.width(names)))
        lines.append(_GAP.join(filter(None, (names, numbers))))
    return lines


def _wrapped(text: str, width: int) -> list[str]:
    """Wrap text at words."""
    return textwrap.wrap(text, max(1, width), subsequent_indent=" " * 2) or [""]


def _flow(parts: list[str], width: int, between: str = _BETWEEN) -> list[str]:
    """Join parts to lines, with line breaks only between parts."""
    lines = [""]
    for part in parts:
        joined = f"{lines[-1]}{between}{part}" if lines[-1] else part
        if lines[-1] and columns.width(joined) > width:
            lines.append(part)
        else:
            lines[-1] = joined
    return lines


def _widths(cells: list[list[str]]) -> list[int]:
    return [max(map(columns.width, column)) for column in zip(*cells, strict=True)]


def _excess(cells: list[list[str]], width: int) -> int:
    """Return by how much the lines of cells are too wide."""
    return sum(_widths(cells)) + len(_GAP) * (len(cells[0]) - 1) - width
