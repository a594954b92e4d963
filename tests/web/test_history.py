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
    from conntrack_textfile.web.history import GroupTraffic
    from tests.builders import Row, Series

A, B = ("10.0.0.1", "tcp"), ("10.0.0.2", "tcp")


def snapshot(rows: Series | None, connections: int = 1, entries: int = 5) -> Snapshot:
    """A snapshot with this traffic since the one before; None is one that does not know it."""
    made = taken(aggregated({A: (connections, 0, 0, 0, 0)}, "src", "l4protocol"))
    conntrack = made.conntrack._replace(entries=entries)
    since = None if rows is None else Rows(list(rows), columns(rows))
    return made._replace(interval=since, conntrack=conntrack)


def columns(rows: Series) -> tuple[tuple[int, ...], ...]:
    return tuple(zip(*rows.values(), strict=True)) or ((),) * 5


def carried(found: GroupTraffic | None) -> dict[tuple[str, ...], Row]:
    assert found is not None
    rows = found.rows
    return dict(zip(rows.groups, zip(*rows.columns, strict=True), strict=True))


def test_the_first_snapshot_has_no_rate() -> None:
    first = snapshot(None)._replace(traffic=counted({A: (1, 2, 3, 4, 5)}, "src", "l4protocol"))
    past = History().add(first, 100.0)
    assert past.counted
    assert past.interval is None
    assert past.hour is None
    assert list(past.points.seconds) == [0]
    assert list(past.points.live) == [1]


def test_traffic_is_that_of_the_interval_and_of_the_hour() -> None:
    made = History()
    made.add(snapshot(None), 100.0)
    made.add(snapshot({A: (1, 2, 3, 4, 5)}), 160.0)
    past = made.add(snapshot({A: (0, 0, 0, 0, 1), B: (1, 2, 3, 4, 5)}), 230.0)
    assert past.interval is not None
    assert past.interval.seconds == 70.0
    assert carried(past.interval) == {A: (0, 0, 0, 0, 1), B: (1, 2, 3, 4, 5)}
    assert past.hour is not None
    assert past.hour.seconds == 130.0
    assert carried(past.hour) == {A: (1, 2, 3, 4, 6), B: (1, 2, 3, 4, 5)}
    points = past.points
    assert list(points.seconds) == [0, 60, 70]
    assert [list(series) for series in points[2:5]] == [[0, 3, 3], [0, 5, 6], [0, 1, 1]]


def test_time_without_traffic_is_of_the_hour_too() -> None:
    made = History()
    made.add(snapshot(None), 0.0)
    made.add(snapshot({}), 60.0)
    made.add(snapshot({A: (5,) * 5}), 120.0)
    past = made.add(snapshot({}), 400.0)  # which ends a part
    past = made.add(snapshot({}), 460.0)
    assert carried(past.interval) == {}
    assert carried(past.hour) == {A: (5,) * 5}
    assert past.hour is not None
    assert past.hour.seconds == 460.0


def test_an_interval_that_is_not_known_ends_the_rates_and_keeps_the_hour() -> None:
    made = History()
    made.add(snapshot(None), 0.0)
    made.add(snapshot({A: (5,) * 5}), 60.0)
    past = made.add(snapshot(None), 120.0)
    assert not past.counted
    assert past.interval is None
    assert carried(past.hour) == {A: (5,) * 5}
    past = made.add(snapshot(None), 180.0)
    assert past.interval is None
    past = made.add(snapshot({A: (1,) * 5}), 240.0)
    assert carried(past.interval) == {A: (1,) * 5}
    assert carried(past.hour) == {A: (6,) * 5}
    assert past.hour is not None
    assert past.hour.seconds == 120.0
    assert list(past.points.seconds) == [0, 60, 0, 0, 60]


def test_what_an_hour_has_is_bounded_and_a_scan_has_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(history, "_PART_GROUPS", 6)
    made = History()
    live = taken(aggregated({("a", "b", "tcp"): (1,) * 5}, "src", "dst", "l4protocol"))
    made.add(live, 0.0)
    for n in range(1, 40):
        groups = [("large", "server", "tcp"), ("scan", str(n), "udp"), (f"spoofed{n}", "x", "udp")]
        since = Rows(groups, tuple([100, 2, 1] for _ in range(5)))
        past = made.add(live._replace(interval=since), 60.0 * n)
        assert past.hour is not None
        assert all(len(part.groups) <= 6 + 2 for part in past.hour.parts)
    assert past.hour is not None
    found = carried(past.hour)
    assert found["large", "server", "tcp"] == (3900,) * 5
    assert sum(row[0] for group, row in found.items() if group[0] == "scan") == 2 * 39
    assert [sum(row[n] for row in found.values()) for n in range(5)] == [103 * 39] * 5


@pytest.mark.parametrize("interval", [1, 7, 60, 299, 3600])
def test_the_hour_is_bounded_whatever_the_interval(interval: int) -> None:
    made = History()
    steps = 3 * 3600 // interval + 1
    for n in range(steps):
        since: Series | None = {A: (1,) * 5} if n else None
        past = made.add(snapshot(since, connections=n, entries=n), float(n * interval))
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


def test_groups_beyond_the_bound_are_summed_up_by_source_and_then_by_protocol() -> None:
    rows: Series = {
        (str(n % 5), str(n), "udp" if n % 2 else "tcp"): (1, n, n, n, n) for n in range(10)
    }
    found = history.bounded(("src", "dst", "l4protocol"), Rows(list(rows), columns(rows)), 4)
    assert dict(zip(found.groups, zip(*found.columns, strict=True), strict=True)) == {
        ("4", "9", "udp"): (1, 9, 9, 9, 9),
        ("3", "8", "tcp"): (1, 8, 8, 8, 8),
        ("2", "other", "udp"): (1, 7, 7, 7, 7),
        ("1", "other", "tcp"): (1, 6, 6, 6, 6),
        ("other", "other", "tcp"): (3, 6, 6, 6, 6),
        ("other", "other", "udp"): (3, 9, 9, 9, 9),
    }


def test_beyond_the_bound_the_network_namespace_stays() -> None:
    rows: Series = {("blue", str(n)): (1, n, n, n, n) for n in range(9)}
    found = history.bounded(("netns", "dport"), Rows(list(rows), columns(rows)), 4)
    assert set(found.groups) == {("blue", "8"), ("blue", "7"), ("blue", "other")}
    assert sum(found.columns[1]) == sum(range(9))


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


def test_of_several_tables_the_fullest_is_the_one_in_the_chart() -> None:
    of = snapshot(None)
    parts = {
        name: of._replace(conntrack=of.conntrack._replace(entries=entries, entries_limit=limit))
        for name, (entries, limit) in {"large": (90, 1000), "full": (50, 100)}.items()
    }
    points = History().add(of._replace(parts=parts), 0.0).points
    assert (list(points.entries), list(points.entries_limit)) == ([50], [100])
