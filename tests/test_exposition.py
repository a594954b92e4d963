"""The text: against golden files, and read back by the parser of prometheus_client.

tests/golden has the whole text of some tables. After a change that is meant,
pytest --rewrite-golden writes them anew, for a human to read the difference.
"""

from __future__ import annotations

import platform
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from conntrack_textfile import __version__, exposition, families
from conntrack_textfile.collector import Collector
from conntrack_textfile.kernel.engine import make
from conntrack_textfile.kernel.sysctl import Conntrack
from conntrack_textfile.labels import DEFAULT
from conntrack_textfile.options import parse
from conntrack_textfile.snapshot import Snapshot
from tests.builders import CONNTRACK, aggregated, proc_root, taken
from tests.conftest import DATA, need

if TYPE_CHECKING:
    from collections.abc import Sequence

    from conntrack_textfile.families import Family, GroupFamily

GOLDEN = Path(__file__).parent / "golden"
VALUES = ("10.0.0.1", "2001:db8::1", "ipv4", "tcp", "https", "443")

# The proc root and the options of each golden file. None is an empty table.
TABLES: dict[str, tuple[Path | None, list[str]]] = {
    "ordinary": (DATA / "kernel-6.18", []),
    "empty": (None, []),
    "uncounted": (DATA / "kernel-6.18-defaults", []),
    "limited": (
        DATA / "kernel-6.18",
        ["--limit.keys=5", "--limit.by=packets", "--filter.exclude=l4protocol=icmp"],
    ),
    "labels": (DATA / "kernel-6.18", ["--aggregate.by=l4protocol,zone,mark,egress,backend"]),
}


@pytest.mark.parametrize("engine", ["pure", "compiled"])
@pytest.mark.parametrize("name", TABLES)
def test_the_text_is_that_of_the_golden_file(
    name: str,
    engine: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    pytestconfig: pytest.Config,
) -> None:
    monkeypatch.setenv("CONNTRACK_TEXTFILE_ENGINE", engine)
    monkeypatch.setattr(families, "__version__", "1.2.3")
    monkeypatch.setattr(families, "_PYTHON", "3.14.0")
    root, argv = TABLES[name]
    if root is None:
        root = proc_root(
            tmp_path, nf_conntrack_count=0, nf_conntrack_max=262144, nf_conntrack_acct=1
        )
    options = parse(["write", f"--path.procfs={root}", *argv])
    shown = Collector(options, make(options.plan)).take()
    assert shown.engine == engine
    # The captures are without nf_conntrack_buckets.
    conntrack = shown.conntrack._replace(buckets=65536)
    shown = shown._replace(
        engine="compiled", timestamp=1700000000.25, duration=0.125, conntrack=conntrack
    )
    file = GOLDEN / f"{name}.prom"
    if pytestconfig.getoption("--rewrite-golden"):
        file.parent.mkdir(exist_ok=True)
        file.write_text(text(shown))
    assert text(shown) == file.read_text()


@pytest.mark.parametrize("name", TABLES)
def test_promtool_accepts_a_golden_file(name: str) -> None:
    need("promtool")
    done = subprocess.run(
        ["promtool", "check", "metrics"],
        input=(GOLDEN / f"{name}.prom").read_text(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_the_golden_files_have_every_family() -> None:
    assert {file.stem for file in GOLDEN.iterdir()} == set(TABLES)
    golden = "".join(file.read_text() for file in GOLDEN.iterdir())
    rows: list[Family | GroupFamily] = [*families.STATUS, *families.LIVE, *families.GROUPS]
    for row in rows:
        assert f"# HELP {row.name} {row.help}\n# TYPE {row.name} {row.type}\n" in golden


def full(
    series: Sequence[tuple[tuple[str, ...], tuple[int, ...]]] = (),
    names: tuple[str, ...] = DEFAULT,
) -> Snapshot:
    """A snapshot with these series and something of everything else."""
    live = aggregated(dict(series), *names)
    return taken(
        live._replace(
            keys=len(series) + 5,
            filtered=9,
            malformed=2,
            uncounted=3,
            states={("ipv4", "tcp", "ESTABLISHED"): 4, ("ipv6", "sctp", "CLOSED"): 1},
            flags={("ipv4", "udp", "unreplied"): 6},
        )
    )


def text(shown: Snapshot) -> str:
    return b"".join(exposition.render(shown)).decode()


def test_the_whole_text() -> None:
    rendered = text(full([(VALUES, (1, 2, 3, 4, 2**70))]))
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
        "conntrack_entries 50",
        "conntrack_entries_limit 200",
        "conntrack_buckets 64",
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
    rendered = text(full([(("10.0.0.0/8", "other"), (1, 2, 3, 4, 5))], ("src", "dport")))
    assert '\nconntrack_reply_bytes{src="10.0.0.0/8",dport="other"} 5\n' in rendered
    assert "\nconntrack_reply_bytes 5\n" in text(full([((), (1, 2, 3, 4, 5))], ()))


def test_a_table_without_states_has_no_family_of_them() -> None:
    shown = full()
    assert shown.live is not None
    rendered = text(shown._replace(live=shown.live._replace(states={})))
    assert "conntrack_state_connections" not in rendered
    assert "conntrack_flag_connections" in rendered


def test_each_family_is_one_gauge_with_help() -> None:
    rendered = text(full([(VALUES, (1, 2, 3, 4, 5)), ((*VALUES[:5], "80"), (1,) * 5)]))
    found = list(text_string_to_metric_families(rendered))
    assert len({family.name for family in found}) == len(found) == 26
    for family in found:
        assert family.type == "gauge"
        assert family.documentation
        assert family.name.startswith("conntrack_")
        assert rendered.count(f"# TYPE {family.name} gauge\n") == 1
        assert rendered.count(f"# HELP {family.name} ") == 1


def test_unknown_values_are_absent() -> None:
    shown = Snapshot(False, "procfs", "pure", Conntrack(None, None, None, None))
    names = {family.name for family in text_string_to_metric_families(text(shown))}
    assert names == {"conntrack_textfile_build_info", "conntrack_snapshot_success"}


def test_accounting_that_is_off_is_zero_and_not_absent() -> None:
    shown = full()._replace(conntrack=CONNTRACK._replace(accounting=False))
    assert "\nconntrack_accounting_enabled 0\n" in text(shown)


def test_the_text_is_the_status_and_then_the_live_connections() -> None:
    shown = full([(VALUES, (1, 2, 3, 4, 5))])
    status = exposition.render_status(shown).decode()
    assert status == exposition.render_status(shown._replace(live=None)).decode()
    live = b"".join(exposition.render_connections(shown)).decode()
    assert status + live == text(shown)
    assert "conntrack_snapshot_success" not in live
    assert "conntrack_total_connections" not in status


def test_an_empty_table_has_totals_of_zero_and_no_series() -> None:
    found = {f.name: f.samples for f in text_string_to_metric_families(text(full()))}
    assert found["conntrack_total_connections"][0].value == 0
    assert "conntrack_connections" not in found


def test_pieces_end_at_line_ends_and_are_bounded() -> None:
    series = [((*VALUES[:5], str(port)), (1, 2, 3, 4, 5)) for port in range(5000)]
    pieces = list(exposition.render(full(series)))
    assert len(pieces) > 20
    assert all(piece.endswith(b"\n") for piece in pieces)
    assert max(map(len, pieces)) < 1 << 18


@given(st.lists(st.tuples(*[st.text()] * 6), max_size=5, unique=True))
def test_any_label_values_are_read_back(values: list[tuple[str, ...]]) -> None:
    series = [(labels, (1, 2, 3, 4, i)) for i, labels in enumerate(values)]
    read = {f.name: f for f in text_string_to_metric_families(text(full(series)))}
    if series:
        found = [
            (tuple(sample.labels.values()), sample.value)
            for sample in read["conntrack_reply_bytes"].samples
        ]
        assert found == [(labels, i) for i, labels in enumerate(values)]
