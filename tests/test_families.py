from __future__ import annotations

import pytest

from conntrack_textfile import families
from conntrack_textfile.tally import Sums
from tests.builders import aggregated, taken

ROWS: tuple[families.Family | families.GroupFamily, ...] = (
    *families.STATUS,
    *families.LIVE,
    *families.GROUPS,
)

# Dashboards and alerts of users have them: they never change, and others stand beside them.
NAMES = """
    conntrack_textfile_build_info conntrack_snapshot_success conntrack_snapshot_timestamp_seconds
    conntrack_snapshot_duration_seconds conntrack_entries conntrack_entries_limit
    conntrack_accounting_enabled conntrack_malformed_entries conntrack_uncounted_entries
    conntrack_state_connections conntrack_flag_connections conntrack_filtered_connections
    conntrack_aggregated_keys conntrack_exported_keys conntrack_folded_keys
    conntrack_total_connections conntrack_total_sent_packets conntrack_total_sent_bytes
    conntrack_total_reply_packets conntrack_total_reply_bytes conntrack_connections
    conntrack_sent_packets conntrack_sent_bytes conntrack_reply_packets conntrack_reply_bytes
""".split()


def test_the_names_of_families_never_change() -> None:
    assert set(NAMES) <= {row.name for row in ROWS}


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_a_family_says_what_it_is_in_one_line(row: families.Family | families.GroupFamily) -> None:
    assert row.name.startswith("conntrack_")
    assert row.help.endswith(".")
    assert row.help[0].isupper() or row.help[0].isdigit()
    assert not set(row.help) & set("\\\n")
    assert row.type == "gauge"


def test_each_family_has_one_row() -> None:
    assert len({row.name for row in ROWS}) == len(ROWS)


def test_the_families_of_the_groups_have_the_columns_of_the_sums_and_their_totals() -> None:
    assert [row.name for row in families.GROUPS] == [f"conntrack_{name}" for name in Sums._fields]
    assert [row.total for row in families.GROUPS] == [
        f"conntrack_total_{name}" for name in Sums._fields
    ]
    assert [row.column for row in families.GROUPS] == list(range(5))
    shown = taken(aggregated({("a",): (1, 2, 3, 4, 5), ("b",): (10, 20, 30, 40, 50)}, "src"))
    totals = {row.name: list(row.samples(shown)) for row in families.LIVE}
    for row, total in zip(families.GROUPS, (11, 22, 33, 44, 55), strict=True):
        assert totals[row.total] == [((), total)]


def test_families_of_live_connections_are_absent_without_a_recent_reading() -> None:
    for row in families.LIVE:
        assert list(row.samples(taken(None))) == []
