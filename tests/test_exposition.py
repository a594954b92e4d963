from __future__ import annotations

import platform
from typing import TYPE_CHECKING

from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from conntrack_textfile import __version__, exposition
from conntrack_textfile.policy import LABELS, Connections
from conntrack_textfile.snapshot import Snapshot
from conntrack_textfile.sysctl import Conntrack
from conntrack_textfile.tally import Sums

if TYPE_CHECKING:
    from collections.abc import Sequence

VALUES = ("10.0.0.1", "2001:db8::1", "ipv4", "tcp", "https", "443")


def snapshot(
    series: Sequence[tuple[tuple[str, ...], Sequence[int]]] = (),
    names: tuple[str, ...] = LABELS,
) -> Snapshot:
    columns = tuple([sums[i] for _, sums in series] for i in range(5))
    labels = [labels for labels, _ in series]
    return Snapshot(
        success=True,
        source="procfs",
        engine="pure",
        conntrack=Conntrack(7, 1024, accounting=True),
        timestamp=1700000000.25,
        duration=0.5,
        connections=Connections(
            names,
            labels,
            columns,
            Sums(*map(sum, columns)),
            keys=len(series) + 5,
            exported=len(series),
            filtered=9,
            malformed=2,
            uncounted=3,
            states={("ipv4", "tcp", "ESTABLISHED"): 4, ("ipv6", "sctp", "CLOSED"): 1},
            flags={("ipv4", "udp", "unreplied"): 6},
        ),
    )


def text(shown: Snapshot) -> str:
    return b"".join(exposition.render(shown)).decode()


def test_the_whole_text() -> None:
    rendered = text(snapshot([(VALUES, (1, 2, 3, 4, 2**70))]))
    samples = [line for line in rendered.splitlines() if not line.startswith("#")]
    labels = (
        '{src="10.0.0.1",dst="2001:db8::1",l3protocol="ipv4",'
        'l4protocol="tcp",l7protocol="https",dport="443"}'
    )
    build = f'version="{__version__}",python="{platform.python_version()}"'
    assert samples == [
        f'conntrack_textfile_build_info{{{build},engine="pure",source="procfs"}} 1',
        "conntrack_snapshot_success 1",
        "conntrack_snapshot_timestamp_seconds 1700000000.25",
        "conntrack_snapshot_duration_seconds 0.5",
        "conntrack_entries 7",
        "conntrack_entries_limit 1024",
        "conntrack_accounting_enabled 1",
        "conntrack_malformed_entries 2",
        "conntrack_uncounted_entries 3",
        'conntrack_state_connections{l3protocol="ipv4",l4protocol="tcp",state="ESTABLISHED"} 4',
        'conntrack_state_connections{l3protocol="ipv6",l4protocol="sctp",state="CLOSED"} 1',
        'conntrack_flag_connections{l3protocol="ipv4",l4protocol="udp",flag="unreplied"} 6',
        "conntrack_filtered_connections 9",
        "conntrack_aggregated_keys 6",
        "conntrack_exported_keys 1",
        "conntrack_folded_keys 5",
        "conntrack_total_connections 1",
        "conntrack_total_sent_packets 2",
        "conntrack_total_sent_bytes 3",
        "conntrack_total_reply_packets 4",
        "conntrack_total_reply_bytes 1180591620717411303424",
        f"conntrack_connections{labels} 1",
        f"conntrack_sent_packets{labels} 2",
        f"conntrack_sent_bytes{labels} 3",
        f"conntrack_reply_packets{labels} 4",
        f"conntrack_reply_bytes{labels} 1180591620717411303424",
    ]
    assert rendered.endswith("\n")


def test_only_the_labels_that_are_kept_are_printed() -> None:
    rendered = text(snapshot([(("10.0.0.0/8", "other"), (1, 2, 3, 4, 5))], ("src", "dport")))
    assert '\nconntrack_reply_bytes{src="10.0.0.0/8",dport="other"} 5\n' in rendered
    assert "\nconntrack_reply_bytes 5\n" in text(snapshot([((), (1, 2, 3, 4, 5))], ()))


def test_a_table_without_states_has_no_family_of_them() -> None:
    shown = snapshot()
    assert shown.connections is not None
    rendered = text(shown._replace(connections=shown.connections._replace(states={})))
    assert "conntrack_state_connections" not in rendered
    assert "conntrack_flag_connections" in rendered


def test_each_family_is_one_gauge_with_help() -> None:
    rendered = text(snapshot([(VALUES, (1, 2, 3, 4, 5)), ((*VALUES[:5], "80"), [1] * 5)]))
    families = list(text_string_to_metric_families(rendered))
    assert len({family.name for family in families}) == len(families) == 25
    for family in families:
        assert family.type == "gauge"
        assert family.documentation
        assert family.name.startswith("conntrack_")
        assert rendered.count(f"# TYPE {family.name} gauge\n") == 1
        assert rendered.count(f"# HELP {family.name} ") == 1


def test_what_is_not_known_is_absent() -> None:
    shown = Snapshot(False, "procfs", "pure", Conntrack(None, None, None))
    names = {family.name for family in text_string_to_metric_families(text(shown))}
    assert names == {"conntrack_textfile_build_info", "conntrack_snapshot_success"}


def test_an_empty_table_has_totals_of_zero_and_no_series() -> None:
    families = {f.name: f.samples for f in text_string_to_metric_families(text(snapshot()))}
    assert families["conntrack_total_connections"][0].value == 0
    assert "conntrack_connections" not in families


def test_pieces_end_at_line_ends_and_are_bounded() -> None:
    series = [((*VALUES[:5], str(port)), (1, 2, 3, 4, 5)) for port in range(5000)]
    pieces = list(exposition.render(snapshot(series)))
    assert len(pieces) > 20
    assert all(piece.endswith(b"\n") for piece in pieces)
    assert max(map(len, pieces)) < 1 << 18


@given(st.lists(st.tuples(*[st.text()] * 6), max_size=5, unique=True))
def test_any_label_values_are_read_back(values: list[tuple[str, ...]]) -> None:
    series = [(labels, (1, 2, 3, 4, i)) for i, labels in enumerate(values)]
    families = {f.name: f for f in text_string_to_metric_families(text(snapshot(series)))}
    if series:
        found = [
            (tuple(sample.labels.values()), sample.value)
            for sample in families["conntrack_reply_bytes"].samples
        ]
        assert found == [(labels, i) for i, labels in enumerate(values)]
