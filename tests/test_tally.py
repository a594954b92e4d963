from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from conntrack_textfile.tally import Rows, Sums, lacks_counters

if TYPE_CHECKING:
    from collections.abc import Sequence

    from conntrack_textfile.tally import Group


def test_rows_of_sums() -> None:
    sums: dict[Group, Sequence[int]] = {("a",): [1, 2, 3, 4, 5], ("b",): (10, 20, 30, 40, 50)}
    rows = Rows.of(sums)
    assert rows.groups == [("a",), ("b",)]
    assert rows.columns == ((1, 10), (2, 20), (3, 30), (4, 40), (5, 50))
    assert dict(rows.pairs()) == {group: tuple(row) for group, row in sums.items()}
    assert rows.totals == Sums(11, 22, 33, 44, 55)


def test_no_rows_have_all_columns() -> None:
    rows = Rows.of({})
    assert (rows.groups, rows.columns) == ([], ((),) * 5)
    assert list(rows.pairs()) == []
    assert rows.totals == (0,) * 5


@pytest.mark.parametrize(
    ("sums", "lacks"), [((3, 0, 0, 0, 0), True), ((3, 1, 60, 0, 0), False), ((0,) * 5, False)]
)
def test_connections_without_a_packet_have_no_counters(sums: tuple[int, ...], lacks: bool) -> None:
    assert lacks_counters(sums) is lacks
