from __future__ import annotations

import ipaddress
import time
from typing import TYPE_CHECKING

import pytest

from conntrack_textfile import names, snapshot, source
from conntrack_textfile.options import parse
from conntrack_textfile.sysctl import Conntrack
from conntrack_textfile.tally import engine
from tests import conntrack_l

if TYPE_CHECKING:
    from pathlib import Path


# All of the captures, in the order of their numbers.
PROTOCOLS = [names.l4protocol(number) for number in range(256)]


def take(proc_root: Path) -> snapshot.Snapshot:
    return snapshot.take(parse(["write", f"--path.procfs={proc_root}"]), engine())


def test_series_and_totals_are_those_that_conntrack_prints(capture: Path) -> None:
    expected = conntrack_l.read((capture / "conntrack-L.txt").read_text())
    connections = take(capture).connections
    assert connections is not None
    found = {
        (labels.src, labels.dst, labels.l3protocol, labels.l4protocol, labels.dport): list(sums)
        for labels, sums in zip(
            connections.labels, zip(*connections.columns, strict=True), strict=True
        )
    }
    assert found == expected.sums
    assert list(connections.totals) == expected.totals
    assert connections.keys == len(expected.sums)
    assert connections.uncounted == expected.uncounted
    assert connections.malformed == 0


def test_series_are_sorted_by_address_and_port(capture: Path) -> None:
    connections = take(capture).connections
    assert connections is not None
    order = [
        (ip.version, ip, ipaddress.ip_address(labels.dst), PROTOCOLS.index(labels.l4protocol))
        for labels in connections.labels
        for ip in [ipaddress.ip_address(labels.src)]
    ]
    assert order == sorted(order)


def test_addresses_are_shown_short(capture: Path) -> None:
    connections = take(capture).connections
    assert connections is not None
    sources = {labels.src for labels in connections.labels}
    assert sources & {"fd77:1::2", "::1"}


def test_a_snapshot_says_when_and_how_it_was_taken(capture: Path) -> None:
    before = time.time()
    taken = take(capture)
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
    connections = take(tmp_path).connections
    assert connections is not None
    assert connections.totals == (0, 0, 0, 0, 0)
    assert not connections.labels


def test_a_missing_table_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(source.SourceError):
        take(tmp_path)


def test_a_failure_keeps_what_was_shown_and_says_that_it_failed(capture: Path) -> None:
    last = take(capture)
    failed = snapshot.failure(parse(["serve", "--path.procfs=/nowhere"]), engine(), last)
    assert not failed.success
    assert failed.timestamp == last.timestamp
    assert failed.connections is last.connections
    assert failed.conntrack == Conntrack(None, None, None)


def test_a_first_failure_shows_nothing(tmp_path: Path) -> None:
    failed = snapshot.failure(parse(["serve", f"--path.procfs={tmp_path}"]), engine(), None)
    assert not failed.success
    assert failed.timestamp is None
    assert failed.connections is None
