from __future__ import annotations

from array import array
from typing import TYPE_CHECKING

import pytest

from conntrack_textfile.aggregate import MEASURES
from conntrack_textfile.tally import Rows
from conntrack_textfile.web import history
from conntrack_textfile.web.history import History
from tests.builders import aggregated, counted, taken

if TYPE_CHECKING:
    from conntrack_textfile.snapshot import Snapshot
    from conntrack_textfile.web.history import Carried
    from tests.builders import Row, Series

A, B = ("10.0.0.1", "tcp"), ("10.0.0.2", "tcp")


def snapshot(rows: Series | None, connections: int = 1, entries: int = 5) -> Snapshot:
    """A snapshot with these counters; None is one without any."""
    made = taken(aggregated({A: (connections, 0, 0, 0, 0)}, "src", "l4protocol"))
    conntrack = made.conntrack._replace(entries=entries)
    traffic = None if rows is None else counted(rows, "src", "l4protocol")
    return made._replace(traffic=traffic, conntrack=conntrack)


def carried(found: Carried | None) -> dict[tuple[str, ...], Row]:
    assert found is not None
    rows = found.rows
    return dict(zip(rows.groups, zip(*rows.columns, strict=True), strict=True))


def test_the_first_snapshot_has_no_rate() -> None:
    past = History().add(snapshot({A: (1, 2, 3, 4, 5)}), 100.0)
    assert past.counted
    assert past.interval is None
    assert past.hour is None
    assert list(past.points.seconds) == [0]
    assert list(past.points.live) == [1]


def test_what_counters_grow_by_is_the_traffic_of_the_interval_and_of_the_hour() -> None:
    made = History()
    made.add(snapshot({A: (10, 20, 30, 40, 50), B: (1, 1, 1, 1, 1)}), 100.0)
    made.add(snapshot({A: (11, 22, 33, 44, 55), B: (1, 1, 1, 1, 1)}), 160.0)
    past = made.add(snapshot({A: (11, 22, 33, 44, 56), B: (2, 3, 4, 5, 6)}), 230.0)
    assert past.interval is not None
    assert past.interval.seconds == 70.0
    assert carried(past.interval) == {A: (0, 0, 0, 0, 1), B: (1, 2, 3, 4, 5)}
    assert past.hour is not None
    assert past.hour.seconds == 130.0
    assert carried(past.hour) == {A: (1, 2, 3, 4, 6), B: (1, 2, 3, 4, 5)}
    points = past.points
    assert list(points.seconds) == [0, 60, 70]
    assert [list(series) for series in points[2:5]] == [[0, 3, 3], [0, 5, 6], [0, 1, 1]]


def test_what_a_new_series_has_is_of_its_first_interval_though_it_is_published_as_0() -> None:
    made = History()
    made.add(snapshot({}), 0.0)
    first = snapshot({A: (0,) * 5, B: (0,) * 5})
    assert first.traffic is not None
    held: Series = {A: (1, 2, 3, 4, 5), B: (1, 1, 1, 1, 1)}
    of_all: Series = {("ipv4", "tcp"): (2, 3, 4, 5, 6)}
    past = made.add(
        first._replace(traffic=first.traffic._replace(held=held, held_by_protocol=of_all)), 60.0
    )
    assert carried(past.interval) == held
    past = made.add(snapshot({A: (1, 2, 3, 4, 5), B: (2, 2, 2, 2, 2)}), 120.0)
    assert carried(past.interval) == {B: (1, 1, 1, 1, 1)}
    assert list(past.points.sent_bytes) == [0, 4, 1]
    assert carried(past.hour) == {A: (1, 2, 3, 4, 5), B: (2, 2, 2, 2, 2)}


def test_a_series_that_was_lost_gives_no_negative_and_no_absurd_rate() -> None:
    made = History()
    made.add(snapshot({A: (10**6,) * 5, B: (10**6,) * 5}), 0.0)
    # A lost its slot and has another, as at the beginning; B is gone.
    past = made.add(snapshot({A: (0,) * 5}), 60.0)
    assert carried(past.interval) == {}
    past = made.add(snapshot({A: (7,) * 5}), 120.0)
    assert carried(past.interval) == {A: (7,) * 5}
    # What B carried before it was gone is still of the hour.
    made.add(snapshot({A: (7,) * 5, B: (0,) * 5}), 180.0)
    past = made.add(snapshot({A: (7,) * 5, B: (3,) * 5}), 240.0)
    past = made.add(snapshot({A: (7,) * 5}), 300.0)
    assert carried(past.hour) == {A: (7,) * 5, B: (3,) * 5}


def test_an_interval_without_counters_ends_the_rates_and_keeps_the_hour() -> None:
    made = History()
    made.add(snapshot({A: (0,) * 5}), 0.0)
    made.add(snapshot({A: (5,) * 5}), 60.0)
    past = made.add(snapshot(None), 120.0)
    assert not past.counted
    assert past.interval is None
    assert carried(past.hour) == {A: (5,) * 5}
    past = made.add(snapshot({A: (1000,) * 5}), 180.0)
    assert past.interval is None
    past = made.add(snapshot({A: (1001,) * 5}), 240.0)
    assert carried(past.interval) == {A: (1,) * 5}
    assert carried(past.hour) == {A: (6,) * 5}
    assert past.hour is not None
    assert past.hour.seconds == 120.0
    assert list(past.points.seconds) == [0, 60, 0, 0, 60]


def test_two_snapshots_at_one_time_lose_nothing() -> None:
    made = History()
    made.add(snapshot({A: (0,) * 5}), 0.0)
    made.add(snapshot({A: (5,) * 5}), 60.0)
    assert made.add(snapshot({A: (6,) * 5}), 60.0).interval is None
    past = made.add(snapshot({A: (8,) * 5}), 120.0)
    assert carried(past.interval) == {A: (3,) * 5}
    assert carried(past.hour) == {A: (8,) * 5}


@pytest.mark.parametrize("interval", [1, 7, 60, 299, 3600])
def test_the_hour_is_bounded_whatever_the_interval(interval: int) -> None:
    made = History()
    steps = 3 * 3600 // interval + 1
    for n in range(steps):
        past = made.add(snapshot({A: (n,) * 5}, connections=n, entries=n), float(n * interval))
    assert past.hour is not None
    assert 3600 <= past.hour.seconds <= 3600 + max(300 + interval, interval)
    assert carried(past.hour) == {A: (round(past.hour.seconds / interval),) * 5}
    assert len(past.hour.parts) <= 14
    points = past.points
    assert len(points.times) <= 720
    assert points.times[0] >= points.times[-1] - 3600
    assert all(sum(array("d", series)) > 0 for series in points)
    # Merged or not, each point has all that was carried in its time.
    assert list(points.opened) == [seconds / interval for seconds in points.seconds]
    assert points.live[-1] == points.entries[-1] == steps - 1


def test_groups_beyond_the_bound_are_summed_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(history, "_GROUPS", 2)
    rows = {(str(n), "udp" if n % 2 else "tcp"): (1, n, n, n, n) for n in range(10)}
    found = history.bounded(
        ("src", "l4protocol"), Rows(list(rows), tuple(zip(*rows.values(), strict=True)))
    )
    assert list(zip(found.groups, zip(*found.columns, strict=True), strict=True)) == [
        (("other", "tcp"), (4, 12, 12, 12, 12)),
        (("other", "udp"), (4, 16, 16, 16, 16)),
        (("8", "tcp"), (1, 8, 8, 8, 8)),
        (("9", "udp"), (1, 9, 9, 9, 9)),
    ]


def test_live_groups_are_kept_once_and_in_little_memory() -> None:
    rows: Series = {A: (1, 2**15, 2**31, 2**63, 2**64), B: (1, 2, 3, 4, 5)}
    live, traffic = aggregated(rows, "src", "l4protocol"), counted({A: (1,) * 5}, "src", "l4")
    found = history.compact(live, traffic)
    assert found.groups == [A, B]
    assert found.groups[0] is traffic.groups.groups[0]
    assert [column[0] for column in found.columns] == list(rows[A])
    kinds = [c.typecode if isinstance(c, array) else "" for c in found.columns]
    assert kinds == ["B", "H", "I", "Q", ""]
    assert [size(tuple(c[1] for c in found.columns)) for size in MEASURES.values()] == [8, 6, 1]


def test_of_several_tables_the_fullest_is_the_one_in_the_picture() -> None:
    of = snapshot(None)
    parts = {
        name: of._replace(conntrack=of.conntrack._replace(entries=entries, entries_limit=limit))
        for name, (entries, limit) in {"large": (90, 1000), "full": (50, 100)}.items()
    }
    points = History().add(of._replace(parts=parts), 0.0).points
    assert (list(points.entries), list(points.entries_limit)) == ([50], [100])
