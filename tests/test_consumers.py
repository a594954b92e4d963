"""The real readers of what we print: node_exporter, Prometheus and promtool."""

from __future__ import annotations

import json
import subprocess
import urllib.parse
import urllib.request
from typing import TYPE_CHECKING, Any

from prometheus_client.parser import text_string_to_metric_families

from tests import conntrack_l
from tests.conftest import DATA, need
from tests.program import listen_address, run, running, serving
from tests.waiting import until

if TYPE_CHECKING:
    from pathlib import Path

CAPTURE = DATA / "kernel-6.18"
SAMPLE = f"--path.procfs={CAPTURE}"
FIELDS = ["connections", "sent_packets", "sent_bytes", "reply_packets", "reply_bytes"]


def fetch(url: str) -> str:
    with urllib.request.urlopen(url, timeout=10) as answer:
        text: str = answer.read().decode()
        return text


def samples(text: str) -> set[tuple[str, frozenset[tuple[str, str]], float]]:
    return {
        (sample.name, frozenset(sample.labels.items()), sample.value)
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_node_exporter_reads_the_file_whole(tmp_path: Path) -> None:
    need("prometheus-node-exporter")
    file = tmp_path / "conntrack.prom"
    assert run("write", SAMPLE, str(file)).returncode == 0
    with running(
        "prometheus-node-exporter",
        "--web.listen-address=127.0.0.1:0",
        "--collector.disable-defaults",
        "--collector.textfile",
        f"--collector.textfile.directory={tmp_path}",
    ) as process:
        address = listen_address(process)
        text = until(lambda: fetch(f"http://{address}/metrics"))
    read = samples(text)
    assert ("node_textfile_scrape_error", frozenset(), 0.0) in read
    assert samples(file.read_text()) <= read


def test_prometheus_scrapes_and_answers_with_the_right_sums(tmp_path: Path) -> None:
    need("prometheus")
    expected = conntrack_l.read((CAPTURE / "conntrack-L.txt").read_text())
    address = ""

    def query(expr: str) -> list[dict[str, Any]]:
        quoted = urllib.parse.quote(expr)
        result = json.loads(fetch(f"http://{address}/api/v1/query?query={quoted}"))["data"][
            "result"
        ]
        assert result, expr
        found: list[dict[str, Any]] = result
        return found

    def value(expr: str) -> int:
        return int(query(expr)[0]["value"][1])

    with serving(SAMPLE) as program:
        config = tmp_path / "prometheus.yml"
        config.write_text(
            "scrape_configs:\n"
            "  - job_name: conntrack\n"
            "    scrape_interval: 1s\n"
            f"    static_configs: [{{targets: ['127.0.0.1:{program.port}']}}]\n"
        )
        with running(
            "prometheus",
            f"--config.file={config}",
            f"--storage.tsdb.path={tmp_path / 'data'}",
            "--web.listen-address=127.0.0.1:0",
        ) as process:
            address = listen_address(process)
            until(lambda: query("conntrack_snapshot_success"))
            assert value("up") == 1
            for field, total in zip(FIELDS, expected.totals, strict=True):
                assert value(f"sum(conntrack_{field})") == total
                assert value(f"conntrack_total_{field}") == total
            by_protocol = {
                found["metric"]["l4protocol"]: int(found["value"][1])
                for found in query("sum by (l4protocol) (conntrack_connections)")
            }
    counts: dict[str, int] = {}
    for key, sums in expected.sums.items():
        counts[key[3]] = counts.get(key[3], 0) + sums[0]
    assert by_protocol == counts


def test_promtool_finds_nothing_to_say(capture: Path) -> None:
    need("promtool")
    text = run("write", f"--path.procfs={capture}").stdout
    with serving(SAMPLE) as program:
        served = fetch(f"{program.url}/metrics")
    for metrics in (text, served):
        done = subprocess.run(
            ["promtool", "check", "metrics"],
            input=metrics,
            capture_output=True,
            text=True,
            check=False,
        )
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
