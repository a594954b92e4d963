"""Every query of docs/cookbook.md in a real Prometheus, on a day of data whose answer is known.

The day is made with promtool, and what the recording rules make of it too.
"""

from __future__ import annotations

import contextlib
import itertools
import re
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from conntrack_textfile import families
from tests.conftest import need
from tests.program import listen_address, running
from tests.test_prometheus import Api
from tests.waiting import until

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parent.parent
RULES = ROOT / "prometheus" / "conntrack-rules.yml"

MINUTE = 60
HOUR = 60 * MINUTE
DAY = 24 * HOUR

# What each key carries in a second: connections, packets and bytes sent, packets and bytes of
# the reply. "10.0.0.2" copies to "192.0.2.2" for half an hour now.
COLUMNS = ("connections", "sent_packets", "sent_bytes", "reply_packets", "reply_bytes")
LABELS = ("src", "dst", "l3protocol", "l4protocol", "l7protocol", "dport")
RATES = {
    ("10.0.0.1", "192.0.2.1", "ipv4", "tcp", "https", "443"): (0.1, 10, 1_000, 20, 20_000),
    ("10.0.0.2", "192.0.2.2", "ipv4", "tcp", "ssh", "22"): (0.01, 20, 10_000, 10, 500),
    ("10.0.0.2", "192.0.2.53", "ipv4", "udp", "dns", "53"): (1, 1, 60, 1, 100),
    ("10.0.0.66", "192.0.2.9", "ipv4", "tcp", "telnet", "23"): (2, 4, 240, 0, 0),
    ("10.0.0.67", "192.0.2.9", "ipv4", "tcp", "unknown", "8081"): (1.5, 1.5, 90, 1.5, 60),
    ("other", "other", "ipv4", "tcp", "other", "other"): (0.39, 2, 100, 2, 100),
}
COPY = next(key for key in RATES if "ssh" in key)
LIVE = dict(zip(RATES, (500, 2, 100, 200, 90, 1_000), strict=True))

# What is the same at all times, but for the entries: ten more each minute of the last hour.
STATUS = {
    'conntrack_entries_limit{instance="i"}': 10_000,
    'conntrack_flag_connections{instance="i",l4protocol="tcp",flag="assured"}': 2_000,
    'conntrack_flag_connections{instance="i",l4protocol="tcp",flag="unreplied"}': 300,
    'conntrack_flag_connections{instance="i",l4protocol="udp",flag="unreplied"}': 100,
    'conntrack_state_connections{instance="i",l4protocol="tcp",state="ESTABLISHED"}': 2_000,
    'conntrack_state_connections{instance="i",l4protocol="tcp",state="SYN_SENT"}': 300,
    'conntrack_snat_busiest_destination_ports{address="203.0.113.1",l4protocol="tcp"}': 32_256,
    'conntrack_snat_busiest_destination_ports{address="203.0.113.1",l4protocol="udp"}': 6_451.2,
    'conntrack_snat_destination_ports{address="203.0.113.1",l4protocol="tcp",'
    'dst="192.0.2.1",dport="443"}': 32_256,
    'conntrack_snat_connections{address="203.0.113.1",l4protocol="tcp"}': 40_000,
    'conntrack_snat_connections{address="203.0.113.1",l4protocol="udp"}': 7_000,
}

# By heading and place: the answer, by the values of the labels in the order of their names.
ANSWERS: dict[str, list[dict[str, float]]] = {
    "Who uses the bandwidth": [
        {
            "10.0.0.1": 8 * 21_000,
            "10.0.0.2": 8 * 10_660,
            "10.0.0.66": 8 * 240,
            "10.0.0.67": 8 * 150,
            "other": 8 * 200,
        },
        {
            "192.0.2.1 10.0.0.1": 8 * 20_000,
            "192.0.2.2 10.0.0.2": 8 * 500,
            "192.0.2.53 10.0.0.2": 8 * 100,
            "192.0.2.9 10.0.0.66": 0,
            "192.0.2.9 10.0.0.67": 8 * 60,
            "other other": 8 * 100,
        },
        {
            "10.0.0.1": 20_000 / 20_760,
            "10.0.0.2": 600 / 20_760,
            "10.0.0.66": 0,
            "10.0.0.67": 60 / 20_760,
            "other": 100 / 20_760,
        },
        {
            "192.0.2.1": 8 * 21_000,
            "192.0.2.2": 8 * 10_500,
            "192.0.2.53": 8 * 160,
            "192.0.2.9": 8 * 390,
            "other": 8 * 200,
        },
    ],
    "Traffic of the last hour": [
        {
            "10.0.0.1": 21_000 * HOUR,
            "10.0.0.2": 10_500 * HOUR / 2 + 160 * HOUR,
            "10.0.0.66": 240 * HOUR,
            "10.0.0.67": 150 * HOUR,
            "other": 200 * HOUR,
        },
        {
            "443 tcp https": 21_000 * HOUR,
            "22 tcp ssh": 10_500 * HOUR / 2,
            "53 udp dns": 160 * HOUR,
            "23 tcp telnet": 240 * HOUR,
            "8081 tcp unknown": 150 * HOUR,
            "other tcp other": 200 * HOUR,
        },
        {"tcp": 20_160 * HOUR + 500 * HOUR / 2, "udp": 100 * HOUR},
        {
            "https": 20_000 * DAY,
            # Rates of five minutes lag behind by half of that: of the copy a part is to come.
            "ssh": 500 * (HOUR / 2 - 2.4 * MINUTE),
            "dns": 100 * DAY,
            "telnet": 0,
            "unknown": 60 * DAY,
            "other": 100 * DAY,
        },
        {
            "10.0.0.1": 20_000 * DAY,
            "10.0.0.2": 500 * (HOUR / 2 - 2.4 * MINUTE) + 100 * DAY,
            "10.0.0.66": 0,
            "10.0.0.67": 60 * DAY,
            "other": 100 * DAY,
        },
    ],
    "Who opens most connections": [
        {"10.0.0.1": 0.1, "10.0.0.2": 1.01, "10.0.0.66": 2, "10.0.0.67": 1.5, "other": 0.39},
        {
            "443 192.0.2.1 https 10.0.0.1": 0.1 * HOUR,
            "22 192.0.2.2 ssh 10.0.0.2": 0.01 * HOUR / 2,
            "53 192.0.2.53 dns 10.0.0.2": 1 * HOUR,
            "23 192.0.2.9 telnet 10.0.0.66": 2 * HOUR,
            "8081 192.0.2.9 unknown 10.0.0.67": 1.5 * HOUR,
            "other other other other": 0.39 * HOUR,
        },
    ],
    "Who scans": [
        {"10.0.0.66": 1_200},  # not who asks for names, with one packet for an answer
        {"10.0.0.66": 1_200, "10.0.0.67": 900},
        {"": 0.39 / 5},
        {"": 400 / 4_000},
    ],
    "What fills the table": [
        {"": 0.4},
        {"": (4_000 + 4 * 600) / 10_000},
        {
            "10.0.0.1": 0.05,
            "10.0.0.2": 0.0102,
            "10.0.0.66": 0.02,
            "10.0.0.67": 0.009,
            "other": 0.1,
        },
        {
            "443 tcp https": 500,
            "22 tcp ssh": 2,
            "53 udp dns": 100,
            "23 tcp telnet": 200,
            "8081 tcp unknown": 90,
            "other tcp other": 1_000,
        },
        {"tcp ESTABLISHED": 2_000, "tcp SYN_SENT": 300},
    ],
    "Which address runs out of source ports": [
        {"203.0.113.1 tcp": 0.5, "203.0.113.1 udp": 0.1},
        {"203.0.113.1 443 192.0.2.1 tcp": 32_256},
        {"203.0.113.1": 47_000},
    ],
    "Are the numbers complete": [
        {"": 7},
        {"": 100 / 20_760},
        {"": 5},
    ],
}


def queries() -> dict[str, list[str]]:
    """Heading to the queries below it."""
    _, *parts = re.split(
        r"^## (.*)\n", (ROOT / "docs" / "cookbook.md").read_text(), flags=re.MULTILINE
    )
    sections = zip(parts[::2], parts[1::2], strict=True)
    return {
        heading: re.findall(r"```promql\n(.*?)```", text, re.DOTALL) for heading, text in sections
    }


CASES = [
    pytest.param(query, answer, id=f"{heading} {number}")
    for heading, answers in ANSWERS.items()
    for number, (query, answer) in enumerate(
        itertools.zip_longest(queries().get(heading, []), answers)
    )
]


def day(end: int) -> str:
    """OpenMetrics of a bit more than a day."""
    minutes = range(end - DAY - HOUR, end + 1, MINUTE)
    lines = []
    protocols: dict[str, list[str]] = {}
    for column, name in enumerate(COLUMNS):
        lines.append(f"# TYPE conntrack_traffic_{name} counter")
        sums: dict[tuple[str, int], float] = {}
        for key, rates in RATES.items():
            labels = ",".join(
                f'{label}="{value}"' for label, value in zip(LABELS, key, strict=True)
            )
            start = end - HOUR // 2 if key == COPY else minutes[0]
            for at in minutes:
                value = rates[column] * max(0, at - start)
                sums[key[3], at] = sums.get((key[3], at), 0) + value
                lines.append(
                    f'conntrack_traffic_{name}_total{{instance="i",{labels}}} {value} {at}'
                )
        protocols[name] = [
            f'conntrack_protocol_traffic_{name}_total{{instance="i",l3protocol="ipv4",'
            f'l4protocol="{protocol}"}} {value} {at}'
            for (protocol, at), value in sorted(sums.items())
        ]
    for name, found in protocols.items():
        lines += [f"# TYPE conntrack_protocol_traffic_{name} counter", *found]
    lines.append("# TYPE conntrack_events_lost counter")
    lines += [
        f'conntrack_events_lost_total{{instance="i"}} {7 * (at > end - HOUR // 2)} {at}'
        for at in minutes
    ]
    lines.append("# TYPE conntrack_connections gauge")
    for key, live in LIVE.items():
        labels = ",".join(f'{label}="{value}"' for label, value in zip(LABELS, key, strict=True))
        lines += [f'conntrack_connections{{instance="i",{labels}}} {live} {at}' for at in minutes]
    lines.append("# TYPE conntrack_entries gauge")
    lines += [
        f'conntrack_entries{{instance="i"}} {max(3_000, 4_000 - (end - at) / 6)} {at}'
        for at in minutes
    ]
    lines.append("# TYPE conntrack_snapshot_timestamp_seconds gauge")
    lines += [
        f'conntrack_snapshot_timestamp_seconds{{instance="i"}} {at - 5} {at}' for at in minutes
    ]
    for name, of_name in itertools.groupby(STATUS.items(), lambda item: item[0].partition("{")[0]):
        lines.append(f"# TYPE {name} gauge")
        lines += [f"{series} {value} {at}" for series, value in of_name for at in minutes]
    return "\n".join([*lines, "# EOF", ""])


@contextlib.contextmanager
def prometheus(tmp: Path) -> Iterator[Api]:
    """A Prometheus with what is in tmp/data."""
    (tmp / "prometheus.yml").write_text("{}")
    argv = [
        *("prometheus", f"--config.file={tmp}/prometheus.yml", "--log.level=warn"),
        *(f"--storage.tsdb.path={tmp}/data", "--web.listen-address=127.0.0.1:0"),
    ]
    with running(*argv, log=tmp / "prometheus.log") as process:
        api = Api(listen_address(process))
        until(lambda: api.query("vector(1)"))
        yield api


@pytest.fixture(scope="module")
def end() -> int:
    return int(time.time()) // MINUTE * MINUTE - HOUR


@pytest.fixture(scope="module")
def api(end: int, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    need("prometheus", "promtool")
    tmp = tmp_path_factory.mktemp("cookbook")
    (tmp / "day").write_text(day(end))
    argv = ["promtool", "tsdb", "create-blocks-from"]
    subprocess.run(
        [*argv, "openmetrics", f"{tmp}/day", f"{tmp}/data"], check=True, capture_output=True
    )
    with prometheus(tmp) as before:
        times = [f"--start={end - DAY - HOUR}", f"--end={end}", "--eval-interval=1m"]
        url = before.url.partition("/api")[0]
        output = f"--output-dir={tmp}/data"
        subprocess.run(
            [*argv, "rules", *times, f"--url={url}", output, RULES], check=True, capture_output=True
        )
    with prometheus(tmp) as made:  # blocks are seen at start
        yield made


def test_each_query_has_an_answer() -> None:
    found = {heading: len(below) for heading, below in queries().items()}
    assert found == {heading: len(answers) for heading, answers in ANSWERS.items()}


@pytest.mark.parametrize(("query", "answer"), CASES)
def test_a_query_gives_what_is_known(
    api: Api, end: int, query: str, answer: dict[str, float]
) -> None:
    data = api.get("query", query=query, time=end)
    got = {
        " ".join(
            value
            for name, value in sorted(one["metric"].items())
            if name not in ("__name__", "instance")
        ): float(one["value"][1])
        for one in data["result"]
    }
    # promtool chooses when in a minute the rules are evaluated.
    assert got == pytest.approx(answer, rel=0.05 if ":rate5m" in query else 1e-6), query


def test_every_metric_is_one_of_ours() -> None:
    rows = [
        row
        for table in vars(families).values()
        if isinstance(table, tuple)
        for row in table
        if isinstance(row, (families.Family, families.GroupFamily))
    ]
    names = {row.name for row in rows}
    recorded = set(re.findall(r"record: (\S+)", RULES.read_text()))
    for found in queries().values():
        for query in found:
            series = set(re.findall(r"(?<![\w:])(?:\w+:)?conntrack_[\w:]+", query))
            assert series
            assert series <= names | recorded, query
