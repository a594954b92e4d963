from __future__ import annotations

import threading
import time
import types
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

from conntrack_textfile.logs import LOG
from conntrack_textfile.web import http, throttle
from conntrack_textfile.web.throttle import Throttle

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


def wait_for(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


class Blocked:
    """A throttle whose first check runs until go_on is set; other checks are queued."""

    def __init__(
        self, pool: ThreadPoolExecutor, max_wait_seconds: float = 40.0, *, succeeds: bool = True
    ) -> None:
        self.throttle = Throttle(max_wait_seconds)
        self.ran: list[str] = []
        self.go_on = threading.Event()
        self._pool = pool
        self.first = self.send("first", "blocker", until=self.go_on, succeeds=succeeds)
        wait_for(lambda: self.ran == ["first"])

    def send(
        self, name: str, *sources: str, succeeds: bool = True, until: threading.Event | None = None
    ) -> Future[bool]:
        """Queue a check, or join the queued one of the same name."""

        def run() -> bool:
            self.ran.append(name)
            assert until is None or until.wait(60)
            return succeeds

        waiters = self.waiters(name)
        keys = tuple(source.encode() for source in sources)
        future = self._pool.submit(self.throttle.check, name.encode(), keys, run)
        wait_for(lambda: self.waiters(name) > waiters or future.done())
        return future

    def waiters(self, name: str) -> int:
        with self.throttle._lock:
            check = self.throttle._checks.get(name.encode())
            return check.waiters if check else 0

    def fail(self, *sources: str) -> None:
        """Count a failure of these sources."""
        self.throttle._count_failure(tuple(source.encode() for source in sources))


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(400) as threads:
        yield threads


@pytest.fixture
def blocked(pool: ThreadPoolExecutor) -> Iterator[Blocked]:
    started = Blocked(pool)
    yield started
    started.go_on.set()


def test_one_runs_at_a_time_and_the_newest_of_equals_is_next(blocked: Blocked) -> None:
    results = [blocked.send(name, "a") for name in ("1", "2", "3")]
    assert blocked.ran == ["first"]
    blocked.go_on.set()
    assert all(result.result(20) for result in results)
    assert blocked.ran == ["first", "3", "2", "1"]


def test_the_source_with_the_fewest_failures_is_next(blocked: Blocked) -> None:
    """The address counts first, then the user name."""
    for name in ("alice", "alice", "bob"):
        blocked.fail("guesser", f"guesser {name}")
    blocked.fail("once", "once carol")
    results = [
        blocked.send("other address", "other", "other alice"),
        blocked.send("failed once", "once", "once carol"),
        blocked.send("other name", "guesser", "guesser carol"),
        blocked.send("guessed once", "guesser", "guesser bob"),
        blocked.send("guessed", "guesser", "guesser alice"),
    ]
    blocked.go_on.set()
    assert all(result.result(20) for result in results)
    assert blocked.ran[1:] == [
        *("other address", "failed once", "other name", "guessed once", "guessed"),
    ]


def test_a_failed_check_is_counted_and_one_that_succeeded_is_not() -> None:
    made = Throttle(10)
    assert made.check(b"right", (b"a",), lambda: True)
    assert made._failures == {}
    assert not made.check(b"wrong", (b"a", b"a name"), lambda: False)
    assert made._failures == {b"a": 1, b"a name": 1}


def test_the_same_key_is_checked_once_at_the_best_rank(blocked: Blocked) -> None:
    blocked.fail("guesser")
    results = [blocked.send("same", "guesser") for _ in range(50)]
    results.append(blocked.send("before", "a"))
    results.append(blocked.send("same", "a"))
    blocked.go_on.set()
    assert all(result.result(20) for result in results)
    assert blocked.ran == ["first", "same", "before"]


def test_a_check_that_timed_out_does_not_run(pool: ThreadPoolExecutor) -> None:
    blocked = Blocked(pool, max_wait_seconds=0.5)
    late = blocked.send("late", "a")
    with pytest.raises(TimeoutError):
        late.result(20)
    with pytest.raises(TimeoutError):
        blocked.first.result(20)
    blocked.go_on.set()
    wait_for(lambda: blocked.throttle._worker is None)
    assert blocked.ran == ["first"]
    assert blocked.throttle._checks == {}
    assert blocked.throttle.check(b"next", (b"a",), lambda: True)


def test_a_right_password_is_not_refused_when_its_check_ends_during_the_delay(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(throttle, "_MAX_QUEUED_UNDELAYED", 0)
    made, go_on = Throttle(0.1), threading.Event()

    def delay(_: float) -> None:
        go_on.set()
        wait_for(lambda: made._worker is None)

    clock = types.SimpleNamespace(monotonic=time.monotonic, sleep=delay)
    monkeypatch.setattr(throttle, "time", clock)
    with pytest.raises(TimeoutError):
        made.check(b"right", (b"a",), lambda: go_on.wait(60))


def test_the_check_of_the_last_rank_is_dropped_from_a_full_queue(
    blocked: Blocked, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(throttle, "_MAX_QUEUED", 3)
    blocked.fail("guesser")
    guesses = [blocked.send(f"guess {n}", "guesser") for n in range(3)]
    rights = [blocked.send(f"right {n}", "a") for n in range(3)]
    guesses.append(blocked.send("guess 3", "guesser"))
    for guess in guesses:
        with pytest.raises(TimeoutError):
            guess.result(20)
    rights.append(blocked.send("right 3", "a"))
    with pytest.raises(TimeoutError):
        rights[0].result(20)  # the oldest
    blocked.go_on.set()
    assert all(right.result(20) for right in rights[1:])
    assert blocked.ran == ["first", "right 3", "right 2", "right 1"]


@pytest.mark.parametrize(("max_delayed", "delayed"), [(1, True), (0, False)])
def test_failures_are_delayed_while_checks_are_queued(
    pool: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch, max_delayed: int, delayed: bool
) -> None:
    monkeypatch.setattr(throttle, "_MAX_QUEUED_UNDELAYED", 2)
    monkeypatch.setattr(throttle, "_MAX_DELAYED", max_delayed)
    end = threading.Event()
    started = time.monotonic()
    # The shortest delay is half of the longest wait.
    blocked = Blocked(pool, max_wait_seconds=4 if delayed else 80, succeeds=False)
    blocked.fail("guesser")
    for n in range(4):
        blocked.send(f"guess {n}", "guesser", until=end)
    right = blocked.send("right", "a")
    blocked.go_on.set()
    try:
        assert right.result(20)
        assert not blocked.first.result(20)
        if delayed:
            assert time.monotonic() - started > 1.9
    finally:
        end.set()


def test_failures_are_not_delayed_while_the_queue_is_empty() -> None:
    made = Throttle(60)
    started = time.monotonic()
    for n in range(100):
        assert not made.check(b"%d" % n, (b"a",), lambda: False)
    assert time.monotonic() - started < 20


def test_a_check_that_raises_is_logged_and_the_others_run(
    blocked: Blocked, caplog: pytest.LogCaptureFixture
) -> None:
    LOG.propagate = True

    def broken() -> bool:
        raise KeyError("oops")

    right = blocked.send("right", "a")
    blocked.go_on.set()
    with pytest.raises(TimeoutError):
        blocked.throttle.check(b"broken", (b"b",), broken)
    assert right.result(20)
    assert "cannot check a password: KeyError('oops')" in caplog.text


def test_the_number_of_sources_is_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(throttle, "_MAX_SOURCES", 20)
    made = Throttle(10)
    for n in range(50):
        assert not made.check(b"%d" % n, (b"a", b"a %d" % n), lambda: False)
        assert len(made._failures) <= 20


def test_queued_checks_leave_connections_to_other_clients() -> None:
    held = throttle._MAX_QUEUED + throttle._MAX_DELAYED
    assert held < http.MAX_CONNECTIONS
