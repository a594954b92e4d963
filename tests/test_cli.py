from __future__ import annotations

import os
import platform
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from prometheus_client.parser import text_string_to_metric_families

from conntrack_textfile import __version__
from conntrack_textfile.options import usage
from tests.builders import proc_root
from tests.conftest import DATA, need
from tests.program import COMMAND, run, serving

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

SAMPLE = f"--path.procfs={DATA / 'kernel-6.18'}"


def shell(script: str, *args: str) -> subprocess.CompletedProcess[str]:
    """Run a bash line in which "$@" is the command with these arguments."""
    argv: Sequence[str] = ["bash", "-o", "pipefail", "-c", script, "bash", *COMMAND, *args]
    return subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)


def test_write_prints_what_the_exposition_format_allows(capture: Path) -> None:
    done = run("write", f"--path.procfs={capture}")
    assert done.returncode == 0
    names = [family.name for family in text_string_to_metric_families(done.stdout)]
    assert "conntrack_sent_bytes" in names
    # Of translated connections, which one of the captures has, there are four more.
    expected = {"kernel-6.18": 29, "kernel-6.18-defaults": 25}[capture.name]
    assert len(names) == len(set(names)) == expected


def test_two_runs_differ_only_in_time() -> None:
    first, second = (
        [line for line in run("write", SAMPLE).stdout.splitlines() if "_seconds " not in line]
        for _ in range(2)
    )
    assert first == second


def test_write_to_a_file_prints_nothing(tmp_path: Path) -> None:
    file = tmp_path / "a.prom"
    done = run("write", SAMPLE, str(file))
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert "conntrack_total_connections 91\n" in file.read_text()


def test_accounting_that_is_off_is_one_warning() -> None:
    done = run("write", f"--path.procfs={DATA / 'kernel-6.18-defaults'}")
    assert done.returncode == 0
    assert done.stderr.count("\n") == 1
    assert "only connections made after it is switched on are counted" in done.stderr


@pytest.mark.parametrize(
    "argv",
    [
        ["write", "--limit.by=size", "x.prom"],
        ["write", "--watch", "x.prom"],
        ["serve", "--collector.interval=0"],
        ["nope"],
        [],
    ],
)
def test_wrong_usage_is_one_line_and_exit_2(tmp_path: Path, argv: list[str]) -> None:
    done = shell(f'cd {tmp_path} && "$@"', *argv)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("conntrack-textfile: ")
    assert done.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_failed_reading_is_one_line_exit_1_and_no_output(tmp_path: Path) -> None:
    file = tmp_path / "a.prom"
    file.write_text("old\n")
    done = run("write", f"--path.procfs={tmp_path}", str(file))
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert "modprobe nf_conntrack" in done.stderr
    assert file.read_text() == "old\n"


def test_a_traceback_is_for_debug_only(tmp_path: Path) -> None:
    assert "Traceback" in run("write", f"--path.procfs={tmp_path}", "--log.level=debug").stderr
    assert "Traceback" not in run("write", f"--path.procfs={tmp_path}").stderr


@pytest.mark.parametrize("flag", ["-h", "--help"])
def test_help_is_the_usage(flag: str) -> None:
    done = run(flag)
    assert done.returncode == 0
    assert done.stdout == usage("write", "serve", "top", "check")


@pytest.mark.parametrize("command", ["write", "serve", "top", "check"])
def test_help_of_a_command(command: str) -> None:
    done = run(command, "--help")
    assert (done.returncode, done.stdout, done.stderr) == (0, usage(command), "")


@pytest.mark.parametrize(
    ("argv", "help_of"),
    [
        (["write", "--nope"], "write --help"),
        (["--limit.keys=x", "top"], "top --help"),
        (["serve", "--web.config.file=/nowhere"], "serve --help"),
        (["wirte"], "--help"),
        ([], "--help"),
    ],
)
def test_wrong_usage_names_the_help_of_the_command(argv: list[str], help_of: str) -> None:
    done = run(*argv)
    assert done.returncode == 2
    assert done.stderr.endswith(f" (see conntrack-textfile {help_of})\n")


@pytest.mark.parametrize("flag", ["-v", "-V", "--version"])
@pytest.mark.parametrize("engine", ["compiled", "pure"])
def test_version(flag: str, engine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONNTRACK_TEXTFILE_ENGINE", engine)
    done = run(flag)
    python = platform.python_version()
    expected = f"conntrack-textfile {__version__} ({engine} engine, Python {python})\n"
    assert (done.returncode, done.stdout, done.stderr) == (0, expected, "")


def test_the_version_is_printed_without_an_engine_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONNTRACK_TEXTFILE_ENGINE", "fast")
    done = run("--version")
    assert done.returncode == 0
    assert done.stdout.startswith(f"conntrack-textfile {__version__} (no engine: ")


def test_a_file_that_node_exporter_does_not_read_is_a_warning(tmp_path: Path) -> None:
    done = run("write", SAMPLE, str(tmp_path / "a.txt"))
    assert done.returncode == 0
    assert done.stderr.count("\n") == 1
    assert f"node_exporter does not read {tmp_path}/a.txt: only names that end" in done.stderr
    assert run("write", SAMPLE, str(tmp_path / "a.prom")).stderr == ""
    assert run("write", SAMPLE, "-").stderr == ""
    refused = run("write", SAMPLE, "/dev/stdout")
    assert (refused.returncode, "does not read" in refused.stderr) == (1, False)


SLOW = "the pure engine takes some 5 s of CPU for a table of 250000 entries"


def test_the_pure_engine_on_a_large_table_is_logged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "large").mkdir()
    (tmp_path / "small").mkdir()
    large = f"--path.procfs={proc_root(tmp_path / 'large', nf_conntrack_count=250_000)}"
    small = f"--path.procfs={proc_root(tmp_path / 'small', nf_conntrack_count=5)}"
    monkeypatch.setenv("CONNTRACK_TEXTFILE_ENGINE", "pure")
    assert SLOW in run("write", large, "--log.level=debug").stderr
    assert SLOW not in run("write", large).stderr
    with serving(large) as served:
        served.wait_for_log(SLOW)
        assert f'level=warn msg="{SLOW}' in served.log
    with serving(small) as served:
        assert "the pure engine" not in served.log
    monkeypatch.setenv("CONNTRACK_TEXTFILE_ENGINE", "compiled")
    assert "the pure engine" not in run("write", large, "--log.level=debug").stderr


def test_a_closed_pipe_is_no_error() -> None:
    done = shell('"$@" | head -n 1', "write", SAMPLE)
    assert done.returncode == 0
    assert done.stderr == ""
    assert done.stdout.count("\n") == 1


def test_a_full_standard_output_is_an_error() -> None:
    done = shell('"$@" > /dev/full', "write", SAMPLE)
    assert done.returncode == 1
    assert "No space left on device" in done.stderr


def test_a_closed_standard_output_is_an_error() -> None:
    done = shell('"$@" >&-', "write", SAMPLE)
    assert done.returncode == 1
    assert "cannot write to standard output" in done.stderr


@pytest.mark.parametrize("argv", [["--help"], ["top", "--help"], ["--version"], ["check", "-h"]])
def test_help_that_cannot_be_written_is_an_error_in_a_line(argv: list[str]) -> None:
    for redirection, reason in ((">/dev/full", "No space left on device"), (">&-", "Bad file")):
        done = shell(f'"$@" {redirection}', *argv)
        assert done.returncode == 1
        assert f"conntrack-textfile: cannot write to standard output: {reason}" in done.stderr
        assert done.stderr.count("\n") == 1
    assert shell('"$@" 2>&- >&- <&-', *argv).returncode == 1
    done = shell('"$@" | true', *argv)
    assert (done.returncode, done.stderr) == (0, "")


def test_the_text_goes_into_no_other_file_than_standard_output(tmp_path: Path) -> None:
    """With standard output closed its number was that of the lock of the state file."""
    need(root=True)
    state = tmp_path / "state"
    for closed in (">&-", "<&- >&-", "<&- >&- 2>&-"):
        done = shell(f'"$@" {closed}', "write", "--log.level=error", f"--state.file={state}")
        assert done.returncode == 1
        if "2>" not in closed:
            assert "cannot write to standard output: Bad file descriptor" in done.stderr
    assert b"HELP" not in b"".join(path.read_bytes() for path in tmp_path.iterdir())


OFF = f"--path.procfs={DATA / 'kernel-6.18-defaults'}"  # which gives a warning


@pytest.mark.parametrize("closed", [">/dev/full", ">&-"])
@pytest.mark.parametrize(
    ("argv", "status"),
    [
        (["write", OFF], 0),
        (["write", OFF, "--log.format=json"], 0),
        (["top", OFF], 0),
        (["write", "--path.procfs=/nope"], 1),
        (["write", "--path.procfs=/nope", "--log.level=debug"], 1),
        (["write", SAMPLE, "/nope/a.prom"], 1),
        (["write", "--nope"], 2),
        (["nope"], 2),
    ],
)
def test_a_closed_or_full_standard_error_changes_no_status(
    closed: str, argv: list[str], status: int
) -> None:
    assert shell(f'"$@" 2{closed}', *argv).returncode == status


def test_errors_go_into_no_other_file_than_standard_error(tmp_path: Path) -> None:
    """With standard error closed its number is that of a file which is opened later."""
    file = tmp_path / "a.prom"
    done = shell('"$@" 2>&-', "write", OFF, "--log.level=debug", str(file))
    assert done.returncode == 0
    assert list(text_string_to_metric_families(file.read_text()))
    assert "level=" not in file.read_text()


@pytest.mark.parametrize(
    ("argv", "status", "said"),
    [
        (["write", SAMPLE, "a.prom"], 1, "cannot write a.prom: its directory was removed"),
        (["write", "--path.procfs=net"], 1, "there is no proc root net"),
        (["write", SAMPLE], 0, ""),
        (["top", SAMPLE], 0, ""),
        (["write", "--networks.file=n"], 2, "cannot read n: No such file or directory"),
    ],
)
def test_a_working_directory_that_was_removed(
    tmp_path: Path, argv: list[str], status: int, said: str
) -> None:
    done = shell(f'mkdir {tmp_path}/x; cd {tmp_path}/x; rmdir {tmp_path}/x; "$@"', *argv)
    assert done.returncode == status, done.stderr
    assert said in done.stderr
    assert done.stderr.count("\n") == bool(said)


# As much as Python and the program take before the table is read, and 12 MiB.
LITTLE_MEMORY = """
import re, resource, sys
from conntrack_textfile import cli, snapshot
from conntrack_textfile.kernel import engine, netlink, procfs
with open("/proc/self/status") as file:
    data = int(re.search(r"VmData:\\s+(\\d+) kB", file.read())[1]) << 10
resource.setrlimit(resource.RLIMIT_DATA, (data + (12 << 20),) * 2)
sys.exit(cli.main(sys.argv[1:]))
"""


@pytest.mark.parametrize("engine", ["compiled", "pure"])
def test_too_little_memory_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, engine: str
) -> None:
    monkeypatch.setenv("CONNTRACK_TEXTFILE_ENGINE", engine)
    line = (
        "ipv4     2 udp      17 29 src={0} dst=10.0.0.1 sport=1 dport=53 packets=1 bytes=1 "
        "src=10.0.0.1 dst={0} sport=53 dport=1 packets=1 bytes=1 mark=0 zone=0 use=2\n"
    )
    (tmp_path / "net").mkdir()
    with open(tmp_path / "net" / "nf_conntrack", "w") as table:
        table.writelines(
            line.format(f"10.{n >> 16}.{n >> 8 & 255}.{n & 255}") for n in range(150_000)
        )
    file = tmp_path / "a.prom"
    file.write_text("old\n")
    given = ("write", f"--path.procfs={tmp_path}", "--limit.keys=0", str(file))
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", LITTLE_MEMORY, *given],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1
    assert "out of memory" in done.stderr
    assert done.stderr.count("\n") == 1
    assert file.read_text() == "old\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.prom", "net"]


def test_accounting_that_cannot_be_switched_on_is_a_warning(tmp_path: Path) -> None:
    root = proc_root(tmp_path)
    done = run("write", f"--path.procfs={root}", "--configure.nf_conntrack_acct")
    assert done.returncode == 0
    assert "level=warn" in done.stderr
    assert "cannot set net.netfilter.nf_conntrack_acct=1: No such file" in done.stderr
    assert "conntrack_total_connections 0\n" in done.stdout


def test_accounting_is_switched_on_where_it_is_asked_for(tmp_path: Path) -> None:
    root = proc_root(tmp_path, nf_conntrack_acct=0)
    accounting = root / "sys/net/netfilter/nf_conntrack_acct"
    assert run("write", f"--path.procfs={root}").returncode == 0
    assert accounting.read_text() == "0\n"
    done = run("top", f"--path.procfs={root}", "--configure.nf_conntrack_acct")
    assert (done.returncode, done.stderr) == (0, "")
    assert accounting.read_text() == "1\n"


@pytest.mark.parametrize(
    ("argv", "named"),
    [
        (["serve", "--web.config.file=/nope.yml"], "/nope.yml"),
        (["serve", "--web.config.file=WRONG"], "tls"),
        (["serve", "--web.listen-address=9095"], "--web.listen-address"),
        (["serve", "--web.max-requests=x"], "--web.max-requests"),
        (["serve", "--limit.keys=-1"], "--limit.keys"),
        (["serve", "--watch"], "--watch"),
        (["write", "--networks.file=/nope", "FILE"], "--networks.file"),
        (["write", "--services.file=WRONG", "FILE"], "--services.file"),
        (["write", "--filter.include=zone=x", "FILE"], "--filter.include"),
        (["write", "--aggregate.mark-mask=x", "FILE"], "--aggregate.mark-mask"),
        (["write", "--file.mode=0777", "FILE"], "--file.mode"),
        (["write", "--file.group=no-such-group", "FILE"], "--file.group"),
        (["write", "--web.systemd-socket", "FILE"], "--web.systemd-socket"),
        (["write", "FILE", "FILE"], "unexpected argument"),
        (["top", "-n", "x"], "-n must be"),
    ],
)
def test_wrong_usage_has_no_side_effect(tmp_path: Path, argv: list[str], named: str) -> None:
    (tmp_path / "proc").mkdir()
    root = proc_root(tmp_path / "proc", nf_conntrack_acct=0)
    file, wrong = tmp_path / "a.prom", tmp_path / "wrong"
    wrong.write_text("tls_server_confg: {}\n")
    given = [arg.replace("FILE", str(file)).replace("WRONG", str(wrong)) for arg in argv]
    done = run(*given, "--configure.nf_conntrack_acct", f"--path.procfs={root}")
    assert done.returncode == 2, done.stderr
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert named in done.stderr
    assert (root / "sys/net/netfilter/nf_conntrack_acct").read_text() == "0\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["proc", "wrong"]


@pytest.mark.parametrize(
    "argv",
    [
        ["write", "--networks.file=FIFO", "FILE"],
        ["write", "--services.file=FIFO", "FILE"],
        ["write", "--hosts.file=FIFO", "FILE"],
        ["serve", "--web.config.file=FIFO"],
    ],
)
def test_a_fifo_in_place_of_a_file_is_refused(tmp_path: Path, argv: list[str]) -> None:
    fifo, file = tmp_path / "fifo", tmp_path / "a.prom"
    os.mkfifo(fifo)
    done = run(*[arg.replace("FIFO", str(fifo)).replace("FILE", str(file)) for arg in argv])
    option = argv[1].partition("=")[0]
    assert done.stderr == (
        f"conntrack-textfile: {option}: cannot read {fifo}: it is not a regular file "
        f"(see conntrack-textfile {argv[0]} --help)\n"
    )
    assert (done.returncode, done.stdout, file.exists()) == (2, "", False)


def test_an_error_is_one_line_whatever_it_quotes() -> None:
    done = run("write", "--networks.file=/nope/a\nb\x1b[2J\udcff")
    assert done.returncode == 2
    assert "cannot read /nope/a\\nb\\x1b[2J\\udcff: No such file" in done.stderr
    assert done.stderr.count("\n") == 1


INTERRUPTED = """
import signal, sys
from conntrack_textfile import __main__

class Finder:
    def find_spec(name, *_):
        if name == wanted:
            signal.raise_signal(signal.SIGINT)

wanted = sys.argv.pop(1)
# What a shell starts in the background inherits that it is ignored.
signal.signal(signal.SIGINT, signal.default_int_handler)
sys.meta_path.insert(0, Finder)
__main__.run()
"""


@pytest.mark.parametrize("module", ["cli", "options", "exposition", "kernel.engine", "hosts"])
def test_ctrl_c_is_no_traceback(tmp_path: Path, module: str) -> None:
    """Also before the command has begun, while its modules are imported."""
    file = tmp_path / "a.prom"
    argv = [f"conntrack_textfile.{module}", "write", SAMPLE, "--hosts.file=/etc/hosts", str(file)]
    done = subprocess.run(
        [sys.executable, "-c", INTERRUPTED, *argv],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")
    assert list(tmp_path.iterdir()) == []


def test_an_engine_that_is_not_there_has_no_side_effect(tmp_path: Path) -> None:
    root = proc_root(tmp_path, nf_conntrack_acct=0)
    argv = ["write", f"--path.procfs={root}", "--configure.nf_conntrack_acct"]
    done = shell('CONNTRACK_TEXTFILE_ENGINE=fast "$@"', *argv)
    assert (done.returncode, done.stdout) == (1, "")
    assert "CONNTRACK_TEXTFILE_ENGINE must be pure or compiled, not 'fast'" in done.stderr
    assert (root / "sys/net/netfilter/nf_conntrack_acct").read_text() == "0\n"


def test_a_read_only_file_system_hints_at_the_unit(tmp_path: Path) -> None:
    """So systemd makes all that ReadWritePaths= does not name (ProtectSystem=strict)."""
    need("unshare", "mount", root=True)
    mount = f"mount --bind {tmp_path} {tmp_path}; mount -o remount,ro,bind {tmp_path}; exec "
    for argv in ([f"{tmp_path}/a.prom"], [f"--state.file={tmp_path}/state"]):
        done = shell(
            f'unshare -m bash -euc \'{mount} "$@"\' bash "$@"',
            *("write", "--collector.source=netlink" if "state" in argv[0] else SAMPLE, *argv),
        )
        assert done.returncode == 1
        assert done.stderr.count("\n") == 1
        assert (
            "Read-only file system (under systemd: name its directory in ReadWrite" in done.stderr
        )


def test_families_that_need_a_state_file_say_so(tmp_path: Path) -> None:
    silent = run("write", SAMPLE, "--collector.families=live")
    assert silent.stderr == ""
    done = run("write", SAMPLE, "--collector.families=traffic")
    assert done.returncode == 0
    assert done.stderr.count("\n") == 1
    assert "no series by key: without --state.file there are no counters" in done.stderr
    state = f"--state.file={tmp_path / 'state'}"
    assert "--state.file" not in run("write", SAMPLE, "--collector.families=traffic", state).stderr
