"""Login throttling: the order of bcrypt checks during a brute-force attack.

One check runs at a time, in a thread of its own. Next is the check whose source
has the fewest failures; among equals the newest (adaptive LIFO), since the oldest
would time out anyway once more arrive than can be checked. So a client from
another address overtakes a brute-force attack, and one from the same address has
a good chance. While checks are queued, failures are answered late (a tarpit), so
that an attacker who guesses in a loop sends no more than is checked.
"""

from __future__ import annotations

import itertools
import random
import threading
import time
from typing import TYPE_CHECKING

from conntrack_textfile.logs import LOG

if TYPE_CHECKING:
    from collections.abc import Callable

# Together less than http.MAX_CONNECTIONS: clients with a cached password need some too.
_MAX_QUEUED = 256
_MAX_DELAYED = 192

# Failures are answered late while more checks than this are queued.
_MAX_QUEUED_UNDELAYED = 8

# Sources whose failures are counted; all counts are reset when there are more.
_MAX_SOURCES = 4096


class _Check:
    def __init__(
        self, run: Callable[[], bool], sources: tuple[bytes, ...], sequence_number: int
    ) -> None:
        self.run = run
        self.sources = sources
        self.sequence_number = sequence_number
        self.waiters = 0
        self.running = False
        self.finished = threading.Event()
        self.succeeded: bool | None = None  # None: not run


class Throttle:
    """Password checks: one at a time, those of sources with the fewest failures first."""

    def __init__(self, max_wait_seconds: float) -> None:
        self._max_wait_seconds = max_wait_seconds
        self._lock = threading.Lock()
        self._checks: dict[bytes, _Check] = {}  # queued, and the running one
        self._worker: threading.Thread | None = None
        self._failures: dict[bytes, int] = {}  # by source
        self._delays = threading.Semaphore(_MAX_DELAYED)
        self._sequence = itertools.count()

    def check(self, key: bytes, sources: tuple[bytes, ...], run: Callable[[], bool]) -> bool:
        """Queue run() and return its result.

        key: callers with the same key share one run.
        sources: where the attempt comes from; failures of the first count most.
        Raises TimeoutError if it was not run in time.
        """
        # Jitter: clients that came at once must not all retry at once.
        seconds = self._max_wait_seconds * random.uniform(0.5, 1)  # noqa: S311
        deadline = time.monotonic() + seconds
        check = self._enqueue(key, sources, run)
        check.finished.wait(seconds)
        with self._lock:
            check.waiters -= 1
            if not check.waiters and self._checks.get(key) is check and not check.running:
                del self._checks[key]
            contended = len(self._checks) > _MAX_QUEUED_UNDELAYED
            succeeded = check.succeeded  # a running check may still set it
            if succeeded:
                return True
            self._count_failure(sources)
        if contended and self._delays.acquire(blocking=False):
            try:
                time.sleep(max(0.0, deadline - time.monotonic()))
            finally:
                self._delays.release()
        if succeeded is None:
            raise TimeoutError
        return False

    def _enqueue(self, key: bytes, sources: tuple[bytes, ...], run: Callable[[], bool]) -> _Check:
        with self._lock:
            check = _Check(run, sources, next(self._sequence))
            queued = self._checks.get(key)
            if queued is None:
                self._checks[key] = check
                self._drop_excess()
            else:
                if self._rank(check) < self._rank(queued):
                    queued.sources, queued.sequence_number = sources, check.sequence_number
                check = queued
            check.waiters += 1
            if self._worker is None:
                worker = threading.Thread(target=self._work, name="passwords", daemon=True)
                worker.start()
                self._worker = worker
            return check

    def _rank(self, check: _Check) -> tuple[int, ...]:
        failures = (self._failures.get(source, 0) for source in check.sources)
        return (*failures, -check.sequence_number)

    def _queued(self) -> list[tuple[tuple[int, ...], bytes]]:
        return [
            (self._rank(check), key) for key, check in self._checks.items() if not check.running
        ]

    def _drop_excess(self) -> None:
        queued = self._queued()
        if len(queued) > _MAX_QUEUED:
            self._checks.pop(max(queued)[1]).finished.set()

    def _work(self) -> None:
        while True:
            with self._lock:
                queued = self._queued()
                if not queued:
                    self._worker = None
                    return
                key = min(queued)[1]
                check = self._checks[key]
                check.running = True
            try:
                check.succeeded = check.run()
            except Exception as error:  # noqa: BLE001  # others are queued
                LOG.error("cannot check a password: %r", error)
            with self._lock:
                del self._checks[key]
            check.finished.set()

    def _count_failure(self, sources: tuple[bytes, ...]) -> None:
        if len(self._failures) + len(sources) > _MAX_SOURCES:
            self._failures.clear()
        for source in sources:
            self._failures[source] = self._failures.get(source, 0) + 1
