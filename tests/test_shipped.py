"""What is shipped beside the code: units, the cron file, the dashboard."""

from __future__ import annotations

import itertools
import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from conntrack_textfile import families, options
from conntrack_textfile.labels import LABELS
from conntrack_textfile.values import Address
from tests.conftest import need

ROOT = Path(__file__).parent.parent
UNITS = sorted(file for file in (ROOT / "systemd").iterdir() if file.is_file())
PROGRAM = "/usr/local/bin/conntrack-textfile"
TEXTFILE = "/var/lib/conntrack-textfile/conntrack.prom"


def test_systemd_analyze_verify_accepts_the_units(tmp_path: Path) -> None:
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


def command(unit: str, **given: str) -> list[str]:
    """Return the arguments of a unit's program, with its default settings or others."""
    text = (ROOT / "systemd" / unit).read_text()
    (line,) = re.findall(r"^ExecStart=(.*)$", text, re.MULTILINE)
    (defaults,) = re.findall(r"^Environment=(.*)$", text, re.MULTILINE)
    settings = dict(item.split("=", 1) for item in defaults.split()) | given
    program, *words = line.split()
    assert program == PROGRAM
    argv = []
    for word in words:
        if word == "$ARGS":  # split into words, as systemd does
            argv += settings["ARGS"].split()
        else:
            argv.append(re.sub(r"\$\{(\w+)\}", lambda match: settings[match[1]], word))
    return argv


def two_filters(unit: str) -> str:
    """Return the example in a file of /etc/default."""
    text = (ROOT / "systemd" / "default" / unit.removesuffix(".service")).read_text()
    (args,) = re.findall(r'ARGS="(--filter[^"]*)"', text)
    return str(args)


def test_the_command_lines_of_the_units_are_valid() -> None:
    taken = options.parse(command("conntrack-textfile.service"))
    assert (taken.command, taken.file) == ("write", TEXTFILE)
    more = options.parse(command("conntrack-textfile.service", ARGS="--limit.keys=5", FILE="/a"))
    assert (more.limit.keys, more.file) == (5, "/a")
    for unit in ("conntrack-textfile.service", "conntrack-exporter.service"):
        taken = options.parse(command(unit, ARGS=two_filters(unit)))
        assert [(one.src is None, one.dport) for one in taken.plan.include] == [
            (False, None),
            (True, range(53, 54)),
        ]
    served = options.parse(command("conntrack-exporter.service"))
    assert served.command == "serve"
    assert served.systemd_socket
    assert served.listen == (Address("127.0.0.1", 9095),)


def test_the_settings_document_the_defaults_of_the_units() -> None:
    for unit in ("conntrack-textfile", "conntrack-exporter"):
        text = (ROOT / "systemd" / "default" / unit).read_text()
        service = (ROOT / "systemd" / f"{unit}.service").read_text()
        assert f"EnvironmentFile=-/etc/default/{unit}\n" in service
        for name, value in re.findall(r"^#?([A-Z]+)=(.*)$", text, re.MULTILINE):
            assert f"{name}={value.strip(chr(34))}" in service
    assert "Condition" not in service  # a unit that is skipped is silent


def test_the_units_have_a_low_exposure(tmp_path: Path) -> None:
    need("systemd-analyze")
    for unit in UNITS:
        if unit.suffix == ".service":
            file = tmp_path / unit.name
            file.write_text(unit.read_text().replace(PROGRAM, "/bin/true"))
            security = ["systemd-analyze", "security", "--offline=true", "--threshold=15"]
            argv = [*security, str(file)]
            done = subprocess.run(argv, capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stdout


def test_the_command_line_of_cron_is_valid() -> None:
    text = (ROOT / "cron" / "conntrack-textfile").read_text()
    assert text.endswith("\n")
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    (entry,) = [line for line in lines if not re.match(r"[A-Z]+=", line)]
    fields = entry.split(None, 6)
    assert fields[:6] == ["*"] * 5 + ["root"]
    lock, flag, _, drop, *words = shlex.split(fields[6])
    assert (lock, flag, drop) == ("flock", "--nonblock", "setpriv")
    told = words.index("2>&1")
    argv = words[words.index("conntrack-textfile") + 1 : told]
    taken = options.parse(argv)
    assert (taken.file, taken.log_level) == (TEXTFILE, "info")
    assert words[told + 1 :] == shlex.split("| logger -t conntrack-textfile -p daemon.warning")
    assert len(fields[6]) < 1000  # MAX_COMMAND of Debian's cron


def expressions(dashboard: Any) -> list[str]:
    found = [target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", ())]
    assert found
    return found


def test_every_metric_of_the_dashboard_exists(dashboard: Any) -> None:
    fixed = (
        *(*families.STATUS, *families.TRAFFIC, *families.LIVE),
        *(*families.NAT, *families.STATISTICS),
    )
    types = {family.name: family.type for family in fixed}
    types |= {row.name: row.type for row in (*families.GROUPS, *families.TRAFFIC_GROUPS)}
    labels = {*LABELS, "state", "flag", "nat", "address", "event", "instance", "job"}
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
        # Gauges of live connections fall when connections end, and of a counter only
        # what it grows by means anything.
        rated = re.findall(r"\b(?:rate|increase)\((\w+)", expr)
        counters = [
            name for name in re.findall(r"\bconntrack_\w+", expr) if name.endswith("_total")
        ]
        assert rated == counters
        assert {types[name] for name in counters} <= {"counter"}
    assert used <= types.keys()
    assert len(used) > 10


def test_panels_have_descriptions_and_do_not_overlap(dashboard: Any) -> None:
    panels = dashboard["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    for panel in panels:
        assert panel["title"]
        assert panel["type"] == "row" or len(panel["description"]) > 30
    for one, other in itertools.combinations([panel["gridPos"] for panel in panels], 2):
        apart = (
            one["x"] + one["w"] <= other["x"]
            or other["x"] + other["w"] <= one["x"]
            or one["y"] + one["h"] <= other["y"]
            or other["y"] + other["h"] <= one["y"]
        )
        assert apart
        assert one["x"] + one["w"] <= 24


def test_the_dashboard_opens_with_the_four_questions(dashboard: Any) -> None:
    first, *others = sorted(
        (panel for panel in dashboard["panels"] if panel["gridPos"]["y"] < 10),
        key=lambda panel: (panel["gridPos"]["y"], panel["gridPos"]["x"]),
    )
    assert first["type"] == "row"
    assert [panel["title"] for panel in others] == [
        "Who uses the bandwidth now",
        "Who used it in the last hour",
        "Who opens most connections",
        "Is the table nearly full",
        "Table usage in four hours",
    ]


def test_the_largest_keys_are_those_of_both_directions(dashboard: Any) -> None:
    """By replies alone, who uploads is not among them."""
    (panel,) = [p for p in dashboard["panels"] if p["title"] == "Top keys by bits per second"]
    for target in panel["targets"]:
        _, _, ranked = target["expr"].partition("topk(100, ")
        assert "conntrack_traffic_reply_bytes_total" in ranked
        assert "conntrack_traffic_sent_bytes_total" in ranked


def test_the_dashboard_matches_the_schema_of_grafana(dashboard: Any) -> None:
    # By this, and not by a plain import, since the models warn that there is a second
    # version of the format, which Grafana 10 and 11 do not read.
    grafana_types = pytest.importorskip("tests.grafana_types")
    assert grafana_types.problems(dashboard) == []
    # And wrong types would be seen: of every hundredth value, and of one panel all.
    found = [
        (what, bool(grafana_types.problems(one)))
        for what, one in grafana_types.broken(dashboard, every=100)
    ]
    assert len(found) > 20
    assert [what for what, seen in found if not seen] == []


def test_the_daemonset_matches_the_schema_of_kubernetes() -> None:
    kubernetes_validate = pytest.importorskip("kubernetes_validate")
    file = ROOT / "kubernetes" / "daemonset.yaml"
    manifest = yaml.safe_load(file.read_text())
    for version in ("1.30", "1.34"):
        kubernetes_validate.validate(manifest, version, strict=True)
    (container,) = manifest["spec"]["template"]["spec"]["containers"]
    argv = [arg.replace("$(HOST_IP)", "192.0.2.1") for arg in container["args"]]
    taken = options.parse(argv)
    assert taken.command == "serve"
    assert {address.port for address in taken.listen} == {container["ports"][0]["containerPort"]}
    container["securityContext"]["capabilites"] = {}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(manifest, "1.34", strict=True)
