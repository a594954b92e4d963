from __future__ import annotations

from pathlib import Path

import pytest

from conntrack_textfile.errors import UsageError
from conntrack_textfile.filters import Filter
from conntrack_textfile.names import SERVICES
from conntrack_textfile.networks import Network
from conntrack_textfile.options import Address, Options, parse
from conntrack_textfile.policy import Policy


def test_the_defaults() -> None:
    assert parse(["serve"]) == Options(
        command="serve",
        file="-",
        file_mode=0o644,
        file_group=None,
        rows=20,
        watch=False,
        interval=60.0,
        source="auto",
        configure_accounting=False,
        proc_root="/proc",
        policy=Policy(),
        listen=(Address("", 9095),),
        telemetry_path="/metrics",
        exporter_metrics=True,
        max_requests=40,
        web_config="",
        systemd_socket=False,
        log_level="info",
        log_format="logfmt",
    )


def test_every_option_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("NETWORKS").write_text("\ufeff10.0.0.0/8 office\n")
    Path("SERVICES").write_text("billing 4711/tcp\n")
    given = parse(
        [
            "write",
            "--collector.interval=1.5",
            "--collector.source=procfs",
            "--configure.nf_conntrack_acct",
            "--filter.include=src=10.0.0.0/8,dport=53",
            "--filter.include=l3protocol=ipv6",
            "--filter.exclude=dst=127.0.0.0/8",
            "--aggregate.by=dport,src",
            "--aggregate.src-prefix=24",
            "--aggregate.dst-prefix=16,48",
            "--aggregate.ports=known",
            "--networks.file=NETWORKS",
            "--services.file=SERVICES",
            "--limit.keys=0",
            "--limit.by=packets",
            "--file.mode=0640",
            "--file.group=root",
            "--path.procfs=/host/proc",
            "--web.listen-address=127.0.0.1:1",
            "--web.listen-address=[::1]:2",
            "--web.telemetry-path=/m",
            "--web.disable-exporter-metrics",
            "--web.max-requests=0",
            "--web.config.file=web.yml",
            "--web.systemd-socket",
            "--watch",
            *("-n", "5"),
            "--log.level=debug",
            "--log.format=json",
            "out.prom",
        ]
    )
    assert given == Options(
        command="write",
        file="out.prom",
        file_mode=0o640,
        file_group=0,
        rows=5,
        watch=True,
        interval=1.5,
        source="procfs",
        configure_accounting=True,
        proc_root="/host/proc",
        policy=Policy(
            include=(
                Filter(src=Network(4, 8, 10), dport=range(53, 54)),
                Filter(l3protocol=16),
            ),
            exclude=(Filter(dst=Network(4, 8, 127)),),
            labels=("src", "dport"),
            src_prefix=(24, 128),
            dst_prefix=(16, 48),
            known_ports=True,
            networks=((4, 8, {10: "office"}),),
            services={**SERVICES, 6: {**SERVICES[6], 4711: "billing"}},
            limit=0,
            limit_by="packets",
        ),
        listen=(Address("127.0.0.1", 1), Address("::1", 2)),
        telemetry_path="/m",
        exporter_metrics=False,
        max_requests=0,
        web_config="web.yml",
        systemd_socket=True,
        log_level="debug",
        log_format="json",
    )


def test_an_empty_web_config_file_is_none() -> None:
    assert parse(["serve", "--web.config.file="]).web_config == ""


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        (":9095", "", 9095),
        ("127.0.0.1:9095", "127.0.0.1", 9095),
        ("[::1]:9095", "::1", 9095),
        ("[fe80::1%eth0]:9095", "fe80::1%eth0", 9095),
        ("host.example:0", "host.example", 0),
        (":65535", "", 65535),
    ],
)
def test_addresses(text: str, host: str, port: int) -> None:
    (address,) = parse(["serve", f"--web.listen-address={text}"]).listen
    assert address == Address(host, port)
    assert str(address) == text


@pytest.mark.parametrize(
    ("argv", "named"),
    [
        (["--collector.interval=0"], "--collector.interval"),
        (["--collector.interval=abc"], "--collector.interval"),
        (["--collector.interval=-1"], "--collector.interval"),
        (["--collector.interval=nan"], "--collector.interval"),
        (["--collector.interval=1e3"], "--collector.interval"),
        (["--collector.interval=٣"], "--collector.interval"),
        (["--collector.interval=1\n"], "--collector.interval"),
        (["--collector.interval=" + "9" * 400], "--collector.interval"),
        (["--collector.source=file"], "--collector.source"),
        (["--log.level=loud"], "--log.level"),
        (["--log.format=xml"], "--log.format"),
        (["-n", "x"], "-n must be a whole number"),
        (["-n"], "-n requires argument"),
        (["--limit.keys=-1"], "--limit.keys"),
        (["--limit.keys=many"], "--limit.keys"),
        (["--limit.by=size"], "--limit.by"),
        (["--aggregate.by=src,sport"], "not 'sport'"),
        (["--aggregate.by=src,"], "not ''"),
        (["--aggregate.by=src,dst,src"], "--aggregate.by has src twice"),
        (["--aggregate.src-prefix=33"], "--aggregate.src-prefix"),
        (["--aggregate.src-prefix=24,129"], "--aggregate.src-prefix"),
        (["--aggregate.dst-prefix=24,"], "--aggregate.dst-prefix"),
        (["--aggregate.dst-prefix=,64"], "--aggregate.dst-prefix"),
        (["--aggregate.ports=some"], "--aggregate.ports"),
        (["--filter.include=src=10.0.0.1/8"], "--filter.include: 'src=10.0.0.1/8'"),
        (["--filter.exclude=dst=::/0,dport=x"], "'dport=x' in 'dst=::/0,dport=x'"),
        (["--networks.file=/nowhere"], "--networks.file: cannot read /nowhere: No such file"),
        (["--networks.file=/"], "--networks.file: cannot read /: Is a directory"),
        (["--networks.file="], "--networks.file must not be empty"),
        (["--web.listen-address=:70000"], "--web.listen-address"),
        (["--web.listen-address=9095"], "--web.listen-address"),
        (["--web.listen-address=::1:9095"], "--web.listen-address"),
        (["--web.listen-address=[::g]:9095"], "--web.listen-address"),
        (["--web.listen-address=[]:9095"], "--web.listen-address"),
        (["--web.listen-address=:"], "--web.listen-address"),
        (["--web.listen-address=:1", "--web.listen-address=x"], "--web.listen-address"),
        (["--web.telemetry-path=metrics"], "--web.telemetry-path"),
        (["--web.telemetry-path=/a b"], "--web.telemetry-path"),
        (["--web.telemetry-path=/a?b"], "--web.telemetry-path"),
        (["--web.telemetry-path="], "--web.telemetry-path"),
        (["--web.max-requests=-1"], "--web.max-requests"),
        (["--web.max-requests=1.5"], "--web.max-requests"),
        (["--path.procfs="], "--path.procfs"),
        (["--file.mode=0666"], "--file.mode must be in octal, such as 0640"),
        (["--file.mode=0755"], "--file.mode"),
        (["--file.mode=4640"], "--file.mode"),
        (["--file.mode=40"], "--file.mode"),
        (["--file.mode=0o640"], "--file.mode"),
        (["--file.mode=u=rw"], "--file.mode"),
        (["--file.mode=٦٤٠"], "--file.mode"),
        (["--file.group="], "--file.group must not be empty"),
        (["--file.group=no-such-group"], "--file.group: there is no group 'no-such-group'"),
        (["--log.level=info", "--log.level=info"], "--log.level may be given only once"),
        (["--log.level"], "--log.level requires argument"),
        (["--web.disable-exporter-metrics=1"], "--web.disable-exporter-metrics"),
        (["--web."], "--web. is not an option"),
        (["--web.telemetry-path=/-/healthy"], "--web.telemetry-path"),
        (["--web.telemetry-path=//m"], "--web.telemetry-path"),
        (["--nope"], "--nope is not an option"),
        (["--nope=1"], "--nope is not an option"),
        (["-x"], "-x is not an option"),
        (["one", "two"], "unexpected argument"),
        ([""], "FILE"),
    ],
)
def test_what_is_not_valid_is_named(argv: list[str], named: str) -> None:
    with pytest.raises(UsageError) as error:
        parse(["write", *argv])
    assert named in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("argv", "named"),
    [
        ([], "write, serve or top"),
        (["read"], "unexpected argument 'read'"),
        (["serve", "x"], "'x'"),
        (["top", "x"], "'x'"),
    ],
)
def test_a_command_is_needed(argv: list[str], named: str) -> None:
    with pytest.raises(UsageError, match=named):
        parse(argv)


@pytest.mark.parametrize(
    ("option", "content", "named"),
    [
        ("networks", b"10.0.0.0/8 a\n10.0.0.1/8 b\n", "line 2: '10.0.0.1/8' has host bits set"),
        ("networks", b"10.0.0.0/8 \xff\n", "not text in UTF-8"),
        ("networks", b"#" * ((1 << 24) + 1), "too large, over 16 MiB"),
        ("services", b"\n\nweb 70000/tcp\n", "line 3: 70000 is not a port"),
        ("networks", b"10.0.0.0/8 " + b"n" * (1 << 23), "longer than 255 bytes"),
        ("services", b"n" * (1 << 23) + b" 1/tcp\n", "longer than 255 bytes"),
        ("networks", b"n" * (1 << 23) + b" 10.0.0.0/8\n", "line 1: 'nnnn"),
    ],
)
def test_a_bad_file_is_named_with_its_line(
    tmp_path: Path, option: str, content: bytes, named: str
) -> None:
    file = tmp_path / "names"
    file.write_bytes(content)
    with pytest.raises(UsageError) as error:
        parse(["write", f"--{option}.file={file}"])
    assert named in str(error.value)
    assert len(str(error.value)) < 500  # it does not say the whole file again
    assert str(file) in str(error.value)
    assert str(error.value).startswith(f"--{option}.file: ")
    assert "\n" not in str(error.value)


def test_top_is_taken_every_two_seconds_where_nothing_else_is_said() -> None:
    assert parse(["top"]).interval == 2
    assert parse(["top", "--watch", "--collector.interval=60"]).interval == 60
