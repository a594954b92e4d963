from __future__ import annotations

import pytest

from conntrack_textfile.policy import Connections
from conntrack_textfile.ranking import human, rank
from conntrack_textfile.tally import Sums


def connections(rows: dict[tuple[str, ...], tuple[int, ...]], *names: str) -> Connections:
    columns = tuple([row[field] for row in rows.values()] for field in range(5))
    totals = Sums(*map(sum, columns))
    n = len(rows)
    return Connections(names, list(rows), columns, totals, n, n, 0, 0, 0, states={}, flags={})


TABLE = connections(
    {
        ("a", "x"): (1, 0, 10, 0, 20),
        ("a", "y"): (1, 0, 10, 0, 0),
        ("b", "x"): (9, 0, 30, 0, 5),
        ("c", "x"): (1, 0, 0, 0, 40),
    },
    "src",
    "dst",
)


def test_the_largest_are_those_of_most_bytes_in_both_directions() -> None:
    ranking, keys = rank(TABLE, [["src"], ["src", "dst"]], 2)
    assert ranking.by == "bytes"
    assert ranking.rows == [(("a",), (2, 0, 20, 0, 20)), (("c",), (1, 0, 0, 0, 40))]
    assert ranking.others == 1
    assert [values for values, _ in keys.rows] == [("c", "x"), ("b", "x")]
    assert (keys.labels, keys.others) == (("src", "dst"), 2)


def test_without_counters_they_are_those_of_most_connections() -> None:
    table = connections({("a",): (1, 0, 0, 0, 0), ("b",): (2, 0, 0, 0, 0)}, "src")
    (ranking,) = rank(table, [["src"]], 9)
    assert (ranking.by, [values for values, _ in ranking.rows]) == ("connections", [("b",), ("a",)])


def test_of_equals_the_first_is_first() -> None:
    table = connections({("b", "x"): (1, 0, 1, 0, 0), ("a", "x"): (1, 0, 1, 0, 0)}, "src", "dst")
    for labels in (["src"], ["src", "dst"]):
        assert [values[0] for values, _ in rank(table, [labels], 9)[0].rows] == ["b", "a"]


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (1536, "1.5 KiB"),
        (102297, "99.9 KiB"),
        (102400, "100 KiB"),
        (1048524, "1.0 MiB"),
        (1 << 30, "1.0 GiB"),
        (5 << 60, "5.0 EiB"),
        (1 << 74, "16384 EiB"),
    ],
)
def test_bytes_are_told_in_units(number: int, text: str) -> None:
    assert human(number) == text
