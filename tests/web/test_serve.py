"""The serve command, as a process."""

from __future__ import annotations

import contextlib
import gzip
import http.client
import os
import re
import resource
import shutil
import signal
import socket
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.bench import make_table
from tests.builders import proc_root
from tests.conftest import DATA
from tests.program import COMMAND, Serving, serving
from tests.waiting import until
from tests.web.serving import SAMPLE, get


def test_serve_responds_with_the_snapshot_and_its_own_metrics() -> None:
    with serving(SAMPLE) as program:
        status, body, _ = get(f"{program.url}/metrics")
        assert status == 200
        families = {f.name: f for f in text_string_to_metric_families(body.decode())}
        assert families["conntrack_total_connections"].samples[0].value == 91
        assert {"process_open_fds", "python_info"} <= set(families)
        scrapes = 1

        def counted() -> str:
            """A scrape is counted after its response was sent."""
            nonlocal scrapes
            _, packed, headers = get(f"{program.url}/metrics", **{"Accept-Encoding": "gzip"})
            assert headers["Content-Encoding"] == "gzip"
            unpacked = gzip.decompress(packed).decode()
            wanted = f'promhttp_metric_handler_requests_total{{code="200"}} {scrapes}.0\n'
            scrapes += 1
            return unpacked if wanted in unpacked else ""

        assert "conntrack_total_connections 91\n" in until(counted)


def test_the_exporters_own_metrics_can_be_disabled() -> None:
    with serving(SAMPLE, "--web.disable-exporter-metrics", "--web.telemetry-path=/m") as program:
        text = get(f"{program.url}/m")[1].decode()
        assert not re.search(r"^(process|python|promhttp|conntrack_http)_", text, re.MULTILINE)
        assert get(f"{program.url}/metrics")[0] == 404


def stop(program: Serving, number: int) -> None:
    """It takes some milliseconds; 5 seconds are for a busy machine."""
    program.process.send_signal(number)
    assert program.process.wait(5) == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_at_once(number: int) -> None:
    with serving(SAMPLE) as program:
        stop(program, number)
        program.wait_for_log(f"stopped by {signal.Signals(number).name}")


def test_a_signal_ends_it_during_a_snapshot(tmp_path: Path) -> None:
    (tmp_path / "net").mkdir()
    table = tmp_path / "net" / "nf_conntrack"
    table.touch()
    os.truncate(table, 1 << 40)  # sparse: many minutes of nothing but NUL
    with serving(f"--path.procfs={tmp_path}") as program:
        fds = Path(f"/proc/{program.process.pid}/fd")
        until(lambda: str(table) in map(os.readlink, fds.iterdir()))
        stop(program, signal.SIGTERM)


def test_a_fifo_in_place_of_the_table_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "net").mkdir()
    table = tmp_path / "net" / "nf_conntrack"
    os.mkfifo(table)
    with serving(f"--path.procfs={tmp_path}", "--collector.interval=0.2") as program:
        program.wait_for_log("nf_conntrack: it is not a regular file")
        shutil.copy(DATA / "kernel-6.18" / "net" / "nf_conntrack", tmp_path)
        (tmp_path / "nf_conntrack").rename(table)
        program.wait_for_log("works again")
        # After three intervals a snapshot is stale: a busy machine can be that late.
        until(lambda: b"conntrack_total_connections 91\n" in get(f"{program.url}/metrics")[1])


@pytest.mark.parametrize("engine", ["compiled", "pure"])
def test_without_memory_it_responds_and_ends(tmp_path: Path, engine: str) -> None:
    proc_root(tmp_path)
    with serving(
        f"--path.procfs={tmp_path}",
        "--collector.interval=2",
        prefix=("env", f"CONNTRACK_TEXTFILE_ENGINE={engine}"),
    ) as program:
        assert b"conntrack_snapshot_success 1\n" in get(f"{program.url}/metrics")[1]
        # What it takes without a table depends on Python and on libc.
        status = Path(f"/proc/{program.process.pid}/status").read_text()
        data = int(re.findall(r"^VmData:\s+(\d+) kB$", status, re.MULTILINE)[0]) << 10
        resource.prlimit(program.process.pid, resource.RLIMIT_DATA, (data + (16 << 20),) * 2)
        make_table(tmp_path / "new", 100_000, 100_000)
        (tmp_path / "new").rename(tmp_path / "net" / "nf_conntrack")
        program.wait_for_log("there is not enough memory to read the table; trying again")
        answered = 0
        end = time.monotonic() + 120
        while answered < 10:
            assert time.monotonic() < end
            with contextlib.suppress(OSError, http.client.HTTPException):  # not enough for a thread
                code, body, _ = get(f"{program.url}/metrics")
                answered += code == 200 and b"conntrack_snapshot_success 0\n" in body
        program.process.send_signal(signal.SIGTERM)
        assert program.process.wait(20) == 0


def test_sighup_reloads_the_web_config(tmp_path: Path) -> None:
    file = tmp_path / "web.yml"
    file.write_text("http_server_config: {headers: {X-Frame-Options: deny}}\n")
    with serving(SAMPLE, f"--web.config.file={file}") as program:
        program.process.send_signal(signal.SIGHUP)  # though nothing changed
        program.wait_for_log(f"read {file} again")
        file.write_text("x: y\n")
        program.process.send_signal(signal.SIGHUP)
        program.wait_for_log("unknown field x in the file")
        assert get(f"{program.url}/metrics")[2]["X-Frame-Options"] == "deny"
        stop(program, signal.SIGTERM)


def test_names_files_are_reloaded(tmp_path: Path) -> None:
    networks, services = tmp_path / "networks", tmp_path / "services"
    networks.write_text("10.77.0.0/16 lab\n")
    services.write_text("game 8002/tcp\n")
    with serving(
        SAMPLE,
        f"--networks.file={networks}",
        f"--services.file={services}",
        "--collector.interval=0.1",
        "--aggregate.by=src,l7protocol",
    ) as program:

        def wait_for(label: bytes) -> None:
            until(lambda: label in get(f"{program.url}/metrics")[1])

        wait_for(b'{src="lab",l7protocol="game"}')
        networks.write_text("10.77.0.0/16 office\n")  # without SIGHUP
        wait_for(b'{src="office",l7protocol="game"}')
        networks.write_text("10.77.0.1/16 oops\n")
        program.wait_for_log("has host bits set.*; going on with what was read before")
        services.write_text("chess 8002/tcp\n")
        wait_for(b'{src="office",l7protocol="game"}')
        networks.write_text("10.77.0.0/16 home\n")
        program.process.send_signal(signal.SIGHUP)
        wait_for(b'{src="home",l7protocol="chess"}')


def test_hosts_files_are_reloaded(tmp_path: Path) -> None:
    leases = tmp_path / "leases"
    leases.write_text("0 02:00:00:00:00:01 10.77.1.2 laptop *\n")
    with serving(
        SAMPLE,
        f"--hosts.file={leases}",
        "--collector.interval=0.1",
        "--aggregate.by=src",
    ) as program:

        def wait_for(text: bytes, path: str = "/metrics") -> None:
            until(lambda: text in get(f"{program.url}{path}")[1])

        wait_for(b'{src="laptop"}')
        wait_for(b"laptop", "/")
        leases.write_text("0 02:00:00:00:00:01 10.77.1.2 desktop *\n")
        wait_for(b'{src="desktop"}')
        assert b"laptop" not in get(f"{program.url}/metrics")[1]
        leases.unlink()
        program.wait_for_log("cannot read .*; going on with what was read before")
        wait_for(b'{src="desktop"}')
        leases.write_text("0 02:00:00:00:00:01 10.77.1.2 * *\n")
        program.process.send_signal(signal.SIGHUP)
        wait_for(b'{src="10.77.1.2"}')


def test_sighup_without_files_changes_nothing() -> None:
    with serving(SAMPLE) as program:
        program.process.send_signal(signal.SIGHUP)
        assert get(f"{program.url}/metrics")[0] == 200
        stop(program, signal.SIGTERM)


def test_systemd_is_notified(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(tmp_path / "notify"))
        systemd.settimeout(20)
        asked = (f"NOTIFY_SOCKET={tmp_path}/notify", "WATCHDOG_USEC=300000")
        with serving(SAMPLE, prefix=("env", *asked)) as program:
            heard = [systemd.recv(100) for _ in range(4)]
            assert heard == [b"READY=1"] + [b"WATCHDOG=1"] * 3
            program.process.send_signal(signal.SIGTERM)
            while (word := systemd.recv(100)) != b"STOPPING=1":
                assert word == b"WATCHDOG=1"


def test_an_address_in_use_is_an_error() -> None:
    with serving(SAMPLE) as program:
        argv = [*COMMAND, "serve", SAMPLE, f"--web.listen-address=127.0.0.1:{program.port}"]
        done = subprocess.run(argv, capture_output=True, text=True, timeout=20, check=False)
        assert done.returncode == 1
        assert done.stderr.count("\n") == 1
        assert f"cannot listen on 127.0.0.1:{program.port}: Address already in use" in done.stderr


def test_scrapes_during_refreshes_see_one_whole_snapshot(tmp_path: Path) -> None:
    line = (
        "ipv4     2 tcp      6 9 ESTABLISHED src=10.0.{a}.{b} dst=10.0.0.2 sport=1 dport={n} "
        "packets={n} bytes=1 src=10.0.0.2 dst=10.0.0.1 sport=2 dport=1 packets=1 bytes=1 use=2\n"
    )
    (tmp_path / "net").mkdir()
    table = tmp_path / "net" / "nf_conntrack"

    def fill(n: int) -> None:
        new = tmp_path / "new"
        new.write_text("".join(line.format(a=i >> 8, b=i & 255, n=n) for i in range(2000)))
        new.rename(table)

    def scrape(url: str) -> int:
        def fresh() -> str:  # without connections where the snapshot is stale
            packed = get(f"{url}/metrics", **{"Accept-Encoding": "gzip"})[1]
            text = gzip.decompress(packed).decode()
            return text if "conntrack_snapshot_success 1\n" in text else ""

        text = until(fresh)
        packets = re.findall(r'^conntrack_sent_packets{.*dport="(\d+)"} (\d+)$', text, re.MULTILINE)
        total = re.search(r"^conntrack_total_sent_packets (\d+)$", text, re.MULTILINE)
        assert total
        assert len(packets) == 2000
        ((port, each),) = set(packets)
        assert port == each
        assert int(total[1]) == 2000 * int(each)
        return int(port)

    fill(1)
    with (
        serving(f"--path.procfs={tmp_path}", "--collector.interval=0.3") as program,
        ThreadPoolExecutor(4) as pool,
    ):
        for n in range(2, 7):
            fill(n)
            until(lambda: n in set(pool.map(scrape, [program.url] * 20)))  # noqa: B023


def test_a_table_that_disappears_and_comes_back(tmp_path: Path) -> None:
    (tmp_path / "net").mkdir()
    table = tmp_path / "net" / "nf_conntrack"
    text = (DATA / "kernel-6.18" / "net" / "nf_conntrack").read_bytes()
    with serving(f"--path.procfs={tmp_path}", "--collector.interval=0.2") as program:

        def serves(part: bytes, *, there: bool = True) -> bytes:
            """The first page with a text, or without it."""
            page: bytes = until(
                lambda: (part in (body := get(f"{program.url}/metrics")[1])) is there and body
            )
            return page

        assert b"conntrack_total" not in serves(b"conntrack_snapshot_success 0\n")
        table.write_bytes(text)
        serves(b"conntrack_total_connections 91\n")
        table.unlink()
        serves(b"conntrack_snapshot_success 0\n")
        serves(b"conntrack_total_connections", there=False)
        table.write_bytes(text)
        serves(b"conntrack_snapshot_success 1\n")
        assert program.log.count("level=error") == 2
        program.wait_for_log("works again")
