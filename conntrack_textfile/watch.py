"""The loops of top: snapshots as plain lines, or as an interactive view on the terminal."""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING

from conntrack_textfile import logs, namefiles, terminal, textfile, top
from conntrack_textfile.collector import Collector
from conntrack_textfile.errors import SourceError
from conntrack_textfile.kernel import events
from conntrack_textfile.kernel.listener import listener
from conntrack_textfile.logs import LOG

if TYPE_CHECKING:
    from conntrack_textfile.kernel.engine import Engine
    from conntrack_textfile.options import Options
    from conntrack_textfile.plan import Plan
    from conntrack_textfile.snapshot import Snapshot

# From the first frame, without rates, to the next.
_FIRST_INTERVAL = 1.0


def lines(opts: Options, engine: Engine) -> None:
    """Print one snapshot; with --watch one every interval, until the reader is gone."""
    rows = top.ROWS if opts.rows is None else opts.rows
    names = namefiles.watch(opts.names, opts.plan, opts.names_until)
    collector = Collector(opts, engine, names.current)
    logged: list[str] = []
    with contextlib.closing(collector):
        if opts.watch:
            measure(collector)
        while True:
            began = time.monotonic()
            snapshot = collector.top(max(1, rows))
            _log_notes(snapshot, logged, watched=opts.watch)
            text = top.plain(snapshot, opts.limit.by, rows, watched=opts.watch)
            read = textfile.stream([("\n".join(text) + "\n").encode()])
            if not opts.watch or not read:
                return
            time.sleep(max(0.0, began + opts.interval - time.monotonic()))


def _log_notes(snapshot: Snapshot, logged: list[str], *, watched: bool) -> None:
    """Log the notes on a snapshot that are not in logged, and add them to it."""
    notes = top.notes(snapshot) if watched else list(snapshot.warnings.values())
    for note in top.unlogged(notes, logged):
        LOG.warning("%s", note)


def interactive(opts: Options, engine: Engine) -> None:
    """Show snapshots on the terminal until q or a signal."""
    names = namefiles.watch(opts.names, opts.plan, opts.names_until)
    view = top.View(opts.limit.by, opts.plan.labels, rows=opts.rows)

    def plan() -> Plan:
        named = names.current()
        include = named.include if view.include is None else view.include
        return named._replace(labels=view.labels, include=include)

    collector = Collector(opts, engine, plan)
    with contextlib.closing(collector):
        measure(collector)
        snapshot = shown = collector.top(top.RANKED)
        due = time.monotonic() + min(opts.interval, _FIRST_INTERVAL)
        with logs.buffered(LOG) as log_lines, terminal.opened() as screen:
            while not view.ended:
                if not view.paused:
                    shown = snapshot
                frame = top.screen(shown, view, screen.size(), opts.interval, log_lines)
                keys = screen.keys(due - time.monotonic()) if screen.draw(frame) else None
                if keys is None:
                    return
                kept = view.labels, view.include
                for key in keys:
                    view = top.press(view, key)
                if (view.labels, view.include) != kept or time.monotonic() >= due:
                    due = time.monotonic() + opts.interval
                    log_lines.clear()
                    try:
                        snapshot = collector.top(top.RANKED)
                    except SourceError as error:
                        log_lines.append(str(error))


def measure(collector: Collector) -> None:
    """Start to count traffic, for rates, with event sockets made here."""
    if collector.can_count:
        # Without a log: the view has a note for each problem.
        collector.start_counting(listener({}, events.BUFFER_BYTES, None))
        collector.drain()
