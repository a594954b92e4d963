from __future__ import annotations

import pytest

from conntrack_textfile.aggregate import MEASURES
from conntrack_textfile.web.history import History
from conntrack_textfile.web.overview import Overview, is_overflow, prepare
from conntrack_textfile.web.query import Query
from tests.builders import Series, aggregated, taken

LABELS = ("netns", "src", "l4protocol")
ROWS: Series = {
    ("blue", "10.0.0.1", "tcp"): (1, 10, 100, 10, 100),
    ("blue", "10.0.0.2", "tcp"): (2, 20, 200, 20, 200),
    ("red", "10.0.0.1", "udp"): (4, 0, 0, 0, 0),
    ("red", "other", "udp"): (8, 80, 800, 80, 800),
}


def overview(rows: Series = ROWS) -> Overview:
    snapshot = taken(aggregated(rows, *LABELS))
    return prepare(snapshot, History().add(snapshot, 1000.0))


@pytest.mark.parametrize(
    ("labels", "group", "rest"),
    [
        (("src", "l4protocol"), ("other", "tcp"), True),
        (("src", "dst"), ("other", "10.0.0.1"), False),
        # An overflow series of each network namespace, and no namespace is one.
        (("netns", "src"), ("blue", "other"), True),
        (("netns", "src"), ("blue", "10.0.0.1"), False),
        (("netns",), ("blue",), False),
        (("netns",), ("other",), False),
    ],
)
def test_overflow_series(labels: tuple[str, ...], group: tuple[str, ...], rest: bool) -> None:
    assert is_overflow(labels, group) is rest


def test_the_overflow_series_of_a_namespace_is_seen() -> None:
    assert overview().ranked("live", Query()).folded
    whole = {group: sums for group, sums in ROWS.items() if group[1] != "other"}
    assert not overview(whole).ranked("live", Query()).folded


@pytest.mark.parametrize("sort", MEASURES)
def test_sources_alone_are_ranked_as_beside_others(sort: str) -> None:
    shown = overview()
    alone = shown.top_sources("live", sort)
    beside = shown.ranked("live", Query("live", sort))
    assert alone.rankings == [r for r in beside.rankings if r.labels == ("src",)]
    assert (alone.totals, alone.folded) == (beside.totals, beside.folded)


def test_matchers_select_rows_and_their_labels_have_no_ranking() -> None:
    ranked = overview().ranked("live", Query(matchers=(("netns", "blue"),)))
    assert ranked.totals == (3, 30, 300, 30, 300)
    assert [ranking.labels for ranking in ranked.rankings] == [("src",), ("src", "l4protocol")]
    assert not ranked.folded


def test_unfiltered_views_are_ranked_once() -> None:
    shown = overview()
    assert shown.ranked("live", Query()) is shown.ranked("live", Query())
    filtered = Query(matchers=(("src", "10.0.0.1"),))
    assert shown.ranked("live", filtered) is not shown.ranked("live", filtered)
