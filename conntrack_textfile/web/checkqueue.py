"""The queue of password checks: which one is next while many guess, and how long they wait.

One check runs at a time, in a thread of its own. The next is that of the source
with the fewest failures so far; among equals the newest (adaptive LIFO), since
the others wait in vain anyway once more arrive than can be checked. So a client
from another address passes those who guess, and one at the same address has
good chances. While checks wait, failed ones are answered late (a tarpit):
clients that guess in a loop then arrive no faster than they are checked.
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

# Together less than http.MAX_CONNECTIONS: clients that are known need some too.
_MAX_WAITING_CHECKS = 256
_MAX_DELAYED_ANSWERS = 192

# Waiting checks above which answers to failed ones are delayed.
_MAX_WAITING_UNDELAYED = 8

# Sources whose failures are counted. Beyond, counting begins anew.
_MAX_COUNTED_SOURCES = 4096


class _Check:
    def __init__(
        self, run: Callable[[], bool], sources: tuple[bytes, ...], sequence_number: int
    ) -> None:
        self.run = run
        self.sources = sources
        self.sequence_number = sequence_number
        self.clients = 0  # that wait for it
        self.running = False
        self.finished = threading.Event()
        self.succeeded: bool | None = None  # None: it was not run


class CheckQueue:
    """Checks that are run one at a time, in an order that is fair to their sources."""

    def __init__(self, max_wait_seconds: float) -> None:
        self._max_wait_seconds = max_wait_seconds
        self._lock = threading.Lock()
        self._checks: dict[bytes, _Check] = {}  # those that wait and the one that runs
        self._worker: threading.Thread | None = None
        self._failures: dict[bytes, int] = {}  # by source
        self._delays = threading.Semaphore(_MAX_DELAYED_ANSWERS)
        self._sequence = itertools.count()

    def result(self, key: bytes, sources: tuple[bytes, ...], run: Callable[[], bool]) -> bool:
        """Run a check in its turn, once for all who bring the same key meanwhile.

        Sources say where it comes from, the one that counts most first. Raises
        TimeoutError where the check had no turn in time.
        """
        # Those who came together shall not all come back together.
        seconds = self._max_wait_seconds * random.uniform(0.5, 1)  # noqa: S311
        deadline = time.monotonic() + seconds
        check = self._enqueue(key, sources, run)
        check.finished.wait(seconds)
        with self._lock:
            check.clients -= 1
            if not check.clients and self._checks.get(key) is check and not check.running:
                del self._checks[key]
            contended = len(self._checks) > _MAX_WAITING_UNDELAYED
            if check.succeeded:
                return True
            self._count_failure(sources)
        if contended and self._delays.acquire(blocking=False):
            try:
                time.sleep(max(0.0, deadline - time.monotonic()))
            finally:
                self._delays.release()
        if check.succeeded is None:
            raise TimeoutError
        return False

    def _enqueue(self, key: bytes, sources: tuple[bytes, ...], run: Callable[[], bool]) -> _Check:
        with self._lock:
            check = _Check(run, sources, next(self._sequence))
            before = self._checks.get(key)
            if before is None:
                self._checks[key] = check
                self._drop_last_of_too_many()
            else:
                if self._rank(check) < self._rank(before):
                    before.sources, before.sequence_number = sources, check.sequence_number
                check = before
            check.clients += 1
            if self._worker is None:
                worker = threading.Thread(target=self._work, name="passwords", daemon=True)
                worker.start()
                self._worker = worker
            return check

    def _rank(self, check: _Check) -> tuple[int, ...]:
        failures = (self._failures.get(source, 0) for source in check.sources)
        return (*failures, -check.sequence_number)

    def _waiting(self) -> list[tuple[tuple[int, ...], bytes]]:
        return [
            (self._rank(check), key) for key, check in self._checks.items() if not check.running
        ]

    def _drop_last_of_too_many(self) -> None:
        waiting = self._waiting()
        if len(waiting) > _MAX_WAITING_CHECKS:
            self._checks.pop(max(waiting)[1]).finished.set()

    def _work(self) -> None:
        while True:
            with self._lock:
                waiting = self._waiting()
                if not waiting:
                    self._worker = None
                    return
                key = min(waiting)[1]
                check = self._checks[key]
                check.running = True
            try:
                check.succeeded = check.run()
            except Exception as error:  # noqa: BLE001  # others still wait
                LOG.error("a password could not be checked: %r", error)
            with self._lock:
                del self._checks[key]
            check.finished.set()

    def _count_failure(self, sources: tuple[bytes, ...]) -> None:
        if len(self._failures) + len(sources) > _MAX_COUNTED_SOURCES:
            self._failures.clear()
        for source in sources:
            self._failures[source] = self._failures.get(source, 0) + 1
