"""Every expression of the dashboard, the rules and the alerts in a real Prometheus.

It scrapes targets on loopback: one well in each mode (serve itself, and a real
node_exporter), and pages of one with few labels and of four with something wrong.
The hours before are filled in with promtool.
"""

from __future__ import annotations

import contextlib
import http.server
import json
import re
import socket
import subprocess
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.conftest import DATA, need
from tests.program import run
from tests.program import serving as program_serving

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ROOT = Path(__file__).parent.parent

# Which targets each alert is for. "serve", "textfile" and "few" are well, so they are nowhere.
EXPECTED = {
    "ConntrackTableFull": {"bad"},
    "ConntrackTableNearlyFull": {"bad"},
    "ConntrackTableFillsUp": {"bad"},
    "ConntrackSnapshotFailing": {"bad"},
    "ConntrackTextfileStale": {"stale"},
    "ConntrackSnapshotStale": {"clock"},
    "ConntrackMetricsGone": {"gone"},
    "ConntrackAccountingOff": {"bad"},
    "ConntrackKeysFolded": {"bad"},
    "ConntrackMalformedEntries": {"bad"},
}

MINUTE = 60
HOUR = 60 * MINUTE


def snapshot(*options: str) -> str:
    """What the program writes of a real table."""
    return run("write", f"--path.procfs={DATA / 'kernel-6.18'}", *options).stdout


def changed(text: str, **values: float) -> str:
    """The text with other values of families without labels."""
    for name, value in values.items():
        text, count = re.subn(rf"^{name} .*$", f"{name} {value}", text, flags=re.MULTILINE)
        assert count == 1, name
    return text


def pages(text: str, now: float) -> dict[str, tuple[str, str]]:
    """Target to its job and its page."""
    old = now - HOUR
    bad = changed(
        snapshot("--limit.keys=20"),
        conntrack_entries=980,
        conntrack_entries_limit=1000,
        conntrack_snapshot_success=0,
        conntrack_snapshot_timestamp_seconds=old,
        conntrack_accounting_enabled=0,
        conntrack_malformed_entries=3,
    )
    clock = changed(text, conntrack_snapshot_timestamp_seconds=old)
    mtime = f'node_textfile_mtime_seconds{{file="/var/lib/x/conntrack.prom"}} {old}\n'
    return {
        "few": ("conntrack", snapshot("--aggregate.by=l3protocol,l4protocol")),
        "bad": ("conntrack", bad),
        "clock": ("conntrack", clock),
        "stale": ("node", clock + "# TYPE node_textfile_mtime_seconds gauge\n" + mtime),
        "gone": ("node", "# TYPE node_textfile_scrape_error gauge\nnode_textfile_scrape_error 0\n"),
    }


def history(now: float) -> str:
    """OpenMetrics of the hours before: "bad" fills up, "gone" lost its metrics."""
    minutes = range(int(now) - 7 * HOUR, int(now) - 2 * MINUTE, MINUTE)
    bad = '{job="conntrack",instance="bad"}'
    lines = ["# TYPE conntrack_entries gauge"]
    lines += [f"conntrack_entries{bad} {980 - (now - at) / HOUR * 110} {at}" for at in minutes]
    lines += ["# TYPE conntrack_entries_limit gauge"]
    lines += [f"conntrack_entries_limit{bad} 1000 {at}" for at in minutes]
    lines += ["# TYPE conntrack_snapshot_success gauge"]
    lines += [
        f'conntrack_snapshot_success{{job="node",instance="gone"}} 1 {at}'
        for at in minutes
        if at < now - 10 * MINUTE
    ]
    return "\n".join([*lines, "# EOF", ""])


@contextlib.contextmanager
def serving(texts: dict[str, str]) -> Iterator[int]:
    """A static HTTP server; gives its port."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = texts[self.path.strip("/")].encode()
            self.send_response(200)
            self.send_header("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        server.server_close()


@contextlib.contextmanager
def running(log: Path, *argv: str) -> Iterator[None]:
    """A program that is stopped in the end."""
    with log.open("w") as out:
        process = subprocess.Popen(argv, stdout=out, stderr=out)
        try:
            yield
        finally:
            process.terminate()
            process.wait(20)


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


class Api:
    """The HTTP API of Prometheus."""

    def __init__(self, address: str) -> None:
        self.url = f"http://{address}/api/v1/"

    def get(self, path: str, **parameters: Any) -> Any:
        url = self.url + path + "?" + urllib.parse.urlencode(parameters, doseq=True)
        try:
            with urllib.request.urlopen(url, timeout=20) as answer:
                body = json.load(answer)
        except urllib.error.HTTPError as error:
            raise AssertionError(f"{parameters}: {error.read().decode()}") from None
        assert not body.get("warnings"), body["warnings"]
        return body["data"]

    def query(self, expr: str, *, instant: bool = True) -> list[dict[str, str]]:
        """The labels of each series of the result."""
        if instant:
            data = self.get("query", query=expr)
        else:
            now = time.time()
            data = self.get("query_range", query=expr, start=now - 30, end=now, step=1)
        return [one["metric"] for one in data["result"]]


def eventually(what: Callable[[], Any], seconds: float = 60) -> Any:
    end = time.monotonic() + seconds
    while True:
        try:
            return what()
        except (OSError, AssertionError):  # noqa: PERF203  # not yet
            if time.monotonic() > end:
                raise
            time.sleep(0.5)


@pytest.fixture(scope="module")
def dashboard() -> Any:
    return json.loads((ROOT / "grafana" / "conntrack.json").read_text())


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    """A Prometheus that has scraped all targets and evaluated all rules."""
    need("prometheus", "promtool", "prometheus-node-exporter")
    tmp = tmp_path_factory.mktemp("prometheus")
    text, now = snapshot(), time.time()
    targets = pages(text, now)
    (tmp / "textfile").mkdir()
    (tmp / "textfile" / "conntrack.prom").write_text(text)
    (tmp / "history").write_text(history(now))
    blocks = ["tsdb", "create-blocks-from", "openmetrics", f"{tmp}/history", f"{tmp}/data"]
    subprocess.run(["promtool", *blocks], check=True, capture_output=True)
    for file in (ROOT / "prometheus").iterdir():
        (tmp / file.name).write_text(file.read_text().replace("interval: 1m", "interval: 1s"))
    with contextlib.ExitStack() as stack:
        port = stack.enter_context(serving({name: page for name, (_, page) in targets.items()}))
        program = stack.enter_context(program_serving(f"--path.procfs={DATA / 'kernel-6.18'}"))
        node = f"127.0.0.1:{free_port()}"
        argv = [
            *("prometheus-node-exporter", f"--web.listen-address={node}"),
            *("--collector.disable-defaults", "--collector.textfile"),
            f"--collector.textfile.directory={tmp / 'textfile'}",
        ]
        stack.enter_context(running(tmp / "node_exporter.log", *argv))
        scrapes: dict[str, list[dict[str, Any]]] = {"conntrack": [], "node": []}
        for target, (job, _) in targets.items():
            labels = {"instance": target, "__metrics_path__": f"/{target}"}
            scrapes[job].append({"targets": [f"127.0.0.1:{port}"], "labels": labels})
        scrapes["node"].append({"targets": [node], "labels": {"instance": "textfile"}})
        itself = {"targets": [f"127.0.0.1:{program.port}"], "labels": {"instance": "serve"}}
        scrapes["conntrack"].append(itself)
        settings = {
            "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
            "rule_files": [str(tmp / "conntrack-*.yml")],
            "scrape_configs": [
                {"job_name": job, "static_configs": configs} for job, configs in scrapes.items()
            ],
        }
        (tmp / "prometheus.yml").write_text(json.dumps(settings))  # JSON is YAML
        address = f"127.0.0.1:{free_port()}"
        argv = [
            *("prometheus", f"--config.file={tmp}/prometheus.yml", "--log.level=warn"),
            *(f"--storage.tsdb.path={tmp}/data", f"--web.listen-address={address}"),
        ]
        stack.enter_context(running(tmp / "prometheus.log", *argv))
        made = Api(address)

        def scraped() -> None:
            assert len(made.query("up == 1")) == len(targets) + 2
            for rule in rules(made):
                assert rule["health"] != "unknown"
                if rule["type"] == "recording":
                    assert {labels["job"] for labels in made.query(rule["name"])} == {
                        *("conntrack", "node"),
                    }

        eventually(scraped)
        yield made
        assert (tmp / "prometheus.log").read_text() == ""


def rules(api: Api) -> list[Any]:
    found = [rule for group in api.get("rules")["groups"] for rule in group["rules"]]
    assert found
    return found


def test_a_query_without_data_would_be_seen(api: Api) -> None:
    assert api.query("conntrack_no_such_metric") == []


# Instance and job. "few" has no addresses and ports: what is summed by them is one
# number without a name.
@pytest.mark.parametrize(
    ("instance", "job"),
    [("serve", "conntrack"), ("textfile", "node"), ("few", "conntrack"), ("few|bad", ".*")],
)
def test_every_expression_of_the_dashboard_gives_data(
    api: Api, dashboard: Any, instance: str, job: str
) -> None:
    for panel in dashboard["panels"]:
        for target in panel["targets"]:
            expr = target["expr"].replace("$job", job).replace("$instance", instance)
            assert "$" not in expr
            found = api.query(expr, instant=bool(target.get("instant")))
            assert found, (panel["title"], expr)
            named = set(re.findall(r"{{\s*(\w+)\s*}}", target["legendFormat"]))
            assert instance == "few" or any(named <= labels.keys() for labels in found), expr
    for variable in dashboard["templating"]["list"]:
        if variable["type"] == "query":
            query = variable["query"]["query"]
            assert query == variable["definition"]
            match = re.fullmatch(r"label_values\((.*), (\w+)\)", query)
            assert match, query
            selector = match[1].replace("$job", job).replace("$instance", instance)
            assert api.get(f"label/{match[2]}/values", **{"match[]": selector})


def test_every_rule_is_evaluated_and_records_in_both_modes(api: Api) -> None:
    for rule in rules(api):
        assert rule["health"] == "ok", rule
        assert api.query(rule["query"]), rule["name"]
        if rule["type"] == "recording":
            labels = {name for found in api.query(rule["name"]) for name in found}
            assert not labels & {"src", "dst", "dport"}, rule["name"]


def test_every_alert_is_for_what_is_wrong_in_that_way_alone(api: Api) -> None:
    def alerts() -> list[Any]:
        found = [rule for rule in rules(api) if rule["type"] == "alerting"]
        assert {
            rule["name"]: {one["labels"]["instance"] for one in rule["alerts"]} for rule in found
        } == EXPECTED
        return found

    # An evaluation may be older than the scrape that it waits for.
    for rule in eventually(alerts):
        for one in rule["alerts"]:
            assert one["annotations"].keys() == {"summary", "description", "action"}
            told = " ".join(one["annotations"].values())
            assert not re.search(r"<error|<no value>|{{|NaN|Inf", told), told


def test_the_rules_hold_in_time() -> None:
    need("promtool")
    files = sorted(map(str, (ROOT / "prometheus").iterdir()))
    assert len(files) == 2
    cases = str(Path(__file__).parent / "rules.yml")
    for argv in (["check", "rules", *files], ["test", "rules", cases]):
        done = subprocess.run(["promtool", *argv], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr


def test_every_rule_has_a_case() -> None:
    cases = (Path(__file__).parent / "rules.yml").read_text()
    for file in (ROOT / "prometheus").iterdir():
        for name in re.findall(r"^ +- (?:alert|record): (\S+)$", file.read_text(), re.MULTILINE):
            assert cases.count(name) >= 2, name
