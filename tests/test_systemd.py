"""The shipped units in a systemd that was really booted, and the cron file under a real cron."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.booted import ROOT, Machine, booted, check, install, tree
from tests.certificates import authority, certificate
from tests.conftest import need
from tests.waiting import until

if TYPE_CHECKING:
    from collections.abc import Iterator

TEXTFILES = "/var/lib/prometheus/node-exporter"
STATE = "/var/lib/conntrack-textfile"
TIMER = "conntrack-textfile.timer"
WRITER = "conntrack-textfile.service"
WRITER_EVENTS = "conntrack-events.socket"
EXPORTER = "conntrack-exporter.service"
EXPORTER_EVENTS = "conntrack-exporter-events.socket"
SOCKET = "conntrack-exporter.socket"
METRICS = "http://127.0.0.1:9095/metrics"
NODE_EXPORTER = "http://127.0.0.1:9100/metrics"


@pytest.fixture(scope="module")
def venv(tmp_path_factory: pytest.TempPathFactory) -> Path:
    need("/usr/bin/python3", "nft", root=True)
    made = tmp_path_factory.mktemp("venv") / "venv"
    install(made)
    return made


@pytest.fixture
def machine(venv: Path) -> Iterator[Machine]:
    """A container booted for this test, with the units installed and none enabled."""
    need("mmdebstrap", "systemd-nspawn", "nsenter", "unshare", root=True)
    with booted(tree(), venv) as made:
        yield made


RULES = "table inet t { chain c { type filter hook output priority 0; ct state new accept; }; }"

TRAFFIC = """
import socket, sys
udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
for _ in range(5):
    udp.sendto(b"x" * 72, ("127.0.0.1", int(sys.argv[1])))
listener = socket.create_server(("127.0.0.1", int(sys.argv[1])))
client = socket.create_connection(listener.getsockname())
client.sendall(b"x" * 100)
"""


def traffic(machine: Machine, port: int) -> None:
    """Create two entries with this port: 5 datagrams of 100 bytes, and a TCP connection."""
    machine.net("nft", "-f", "-", text=RULES)  # from here on it tracks
    machine.net(sys.executable, "-c", TRAFFIC, str(port))


def udp_packets(text: str, port: int) -> int:
    """Return the number of datagrams of traffic() in a text of metrics."""
    for line in text.splitlines():
        if line.startswith("conntrack_sent_packets{") and {
            f'dport="{port}"', 'l4protocol="udp"', 'src="127.0.0.1"'
        } <= set(re.findall(r'\w+="[^"]*"', line)):  # fmt: skip
            return int(float(line.rpartition(" ")[2]))
    return 0


def value(text: str, name: str) -> float:
    """Return the value of a metric without labels."""
    return float(re.findall(rf"^{name} (\S+)$", text, re.MULTILINE)[0])


def test_the_timer_feeds_node_exporter(machine: Machine) -> None:
    assert machine.run("cat", "/proc/sys/net/netfilter/nf_conntrack_acct").strip() == "1"
    link(machine)
    traffic(machine, 4242)
    machine.systemctl("enable", "--now", "conntrack-textfile.timer")
    text = until(lambda: udp_packets(text := machine.get(NODE_EXPORTER), 4242) and text)
    assert udp_packets(text, 4242) == 5
    assert value(text, "node_textfile_scrape_error") == 0
    first = value(text, "conntrack_snapshot_timestamp_seconds")

    traffic(machine, 4243)  # and it does so again
    text = until(lambda: udp_packets(text := machine.get(NODE_EXPORTER), 4243) and text)
    assert value(text, "conntrack_snapshot_timestamp_seconds") > first
    assert udp_packets(text, 4243) == udp_packets(text, 4242) == 5

    # The writer is a user of the moment, the reader is another one.
    owner, mode = machine.run("stat", "-c", "%u %a", f"{STATE}/conntrack.prom").split()
    assert 61184 <= int(owner) <= 65519
    assert mode == "644"
    reader = machine.show("prometheus-node-exporter.service", "MainPID")
    prometheus = machine.run("id", "-u", "prometheus").strip()
    assert machine.status(reader)["Uid"].split()[0] == prometheus
    assert (
        machine.run("readlink", f"{TEXTFILES}/conntrack.prom").strip() == f"{STATE}/conntrack.prom"
    )
    # Not even a word about an unset variable.
    said = machine.journal("conntrack-textfile.service").splitlines()
    assert not [line for line in said if not re.match("Starting|Finished|.*Deactivated", line)]


def test_the_shipped_timer_fires_every_minute(machine: Machine) -> None:
    machine.run("rm", "/etc/systemd/system/conntrack-textfile.timer.d/often.conf")
    machine.systemctl("daemon-reload")
    machine.systemctl("enable", "--now", "conntrack-textfile.timer")
    elapse = until(lambda: machine.show("conntrack-textfile.timer", "NextElapseUSecRealtime"))
    assert re.search(r":\d\d:00 ", elapse), elapse


def test_only_its_own_directory_is_writable(machine: Machine) -> None:
    link(machine)
    machine.run("mkdir", "--mode=0777", "/srv/open")
    for file in ("/srv/open/x.prom", f"{TEXTFILES}/x.prom", "/var/lib/x.prom"):
        machine.write("/etc/default/conntrack-textfile", f"FILE={file}\n")
        machine.fails("systemctl", "start", "conntrack-textfile.service")
        said = machine.journal("conntrack-textfile.service")
        assert f"cannot write {file}: Read-only file system (under systemd: name its" in said
        assert "ReadWritePaths=" in said
    # Options are added by the same file, and it may be absent.
    machine.write(
        "/etc/default/conntrack-textfile", 'ARGS="--collector.source=netlink --log.level=debug"\n'
    )
    machine.systemctl("start", "conntrack-textfile.service")
    machine.run("rm", "/etc/default/conntrack-textfile", f"{STATE}/conntrack.prom")
    machine.systemctl("start", "conntrack-textfile.service")
    assert 'source="netlink"' in machine.run("cat", f"{STATE}/conntrack.prom")


def test_two_filters_in_the_settings(machine: Machine) -> None:
    traffic(machine, 4242)
    traffic(machine, 4243)
    traffic(machine, 4244)
    args = "--filter.include=src=127.0.0.1,dport=4242 --filter.include=dport=4243"
    machine.write("/etc/default/conntrack-textfile", f'ARGS="{args}"\n')
    machine.systemctl("start", WRITER)
    text = machine.run("cat", f"{STATE}/conntrack.prom")
    assert [udp_packets(text, port) for port in (4242, 4243, 4244)] == [5, 5, 0]
    # A space in one makes two words of it.
    machine.write("/etc/default/conntrack-textfile", 'ARGS="--filter.include=dport=1, src=::1"\n')
    machine.fails("systemctl", "start", WRITER)
    assert "FILE is 'src=::1' already" in machine.journal(WRITER)


def test_check_reports_units_and_node_exporter(machine: Machine) -> None:
    program, file = "/usr/local/bin/conntrack-textfile", f"{STATE}/conntrack.prom"
    said = machine.run(program, "check", file)
    assert "warn  systemd    no unit is active: systemctl enable --now" in said
    assert re.search(rf"^warn  textfile .* but {file} is not there: ln -s ", said, re.MULTILINE)
    link(machine)
    machine.systemctl("enable", "--now", TIMER)
    lines = machine.run(program, "check", file).splitlines()
    assert f"ok    textfile   node_exporter can read {file}" in lines
    assert f"ok    systemd    {TIMER} is active, enabled" in lines
    (events,) = [line for line in lines if line.startswith("ok    events")]
    assert "systemd (pid 1)" in events
    machine.systemctl("stop", TIMER)
    machine.write("/etc/default/conntrack-textfile", 'ARGS="--nope"\n')
    machine.fails("systemctl", "start", WRITER)
    said = machine.fails(program, "check", file)
    assert f"fail  systemd    {WRITER} is failed, static (exit-code): journalctl -u" in said


def test_switching_from_service_to_socket_as_documented(machine: Machine) -> None:
    machine.systemctl("enable", "--now", EXPORTER)
    until(lambda: machine.get(METRICS))
    machine.fails("systemctl", "start", SOCKET)  # which is why the service goes first
    page = (ROOT / "docs" / "serve.md").read_text()
    (block,) = re.findall(r"^```sh\n(systemctl disable .*?)^```", page, re.MULTILINE | re.DOTALL)
    machine.run("sh", "-euc", block)
    until(lambda: machine.get(METRICS))
    assert machine.show(SOCKET, "UnitFileState") == "enabled"
    assert machine.show(EXPORTER, "UnitFileState") == "disabled"


def test_the_service_does_not_touch_the_directory_of_node_exporter(machine: Machine) -> None:
    # That directory is of another user, who puts there what he likes.
    machine.run("ln", "-s", "/etc/passwd", f"{TEXTFILES}/conntrack.prom")
    before = machine.run("cat", "/etc/passwd")
    machine.systemctl("start", "conntrack-textfile.service")
    assert machine.run("cat", "/etc/passwd") == before
    assert "conntrack_entries " in machine.run("cat", f"{STATE}/conntrack.prom")


def test_the_file_can_be_restricted_to_node_exporter(machine: Machine) -> None:
    machine.write(
        "/etc/default/conntrack-textfile", 'ARGS="--file.mode=0640 --file.group=prometheus"\n'
    )
    machine.fails("systemctl", "start", "conntrack-textfile.service")
    said = machine.journal("conntrack-textfile.service")
    assert "run as root or as a member of it" in said, said
    machine.dropin("conntrack-textfile.service", "[Service]\nSupplementaryGroups=prometheus\n")
    machine.systemctl("start", "conntrack-textfile.service")
    shown = machine.run("stat", "-c", "%G %a", f"{STATE}/conntrack.prom")
    assert shown == "prometheus 640\n"
    link(machine)
    text = until(lambda: "conntrack_entries " in (text := machine.get(NODE_EXPORTER)) and text)
    assert value(text, "node_textfile_scrape_error") == 0


def test_leases_of_a_group_name_hosts(machine: Machine) -> None:
    file = "/var/lib/kea/kea-leases4.csv"
    machine.run("groupadd", "--system", "_kea")
    machine.run("mkdir", "/var/lib/kea")
    machine.write(
        file,
        "address,hwaddr,client_id,valid_lifetime,expire,subnet_id,fqdn_fwd,fqdn_rev,hostname,state\n"
        "127.0.0.1,02:00:00:00:00:01,,4294967295,0,1,0,0,laptop,0\n",
    )
    machine.run("chown", "-R", ":_kea", "/var/lib/kea")
    machine.run("chmod", "0640", file)
    machine.run("chmod", "0750", "/var/lib/kea")
    machine.write("/etc/default/conntrack-textfile", f'ARGS="--hosts.file={file}"\n')
    machine.fails("systemctl", "start", "conntrack-textfile.service")
    said = machine.journal("conntrack-textfile.service")
    assert f"cannot read {file}: Permission denied" in said, said
    machine.dropin("conntrack-textfile.service", "[Service]\nSupplementaryGroups=_kea\n")
    traffic(machine, 7050)
    machine.systemctl("start", "conntrack-textfile.service")
    assert 'src="laptop",dst="laptop"' in machine.run("cat", f"{STATE}/conntrack.prom")
    # And what root alone may read, passed by systemd for each run.
    machine.run("chmod", "0600", file)
    machine.run("sed", "-i", "s/laptop/desktop/", file)
    machine.fails("systemctl", "start", "conntrack-textfile.service")
    machine.dropin("conntrack-textfile.service", f"[Service]\nLoadCredential=leases:{file}\n")
    passed = "/run/credentials/conntrack-textfile.service/leases"
    machine.write("/etc/default/conntrack-textfile", f'ARGS="--hosts.file={passed}"\n')
    for name in ("desktop", "tower"):
        machine.run("sed", "-i", f"s/desktop/{name}/", file)
        machine.systemctl("start", "conntrack-textfile.service")
        assert f'src="{name}"' in machine.run("cat", f"{STATE}/conntrack.prom")


def link(machine: Machine) -> None:
    """Create the link of docs/write.md, which tmpfiles.d cannot create in that directory."""
    machine.run("ln", "-s", f"{STATE}/conntrack.prom", TEXTFILES)


def test_the_exporter_serves_with_one_capability(machine: Machine) -> None:
    traffic(machine, 4242)
    machine.systemctl("enable", "--now", EXPORTER)
    text = until(lambda: machine.get(METRICS))
    assert udp_packets(text, 4242) == 5
    status = machine.status(machine.show(EXPORTER, "MainPID"))
    assert 61184 <= int(status["Uid"].split()[0]) <= 65519
    net_admin = f"{1 << 12:016x}"
    assert {status[f"Cap{part}"] for part in ("Eff", "Prm", "Bnd", "Amb")} == {net_admin}
    assert (status["NoNewPrivs"], status["Seccomp"]) == ("1", "2")


def test_the_exporter_restarts_after_sigkill(machine: Machine) -> None:
    machine.systemctl("start", EXPORTER)
    until(lambda: machine.get(METRICS))
    pid = machine.show(EXPORTER, "MainPID")
    machine.systemctl("kill", "--kill-whom=main", "--signal=KILL", EXPORTER)
    until(lambda: machine.get(METRICS))
    assert machine.show(EXPORTER, "MainPID") != pid
    assert machine.show(EXPORTER, "NRestarts") == "1"


def test_the_exporter_stops_cleanly(machine: Machine) -> None:
    machine.systemctl("start", EXPORTER)
    until(lambda: machine.get(METRICS))
    start = time.monotonic()
    machine.systemctl("stop", EXPORTER)
    assert time.monotonic() - start < 15  # else systemd kills it, after 90
    shown = [machine.show(EXPORTER, name) for name in ("ActiveState", "Result", "ExecMainStatus")]
    assert shown == ["inactive", "success", "0"]


def test_the_exporter_is_started_when_it_listens(machine: Machine) -> None:
    machine.systemctl("start", EXPORTER)
    assert machine.get(METRICS)  # at once


def test_the_watchdog_restarts_a_hung_exporter_only(machine: Machine) -> None:
    machine.dropin(EXPORTER, "[Service]\nWatchdogSec=3s\nTimeoutAbortSec=1s\n")
    machine.systemctl("start", EXPORTER)
    pid = machine.show(EXPORTER, "MainPID")
    time.sleep(5)
    assert machine.show(EXPORTER, "MainPID") == pid
    assert machine.show(EXPORTER, "NRestarts") == "0"
    machine.systemctl("kill", "--kill-whom=main", "--signal=STOP", EXPORTER)
    until(lambda: machine.show(EXPORTER, "NRestarts") == "1")
    until(lambda: machine.get(METRICS))
    assert "Watchdog timeout" in machine.journal(EXPORTER)


def test_a_reload_rereads_the_web_config(machine: Machine) -> None:
    machine.write("/etc/web.yml", "http_server_config: {headers: {X-Frame-Options: deny}}\n")
    machine.write("/etc/default/conntrack-exporter", 'ARGS="--web.config.file=/etc/web.yml"\n')
    machine.systemctl("start", EXPORTER)
    pid = machine.show(EXPORTER, "MainPID")
    machine.systemctl("reload", EXPORTER)
    until(lambda: "read /etc/web.yml again" in machine.journal(EXPORTER))
    assert machine.show(EXPORTER, "MainPID") == pid


def test_wrong_usage_is_not_restarted(machine: Machine) -> None:
    machine.write("/etc/default/conntrack-exporter", 'ARGS="--nope"\n')
    machine.fails("systemctl", "start", EXPORTER)
    until(lambda: machine.show(EXPORTER, "ActiveState") != "active")
    # "activating (auto-restart)" is what it would be otherwise; see below.
    assert machine.show(EXPORTER, "SubState") == "failed"
    assert machine.show(EXPORTER, "ExecMainStatus") == "2"
    assert machine.show(EXPORTER, "NRestarts") == "0"
    assert "--nope is not an option" in machine.journal(EXPORTER)

    machine.write("/etc/default/conntrack-exporter", "LISTEN=127.0.0.1:9100\n")  # node_exporter's
    machine.fails("systemctl", "start", EXPORTER)
    until(lambda: machine.show(EXPORTER, "SubState") == "auto-restart")
    assert machine.show(EXPORTER, "ExecMainStatus") == "1"


def test_options_come_from_etc_default(machine: Machine) -> None:
    machine.write(
        "/etc/default/conntrack-exporter",
        'LISTEN=127.0.0.1:9195\nARGS="--web.telemetry-path=/m --web.listen-address=[::1]:9196"\n',
    )
    machine.systemctl("start", EXPORTER)
    assert until(lambda: machine.get("http://127.0.0.1:9195/m"))
    assert until(lambda: machine.get("http://[::1]:9196/m"))
    machine.systemctl("stop", EXPORTER)
    machine.run("rm", "/etc/default/conntrack-exporter")
    machine.systemctl("start", EXPORTER)
    assert until(lambda: machine.get(METRICS))


def test_a_key_is_a_credential_of_systemd(machine: Machine, tmp_path: Path) -> None:
    need("openssl")
    authority(tmp_path)
    certificate(tmp_path, "server")
    text = "tls_server_config: {cert_file: server.crt, key_file: server.key}\n"
    (tmp_path / "web.yml").write_text(text)
    names = ("web.yml", "server.crt", "server.key")
    for name in names:
        machine.write(f"/etc/conntrack-web/{name}", (tmp_path / name).read_text())
        machine.run("chmod", "600", f"/etc/conntrack-web/{name}")
    load = "\n".join(f"LoadCredential={name}:/etc/conntrack-web/{name}" for name in names)
    machine.dropin(EXPORTER, f"[Service]\n{load}\n")
    config = f"/run/credentials/{EXPORTER}/web.yml"
    machine.write("/etc/default/conntrack-exporter", f'ARGS="--web.config.file={config}"\n')
    machine.systemctl("start", EXPORTER)
    code = (
        "import ssl, sys, urllib.request as u;"
        "context = ssl.create_default_context(cafile=sys.argv[1]);"
        "u.urlopen('https://localhost:9095/metrics', timeout=5, context=context).read()"
    )
    until(lambda: machine.net(sys.executable, "-c", code, str(tmp_path / "ca.crt")) == "")


def test_other_hosts_are_denied(machine: Machine) -> None:
    """With a socket of the service, and with one of systemd."""
    # No link between two machines is needed: packets of this address are not localhost's.
    machine.net("ip", "address", "add", "10.77.0.1/32", "dev", "lo")
    outside = "http://10.77.0.1:9095/metrics"
    for unit, kind, anywhere in (
        (EXPORTER, "Service", "Environment=LISTEN=:9095"),
        (SOCKET, "Socket", "ListenStream=\nListenStream=9095"),
    ):
        for allow, reached in (("", False), ("IPAddressAllow=10.77.0.0/24", True)):
            machine.dropin(unit, f"[{kind}]\n{anywhere}\n{allow}\n")
            machine.systemctl("restart", unit)
            until(lambda: machine.get(METRICS))
            if reached:
                until(lambda: answers(machine, outside))
            else:
                assert not answers(machine, outside), unit
            machine.run("sh", "-c", f"systemctl stop {SOCKET} {EXPORTER}")


def test_the_socket_starts_the_service(machine: Machine) -> None:
    # Where it would listen by itself, to tell the two apart.
    machine.write("/etc/default/conntrack-exporter", "LISTEN=127.0.0.1:9195\n")
    alone = "http://127.0.0.1:9195/metrics"
    traffic(machine, 4242)
    machine.systemctl("enable", "--now", SOCKET)
    assert machine.show(EXPORTER, "ActiveState") == "inactive"
    # The first scrape waits for the first snapshot.
    assert udp_packets(machine.get(METRICS), 4242) == 5
    assert machine.show(EXPORTER, "ActiveState") == "active"
    assert not answers(machine, alone)
    pid = machine.show(EXPORTER, "MainPID")

    # Nobody is turned away while it restarts: the socket stays.
    machine.systemctl("kill", "--kill-whom=main", "--signal=KILL", EXPORTER)
    assert udp_packets(machine.get(METRICS), 4242) == 5
    assert machine.show(EXPORTER, "MainPID") not in ("0", pid)

    machine.run("sh", "-c", f"systemctl stop {EXPORTER} 2>&1")
    assert machine.show(EXPORTER, "Result") == "success"
    assert machine.show(SOCKET, "ActiveState") == "active"
    assert machine.get(METRICS)  # it starts again

    machine.systemctl("stop", SOCKET, EXPORTER)
    assert not answers(machine, METRICS)
    machine.systemctl("start", EXPORTER)  # without the socket it listens by itself
    assert until(lambda: machine.get(alone))


def test_wrong_usage_fails_the_socket_too(machine: Machine) -> None:
    machine.write("/etc/default/conntrack-exporter", 'ARGS="--nope"\n')
    machine.systemctl("start", SOCKET)
    assert not answers(machine, METRICS)
    until(lambda: machine.show(SOCKET, "ActiveState") == "failed")
    assert machine.show(SOCKET, "Result") == "service-start-limit-hit"
    assert 2 <= machine.journal(EXPORTER).count("--nope is not an option") <= 5


def answers(machine: Machine, url: str) -> bool:
    try:
        return bool(machine.get(url, 2))
    except AssertionError:
        return False


FLOWS = """
import itertools, select, socket, sys, time
start, stop, pause = int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
listener = socket.create_server(("127.0.0.1", 7001))
server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
server.bind(("127.0.0.1", 7001))
for i in itertools.count(start):
    if i == stop or stop < 0 and select.select([sys.stdin], [], [], pause)[0]:
        print(i - start)
        break
    # Of TCP the kernel chooses a port above 32767, of UDP it might choose one again.
    if i % 4 == 0:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
            client.bind(("127.0.0.1", 10000 + i // 4))
            client.sendto(b"x" * (i % 900), ("127.0.0.1", 7001))
            server.sendto(b"y" * (i % 700), server.recvfrom(2000)[1])
        continue
    with socket.create_connection(("127.0.0.1", 7001)) as client:
        other, _ = listener.accept()
        client.sendall(b"x" * (i % 1400 + 1))
        other.recv(2000)
        other.sendall(b"y" * (i % 2900 + 1))
        other.close()
        while client.recv(4000):
            pass
"""
# Each packet passes the output hook of loopback once.
TRUTH = """
table inet truth {
    counter sent { }
    counter reply { }
    chain c {
        type filter hook output priority 100;
        th dport 7001 ct direction original counter name sent
        th sport 7001 ct direction reply counter name reply
    }
}
"""


def short_connections(machine: Machine) -> None:
    """Short timeouts, and packet counters in nftables."""
    names = [f"tcp_timeout_{name}" for name in ("time_wait", "close", "last_ack", "fin_wait")]
    settings = [f"net.netfilter.nf_conntrack_{name}=1" for name in names]
    settings += [f"net.netfilter.nf_conntrack_udp_timeout{name}=1" for name in ("", "_stream")]
    machine.net("sysctl", "-qw", *settings)
    machine.net("nft", "-f", "-", text=TRUTH)


def flows(machine: Machine, start: int, stop: int) -> None:
    """Create connections to port 7001, a quarter UDP, from different source ports."""
    machine.net(sys.executable, "-c", FLOWS, str(start), str(stop), "0")


@contextlib.contextmanager
def flowing(machine: Machine, pause: float) -> Iterator[list[int]]:
    """Create such connections until the end of the block, which then has their number."""
    argv = ["nsenter", f"--target={machine.leader}", "-n", sys.executable, "-c", FLOWS]
    argv += ["0", "-1", str(pause)]
    made: list[int] = []
    with subprocess.Popen(
        argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            yield made
            made.append(int(process.communicate("\n", timeout=60)[0]))
        finally:
            process.kill()


def ended(machine: Machine) -> bool:
    """Return whether the table has none of these. A dump makes the kernel reap expired ones."""
    return "dport=7001" not in machine.net("conntrack", "-L")


def truth(machine: Machine) -> list[float]:
    """Return sent packets and bytes, reply packets and bytes, counted by nftables."""
    text = machine.net("nft", "list", "counters")
    found = dict(re.findall(r"counter (\w+) {\s+(packets \d+ bytes \d+)", text))
    return [float(n) for name in ("sent", "reply") for n in re.findall(r"\d+", found[name])]


def counted(text: str) -> list[float]:
    """Return the counters of these connections: their number, and the same four."""
    names = ("connections", "sent_packets", "sent_bytes", "reply_packets", "reply_bytes")
    return [
        sum(
            float(found)
            for found in re.findall(
                rf'^conntrack_traffic_{name}_total{{.*dport="7001"}} (\S+)$', text, re.MULTILINE
            )
        )
        for name in names
    ]


def written(machine: Machine) -> str:
    """Run the service, and return the file."""
    machine.systemctl("start", WRITER)
    return machine.run("cat", f"{STATE}/conntrack.prom")


def listeners(machine: Machine) -> list[str]:
    """Return the inodes of the sockets with DESTROY events."""
    lines = machine.net("cat", "/proc/net/netlink").splitlines()
    return [line.split()[9] for line in lines if line.split()[1:4:2] == ["12", "00000004"]]


def ticks(machine: Machine) -> int:
    """Return the CPU time of systemd, in hundredths of a second."""
    stat = machine.run("cat", "/proc/1/stat").rpartition(")")[2].split()
    return int(stat[11]) + int(stat[12])


@pytest.fixture
def counting(machine: Machine) -> Machine:
    """A machine with a timer that does not fire, a baseline, and nftables counters."""
    need("conntrack")
    machine.dropin(TIMER, "[Timer]\nOnCalendar=\nOnCalendar=*-01-01\n")
    machine.systemctl("enable", "--now", TIMER)
    short_connections(machine)
    written(machine)
    return machine


def test_events_are_buffered_between_two_runs_of_the_timer(counting: Machine) -> None:
    machine = counting
    (inode,) = listeners(machine)
    used = ticks(machine)
    flows(machine, 0, 20_000)
    until(lambda: ended(machine))
    time.sleep(2)  # readable all the time
    assert ticks(machine) - used < 100
    assert machine.show(WRITER_EVENTS, "SubState") == "running"
    text = written(machine)
    assert value(text, "conntrack_events_received_total") == 20_000
    assert value(text, "conntrack_events_lost_total") == 0
    assert counted(text) == [0] * 5  # so that increase() counts all of it
    assert counted(written(machine)) == [20_000, *truth(machine)]

    flows(machine, 20_000, 20_100)
    until(lambda: ended(machine))
    text = written(machine)
    assert counted(text) == [20_100, *truth(machine)]
    assert value(text, "conntrack_events_listening") == 1
    assert value(text, "conntrack_runs_interrupted_total") == 0
    assert listeners(machine) == [inode]


def test_the_state_is_owned_by_the_user_of_the_next_run(counting: Machine) -> None:
    machine = counting
    flows(machine, 0, 100)
    until(lambda: ended(machine))
    written(machine)
    directory = "/run/private/conntrack-textfile"
    files = (directory, f"{directory}/state", f"{directory}/state.lock")
    for owner in ("65000", "root"):  # of the range of dynamic users, and not
        machine.run("chown", "-R", f"{owner}:root", directory)
        assert counted(written(machine)) == [100, *truth(machine)]
        assert machine.run("stat", "-c", "%a", *files).split() == ["700", "600", "600"]


def hold(machine: Machine) -> None:
    """The service of the socket is active from the first event on."""
    flows(machine, 0, 10)
    until(lambda: ended(machine))
    until(lambda: machine.show("conntrack-events-hold.service", "ActiveState") == "active")


def test_a_run_that_is_stopped_with_the_timer_has_not_failed(counting: Machine) -> None:
    slow = "[Service]\nExecStart=\nExecStart=/bin/sleep 600\n"
    units = (WRITER, "conntrack-events-hold.service")

    def states() -> set[str]:
        return {counting.show(unit, "ActiveState") for unit in units}

    for unit in units:
        counting.dropin(unit, slow)
    counting.systemctl("restart", WRITER_EVENTS)  # with it ends what an event has started
    counting.systemctl("start", "--no-block", *units)
    until(lambda: states() == {"activating"})
    counting.systemctl("stop", TIMER, WRITER_EVENTS)  # as at removal
    until(lambda: states() == {"inactive"})
    assert counting.show(WRITER_EVENTS, "ActiveState") == "inactive"
    assert counting.systemctl("--failed", "--no-legend") == ""


def test_the_socket_is_active_as_long_as_the_timer(counting: Machine) -> None:
    machine = counting
    for command in ("restart", "stop"):
        hold(machine)
        machine.systemctl(command, TIMER)
        if command == "stop":
            until(lambda: listeners(machine) == [])
            machine.systemctl("start", TIMER)
        # Before a run, and not only from the first run on.
        until(lambda: machine.show(WRITER_EVENTS, "ActiveState") == "active")
        assert len(listeners(machine)) == 1
    # As after a change of ReceiveBuffer=, which is another socket.
    before = listeners(machine)
    machine.dropin(WRITER_EVENTS, "[Socket]\nReceiveBuffer=48M\n")
    machine.systemctl("restart", WRITER_EVENTS)
    assert listeners(machine) != before
    assert value(written(machine), "conntrack_event_buffer_bytes") == 2 * (48 << 20)

    machine.systemctl("disable", "--now", TIMER)
    until(lambda: machine.show(WRITER_EVENTS, "ActiveState") == "inactive")
    assert listeners(machine) == []
    # A run by hand has it for as long as it takes.
    written(machine)
    until(lambda: listeners(machine) == [])
    assert not machine.systemctl("--failed", "--no-legend")


def test_frequent_starts_do_not_fail_the_socket(counting: Machine) -> None:
    """By default, the start limit fails a service and its sockets."""
    machine = counting
    hold(machine)
    machine.run("sh", "-ec", f"for i in 1 2 3 4 5 6 7 8; do systemctl start {WRITER}; done")
    assert machine.show(WRITER_EVENTS, "ActiveState") == "active"
    assert value(written(machine), "conntrack_events_listening") == 1


@pytest.mark.parametrize("masked", [True, False])
def test_without_the_socket_of_events(counting: Machine, *, masked: bool) -> None:
    """It is masked, or cannot be opened."""
    machine = counting
    machine.systemctl("stop", TIMER)
    for unit in (WRITER_EVENTS, EXPORTER_EVENTS):
        if masked:
            machine.run("rm", f"/etc/systemd/system/{unit}")
            machine.systemctl("mask", unit)
        else:
            machine.dropin(unit, "[Socket]\nNetworkNamespacePath=/nonexistent\n")
    machine.systemctl("daemon-reload")
    machine.systemctl("start", TIMER)
    written(machine)
    traffic(machine, 4242)
    for _ in range(2):  # first seen, and published
        text = written(machine)
    assert value(text, "conntrack_events_listening") == 0
    assert 'traffic_sent_packets_total{src="127.0.0.1",dst="127.0.0.1"' in text
    assert re.search(r'^conntrack_traffic_sent_packets.*udp.*dport="4242"} 5$', text, re.MULTILINE)
    # serve makes one for itself.
    machine.systemctl("start", EXPORTER)
    text = until(lambda: machine.get(METRICS))
    assert value(text, "conntrack_events_listening") == 1
    assert machine.show(EXPORTER_EVENTS, "ActiveState") != "active"
    assert len(listeners(machine)) == 1


def test_the_exporter_loses_no_event_while_it_restarts(machine: Machine) -> None:
    need("conntrack")
    machine.write("/etc/default/conntrack-exporter", 'ARGS="--collector.interval=1"\n')
    machine.systemctl("start", SOCKET)
    short_connections(machine)
    assert value(machine.get(METRICS), "conntrack_events_listening") == 1  # both sockets
    (inode,) = listeners(machine)
    # One connection ends every few milliseconds, also while it is stopped and started.
    with flowing(machine, 0.003) as made:
        for _ in range(3):  # systemd allows four in ten seconds
            machine.systemctl("restart", EXPORTER)
            time.sleep(0.5)
    until(lambda: ended(machine))
    (number,) = made
    assert number > 100
    expected = [number, *truth(machine)]
    text = until(lambda: counted(text := machine.get(METRICS)) == expected and text)
    assert value(text, "conntrack_runs_interrupted_total") == 0
    assert listeners(machine) == [inode]

    # What it had read and not saved is lost when it is killed: that is counted.
    machine.systemctl("kill", "--kill-whom=main", "--signal=KILL", EXPORTER)
    flows(machine, number, number + 100)
    until(lambda: ended(machine))
    expected = [number + 100, *truth(machine)]
    text = until(lambda: counted(text := machine.get(METRICS)) == expected and text)
    assert value(text, "conntrack_runs_interrupted_total") == 1
    assert listeners(machine) == [inode]

    machine.run("sh", "-c", f"systemctl stop {SOCKET} {EXPORTER}")
    until(lambda: listeners(machine) == [])


def test_two_services_do_not_take_events_from_each_other(counting: Machine) -> None:
    machine = counting
    machine.write("/etc/default/conntrack-exporter", 'ARGS="--collector.interval=1"\n')
    machine.systemctl("start", EXPORTER)
    until(lambda: machine.get(METRICS))
    flows(machine, 0, 1000)
    until(lambda: ended(machine))
    expected = [1000, *truth(machine)]
    until(lambda: counted(machine.get(METRICS)) == expected)
    written(machine)
    assert counted(written(machine)) == expected


# The clock of cron alone is set to two seconds before a minute: nothing to wait for.
# cron is process 1 of a pid namespace: what ends it ends all that it started.
CRON = """
repository=$1 venv=$2 traffic=$3 commands=$5
ip link set lo up
sysctl --quiet --write net.netfilter.nf_conntrack_acct=1
nft "$4"
python3 -c "$traffic" 4242
mount -t tmpfs -o mode=755 tmpfs /run
mount -t tmpfs tmpfs /dev/shm  # where faketime leaves things by the name of its pid
mount -t tmpfs -o mode=755 tmpfs /usr/local/sbin
mkdir -p /run/spool/crontabs /run/lib/prometheus/node-exporter /run/venv /run/upper /run/work
mount --bind "$venv" /run/venv  # where the user of the run can read it
mount -t overlay -o lowerdir=/etc,upperdir=/run/upper,workdir=/run/work overlay /etc
mount -t tmpfs tmpfs /var/log
mount --bind /run/lib /var/lib
mount --bind /run/spool /var/spool/cron
chown -R nobody /var/lib/prometheus
userdel conntrack-metrics 2>/dev/null || true
rm -f /etc/cron.d/*
: >/etc/crontab; : >/run/tries; : >/run/runs; : >/run/status
chmod 666 /run/runs /run/status
cd "$repository"
eval "$commands"
cp /etc/cron.d/conntrack-textfile /etc/cron.d/the-same-again
# Both are first in the PATH of the cron file: a count of tries that have ended, and of runs.
# The run that has the lock goes on until the other one has found it locked.
printf '#!/bin/sh\\n/usr/bin/flock "$@"\\necho >>/run/tries\\n' >/usr/local/sbin/flock
printf '#!/bin/sh\\necho >>/run/runs\\ncat /proc/self/status >/run/status
until test -s /run/tries; do /bin/sleep 0.05; done
exec /run/venv/bin/python3 -m conntrack_textfile "$@"\\n' >/usr/local/sbin/conntrack-textfile
printf '#!/bin/sh\\nexec /usr/bin/logger --socket /run/log "$@"\\n' >/usr/local/sbin/logger
: >/run/syslog
python3 -c 'import socket
sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
sock.bind("/run/log")
while True:
    message = sock.recv(9999).rstrip(bytes(1))
    with open("/run/syslog", "ab") as file:
        file.write(message + b"\\n")' &
until test -S /run/log; do sleep 0.05; done
chmod 755 /usr/local/sbin/*
sysctl --quiet --write net.netfilter.nf_conntrack_acct=$6
exec faketime '2000-01-01 00:00:58' cron -f
"""
UNSHARE = [
    *("setpriv", "--pdeathsig=KILL", "unshare", "--mount", "--propagation=private", "--net"),
    *("--pid", "--fork", "--kill-child", "--mount-proc"),
]


def test_cron_skips_a_run_while_another_is_running(venv: Path) -> None:
    need("cron", "faketime", "flock", "logger", "setpriv", root=True)
    page = (ROOT / "docs" / "write.md").read_text()
    block = re.search(r"^## cron\n.*?^```sh\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    assert block
    process = subprocess.Popen(
        [*UNSHARE, "sh", "-euc", CRON, "sh", ROOT, venv, TRAFFIC, RULES, block[1], "0"],
        stdin=subprocess.DEVNULL,
    )
    try:
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        (pid,) = until(lambda: children.read_text().split())
        root = Path(f"/proc/{pid}/root")
        file = root / STATE[1:] / "conntrack.prom"
        until(lambda: file.exists() or process.poll() is not None)
        until(lambda: len((root / "run/tries").read_text()) == 2)
        assert udp_packets(file.read_text(), 4242) == 5
        # The clock of the run is the true one.
        taken = value(file.read_text(), "conntrack_snapshot_timestamp_seconds")
        assert abs(taken - time.time()) < 600
        assert file.stat().st_mode & 0o777 == 0o644
        names = sorted(p.name for p in file.parent.iterdir())
        assert names == ["conntrack.prom", "state", "state.lock"]
        assert {(file.parent / name).stat().st_mode & 0o777 for name in names[1:]} == {0o600}
        # The next run counts from here, without events.
        assert value(file.read_text(), "conntrack_events_listening") == 0
        assert os.readlink(root / TEXTFILES[1:] / "conntrack.prom") == f"{STATE}/conntrack.prom"
        # Of root nothing is left but the one capability, and nobody else may write there.
        status = dict(
            line.split(":\t", 1) for line in (root / "run/status").read_text().splitlines()
        )
        assert status["Uid"].split() == [str(file.stat().st_uid)] * 4
        assert file.stat().st_uid == file.parent.stat().st_uid != 0
        assert file.parent.stat().st_mode & 0o777 == 0o755
        net_admin = f"{1 << 12:016x}"
        assert {status[f"Cap{part}"] for part in ("Eff", "Prm", "Inh", "Bnd", "Amb")} == {net_admin}
        assert (status["NoNewPrivs"], status["Groups"].strip()) == ("1", "")
        tries, runs = (len((root / "run" / name).read_text()) for name in ("tries", "runs"))
        assert (tries, runs) == (2, 1)
        # What the run had to say is in syslog.
        syslog = root / "run/syslog"
        said = until(lambda: "accounting is off" in syslog.read_text() and syslog.read_text())
        assert re.match(r"<28>.* conntrack-textfile: .*level=warn", said)  # daemon.warning
        assert said.count("\n") == 1
    finally:
        process.kill()
        process.wait()


@pytest.fixture
def blue(machine: Machine) -> list[str]:
    """Return the prefix that runs a program of the host in /run/netns/blue of the container."""
    need("conntrack", "ip")
    machine.run("mkdir", "-p", "/run/netns")
    machine.run("touch", "/run/netns/blue")
    machine.run("unshare", "--net=/run/netns/blue", "true")
    inside = ["nsenter", f"--net=/proc/{machine.leader}/root/run/netns/blue"]
    check(*inside, "ip", "link", "set", "lo", "up")
    timeouts = ("udp_timeout", "udp_timeout_stream", "tcp_timeout_time_wait", "tcp_timeout_close")
    settings = [f"net.netfilter.nf_conntrack_{name}=1" for name in timeouts]
    settings += [f"net.netfilter.nf_conntrack_{name}=1" for name in ("acct", "timestamp")]
    check(*inside, "sysctl", "-qw", *settings)
    check(*inside, "nft", "-f", "-", text=INSIDE)
    return inside


INSIDE = """
table inet t {
    counter sent { }
    counter reply { }
    chain c {
        type filter hook output priority 100;
        ct direction original counter name sent
        ct direction reply counter name reply
    }
}
"""


def connections_end(inside: list[str]) -> list[float]:
    """Create 3,000 connections that end. Return their number, and packets and bytes by nftables."""
    check(*inside, sys.executable, str(ROOT / "tests/traffic.py"), "1", "1500", "1500")

    def ended() -> bool:
        check(*inside, "conntrack", "-L")  # has the kernel remove what has expired
        return check(*inside, "conntrack", "-C").strip() == "0"

    until(ended)
    text = check(*inside, "nft", "list", "counters")
    found = dict(re.findall(r"counter (\w+) {\s+(packets \d+ bytes \d+)", text))
    numbers = [float(n) for name in ("sent", "reply") for n in re.findall(r"\d+", found[name])]
    return [3000, *numbers]


def carried(text: str, netns: str) -> list[float]:
    """Return the counters of a namespace: connections, and the same four."""
    names = ("connections", "sent_packets", "sent_bytes", "reply_packets", "reply_bytes")
    return [
        sum(
            float(found)
            for found in re.findall(
                rf'^conntrack_traffic_{name}_total{{netns="{netns}",.*}} (\S+)$',
                text,
                re.MULTILINE,
            )
        )
        for name in names
    ]


def test_the_timer_reads_another_namespace_without_the_capability_to_enter_it(
    machine: Machine, blue: list[str]
) -> None:
    unit = "conntrack-events@blue.socket"
    timer = f"[Unit]\nWants={unit}\n[Timer]\nOnCalendar=\nOnCalendar=*-01-01\n"
    machine.dropin(TIMER, timer)
    machine.dropin(WRITER, f"[Service]\nSockets={unit}\n")
    argv = 'ARGS="--netns=host --netns=blue"\n'
    machine.write("/etc/default/conntrack-textfile", argv)
    machine.systemctl("enable", "--now", TIMER)
    assert machine.show(unit, "ActiveState") == "active"
    text = written(machine)
    for netns in ("host", "blue"):
        assert f'conntrack_snapshot_success{{netns="{netns}"}} 1\n' in text
        assert f'conntrack_events_listening{{netns="{netns}"}} 1\n' in text
    expected = connections_end(blue)
    text = written(machine)
    assert 'conntrack_events_received_total{netns="blue"} 3000\n' in text
    assert carried(text, "blue") == [0] * 5  # so that increase() counts all of it
    assert carried(written(machine), "blue") == expected
    assert 'conntrack_events_lost_total{netns="blue"} 0\n' in text
    # The timer goes, and with it what nobody reads.
    machine.systemctl("stop", TIMER)
    until(lambda: machine.show(unit, "ActiveState") == "inactive")


def test_the_exporter_reads_another_namespace_without_the_capability_to_enter_it(
    machine: Machine, blue: list[str]
) -> None:
    unit = "conntrack-exporter-events@blue.socket"
    machine.dropin(EXPORTER, f"[Service]\nSockets={unit}\n")
    argv = 'ARGS="--netns=blue --netns=host --collector.interval=1"\n'
    machine.write("/etc/default/conntrack-exporter", argv)
    machine.systemctl("start", EXPORTER)
    until(lambda: 'conntrack_snapshot_success{netns="blue"} 1' in machine.get(METRICS))
    expected = connections_end(blue)
    machine.systemctl("restart", EXPORTER)
    until(lambda: carried(machine.get(METRICS), "blue") == expected)


def test_the_timer_can_be_given_the_capability_to_enter_namespaces(
    machine: Machine, blue: list[str]
) -> None:
    """As documented."""
    text = (ROOT / "docs" / "netns.md").read_text()
    (right,) = re.findall(r"^```\n(\[Service\]\n[^`]*CAP_SYS_ADMIN[^`]*)```", text, re.MULTILINE)
    check(*blue, "ping", "-q", "-c", "1", "127.0.0.1")
    machine.write("/etc/default/conntrack-textfile", 'ARGS="--netns=all"\n')
    machine.fails("systemctl", "start", WRITER)
    assert "no permission to enter /run/netns/blue" in machine.journal(WRITER)
    machine.dropin(WRITER, right)
    assert 'conntrack_snapshot_success{netns="blue"} 1\n' in written(machine)
