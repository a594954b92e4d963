"""Every expression of the dashboard, the rules and the alerts in a real Prometheus.

It scrapes targets on loopback: one well in each mode (serve itself, and a real
node_exporter with the file of one run after the other), which read the table of a
network namespace with real traffic; and pages of one with few labels and of four with
something wrong, of the same table. The hours before are filled in with promtool.
"""

from __future__ import annotations

import contextlib
import http.server
import json
import re
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.conftest import need
from tests.netns import check, inside, namespaces, sysctl
from tests.program import COMMAND, listen_address, running
from tests.waiting import until

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parent.parent

# Which targets each alert is for. "serve", "textfile" and "few" are well, so they are nowhere.
EXPECTED = {
    "ConntrackTableFull": {"bad"},
    "ConntrackTableNearlyFull": {"bad"},
    "ConntrackTableFillsUp": {"bad"},
    "ConntrackTableDropsConnections": {"bad"},
    "ConntrackSourcePortsExhausted": {"bad"},
    "ConntrackSourcePortsNearlyExhausted": {"bad"},
    "ConntrackSnapshotFailing": {"bad"},
    "ConntrackTextfileStale": {"stale"},
    "ConntrackSnapshotStale": {"clock"},
    "ConntrackMetricsGone": {"gone"},
    "ConntrackAccountingOff": {"bad"},
    "ConntrackKeysFolded": {"bad"},
    "ConntrackMalformedEntries": {"bad"},
    "ConntrackEventsLost": {"bad"},
    "ConntrackRunsInterrupted": {"bad"},
    "ConntrackEventsNotListening": {"bad"},
}

MINUTE = 60
HOUR = 60 * MINUTE


# Connections of every kind that a panel asks for, and new ones all the time.
TRAFFIC = """
import socket, time
servers = {
    host: socket.create_server((host, 7001), family=family)
    for host, family in (("127.0.0.1", socket.AF_INET), ("::1", socket.AF_INET6))
}
kept = []
while True:
    for host, server in servers.items():
        client = socket.create_connection((host, 7001))
        other, _ = server.accept()
        client.sendall(b"x" * 1000)
        other.recv(4000)
        other.sendall(b"y" * 3000)
        while len(client.recv(4000)) < 1:
            pass
        kept.append((client, other))
    if len(kept) > 20:
        for end in kept.pop(0):
            end.close()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
        for port in range(5000, 5030):  # nobody answers
            udp.sendto(b"z" * 100, ("127.0.0.1", port))
    time.sleep(0.1)
"""
# What asks the ports that do not answer is translated.
RULES = """
table inet t {
    chain c { type filter hook output priority 0; ct state new accept; }
    chain n {
        type nat hook postrouting priority srcnat
        udp dport 5000-5029 snat ip to 127.0.0.2
    }
}
"""

# Does as systemd with the units: holds the events, and hands them to one run after the other.
RUNS = """
import os, sys, time
from conntrack_textfile.kernel import events
count, pause, *argv = sys.argv[1:]
held = events.listen(1 << 22)
for _ in range(int(count)):
    if os.fork() == 0:
        os.dup2(held.fileno(), 3)
        os.set_inheritable(3, True)  # it may be 3 already
        os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS="1")
        os.execv(argv[0], argv)
    _, status = os.wait()
    assert status == 0
    time.sleep(float(pause))
"""

# The same with a socket that listens.
PASS = """
import os, sys
os.dup2(int(sys.argv[1]), 3)
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS="1")
os.execv(sys.argv[2], sys.argv[2:])
"""


def runs(namespace: str, count: int, pause: float, directory: Path, *options: str) -> list[str]:
    """A command that writes conntrack.prom in a directory so many times."""
    write = [*COMMAND, "write", f"--state.file={directory}/state", *options]
    argv = [sys.executable, "-c", RUNS, str(count), str(pause)]
    return [*inside(namespace), *argv, *write, f"{directory}/conntrack.prom"]


def changed(text: str, **values: float) -> str:
    """The text with other values of families without labels."""
    for name, value in values.items():
        text, count = re.subn(rf"^{name} .*$", f"{name} {value}", text, flags=re.MULTILINE)
        assert count == 1, name
    return text


def without_ports(text: str) -> str:
    """The text with an egress address that has run out of ports, and a table that drops."""
    name = "conntrack_snat_busiest_destination_ports"
    text, count = re.subn(rf"^({name}{{.*}}) .*$", r"\1 63000", text, flags=re.MULTILINE)
    assert count
    for event in ("drop", "insert_failed"):
        name = f'conntrack_stat_total{{event="{event}"}}'
        text, count = re.subn(rf"^{re.escape(name)} .*$", f"{name} 500", text, flags=re.MULTILINE)
        assert count == 1
    return text


def pages(namespace: str, tmp: Path, now: float) -> dict[str, tuple[str, str]]:
    """Target to its job and its page."""

    def snapshot(*options: str) -> str:
        with tempfile.TemporaryDirectory(dir=tmp) as directory:
            subprocess.run(runs(namespace, 3, 0.3, Path(directory), *options), check=True)
            return (Path(directory) / "conntrack.prom").read_text()

    old = now - HOUR
    bad = changed(
        without_ports(snapshot("--limit.keys=20")),
        conntrack_entries=980,
        conntrack_entries_limit=1000,
        conntrack_snapshot_success=0,
        conntrack_snapshot_timestamp_seconds=old,
        conntrack_accounting_enabled=0,
        conntrack_malformed_entries=3,
        conntrack_events_listening=0,
        conntrack_events_lost_total=500,
        conntrack_runs_interrupted_total=4,
    )
    clock = changed(snapshot(), conntrack_snapshot_timestamp_seconds=old)
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
    for name in ("events_lost", "runs_interrupted"):
        lines += [f"# TYPE conntrack_{name} counter"]
        lines += [f"conntrack_{name}_total{bad} 0 {at}" for at in minutes]
    lines += ["# TYPE conntrack_stat counter"]
    for event in ("drop", "insert_failed"):
        labels = f'{{job="conntrack",instance="bad",event="{event}"}}'
        lines += [f"conntrack_stat_total{labels} 0 {at}" for at in minutes]
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


@contextlib.contextmanager
def tracked(tmp: Path) -> Iterator[tuple[str, int]]:
    """A network namespace with traffic, and the port of serve for it.

    serve gets a socket of this side, as from systemd, where Prometheus can reach it.
    """
    with contextlib.ExitStack() as stack:
        (namespace,) = stack.enter_context(namespaces("p"))
        sysctl(namespace, net__netfilter__nf_conntrack_acct=1)
        sysctl(namespace, net__netfilter__nf_conntrack_timestamp=1)
        for name in ("udp_timeout", "tcp_timeout_time_wait"):
            sysctl(namespace, **{f"net__netfilter__nf_conntrack_{name}": 2})
        check(*inside(namespace), "nft", "-f", "-", text=RULES)
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        argv = [*inside(namespace), sys.executable, "-c", PASS, str(listener.fileno())]
        argv += [*COMMAND, "serve", "--collector.interval=1", "--web.systemd-socket"]
        fds = (listener.fileno(),)
        stack.enter_context(running(*argv, log=tmp / "serve.log", fds=fds))
        traffic = [*inside(namespace), sys.executable, "-c", TRAFFIC]
        stack.enter_context(running(*traffic, log=tmp / "traffic.log"))
        yield namespace, listener.getsockname()[1]


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    """A Prometheus that has scraped all targets and evaluated all rules."""
    need("prometheus", "promtool", "prometheus-node-exporter", "ip", "nft", root=True)
    tmp = tmp_path_factory.mktemp("prometheus")
    now = time.time()
    (tmp / "textfile").mkdir()
    (tmp / "history").write_text(history(now))
    blocks = ["tsdb", "create-blocks-from", "openmetrics", f"{tmp}/history", f"{tmp}/data"]
    subprocess.run(["promtool", *blocks], check=True, capture_output=True)
    for file in (ROOT / "prometheus").iterdir():
        (tmp / file.name).write_text(file.read_text().replace("interval: 1m", "interval: 1s"))
    with contextlib.ExitStack() as stack:
        namespace, served = stack.enter_context(tracked(tmp))
        targets = pages(namespace, tmp, now)
        port = stack.enter_context(serving({name: page for name, (_, page) in targets.items()}))
        written = runs(namespace, 1 << 30, 1, tmp / "textfile")
        stack.enter_context(running(*written, log=tmp / "write.log"))
        argv = [
            *("prometheus-node-exporter", "--web.listen-address=127.0.0.1:0"),
            *("--collector.disable-defaults", "--collector.textfile"),
            f"--collector.textfile.directory={tmp / 'textfile'}",
        ]
        process = stack.enter_context(running(*argv, log=tmp / "node_exporter.log"))
        node = listen_address(process)
        scrapes: dict[str, list[dict[str, Any]]] = {"conntrack": [], "node": []}
        for target, (job, _) in targets.items():
            labels = {"instance": target, "__metrics_path__": f"/{target}"}
            scrapes[job].append({"targets": [f"127.0.0.1:{port}"], "labels": labels})
        scrapes["node"].append({"targets": [node], "labels": {"instance": "textfile"}})
        itself = {"targets": [f"127.0.0.1:{served}"], "labels": {"instance": "serve"}}
        scrapes["conntrack"].append(itself)
        settings = {
            "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
            "rule_files": [str(tmp / "conntrack-*.yml")],
            "scrape_configs": [
                {"job_name": job, "static_configs": configs} for job, configs in scrapes.items()
            ],
        }
        (tmp / "prometheus.yml").write_text(json.dumps(settings))  # JSON is YAML
        argv = [
            *("prometheus", f"--config.file={tmp}/prometheus.yml", "--log.level=warn"),
            *(f"--storage.tsdb.path={tmp}/data", "--web.listen-address=127.0.0.1:0"),
        ]
        process = stack.enter_context(running(*argv, log=tmp / "prometheus.log"))
        made = Api(listen_address(process))

        def scraped() -> bool:
            assert len(made.query("up == 1")) == len(targets) + 2
            for rule in rules(made):
                assert rule["health"] != "unknown"
                if rule["type"] == "recording":
                    assert {labels["job"] for labels in made.query(rule["name"])} == {
                        *("conntrack", "node"),
                    }
            for name in ("connections", "sent_bytes", "reply_packets"):
                rates = made.query(f"rate(conntrack_traffic_{name}_total[1m]) > 0")
                assert {labels["instance"] for labels in rates} == {"serve", "textfile"}
            return True

        until(scraped)
        yield made
        for name in ("write", "serve", "traffic"):  # serve says where it listens
            log = (tmp / f"{name}.log").read_text()
            assert "level=error" not in log, log
            assert "Traceback" not in log, log
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
        for target in panel.get("targets", ()):  # a row has none
            expr = target["expr"].replace("$job", job).replace("$instance", instance)
            assert "$" not in expr
            assert bool(re.search(r"_total\b", expr)) == ("rate(" in expr or "increase(" in expr)
            found = api.query(expr, instant=bool(target.get("instant")))
            assert found, (panel["title"], expr)
            named = set(re.findall(r"{{\s*(\w+)\s*}}", target["legendFormat"]))
            labelled = named - {"netns"}  # there with --netns alone
            assert instance == "few" or any(labelled <= labels.keys() for labels in found), expr
            # Two families have no netns; what is not aggregated would be lines of one name.
            alone = re.search(r"\b(sum|min|max|topk)\b|_build_info|runs_interrupted", expr)
            assert alone or "netns" in named, expr
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
            kept = {"src"} if rule["name"].startswith("instance_src:") else set()
            assert labels & {"src", "dst", "dport"} == kept, rule["name"]


def test_every_alert_is_for_what_is_wrong_in_that_way_alone(api: Api) -> None:
    def alerts() -> list[Any]:
        found = [rule for rule in rules(api) if rule["type"] == "alerting"]
        assert {
            rule["name"]: {one["labels"]["instance"] for one in rule["alerts"]} for rule in found
        } == EXPECTED
        return found

    # An evaluation may be older than the scrape that it waits for.
    for rule in until(alerts):
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


def test_of_sources_the_hundred_largest_of_each_host_are_recorded(tmp_path: Path) -> None:
    need("promtool")
    names = ("connections", "sent_bytes", "reply_bytes")
    series = [
        {
            "series": f'conntrack_traffic_{name}_total{{job="j",instance="{instance}",src="{n}",'
            f'dst="d{part}",l4protocol="tcp",mark="{part}"}}',
            "values": f"0+{60 * n}x10",
        }
        for name in names
        for instance in "ab"
        for n in range(1, 151)
        for part in range(2)
    ]
    recorded = {
        f"instance_src:conntrack_traffic_{name}:rate5m": [
            {"labels": f'{{job="j",instance="{instance}",src="{n}"}}', "value": 2 * n}
            for instance in "ab"
            for n in range(51, 151)
        ]
        for name in names
    }
    exprs = [
        {"expr": f"round({name}, 0.001)", "eval_time": "10m", "exp_samples": samples}
        for name, samples in recorded.items()
    ]
    case = {"interval": "1m", "input_series": series, "promql_expr_test": exprs}
    rules = str(ROOT / "prometheus" / "conntrack-rules.yml")
    (tmp_path / "cases.yml").write_text(json.dumps({"rule_files": [rules], "tests": [case]}))
    argv = ["promtool", "test", "rules", str(tmp_path / "cases.yml")]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[:2000] + done.stderr


def test_every_rule_has_a_case() -> None:
    cases = (Path(__file__).parent / "rules.yml").read_text()
    for file in (ROOT / "prometheus").iterdir():
        for name in re.findall(r"^ +- (?:alert|record): (\S+)$", file.read_text(), re.MULTILINE):
            assert cases.count(name) >= 2, name
