"""The refresh: one finished snapshot after another, for scrapes to read.

A scrape never waits for the table and never reads it: it gets the last
snapshot, whole, or the news that there is none fresh enough to show.
"""

from __future__ import annotations

import errno
import mmap
import threading
import time
from typing import TYPE_CHECKING, NamedTuple, NoReturn

from conntrack_textfile import exposition
from conntrack_textfile.labels import BY_NAME
from conntrack_textfile.logs import LOG
from conntrack_textfile.snapshot import resolved
from conntrack_textfile.web import page, query
from conntrack_textfile.web.body import EMPTY, Body
from conntrack_textfile.web.history import History

if TYPE_CHECKING:
    from collections.abc import Callable

    from conntrack_textfile.snapshot import Snapshot
    from conntrack_textfile.web.page import Overview

# The last good snapshot is shown for this many intervals, then no more.
_MAX_AGE_INTERVALS = 3

# Seconds that a reading may take before it is taken for one that hangs; but at
# least some intervals. Minutes are seen on a large table and an old kernel.
_MAX_READING_SECONDS = 600.0

# Bytes of addresses that a reading leaves. One that took them all could leave too little
# for the stack of a thread, and so for an answer, as long as the process lives.
_RESERVE = 4 << 20

# How long a scrape waits for the first reading of all to end.
_FIRST_READING_SECONDS = 5.0


class _State(NamedTuple):
    """What scrapes see. Swapped as a whole."""

    snapshot: Snapshot  # without its connections: the body has them
    body: Body
    overview: Overview | None
    expires: float  # monotonic seconds


class Refresher:
    """Takes a snapshot every interval (seconds), in a thread of its own.

    take() gives a snapshot or raises; failure(last) is the snapshot to show after that.
    """

    def __init__(
        self,
        take: Callable[[], Snapshot],
        failure: Callable[[Snapshot | None], Snapshot],
        interval: float,
    ) -> None:
        self._take = take
        self._failure = failure
        self._interval = interval
        self._state: _State | None = None
        self._tried = threading.Event()
        self._failures = 0
        self._cause = ""
        self._warnings: dict[str, str] = {}
        self._history = History()
        self._thread = threading.Thread(target=self._run, name="refresh", daemon=True)
        self._due = time.monotonic()
        """When the next reading begins, or when the one under way began."""

    def start(self) -> None:
        """Begin, with a first snapshot at once. It goes on until the process ends."""
        self._thread.start()

    def alive(self) -> bool:
        """Whether readings go on, be it that they fail; not when one hangs."""
        hangs = self._due + max(_MAX_READING_SECONDS, _MAX_AGE_INTERVALS * self._interval)
        return self._thread.is_alive() and time.monotonic() < hangs

    def current(self) -> tuple[bytes, Body] | None:
        """The status text and the body of connections; None while the first reading lasts."""
        self._tried.wait(_FIRST_READING_SECONDS)
        state = self._state
        if state is None:
            return None
        if time.monotonic() > state.expires:
            return exposition.render_status(state.snapshot.failed), EMPTY
        return exposition.render_status(state.snapshot), state.body

    def html(self, telemetry_path: str, asked: str) -> tuple[bytes, str]:
        """The page for people by a query, and the Content-Security-Policy that it keeps.

        Raises QueryError.
        """
        state = self._state
        overview = state.overview if state else None
        view = query.parse(asked, overview.labels if overview else BY_NAME)
        now = time.monotonic()
        fresh = state is not None and now <= state.expires
        snapshot = state.snapshot if state else None
        if snapshot is not None and not fresh:
            snapshot = snapshot.failed
        readings = page.State(now, fresh, self._interval, self._cause)
        text = page.render(snapshot, overview, view, readings, telemetry_path)
        return text, page.CONTENT_SECURITY_POLICY

    def ready(self) -> bool:
        """Whether there was a good snapshot."""
        state = self._state
        return state is not None and state.snapshot.timestamp is not None

    def refresh(self) -> float:
        """Take one snapshot, show it, and say how many seconds to wait for the next."""
        started = self._due = time.monotonic()
        try:
            # malloc() would keep it. Private, so that it counts in RLIMIT_DATA too.
            with mmap.mmap(-1, _RESERVE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS):
                self._publish(self._take())
        # Whatever it was: a thread that dies would leave the numbers frozen.
        except Exception as error:  # noqa: BLE001
            cause = _cause(error)
            if cause != self._cause:
                LOG.debug("refresh failed", exc_info=error)
        else:
            cause = ""
        # Not in the handler: there the error keeps all that was being built, and
        # where that took all memory not even a line of log can be written.
        if cause:
            self._fail(cause)
            wait = min(self._interval, 2.0 ** min(self._failures - 1, 30))
        else:
            wait = max(0.0, started + self._interval - time.monotonic())
        self._tried.set()
        return wait

    def _run(self) -> NoReturn:
        while True:
            try:
                wait = self.refresh()
            except MemoryError:  # not even enough to note the failure
                wait = 1.0
            self._due = time.monotonic() + wait
            time.sleep(wait)

    def _publish(self, snapshot: Snapshot) -> None:
        assert snapshot.live is not None
        assert snapshot.duration is not None
        text = Body(exposition.render_connections(snapshot))
        now = time.monotonic()
        overview = page.overview(snapshot, self._history.add(snapshot, now))
        # A reading that takes longer than the interval is not stale for that.
        lifetime = _MAX_AGE_INTERVALS * max(self._interval, snapshot.duration)
        expires = now + lifetime
        kept = snapshot._replace(live=None, traffic=None, carried=None)
        self._state = _State(kept, text, overview, expires)
        if self._failures:
            LOG.info("reading the table works again, after %d failures", self._failures)
        self._failures = 0
        self._cause = ""
        warnings = snapshot.warnings
        for kind in warnings.keys() - self._warnings.keys():
            LOG.warning("%s", warnings[kind])
        for kind in self._warnings.keys() - warnings.keys():
            LOG.info("%s", resolved(kind))
        self._warnings = warnings

    def _fail(self, cause: str) -> None:
        self._failures += 1
        if cause != self._cause:
            LOG.error("%s; trying again", cause)
            self._cause = cause
        last = self._state
        self._state = _State(
            self._failure(last.snapshot if last else None),
            last.body if last else EMPTY,
            last.overview if last else None,
            last.expires if last else 0.0,
        )


def _cause(error: Exception) -> str:
    if isinstance(error, MemoryError) or getattr(error, "errno", 0) == errno.ENOMEM:
        return "there is not enough memory to read the table"
    return str(error) or repr(error)
