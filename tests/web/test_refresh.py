from __future__ import annotations

import threading
import time
import weakref
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

from conntrack_textfile.errors import SourceError
from conntrack_textfile.labels import DEFAULT
from conntrack_textfile.logs import LOG
from conntrack_textfile.snapshot import Snapshot
from conntrack_textfile.web import page, refresh
from conntrack_textfile.web.refresh import Refresher
from tests.builders import CONNTRACK, aggregated, taken

if TYPE_CHECKING:
    from collections.abc import Iterator

VALUES = ("a", "b", "ipv4", "tcp", "http", "80")


class Table:
    """A table whose snapshots the test chooses: a number of connections, or an error."""

    def __init__(self, *readings: int | Exception) -> None:
        self.readings: Iterator[int | Exception] = iter(readings)
        self.conntrack = CONNTRACK
        self.keys = 1

    def take(self) -> Snapshot:
        reading = next(self.readings)
        if isinstance(reading, Exception):
            raise reading
        live = aggregated({VALUES: (reading, 0, 0, 0, 0)}, *DEFAULT)._replace(keys=self.keys)
        return taken(live)._replace(conntrack=self.conntrack, timestamp=time.time(), duration=0.01)

    def failure(self, last: Snapshot | None) -> Snapshot:
        if last is None:
            return Snapshot(False, "procfs", "pure", self.conntrack)
        return last._replace(success=False)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The monotonic clock, which the test moves."""
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


@pytest.fixture(autouse=True)
def log(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    LOG.propagate = True
    LOG.setLevel("INFO")
    yield
    caplog.clear()


def shown(refresher: Refresher) -> str:
    current = refresher.current()
    assert current is not None
    status, page = current
    return (status + b"".join(page.plain)).decode()


def refresher(table: Table, interval: float = 60.0) -> Refresher:
    return Refresher(table.take, table.failure, interval)


def test_a_snapshot_is_served_until_the_next(clock: list[float]) -> None:
    made = refresher(Table(1, 2))
    assert made.refresh() == 60.0
    assert "conntrack_total_connections 1\n" in shown(made)
    clock[0] += 60
    made.refresh()
    assert "conntrack_total_connections 2\n" in shown(made)


def test_the_duration_of_a_snapshot_is_part_of_the_interval(clock: list[float]) -> None:
    table = Table(1, 2)

    def slow() -> Snapshot:
        clock[0] += 13
        return table.take()

    assert Refresher(slow, table.failure, 60.0).refresh() == 47.0
    assert Refresher(slow, table.failure, 10.0).refresh() == 0.0


def test_a_failure_keeps_the_last_snapshot_for_three_intervals(clock: list[float]) -> None:
    made = refresher(Table(5, SourceError("gone")))
    made.refresh()
    clock[0] += 60
    made.refresh()
    text = shown(made)
    assert "conntrack_snapshot_success 0\n" in text
    assert "conntrack_total_connections 5\n" in text
    clock[0] += 120
    assert "conntrack_total_connections 5\n" in shown(made)
    clock[0] += 1
    text = shown(made)
    assert "conntrack_snapshot_success 0\n" in text
    assert "conntrack_snapshot_timestamp_seconds" in text
    assert "conntrack_total_connections" not in text
    assert "conntrack_connections" not in text


def test_a_snapshot_that_hangs_makes_the_last_one_stale(clock: list[float]) -> None:
    made = refresher(Table(5))
    made.refresh()
    clock[0] += 181
    text = shown(made)
    assert "conntrack_snapshot_success 0\n" in text
    assert "conntrack_total_connections" not in text


def test_a_snapshot_that_takes_longer_than_the_interval_is_not_stale(clock: list[float]) -> None:
    table = Table(5)
    made = Refresher(lambda: table.take()._replace(duration=30.0), table.failure, 1.0)
    made.refresh()
    clock[0] += 89
    assert "conntrack_snapshot_success 1\n" in shown(made)


def test_the_backoff_after_failures_grows_up_to_the_interval(clock: list[float]) -> None:
    del clock
    made = refresher(Table(*[SourceError("gone")] * 9, 1))
    waits = [made.refresh() for _ in range(10)]
    assert waits == [1, 2, 4, 8, 16, 32, 60, 60, 60, 60]


def test_failures_are_logged_when_they_begin_change_and_end(
    caplog: pytest.LogCaptureFixture,
) -> None:
    one, two = SourceError("one"), SourceError("two")
    made = refresher(Table(1, one, one, one, two, two, 1, one))
    for _ in range(8):
        made.refresh()
    assert [record.getMessage() for record in caplog.records] == [
        "one; trying again",
        "two; trying again",
        "reading the table works again, after 5 failures",
        "one; trying again",
    ]


def test_any_error_is_a_failed_refresh(caplog: pytest.LogCaptureFixture) -> None:
    made = refresher(Table(MemoryError(), 3))
    made.refresh()
    assert "conntrack_snapshot_success 0\n" in shown(made)
    assert "there is not enough memory to read the table; trying again" in caplog.text
    made.refresh()
    assert "conntrack_total_connections 3\n" in shown(made)


def test_an_unfinished_snapshot_is_freed_before_its_failure_is_handled() -> None:
    class Tally:
        """Large."""

    built: list[weakref.ref[Tally]] = []
    left: list[Tally | None] = []

    def take() -> Snapshot:
        tally = Tally()
        built.append(weakref.ref(tally))
        raise MemoryError

    def failure(last: Snapshot | None) -> Snapshot:
        left.append(built[-1]())
        return Table().failure(last)

    made = Refresher(take, failure, 60.0)
    made.refresh()
    assert left == [None]
    assert "conntrack_snapshot_success 0\n" in shown(made)


def test_the_thread_survives_a_memory_error_in_the_failure() -> None:
    table = Table(MemoryError(), 3)
    again = threading.Event()

    def failure(_last: Snapshot | None) -> Snapshot:
        raise MemoryError

    def take() -> Snapshot:
        try:
            return table.take()
        except StopIteration:
            again.set()
            threading.Event().wait()  # until the tests end
            raise

    made = Refresher(take, failure, 0.1)
    made.start()
    assert again.wait(20)
    assert "conntrack_total_connections 3\n" in shown(made)


def test_it_is_alive_until_a_snapshot_hangs(clock: list[float]) -> None:
    reading = threading.Event()

    def take() -> Snapshot:
        reading.set()
        threading.Event().wait()  # until the tests end
        raise AssertionError

    made = Refresher(take, Table().failure, 60.0)
    assert not made.alive()
    made.start()
    assert reading.wait(20)
    assert made.alive()
    clock[0] += 599
    assert made.alive()
    clock[0] += 2
    assert not made.alive()


def test_a_long_interval_is_no_hang(clock: list[float]) -> None:
    reading = threading.Semaphore(0)
    table = Table(1)

    def take() -> Snapshot:
        reading.release()
        return table.take()

    made = Refresher(take, table.failure, 36000.0)
    made.start()
    assert reading.acquire(timeout=20)
    assert "conntrack_total_connections 1\n" in shown(made)
    clock[0] += 35999
    assert made.alive()


def test_a_warning_is_logged_once_until_it_comes_back(caplog: pytest.LogCaptureFixture) -> None:
    table = Table(1, 1, 1, 1)
    made = refresher(table)
    for accounting in (False, False, True, False):
        table.conntrack = CONNTRACK._replace(accounting=accounting)
        made.refresh()
    assert len([r for r in caplog.records if "accounting is off" in r.getMessage()]) == 2


def test_folding_is_logged_when_it_starts_and_when_it_stops(
    caplog: pytest.LogCaptureFixture,
) -> None:
    table = Table(1, 1, 1, 1, 1)
    made = refresher(table)
    for table.keys in (1, 7, 9, 1, 1):
        made.refresh()
    (start, stop) = [record.getMessage() for record in caplog.records]
    assert start.startswith("6 of 7 keys are beyond --limit.keys")
    assert stop == "all keys are within --limit.keys again"


def test_there_is_no_body_before_the_first_snapshot(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(refresh, "_FIRST_SNAPSHOT_SECONDS", 0.01)
    assert refresher(Table()).current() is None


def test_it_is_ready_after_the_first_good_snapshot() -> None:
    made = refresher(Table(SourceError("gone"), 1, SourceError("gone")))
    for ready in (False, True, True):
        made.refresh()
        assert made.ready() is ready


def test_the_page_shows_the_last_snapshot_and_then_that_it_is_stale(clock: list[float]) -> None:
    def shown() -> str:
        text, policy = made.html("/m", "")
        assert policy.startswith("default-src 'none'; style-src 'sha256-")
        return text.decode()

    made = refresher(Table(1234, SourceError("gone")))
    assert "The first snapshot is not finished yet." in shown()
    made.refresh()
    assert "<dd>1,234</dd>" in shown()
    assert 'banner" role' not in shown()
    made.refresh()
    assert "Stale: this is the last good snapshot. Reason: gone." in shown()
    assert "<dd>1,234</dd>" in shown()
    clock[0] += 181
    assert "Stale: there is no snapshot that is fresh enough. Reason: gone." in shown()
    assert "<dd>1,234</dd>" not in shown()


def test_the_first_snapshot_is_taken_at_once() -> None:
    made = refresher(Table(7), interval=1e6)
    made.start()
    assert "conntrack_total_connections 7\n" in shown(made)


@pytest.mark.parametrize("label", ["netns", "egress", "src"])
def test_a_query_of_any_label_is_valid_before_the_first_snapshot(label: str) -> None:
    # With a 400, a page that was open during a restart would stop reloading.
    made = Refresher(Table().take, Table().failure, 60.0)
    text, _ = made.html("/m", f"{label}=a")
    assert b"first snapshot is not finished" in text


def test_one_page_is_rendered_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    made = refresher(Table(1))
    made.refresh()
    rendering: list[int] = []
    most = 0

    def slow(*_: object) -> bytes:
        nonlocal most
        rendering.append(1)
        most = max(most, len(rendering))
        time.sleep(0.02)
        rendering.pop()
        return b""

    monkeypatch.setattr(page, "render", slow)
    with ThreadPoolExecutor(8) as pool:
        for future in [pool.submit(made.html, "/m", "") for _ in range(16)]:
            future.result(20)
    assert most == 1
