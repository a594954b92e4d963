from __future__ import annotations

import pytest

from conntrack_textfile.options import Address, Options, UsageError, parse


def test_the_defaults() -> None:
    assert parse(["serve"]) == Options(
        serve=True,
        file="-",
        interval=60.0,
        source="auto",
        configure_accounting=False,
        proc_root="/proc",
        listen=(Address("", 9095),),
        telemetry_path="/metrics",
        exporter_metrics=True,
        max_requests=40,
        log_level="info",
        log_format="logfmt",
    )


def test_every_option_is_taken() -> None:
    given = parse(
        [
            "write",
            "--collector.interval=1.5",
            "--collector.source=procfs",
            "--configure.nf_conntrack_acct",
            "--path.procfs=/host/proc",
            "--web.listen-address=127.0.0.1:1",
            "--web.listen-address=[::1]:2",
            "--web.telemetry-path=/m",
            "--web.disable-exporter-metrics",
            "--web.max-requests=0",
            "--log.level=debug",
            "--log.format=json",
            "out.prom",
        ]
    )
    assert given == Options(
        serve=False,
        file="out.prom",
        interval=1.5,
        source="procfs",
        configure_accounting=True,
        proc_root="/host/proc",
        listen=(Address("127.0.0.1", 1), Address("::1", 2)),
        telemetry_path="/m",
        exporter_metrics=False,
        max_requests=0,
        log_level="debug",
        log_format="json",
    )


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
        (["--log.level=info", "--log.level=info"], "--log.level may be given only once"),
        (["--log.level"], "--log.level requires argument"),
        (["--web.disable-exporter-metrics=1"], "--web.disable-exporter-metrics"),
        (["--web."], "--web. is not an option"),
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
    [([], "write or serve"), (["read"], "unexpected argument 'read'"), (["serve", "x"], "'x'")],
)
def test_a_command_is_needed(argv: list[str], named: str) -> None:
    with pytest.raises(UsageError, match=named):
        parse(argv)
