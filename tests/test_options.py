from __future__ import annotations

import grp
import math
import re
import shlex
from pathlib import Path

import docopt
import pytest

from conntrack_textfile import __version__
from conntrack_textfile.aggregate import Limit
from conntrack_textfile.errors import UsageError
from conntrack_textfile.filters import Filter, Mark
from conntrack_textfile.labels import ROWS
from conntrack_textfile.networks import Network, Prefix
from conntrack_textfile.options import _ROWS, Options, parse, usage
from conntrack_textfile.options import described as options_of
from conntrack_textfile.plan import NameFiles, Plan
from conntrack_textfile.services import SERVICES
from conntrack_textfile.values import Address

COMMANDS = ("write", "serve", "top", "check")


def test_every_option_of_the_usage_text_has_a_row() -> None:
    named = {option.names[-1] for command in COMMANDS for option in options_of(command)}
    assert {*_ROWS} == named - {"--help", "--version"} | {"FILE"}


def test_values_of_a_repeated_option_are_kept_in_order(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).write_text(f"192.0.2.1 {name}\n")
    files = tuple(f"{tmp_path}/{name}" for name in "aba")
    options = parse(["write", *[f"--hosts.file={file}" for file in files]])
    assert options.names.hosts == files
    assert list(options.plan.hosts.values()) == ["a"]  # the last one wins
    assert parse(["write", "--netns=a", "--netns=b", "--netns=a"]).netns == ("a", "b")


def test_the_defaults_of_every_command() -> None:
    common = Options(
        command="",
        source="auto",
        configure_accounting=False,
        proc_root="/proc",
        plan=Plan(),
        limit=Limit(keys=10000, by="bytes"),
        log_level="info",
        log_format="logfmt",
        families=("live", "traffic"),
    )
    assert parse(["write"]) == common._replace(
        command="write", file="-", file_mode=0o644, file_group=None
    )
    assert parse(["serve"]) == common._replace(
        command="serve",
        interval=60.0,
        event_buffer=1 << 25,
        listen=(Address("", 9095),),
        telemetry_path="/metrics",
        exporter_metrics=True,
        max_requests=40,
        web_config="",
        systemd_socket=False,
    )
    assert parse(["top"]) == common._replace(command="top", interval=2.0, rows=None, watch=False)
    # As write and serve, except for FILE and addresses that were not given.
    assert parse(["check"]) == parse(["serve"])._replace(command="check", file="", listen=())


def test_every_command_accepts_the_common_options(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("NETWORKS").write_text("\ufeff10.0.0.0/8 office\n")
    Path("SERVICES").write_text("billing 4711/tcp\n")
    Path("HOSTS").write_text("192.0.2.1 nas\n192.0.2.2 tv\n10.0.0.1 folded\n")
    Path("LEASES").write_text("4102444800 02:00:00:00:00:01 192.0.2.2 laptop *\n")
    argv = [
        "--collector.source=netlink",
        "--configure.nf_conntrack_acct",
        "--filter.include=src=10.0.0.0/8,dport=53",
        "--filter.include=l3protocol=ipv6",
        "--filter.include=zone=7,mark=0x10/0xf0",
        "--filter.exclude=dst=127.0.0.0/8",
        "--filter.exclude=egress=192.0.2.1,backend=fd00::/8",
        "--aggregate.by=dport,mark,src",
        "--aggregate.src-prefix=24",
        "--aggregate.dst-prefix=16,48",
        "--aggregate.ports=known",
        "--aggregate.mark-mask=0xff",
        "--networks.file=NETWORKS",
        "--services.file=SERVICES",
        "--hosts.file=HOSTS",
        "--hosts.file=LEASES",
        "--limit.keys=0",
        "--limit.by=packets",
        "--netns=blue",
        "--netns=pid:7",
        "--netns=host",
        "--netns=blue",
        "--path.procfs=/host/proc",
        "--log.level=debug",
        "--log.format=json",
        "--collector.families=traffic",
        "--collector.nat=off",
        "--nat.destinations=3",
    ]
    common = Options(
        command="",
        source="netlink",
        netns=("blue", "pid:7", "host"),
        configure_accounting=True,
        proc_root="/host/proc",
        plan=Plan(
            include=(
                Filter(src=Network(4, 8, 10), dport=range(53, 54)),
                Filter(l3protocol=6),
                Filter(zone=7, mark=Mark(0x10, 0xF0)),
            ),
            exclude=(
                Filter(dst=Network(4, 8, 127)),
                Filter(egress=Network(4, 32, 0xC0000201), backend=Network(16, 8, 0xFD)),
            ),
            labels=("src", "dport", "mark"),
            src_prefix=Prefix(24, 128),
            dst_prefix=Prefix(16, 48),
            known_ports=True,
            networks=((4, 8, {10: "office"}),),
            hosts={bytes([192, 0, 2, 1]): "nas", bytes([192, 0, 2, 2]): "laptop"},
            services={**SERVICES, 6: {**SERVICES[6], 4711: "billing"}},
            mark_mask=0xFF,
            nat=False,
        ),
        limit=Limit(keys=0, by="packets", destinations=3),
        log_level="debug",
        log_format="json",
        families=("traffic",),
        names=NameFiles("NETWORKS", "SERVICES", ("HOSTS", "LEASES")),
        names_until=4102444800,
    )
    group = grp.getgrgid(0)
    of_write = ["--file.mode=0640", f"--file.group={group.gr_name}", "out.prom"]
    of_write.append("--state.file=/run/state")
    assert parse(["write", *argv, *of_write]) == common._replace(
        command="write",
        file="out.prom",
        file_mode=0o640,
        file_group=group.gr_gid,
        state_file="/run/state",
    )
    of_serve = [
        "--collector.interval=1.5",
        "--collector.event-buffer=4096",
        "--state.file=/var/lib/state",
        "--web.listen-address=127.0.0.1:1",
        "--web.listen-address=[::1]:2",
        "--web.telemetry-path=/m",
        "--web.disable-exporter-metrics",
        "--web.max-requests=0",
        "--web.config.file=web.yml",
        "--web.systemd-socket",
    ]
    assert parse(["serve", *argv, *of_serve]) == common._replace(
        command="serve",
        interval=1.5,
        event_buffer=4096,
        state_file="/var/lib/state",
        listen=(Address("127.0.0.1", 1), Address("::1", 2)),
        telemetry_path="/m",
        exporter_metrics=False,
        max_requests=0,
        web_config="web.yml",
        systemd_socket=True,
    )
    # Of both, and what is in the files of names is seen by what is checked.
    both = list(dict.fromkeys([*of_write[:-1], *of_serve]))
    assert parse(["check", *argv, *both]) == parse(["serve", *argv, *of_serve])._replace(
        command="check",
        file="out.prom",
        file_mode=0o640,
        file_group=group.gr_gid,
        plan=common.plan._replace(networks=(), services=SERVICES, hosts={}),
        names_until=math.inf,
    )
    of_top = ["--collector.interval=60", "--watch", "-n", "5"]
    assert parse(["top", *argv, *of_top]) == common._replace(
        command="top", interval=60.0, watch=True, rows=5
    )
    # Nothing that the usage text knows was forgotten above.
    given = {word.partition("=")[0] for word in [*argv, *of_write, *of_serve, *of_top]}
    assert described(*COMMANDS) - given == {"-h", "-v"}


def described(*commands: str) -> set[str]:
    """Return the options of a usage text by their first names."""
    return set(re.findall(r"^  (--?[\w.-]+)", usage(*commands), re.MULTILINE))


def test_the_options_of_a_command_are_those_of_its_usage_text() -> None:
    for command in COMMANDS:
        rows = options_of(command)
        assert {row.names[0] for row in rows} == described(command)
        assert all(row.text and "[default" not in row.text for row in rows)
    by_name = {row.names[-1]: row for row in options_of("write")}
    assert by_name["--log.level"].value == "LEVEL"
    assert by_name["--aggregate.src-prefix"].value == "V4[,V6]"
    assert by_name["--version"].names == ("-v", "-V", "--version")
    assert {row.names[0]: row.value for row in options_of("top")}["-n"] == "N"


def test_check_takes_each_option_of_write_and_serve_once() -> None:
    text = usage("check")
    both = described("write") | described("serve")
    assert described("check") == both
    for name in both - {"-h", "-v"}:
        assert len(re.findall(rf"^  {name}[= ]", text, re.MULTILINE)) == 1


@pytest.mark.parametrize("command", COMMANDS)
def test_the_options_may_stand_before_the_command(command: str) -> None:
    expected = parse([command, "--log.level=debug", "--path.procfs=/p", "--limit.keys=5"])
    for line in (
        f"--log.level=debug --path.procfs=/p {command} --limit.keys=5",
        f"--log.level debug --path.procfs /p --limit.keys 5 {command}",
    ):
        assert parse(shlex.split(line)) == expected


@pytest.mark.parametrize(
    ("line", "command", "proc_root"),
    [
        ("--path.procfs top write", "write", "top"),
        ("--path.procfs write top", "top", "write"),
        ("--path.procfs=top serve", "serve", "top"),
        ("--path.p top serve", "serve", "top"),
        ("--configure.nf_conntrack_acct write --path.procfs=serve top", "write", "serve"),
        ("-n 5 top --path.procfs=/p", "top", "/p"),
        ("-n5 top --path.procfs /p", "top", "/p"),
    ],
)
def test_a_value_is_not_taken_for_the_command(line: str, command: str, proc_root: str) -> None:
    options = parse(shlex.split(line))
    assert (options.command, options.proc_root) == (command, proc_root)


@pytest.mark.parametrize("words", [["-x.prom"], ["x.prom"], ["-"], []])
def test_two_dashes_end_the_options(words: list[str]) -> None:
    for command in ("write", "check"):
        default = "-" if command == "write" else ""
        assert parse([command, "--limit.keys=5", "--", *words]).file == (words or [default])[0]


def test_a_file_may_be_called_like_a_command() -> None:
    for name in COMMANDS:
        assert parse(["write", name]).file == name


@pytest.mark.parametrize(
    ("line", "error"),
    [
        ("write --watch", "--watch is an option of top, not of write"),
        ("write -n 5", "-n is an option of top, not of write"),
        ("serve -n 5", "-n is an option of top, not of serve"),
        ("serve -n5", "-n is an option of top, not of serve"),
        ("--watch write", "--watch is an option of top, not of write"),
        ("write --web.config.file=x", "--web.config.file is an option of serve, not of write"),
        ("write --web.config.file x", "--web.config.file is an option of serve, not of write"),
        ("top --web.systemd-socket", "--web.systemd-socket is an option of serve, not of top"),
        ("top --file.mode=0600", "--file.mode is an option of write, not of top"),
        ("serve --file.group adm", "--file.group is an option of write, not of serve"),
        ("serve --file.mode=0600 --log.level=loud", "--file.mode is an option of write"),
        (
            "write --collector.interval=5",
            "--collector.interval is an option of serve and top, not of write",
        ),
    ],
)
def test_an_option_of_another_command_is_an_error(line: str, error: str) -> None:
    with pytest.raises(UsageError) as raised:
        parse(shlex.split(line))
    assert str(raised.value).startswith(error)


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("flag", ["-h", "--help"])
def test_help_of_a_command_is_about_it_alone(
    command: str, flag: str, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        parse([command, flag])
    assert not ended.value.code
    assert capfd.readouterr().out == usage(command)
    for other in COMMANDS:
        assert (f"  conntrack-textfile {other} " in usage(command)) == (other == command)
        assert (f"\n{other.title()} options:\n" in usage(command)) == (other == command)
        examples = usage(command).partition("\nExamples:\n")[2]
        assert (f"  conntrack-textfile {other}" in examples) == (other == command)


def test_help_without_a_command_is_about_all(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse(["--help"])
    assert capfd.readouterr().out == usage(*COMMANDS)
    for command in COMMANDS:
        assert described(command) < described(*COMMANDS)


@pytest.mark.parametrize(
    ("line", "asked"),
    [
        ("write --hel", "help"),
        ("top -vh", "help"),
        ("write --nope --help", "help"),
        ("-n 5 --vers", "version"),
        ("write -V x y", "version"),
        ("write --path.procfs -V", ""),
        ("write --path.procfs=-h", ""),
    ],
)
def test_help_and_version_take_precedence_over_errors(
    line: str, asked: str, capfd: pytest.CaptureFixture[str]
) -> None:
    if not asked:
        parse(shlex.split(line))
        return
    with pytest.raises(SystemExit):
        parse(shlex.split(line))
    assert ("Usage:" in capfd.readouterr().out) == (asked == "help")


def test_the_version_is_printed(capfd: pytest.CaptureFixture[str]) -> None:
    for argv in (["-v"], ["-V"], ["--version"], ["write", "--version"], ["top", "-V"]):
        with pytest.raises(SystemExit):
            parse(argv)
        assert capfd.readouterr().out == f"conntrack-textfile {__version__}\n"


def test_the_usage_text_fits_a_terminal_and_docopt_reads_all_of_it() -> None:
    wide = [line for line in usage(*COMMANDS).splitlines() if len(line) > 80]
    assert wide == []
    for command in COMMANDS:
        read = set(docopt.docopt(usage(command), [command]))
        assert {name for name in read if name.startswith("-")} - {"-v"} == {
            {"-h": "--help", "-v": "--version"}.get(name, name) for name in described(command)
        }


@pytest.mark.parametrize("command", COMMANDS)
def test_the_description_of_a_repeatable_option_says_so(command: str) -> None:
    values = {"EXPR": "dport=1", "ADDR": ":1"}
    for option in options_of(command):
        name = option.names[-1]
        if option.value and not option.names[-1].startswith("-n"):
            argv = [command, *[f"{name}={values.get(option.value, '/dev/null')}"] * 2]
            try:
                parse(argv)
            except UsageError as error:
                again = "only once" not in str(error)
            else:
                again = True
            assert again == ("repeated" in option.text), name
    assert "]..." not in usage(*COMMANDS)


def test_the_usage_text_names_every_label_and_condition() -> None:
    text = usage("write")
    assert f"[default: {','.join(row.name for row in ROWS if row.default)}]" in text
    by = " ".join(text.partition("--aggregate.by=")[2].partition("--aggregate.src")[0].split())
    for row in ROWS:
        assert re.search(rf"\b{row.name}\b", by)
        assert (f" {row.name}=" in text) == (row.filter is not None)


@pytest.mark.parametrize(
    "name", ["blue", "host", "all", "pid:1", "/run/x/y", "./x", "qrouter-1", "Zürich", "pid", "x:y"]
)
def test_names_of_namespaces(name: str) -> None:
    assert parse(["write", f"--netns={name}"]).netns == (name,)


def test_the_namespace_of_the_process_can_be_read_from_procfs() -> None:
    options = parse(["write", "--netns=host", "--collector.source=procfs"])
    assert (options.netns, options.source) == (("host",), "procfs")


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
        (["serve", "--collector.interval=0"], "--collector.interval"),
        (["serve", "--collector.interval=abc"], "--collector.interval"),
        (["serve", "--collector.interval=-1"], "--collector.interval"),
        (["serve", "--collector.interval=nan"], "--collector.interval"),
        (["serve", "--collector.interval=1e3"], "--collector.interval"),
        (["serve", "--collector.interval=٣"], "--collector.interval"),
        (["serve", "--collector.interval=1\n"], "--collector.interval"),
        (["serve", "--collector.interval=" + "9" * 400], "--collector.interval"),
        (["write", "--collector.source=file"], "--collector.source"),
        (["write", "--log.level=loud"], "--log.level"),
        (["write", "--log.format=xml"], "--log.format"),
        (["top", "-n", "x"], "-n must be a whole number"),
        (["top", "-n"], "-n requires argument"),
        (["write", "--limit.keys=-1"], "--limit.keys"),
        (["write", "--limit.keys=many"], "--limit.keys"),
        (["write", "--limit.keys=1000000000"], "a whole number, 0 to 999999999, not '1000000000'"),
        (["serve", "--collector.interval=1000000000"], "above 0 and below 1000000000 seconds"),
        (["write", "--state.file=a.prom", "a.prom"], "both a.prom: name two files"),
        (["write", "--state.file=a", "./a.lock"], "both ./a.lock: name two files"),
        (["check", "--state.file=./a.prom", "a.prom"], "both a.prom: name two files"),
        (["serve", "--"], "unexpected argument '--'"),
        (["write", "--", "one", "two"], "unexpected argument 'two'"),
        (["write", "--limit.by=size"], "--limit.by"),
        (["write", "--aggregate.by=src,sport"], "not 'sport'"),
        (["write", "--aggregate.by=src,"], "not ''"),
        (["write", "--aggregate.by=src,dst,src"], "--aggregate.by has src twice"),
        (["write", "--aggregate.src-prefix=33"], "--aggregate.src-prefix"),
        (["write", "--aggregate.src-prefix=24,129"], "--aggregate.src-prefix"),
        (["write", "--aggregate.dst-prefix=24,"], "--aggregate.dst-prefix"),
        (["write", "--aggregate.dst-prefix=,64"], "--aggregate.dst-prefix"),
        (["write", "--aggregate.ports=some"], "--aggregate.ports"),
        (["write", "--filter.include=src=10.0.0.1/8"], "--filter.include: 'src=10.0.0.1/8'"),
        (["write", "--filter.exclude=dst=::/0,dport=x"], "'dport=x' in 'dst=::/0,dport=x'"),
        (
            ["write", "--networks.file=/nowhere"],
            "--networks.file: cannot read /nowhere: No such file",
        ),
        (["write", "--networks.file=/"], "--networks.file: cannot read /: Is a directory"),
        (["write", "--networks.file="], "--networks.file must not be empty"),
        (
            ["write", "--hosts.file=/etc/hosts", "--hosts.file=/nowhere"],
            "--hosts.file: cannot read /nowhere: No such file",
        ),
        (["write", "--hosts.file=/"], "--hosts.file: cannot read /: Is a directory"),
        (["write", "--hosts.file="], "--hosts.file must not be empty"),
        (["serve", "--web.listen-address=:70000"], "--web.listen-address"),
        (["serve", "--web.listen-address=9095"], "--web.listen-address"),
        (["serve", "--web.listen-address=::1:9095"], "--web.listen-address"),
        (["serve", "--web.listen-address=[::g]:9095"], "--web.listen-address"),
        (["serve", "--web.listen-address=[]:9095"], "--web.listen-address"),
        (["serve", "--web.listen-address=:"], "--web.listen-address"),
        (["serve", "--web.listen-address=:1", "--web.listen-address=x"], "--web.listen-address"),
        (["serve", "--web.telemetry-path=metrics"], "--web.telemetry-path"),
        (["serve", "--web.telemetry-path=/a b"], "--web.telemetry-path"),
        (["serve", "--web.telemetry-path=/a?b"], "--web.telemetry-path"),
        (["serve", "--web.telemetry-path="], "--web.telemetry-path"),
        (["serve", "--web.max-requests=-1"], "--web.max-requests"),
        (["serve", "--web.max-requests=1.5"], "--web.max-requests"),
        (["write", "--path.procfs="], "--path.procfs"),
        (["write", "--log.level=info", "--log.level=info"], "--log.level may be given only once"),
        (["write", "--log.level"], "--log.level requires argument"),
        (["serve", "--web.disable-exporter-metrics=1"], "--web.disable-exporter-metrics"),
        (["serve", "--web."], "--web. is not an option"),
        (["serve", "--web.telemetry-path=/-/healthy"], "--web.telemetry-path"),
        (["serve", "--web.telemetry-path=//m"], "--web.telemetry-path"),
        (["write", "--nope"], "--nope is not an option"),
        (["write", "--nope=1"], "--nope is not an option"),
        (["write", "-x"], "-x is not an option"),
        (["write", "one", "two"], "unexpected argument"),
        (["write", ""], "FILE"),
        (["write", "--aggregate.by=src,netns"], "not 'netns'"),
        (["write", "--netns="], "--netns must be a name under /run/netns"),
        (["write", "--netns=.."], "--netns must be a name under /run/netns"),
        (["write", "--netns=pid:"], "--netns must be a name under /run/netns"),
        (["write", "--netns=pid:0"], "--netns must be a name under /run/netns"),
        (["write", "--netns=pid:1x"], "--netns must be a name under /run/netns"),
        (["write", "--netns=a\nb"], "--netns must be a name under /run/netns"),
        (["write", "--netns=\udcff"], "--netns must be a name under /run/netns"),
        (["write", f"--netns={'x' * 256}"], "--netns must be a name under /run/netns"),
        (["write", "--netns=blue", "--collector.source=procfs"], "--collector.source=netlink"),
        (["write", "--aggregate.mark-mask=x"], "--aggregate.mark-mask: a mark is a number"),
        (["write", "--aggregate.mark-mask=0x100000000"], "--aggregate.mark-mask"),
        (["write", "--aggregate.mark-mask="], "--aggregate.mark-mask"),
        (["write", "--filter.include=zone=65536"], "--filter.include: 'zone=65536': a zone is"),
        (["write", "--filter.exclude=mark=0x10/0x01"], "the mark has bits outside of its mask"),
        (["write", "--filter.exclude=egress=lan"], "--filter.exclude: 'egress=lan': 'lan' is not"),
        (["write", "--filter.exclude=backend=10.0.0.1/8"], "the network is 10.0.0.0/8"),
        (["write", "--file.mode=644x"], "--file.mode must be in octal"),
        (["write", "--file.mode=888"], "--file.mode must be in octal"),
        (["write", "--file.mode=0666"], "--file.mode must be in octal"),
        (["write", "--file.mode=0755"], "--file.mode must be in octal"),
        (["write", "--file.mode=44"], "--file.mode must be in octal"),
        (["write", "--file.mode=4644"], "--file.mode must be in octal"),
        (["write", "--file.mode="], "--file.mode must be in octal"),
        (["write", "--file.mode=0600", "--file.mode=0640"], "--file.mode may be given only once"),
        (["write", "--file.group=no-such-group"], "--file.group: there is no group 'no-such"),
        (["write", "--file.group="], "--file.group must not be empty"),
        (["write", "--configure.nf_conntrack_acct=1"], "must not have an argument"),
        (["top", "--collector.interval=0"], "--collector.interval"),
        (["top", "--watch", "--watch"], "--watch may be given only once"),
        (["top", "-n", "5", "-n", "6"], "-n may be given only once"),
    ],
)
def test_an_invalid_value_is_an_error_that_names_it(argv: list[str], named: str) -> None:
    with pytest.raises(UsageError) as error:
        parse(argv)
    assert named in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("argv", "named"),
    [
        ([], "write, serve, top and check"),
        (["read"], "unexpected argument 'read': the commands are write, serve, top and check"),
        (["--watch"], "write, serve, top and check"),
        (["--log.level=debug"], "write, serve, top and check"),
        (["--state.file=x"], "write, serve, top and check"),  # of two commands
        (["-n5", "--path.p", "write"], "write, serve, top and check"),
        (["--nope"], "--nope is not an option"),
        (["nope", "write"], "unexpected argument 'nope'"),
        (["top", "write"], "unexpected argument 'write'"),
        (["serve", "x"], "'x'"),
        (["top", "x"], "'x'"),
    ],
)
def test_a_command_is_required(argv: list[str], named: str) -> None:
    with pytest.raises(UsageError, match=named):
        parse(argv)


@pytest.mark.parametrize(
    ("line", "meant"),
    [
        ("wirte", "unexpected argument 'wirte': did you mean write?"),
        ("chek", "unexpected argument 'chek': did you mean check?"),
        ("--pathprocfs=/x write", "--pathprocfs is not an option: did you mean --path.procfs?"),
        ("--wach", "--wach is not an option: did you mean --watch?"),
        ("write --colector.source=x", "--colector.source is not an option: did you mean --coll"),
        ("serve --listen-address=:1", "did you mean --web.listen-address?"),
        ("write --limit-keys 5", "--limit-keys is not an option: did you mean --limit.keys?"),
        ("check --web-config.file=x", "did you mean --web.config.file?"),
    ],
)
def test_a_misspelt_word_gets_a_suggestion(line: str, meant: str) -> None:
    with pytest.raises(UsageError) as error:
        parse(shlex.split(line))
    assert meant in str(error.value)
    assert "\n" not in str(error.value)


def test_there_is_no_suggestion_without_a_close_match_in_the_command() -> None:
    for line in ("write --xyzzy", "xyzzy", "--xyzzy", "write --wach"):
        with pytest.raises(UsageError) as error:
            parse(shlex.split(line))
        assert "did you mean" not in str(error.value), line


def test_a_space_in_a_filter_is_reported_as_a_space() -> None:
    with pytest.raises(UsageError, match=r"--filter.include: 'src=10.0.0.0/8, dport=53' has a sp"):
        parse(["write", "--filter.include=src=10.0.0.0/8, dport=53"])
    # Where something split it there, as systemd does, its rest is in the place of FILE.
    with pytest.raises(UsageError) as error:
        parse(["write", "--filter.include=src=10.0.0.0/8,", "dport=53", "/a.prom"])
    assert str(error.value) == "unexpected argument '/a.prom': FILE is 'dport=53' already"


@pytest.mark.parametrize(
    ("option", "content", "named"),
    [
        ("networks", b"10.0.0.0/8 a\n10.0.0.1/8 b\n", "line 2: '10.0.0.1/8' has host bits set"),
        ("networks", b"10.0.0.0/8 \xff\n", "not text in UTF-8"),
        ("networks", b"#" * ((1 << 24) + 1), "too large, over 16 MiB"),
        ("hosts", b"10.0.0.1 a\n10.0.0 b\n", "line 2: '10.0.0' is not an address"),
        ("hosts", b"10.0.0.1 a\n" + b"x" * 1000, f"line 2: '{'x' * 200}"),
        ("services", b"\n\nweb 70000/tcp\n", "line 3: 70000 is not a port"),
        ("services", b"web 80/" + b"x" * 1000, f"line 1: '{'x' * 200}"),
    ],
)
def test_an_invalid_file_is_reported_with_its_line(
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
    assert len(str(error.value)) < 350 + len(str(file))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "mode"),
    [("0644", 0o644), ("644", 0o644), ("0600", 0o600), ("0660", 0o660), ("440", 0o440)],
)
def test_modes_are_octal(text: str, mode: int) -> None:
    assert parse(["write", f"--file.mode={text}"]).file_mode == mode


@pytest.mark.parametrize(
    ("text", "mask"), [("0xff00", 0xFF00), ("255", 255), ("0", 0), ("0XFFFFFFFF", 0xFFFFFFFF)]
)
def test_masks_of_marks(text: str, mask: int) -> None:
    assert parse(["write", f"--aggregate.mark-mask={text}"]).plan.mark_mask == mask
