"""What is shipped beside the code: units, the cron file, the dashboard."""

from __future__ import annotations

import itertools
import json
import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from conntrack_textfile import options
from tests.conftest import DATA, need
from tests.program import run

ROOT = Path(__file__).parent.parent
UNITS = sorted((ROOT / "systemd").iterdir())
PROGRAM = "/usr/local/bin/conntrack-textfile"
TEXTFILE = "/var/lib/prometheus/node-exporter/conntrack.prom"  # Debian's


def test_systemd_finds_nothing_to_say(tmp_path: Path) -> None:
    need("systemd-analyze")
    for unit in UNITS:
        (tmp_path / unit.name).write_text(unit.read_text().replace(PROGRAM, "/bin/true"))
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", *(tmp_path / unit.name for unit in UNITS)],
        capture_output=True,
        text=True,
        check=False,
    )
    # It exits 0 on keys that it does not know, and says so on stderr.
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def commands(unit: str) -> list[list[str]]:
    text = (ROOT / "systemd" / unit).read_text()
    return [shlex.split(line) for line in re.findall(r"^ExecStart=(.*)$", text, re.MULTILINE)]


def test_the_units_run_commands_that_we_take() -> None:
    ((program, *argv),) = commands("conntrack-textfile.service")
    assert program == PROGRAM
    taken = options.parse(argv)
    assert (taken.command, taken.file) == ("write", TEXTFILE)
    ((program, *argv),) = commands("conntrack-exporter.service")
    assert program == PROGRAM
    assert options.parse(argv).command == "serve"


def test_the_one_shot_may_write_where_it_writes() -> None:
    text = (ROOT / "systemd" / "conntrack-textfile.service").read_text()
    (writable,) = re.findall(r"^ReadWritePaths=-?(.*)$", text, re.MULTILINE)
    assert Path(TEXTFILE).parent == Path(writable)
    assert "Condition" not in text  # a unit that is skipped is silent


def test_the_units_hold_few_rights(tmp_path: Path) -> None:
    need("systemd-analyze")
    for unit in UNITS:
        if unit.suffix == ".service":
            file = tmp_path / unit.name
            file.write_text(unit.read_text().replace(PROGRAM, "/bin/true"))
            security = ["systemd-analyze", "security", "--offline=true", "--threshold=17"]
            argv = [*security, str(file)]
            done = subprocess.run(argv, capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stdout


def test_the_cron_line_runs_a_command_that_we_take() -> None:
    text = (ROOT / "cron" / "conntrack-textfile").read_text()
    assert text.endswith("\n")
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    (entry,) = [line for line in lines if not re.match(r"[A-Z]+=", line)]
    fields = entry.split(None, 6)
    assert fields[:6] == ["*"] * 5 + ["root"]
    lock, flag, _, program, *argv = shlex.split(fields[6])
    assert (lock, flag, program) == ("flock", "--nonblock", "conntrack-textfile")
    assert options.parse(argv).file == TEXTFILE


@pytest.fixture(scope="module")
def dashboard() -> Any:
    return json.loads((ROOT / "grafana" / "conntrack.json").read_text())


def expressions(dashboard: Any) -> list[str]:
    found = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    assert found
    return found


def test_every_metric_of_the_dashboard_is_one_of_ours(dashboard: Any) -> None:
    text = run("write", f"--path.procfs={DATA / 'kernel-6.18'}").stdout
    ours = {family.name for family in text_string_to_metric_families(text)}
    labels = {"src", "dst", "l3protocol", "l4protocol", "l7protocol", "dport", "instance", "job"}
    queries = [
        variable["definition"]
        for variable in dashboard["templating"]["list"]
        if variable["type"] == "query"
    ]
    used = set()
    for expr in [*expressions(dashboard), *queries]:
        used |= set(re.findall(r"\bconntrack_\w+", expr))
        for group in re.findall(r"\bby \(([^)]*)\)", expr):
            assert set(re.split(r",\s*", group)) <= labels
        # Gauges of live connections fall when connections end.
        assert not re.search(r"\b(i?rate|increase)\(", expr)
    assert used <= ours
    assert len(used) > 10


def test_prometheus_understands_the_dashboard(dashboard: Any, tmp_path: Path) -> None:
    need("promtool")
    rules = [
        {"record": f"r{i}", "expr": re.sub(r"\$(job|instance)\b", ".*", expr)}
        for i, expr in enumerate(expressions(dashboard))
    ]
    file = tmp_path / "rules.yml"
    file.write_text(json.dumps({"groups": [{"name": "dashboard", "rules": rules}]}))
    done = subprocess.run(
        ["promtool", "check", "rules", file], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_panels_say_what_they_show_and_lie_apart(dashboard: Any) -> None:
    panels = dashboard["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    for panel in panels:
        assert panel["title"]
        assert len(panel["description"]) > 30
    for one, other in itertools.combinations([panel["gridPos"] for panel in panels], 2):
        apart = (
            one["x"] + one["w"] <= other["x"]
            or other["x"] + other["w"] <= one["x"]
            or one["y"] + one["h"] <= other["y"]
            or other["y"] + other["h"] <= one["y"]
        )
        assert apart
        assert one["x"] + one["w"] <= 24
