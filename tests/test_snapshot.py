from __future__ import annotations

import ipaddress
import time
from typing import TYPE_CHECKING

import pytest

from conntrack_textfile import protocols, snapshot
from conntrack_textfile.collector import Collector
from conntrack_textfile.errors import SourceError
from conntrack_textfile.kernel.engine import make
from conntrack_textfile.kernel.sysctl import Conntrack
from conntrack_textfile.options import parse
from tests import conntrack_l
from tests.builders import proc_root

if TYPE_CHECKING:
    from pathlib import Path


# All of the captures, in the order of their numbers.
PROTOCOLS = [protocols.l4protocol(number) for number in range(256)]


def take(root: Path, *args: str) -> snapshot.Snapshot:
    options = parse(["write", f"--path.procfs={root}", *args])
    return Collector(options, make(options.plan)).take()


def test_series_and_totals_are_those_that_conntrack_prints(capture: Path) -> None:
    expected = conntrack_l.read((capture / "conntrack-L.txt").read_text())
    live = take(capture).live
    assert live is not None
    found = {
        (src, dst, l3, l4, dport): list(sums)
        for (src, dst, l3, l4, _, dport), sums in zip(
            live.groups, zip(*live.columns, strict=True), strict=True
        )
    }
    assert found == expected.sums
    assert list(live.totals) == expected.totals
    assert live.keys == len(expected.sums)
    assert live.uncounted == expected.uncounted
    assert live.malformed == 0
    assert live.states == expected.states
    assert live.flags == expected.flags


def test_all_of_a_plan_on_a_capture(capture: Path, tmp_path: Path) -> None:
    networks = tmp_path / "networks"
    networks.write_text("10.77.2.0/24 servers\n")
    argv = [
        *("--filter.exclude=l4protocol=icmp", f"--networks.file={networks}"),
        *("--aggregate.by=src,dst,l4protocol", "--aggregate.src-prefix=24,64"),
    ]
    expected = conntrack_l.read((capture / "conntrack-L.txt").read_text())
    live = take(capture, *argv).live
    assert live is not None
    rows = zip(live.groups, zip(*live.columns, strict=True), strict=True)
    assert {labels: list(row) for labels, row in rows} == conntrack_l.regrouped(expected)
    assert live.states == expected.states
    assert live.flags == expected.flags
    assert live.filtered == expected.entries - live.totals.connections


@pytest.mark.parametrize("limit", [1, 2, 4])
def test_what_is_folded_is_told(capture: Path, limit: int) -> None:
    taken = take(capture, f"--limit.keys={limit}")
    assert taken.live is not None
    assert taken.live.exported == limit
    folded = taken.live.keys - limit
    assert f"{folded} of {limit + folded} keys are beyond --limit.keys" in taken.warnings["folded"]


def test_series_are_sorted_by_address_and_port(capture: Path) -> None:
    live = take(capture).live
    assert live is not None
    order = [
        (ip.version, ip, ipaddress.ip_address(dst), PROTOCOLS.index(l4))
        for src, dst, _, l4, _, _ in live.groups
        for ip in [ipaddress.ip_address(src)]
    ]
    assert order == sorted(order)


def test_addresses_are_shown_short(capture: Path) -> None:
    live = take(capture).live
    assert live is not None
    sources = {src for src, *_ in live.groups}
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
    shown = snapshot.Snapshot(True, "procfs", "pure", Conntrack(1, 2, 3, accounting=accounting))
    assert len(shown.warnings) == warnings
    for warning in shown.warnings.values():
        assert "only connections made after it is switched on are counted" in warning


def test_an_empty_table_is_a_snapshot(tmp_path: Path) -> None:
    live = take(proc_root(tmp_path)).live
    assert live is not None
    assert live.totals == (0, 0, 0, 0, 0)
    assert not live.groups


def test_a_missing_table_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(SourceError):
        take(tmp_path)


def test_a_failure_keeps_what_was_shown_and_says_that_it_failed(capture: Path) -> None:
    last = take(capture)
    options = parse(["serve", "--path.procfs=/nowhere"])
    failed = Collector(options, make(options.plan)).failure(last)
    assert not failed.success
    assert failed.timestamp == last.timestamp
    assert failed.live is last.live
    assert failed.conntrack == Conntrack(None, None, None, None)


def test_a_first_failure_shows_nothing(tmp_path: Path) -> None:
    options = parse(["serve", f"--path.procfs={tmp_path}"])
    failed = Collector(options, make(options.plan)).failure(None)
    assert not failed.success
    assert failed.timestamp is None
    assert failed.live is None
