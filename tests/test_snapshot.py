from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest

from conntrack_textfile import snapshot, source
from conntrack_textfile.sysctl import Conntrack
from tests import conntrack_l

if TYPE_CHECKING:
    from pathlib import Path


def test_series_and_totals_are_those_that_conntrack_prints(capture: Path) -> None:
    expected = conntrack_l.read((capture / "conntrack-L.txt").read_text())
    connections = snapshot.take(str(capture)).connections
    assert connections is not None
    found = {
        (labels.src, labels.dst, labels.l3protocol, labels.l4protocol, labels.dport): list(sums)
        for labels, sums in connections.series
    }
    assert found == expected.sums
    assert list(connections.totals) == expected.totals
    assert connections.keys == len(expected.sums)
    assert connections.uncounted == expected.uncounted
    assert connections.malformed == 0


def test_series_are_sorted_by_labels(capture: Path) -> None:
    connections = snapshot.take(str(capture)).connections
    assert connections is not None
    labels = [labels for labels, _ in connections.series]
    assert labels == sorted(labels)


def test_addresses_are_shown_short(capture: Path) -> None:
    connections = snapshot.take(str(capture)).connections
    assert connections is not None
    sources = {labels.src for labels, _ in connections.series}
    assert sources & {"fd77:1::2", "::1"}


def test_a_snapshot_says_when_and_how_it_was_taken(capture: Path) -> None:
    before = time.time()
    taken = snapshot.take(str(capture))
    assert taken.success
    assert taken.source == "procfs"
    assert taken.timestamp is not None
    assert before <= taken.timestamp <= time.time()
    assert taken.duration is not None
    assert 0 < taken.duration < 10
    assert taken.conntrack.entries_limit == 262144


@pytest.mark.parametrize(("accounting", "warnings"), [(True, 0), (None, 0), (False, 1)])
def test_accounting_that_is_off_is_told(accounting: bool | None, warnings: int) -> None:
    shown = snapshot.Snapshot(True, "procfs", "pure", Conntrack(1, 2, accounting))
    assert len(shown.warnings) == warnings
    for warning in shown.warnings:
        assert "only connections made after it is switched on are counted" in warning


def test_an_empty_table_is_a_snapshot(tmp_path: Path) -> None:
    (tmp_path / "net").mkdir()
    (tmp_path / "net" / "nf_conntrack").touch()
    connections = snapshot.take(str(tmp_path)).connections
    assert connections is not None
    assert connections.totals == (0, 0, 0, 0, 0)
    assert not connections.series


def test_a_missing_table_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(source.SourceError):
        snapshot.take(str(tmp_path))


def test_a_failure_keeps_what_was_shown_and_says_that_it_failed(capture: Path) -> None:
    last = snapshot.take(str(capture))
    failed = snapshot.failure("/nowhere", last)
    assert not failed.success
    assert failed.timestamp == last.timestamp
    assert failed.connections is last.connections
    assert failed.conntrack == Conntrack(None, None, None)


def test_a_first_failure_shows_nothing(tmp_path: Path) -> None:
    failed = snapshot.failure(str(tmp_path), None)
    assert not failed.success
    assert failed.timestamp is None
    assert failed.connections is None
