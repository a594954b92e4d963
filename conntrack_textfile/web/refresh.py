"""The refresh thread: takes a snapshot every interval; scrapes get the last one.

A scrape never reads the table, nor waits for it: it gets the last snapshot, whole,
or only its status if the snapshot is too old.
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
from conntrack_textfile.web import overview, page, query
from conntrack_textfile.web.body import EMPTY, Body
from conntrack_textfile.web.history import History

if TYPE_CHECKING:
    from collections.abc import Callable

    from conntrack_textfile.snapshot import Snapshot
    from conntrack_textfile.web.overview import Overview

# Intervals for which the last good snapshot is served after a failure.
_MAX_AGE_INTERVALS = 3

# Seconds, or _MAX_AGE_INTERVALS if that is longer, after which a snapshot in progress counts
# as hung. On a large table and an old kernel it takes minutes.
_MAX_SNAPSHOT_SECONDS = 600.0

# Bytes of address space to keep free while a snapshot is taken, under RLIMIT_AS: for the
# stack of a thread, and so for responses. malloc() does not give back what a snapshot took.
_RESERVE_BYTES = 4 << 20

# Seconds that a scrape waits for the first snapshot.
_FIRST_SNAPSHOT_SECONDS = 5.0


class _State(NamedTuple):
    """The data for requests. Replaced as a whole, so that readers need no lock."""

    snapshot: Snapshot  # without live, traffic and interval, which body has as text
    body: Body
    overview: Overview | None
    expires: float  # monotonic seconds


class Refresher:
    """Takes a snapshot every interval, in a thread of its own, and serves the last one."""

    def __init__(
        self,
        take: Callable[[], Snapshot],
        failure: Callable[[Snapshot | None], Snapshot],
        interval: float,
    ) -> None:
        """Prepare the thread.

        take: returns a snapshot, or raises.
        failure: returns the snapshot to serve after a failure, given the last one if any.
        interval: seconds.
        """
        self._take = take
        self._failure = failure
        self._interval = interval
        self._state: _State | None = None
        self._attempted = threading.Event()
        self._failures = 0  # in a row
        self._cause = ""  # of the last failure
        self._warnings: dict[str, str] = {}
        self._history = History()
        # One page at a time: each thread that renders takes an equal share of the GIL, and
        # many would leave little for the next snapshot.
        self._rendering = threading.Lock()
        self._thread = threading.Thread(target=self._run, name="refresh", daemon=True)
        self._due = time.monotonic()
        """When the next snapshot begins, or when the one in progress began; monotonic seconds."""

    def start(self) -> None:
        """Start the thread. The first snapshot is taken at once."""
        self._thread.start()

    def alive(self) -> bool:
        """Return whether the thread works, even if its snapshots fail."""
        hung = self._due + max(_MAX_SNAPSHOT_SECONDS, _MAX_AGE_INTERVALS * self._interval)
        return self._thread.is_alive() and time.monotonic() < hung

    def current(self) -> tuple[bytes, Body] | None:
        """Return the text of the status families and the body of all others.

        None while the first snapshot is in progress, after a wait for it.
        """
        self._attempted.wait(_FIRST_SNAPSHOT_SECONDS)
        state = self._state
        if state is None:
            return None
        if time.monotonic() > state.expires:
            return exposition.render_status(state.snapshot.failed), EMPTY
        return exposition.render_status(state.snapshot), state.body

    def html(self, telemetry_path: str, query_string: str) -> tuple[bytes, str]:
        """Return the HTML page and its Content-Security-Policy. Raises QueryError."""
        state = self._state
        shown = state.overview if state else None
        view = query.parse(query_string, shown.labels if shown else BY_NAME)
        now = time.monotonic()
        fresh = state is not None and now <= state.expires
        snapshot = state.snapshot if state else None
        if snapshot is not None and not fresh:
            snapshot = snapshot.failed
        status = page.State(now, fresh, self._interval, self._cause)
        with self._rendering:
            text = page.render(snapshot, shown, view, status, telemetry_path)
        return text, page.CONTENT_SECURITY_POLICY

    def ready(self) -> bool:
        """Return whether a snapshot has succeeded since the start."""
        state = self._state
        return state is not None and state.snapshot.timestamp is not None

    def refresh(self) -> float:
        """Take a snapshot. Return the seconds to wait before the next."""
        started = self._due = time.monotonic()
        try:
            # Not malloc(), which would keep it. Private: it counts in RLIMIT_DATA, too.
            with mmap.mmap(-1, _RESERVE_BYTES, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS):
                self._publish(self._take())
        # Any error: without this thread the metrics would never change again.
        except Exception as error:  # noqa: BLE001
            cause = _cause(error)
            if cause != self._cause:
                LOG.debug("refresh failed", exc_info=error)
        else:
            cause = ""
        # Not in the handler: the error's traceback refers to the unfinished snapshot, and
        # where that took all memory, logging fails too.
        if cause:
            self._fail(cause)
            wait = min(self._interval, 2.0 ** min(self._failures - 1, 30))
        else:
            wait = max(0.0, started + self._interval - time.monotonic())
        self._attempted.set()
        return wait

    def _run(self) -> NoReturn:
        while True:
            try:
                wait = self.refresh()
            except MemoryError:  # also in _fail()
                wait = 1.0
            self._due = time.monotonic() + wait
            time.sleep(wait)

    def _publish(self, snapshot: Snapshot) -> None:
        """Render a snapshot for requests, and log changes of its warnings."""
        assert snapshot.live is not None
        assert snapshot.duration is not None
        body = Body(exposition.render_connections(snapshot))
        now = time.monotonic()
        prepared = overview.prepare(snapshot, self._history.add(snapshot, now))
        # A snapshot can take longer than the interval.
        lifetime = _MAX_AGE_INTERVALS * max(self._interval, snapshot.duration)
        expires = now + lifetime
        status = snapshot._replace(live=None, traffic=None, interval=None)
        self._state = _State(status, body, prepared, expires)
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
        """Publish the failure of a snapshot, with the last good one until that expires."""
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
