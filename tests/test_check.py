"""check: each result, with proc roots, namespaces and directories in different states."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from conntrack_textfile import check, node_exporter, state
from conntrack_textfile.errors import SourceError
from conntrack_textfile.kernel import events, namespace
from conntrack_textfile.options import parse
from tests.builders import proc_root
from tests.conftest import need
from tests.netns import check as call
from tests.netns import inside, namespaces, sysctl
from tests.program import run

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

GOOD = {
    "nf_conntrack_max": 1000,
    "nf_conntrack_count": 91,
    "nf_conntrack_acct": 1,
    "nf_conntrack_timestamp": 1,
}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "proc").mkdir()
    return proc_root(tmp_path / "proc", b"", **GOOD)


@pytest.fixture(autouse=True)
def no_systemd(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Hide systemd and node_exporter of this machine."""
    monkeypatch.setattr(check, "_SYSTEMD", str(tmp_path / "none"))
    monkeypatch.setattr(node_exporter, "DEBIAN", str(tmp_path / "textfiles"))


@pytest.fixture
def textfiles() -> Iterator[Path]:
    """A directory that all users can enter, unlike those of pytest."""
    need("setpriv", root=True)
    where = Path(f"/var/tmp/ctf-{os.urandom(4).hex()}")
    where.mkdir(mode=0o755)
    yield where
    shutil.rmtree(where)


def found(*argv: str, name: str) -> list[tuple[str, str]]:
    """Return the results of a check."""
    results = check.run(parse(["check", *argv]))
    assert all("\n" not in result.text for result in results)
    return [(result.level, result.text) for result in results if result.name == name]


def one(*argv: str, name: str) -> tuple[str, str]:
    (result,) = found(*argv, name=name)
    return result


def process(root: Path, pid: int, comm: str, *words: str, uid: int = 1000, gid: int = 1000) -> None:
    """Create a process in a proc root."""
    directory = root / str(pid)
    (directory / "fd").mkdir(parents=True)
    (directory / "comm").write_text(f"{comm}\n")
    (directory / "cmdline").write_text("\0".join((comm, *words, "")))
    (directory / "status").write_text(
        f"Name:\t{comm}\nUid:\t{uid}\t{uid}\t{uid}\t{uid}\nGid:\t{gid}\t{gid}\t{gid}\t{gid}\n"
        "Groups:\t4321 \n"
    )


def test_a_process_can_have_any_bytes_as_its_name(root: Path) -> None:
    process(root, 7, "other")
    (root / "7" / "comm").write_bytes(b"\xff\xfe\n")
    process(root, 8, "node_exporter", "--collector.textfile.directory=/x")
    reader = node_exporter.find(str(root))
    assert reader is not None
    assert (reader.pid, reader.directory) == ("8", "/x")


def test_the_lines_are_aligned_and_the_status_says_whether_something_failed(
    root: Path, textfiles: Path
) -> None:
    argv = [f"--path.procfs={root}", "--collector.families=live", f"{textfiles}/a.prom"]
    done = run("check", *argv)
    lines = done.stdout.splitlines()
    assert lines[1] == "ok    module     nf_conntrack is loaded"
    assert {line[:6].strip() for line in lines} <= {"ok", "warn"}
    assert (done.returncode, done.stderr) == (0, "")
    assert list(textfiles.iterdir()) == []

    (root / "net/nf_conntrack").unlink()
    done = run("check", *argv)
    assert done.returncode == 1
    assert f"\nfail  source     cannot read {root}/net/nf_conntrack: No such" in done.stdout
    assert run("check", "--nope").returncode == 2


def test_engine(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    where = f"--path.procfs={root}"
    monkeypatch.setenv("CONNTRACK_TEXTFILE_ENGINE", "pure")
    assert one(where, name="engine")[0] == "ok"
    (root / "sys/net/netfilter/nf_conntrack_count").write_text("1000000\n")
    level, text = one(where, name="engine")
    assert (level, text[:37]) == ("warn", "the pure engine takes some 20 s of CP")
    monkeypatch.setenv("CONNTRACK_TEXTFILE_ENGINE", "fast")
    assert one(where, name="engine") == (
        "fail",
        "CONNTRACK_TEXTFILE_ENGINE must be pure or compiled, not 'fast'",
    )
    monkeypatch.delenv("CONNTRACK_TEXTFILE_ENGINE")
    assert one(where, name="engine")[1].startswith("compiled, Python 3.")


def test_module(root: Path) -> None:
    where = f"--path.procfs={root}"
    assert one(where, name="module") == ("ok", "nf_conntrack is loaded")
    shutil.rmtree(root / "sys/net/netfilter")
    level, text = one(where, name="module")
    assert (level, "modprobe nf_conntrack" in text) == ("fail", True)
    (root / "modules").write_text("nf_conntrack 1 0 - Live 0x0\n")
    assert one(where, name="module")[0] == "warn"
    (root / "modules").unlink()
    os.mkfifo(root / "modules")  # nobody writes
    assert one(where, name="module")[0] == "fail"
    (root / "modules").unlink()
    shutil.rmtree(root / "sys")
    level, text = one(where, name="module")
    assert (level, text) == (
        "warn",
        f"there is no {root}/sys/net: is nf_conntrack loaded?",
    )


@pytest.mark.parametrize(
    ("setting", "name"),
    [("nf_conntrack_acct", "accounting"), ("nf_conntrack_timestamp", "timestamps")],
)
def test_settings(root: Path, setting: str, name: str) -> None:
    where = f"--path.procfs={root}"
    assert one(where, name=name)[0] == "ok"
    (root / "sys/net/netfilter" / setting).write_text("0\n")
    level, text = one(where, name=name)
    assert (level, f"sysctl -w net.netfilter.{setting}=1" in text) == ("warn", True)
    (root / "sys/net/netfilter" / setting).unlink()
    assert one(where, name=name) == ("warn", f"net.netfilter.{setting} cannot be read")
    assert found(where, "--collector.families=live", name="timestamps") == []


def test_table(root: Path) -> None:
    where = f"--path.procfs={root}"
    count = root / "sys/net/netfilter/nf_conntrack_count"
    assert one(where, name="table") == ("ok", "91 of 1000 entries (9%)")
    count.write_text("801\n")
    assert one(where, name="table")[0] == "warn"
    assert "nf_conntrack_max" in one(where, name="table")[1]
    count.write_text("0\n")
    assert "enables tracking" in one(where, name="table")[1]
    count.unlink()
    assert "cannot be read" in one(where, name="table")[1]


def test_names(root: Path, tmp_path: Path) -> None:
    where = f"--path.procfs={root}"
    assert found(where, name="names") == []
    file = tmp_path / "names"
    file.write_text("10.0.0.0/8 office\n")
    assert one(where, f"--networks.file={file}", name="names")[0] == "ok"
    file.write_text("10.0.0.1/8 office\n")
    level, text = one(where, f"--networks.file={file}", name="names")
    assert (level, "host bits set" in text) == ("fail", True)
    assert one(where, f"--services.file={tmp_path}/none", name="names")[0] == "fail"


def test_web_config(root: Path, place: Path) -> None:
    where, file = f"--path.procfs={root}", place / "web.yml"
    assert found(where, name="web") == []
    file.write_text("tls_server_config:\n  cert_file: server.crt\n  key_file: server.key\n")
    argv = [where, f"--web.config.file={file}"]
    assert one(*argv, name="web") == ("ok", f"{file}: TLS, no passwords")
    file.write_text("")
    assert one(*argv, name="web") == ("warn", f"{file}: no TLS, no passwords")
    file.write_text("tls_server_confg: {}\n")
    assert one(*argv, name="web")[0] == "fail"
    file.unlink()
    assert "No such file" in one(*argv, name="web")[1]


def test_listen(root: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        taken = f"127.0.0.1:{other.getsockname()[1]}"
        (result,) = found(f"--path.procfs={root}", f"--web.listen-address={taken}", name="listen")
        text = f"cannot listen on {taken}: Address already in use: set another --web"
        assert result[0] == "fail"
        assert result[1].startswith(text)
        # Of the live /proc, root sees whose it is.
        need(root=True)
        mine = f"{Path('/proc/self/comm').read_text().strip()} (pid {os.getpid()})"
        (result,) = found(f"--web.listen-address={taken}", name="listen")
        assert result[0] == "fail"
        assert f"Address already in use by {mine}: " in result[1]
    assert found(f"--web.listen-address={taken}", name="listen") == [
        ("ok", f"serve can listen on {taken}")
    ]
    (result,) = found("--web.listen-address=192.0.2.1:80", name="listen")
    assert result[0] == "fail"
    assert "no interface of this host has it" in result[1]
    (result,) = found("--web.listen-address=a..b:80", name="listen")
    assert result == ("fail", "cannot listen on a..b:80: not a host name")


def test_the_default_address_in_use_is_a_warning_unless_by_serve(
    root: Path, tmp_path: Path
) -> None:
    need("ip", root=True)
    # In a network namespace of the test, where nobody else has the port.
    code = (
        "import socket, sys, time; s = socket.create_server(('127.0.0.1', 9095));"
        "print(flush=True); sys.stdin.read()"
    )
    python = shutil.copy(sys.executable, tmp_path / "conntrack-textfile")
    with namespaces("listen") as (space,):

        def lines() -> list[str]:
            done = run("check", prefix=inside(space))
            return [line for line in done.stdout.splitlines() if " listen " in line]

        assert lines() == ["ok    listen     serve can listen on :9095"]
        for program, level, text in (
            (sys.executable, "warn", "cannot listen on :9095: Address already in use by "),
            (str(python), "ok", "conntrack-textf (pid "),
        ):
            holder = subprocess.Popen(
                [*inside(space), program, "-c", code],
                env={**os.environ, "PYTHONHOME": sys.base_prefix},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
            )
            try:
                assert holder.stdout is not None
                assert holder.stdout.readline() == b"\n"
                (line,) = lines()
            finally:
                holder.communicate()
            assert line.startswith(f"{level:5} listen     {text}")
        # For an unprivileged user a low port is not to be had.
        done = run(
            "check",
            "--web.listen-address=127.0.0.1:80",
            prefix=[*inside(space), "setpriv", "--reuid=65534", "--clear-groups"],
        )
        assert "fail  listen     cannot listen on 127.0.0.1:80: Permission denied" in done.stdout
        assert done.returncode == 1
    # write has no addresses.
    assert found(f"--path.procfs={root}", str(tmp_path / "a.prom"), name="listen") == []


def test_state(root: Path, tmp_path: Path) -> None:
    where, file = f"--path.procfs={root}", tmp_path / "state"
    argv = [where, f"--state.file={file}"]
    assert found(where, name="state") == []
    assert one(*argv, name="state") == ("ok", f"{file} does not exist yet: counters start at 0")
    assert not file.exists()
    state.save(str(file), state.State({}, b"12345"))
    assert one(*argv, name="state") == ("ok", f"{file} has 5 bytes of connections")
    file.write_bytes(file.read_bytes()[:-1])
    level, text = one(*argv, name="state")
    assert (level, text) == ("warn", f"{file} is damaged: counters start at 0")
    file.write_text("mine\n")
    assert one(*argv, name="state")[0] == "fail"
    level, text = one(where, f"--state.file={tmp_path}/none/state", name="state")
    assert (level, text) == ("fail", f"there is no directory {tmp_path}/none")


def test_textfile(root: Path, textfiles: Path) -> None:
    where, file = f"--path.procfs={root}", textfiles / "a.prom"
    assert one(where, str(file), name="textfile") == ("ok", f"node_exporter can read {file}")
    assert found(where, "-", name="textfile") == []
    (result,) = found(where, str(textfiles / "a.txt"), name="textfile")
    assert result == (
        "warn",
        f"node_exporter does not read {textfiles}/a.txt: only names that end in .prom",
    )
    missing = one(where, str(textfiles / "none/a.prom"), name="textfile")
    assert missing == ("fail", f"there is no directory {textfiles}/none")
    file.mkdir()
    assert found(where, str(file), name="textfile")[0][0] == "fail"
    file.rmdir()
    file.touch()
    os.utime(file, (time.time() - 3600,) * 2)
    old = found(where, str(file), name="textfile")
    assert ("warn", f"{file} was written 60 minutes ago") in old

    # Nobody else may list it, or go through.
    textfiles.chmod(0o711)
    level, text = found(where, str(file), name="textfile")[-1]
    assert (level, text) == (
        "fail",
        f"the user of node_exporter may not list {textfiles}: chmod o+rx {textfiles}",
    )
    inner = textfiles / "inner"
    inner.mkdir(mode=0o755)
    textfiles.chmod(0o700)
    level, text = one(where, str(inner / "a.prom"), name="textfile")
    assert (level, text) == (
        "fail",
        f"the user of node_exporter may not go through {textfiles}: chmod o+x {textfiles}",
    )


def test_textfile_for_a_running_node_exporter(root: Path, textfiles: Path) -> None:
    where, file = f"--path.procfs={root}", textfiles / "mine" / "a.prom"
    read = textfiles / "read"
    for directory in (read, file.parent):
        directory.mkdir(mode=0o755)
    process(root, 77, "prometheus-node", f"--collector.textfile.directory={read}")
    assert one(where, name="textfile") == ("ok", f"node_exporter can read {read}")
    level, text = one(where, str(file), name="textfile")
    assert (level, text) == (
        "warn",
        f"node_exporter (pid 77) reads {read}, but {file} is not there: ln -s {file} {read}/",
    )
    (read / "conntrack.prom").symlink_to(file)
    file.parent.chmod(0o711)  # by a link its name is known
    assert one(where, str(file), name="textfile")[0] == "ok"
    private = [where, str(file), "--file.mode=0640"]
    level, text = one(*private, name="textfile")
    assert (level, "set --file.group" in text) == ("fail", True)
    opts = parse(["check", *private])._replace(file_group=4321)
    assert [r.level for r in check.run(opts) if r.name == "textfile"] == ["ok"]
    # Of the user itself, and of root, other rights count.
    file.parent.chmod(0o700)
    assert one(where, str(file), name="textfile")[0] == "fail"
    os.chown(file.parent, 1000, -1)
    assert one(where, str(file), name="textfile")[0] == "ok"
    read.chmod(0o700)
    assert one(where, name="textfile")[0] == "fail"


def test_textfile_of_debian_where_no_file_is_named(root: Path, tmp_path: Path) -> None:
    level, text = one(f"--path.procfs={root}", name="textfile")
    assert (level, text) == (
        "warn",
        f"there is no {tmp_path}/textfiles, the directory of node_exporter: name FILE",
    )


def test_source_and_events_of_the_proc_file(root: Path) -> None:
    where = f"--path.procfs={root}"
    assert one(where, name="source") == ("ok", f"procfs: root may read {root}/net/nf_conntrack")
    level, text = one(where, name="events")
    assert (level, text) == (
        "warn",
        "the proc file gives no counters of traffic: --collector.source=netlink does",
    )
    assert found(where, "--collector.families=live", name="events") == []


def in_namespace(
    name: str, *argv: str, prefix: Sequence[str] = ()
) -> tuple[int, dict[str, list[str]]]:
    """Run check in a namespace. Return the exit status and the lines by check."""
    done = run("check", *argv, prefix=[*inside(name), *prefix])
    assert done.stderr == ""
    lines: dict[str, list[str]] = {}
    for line in done.stdout.splitlines():
        level, title, text = line.split(None, 2)
        lines.setdefault(title, []).append(f"{level} {text}")
    return done.returncode, lines


NOBODY = [
    "setpriv",
    "--reuid=65534",
    "--regid=65534",
    "--clear-groups",
    "--inh-caps=-all",
    "--bounding-set=-all",
]
ADMIN = [*NOBODY[:4], "--inh-caps=+net_admin", "--ambient-caps=+net_admin"]


def test_in_a_namespace_with_and_without_privileges() -> None:
    need("ip", "nft", "setpriv", "sysctl", root=True)
    with namespaces("check") as (name,):
        sysctl(name, net__netfilter__nf_conntrack_acct=0)
        before = call(*inside(name), "sysctl", "net.netfilter")
        status, lines = in_namespace(name, "-")
        assert status == 0
        assert lines["source"] == ["ok netlink: root may dump the table"]
        assert lines["events"][0].endswith("; no other listener")
        assert lines["accounting"][0].startswith(
            "warn packets and bytes are not counted: sysctl -w"
        )
        assert lines["table"][0].startswith("warn 0 of ")

        status, lines = in_namespace(name, "-", prefix=ADMIN)
        assert (status, lines["source"]) == (0, ["ok netlink: user 65534 may dump the table"])

        status, lines = in_namespace(name, "-", prefix=NOBODY)
        assert status == 1
        assert lines["source"][0].startswith("fail no permission to dump the table by netlink")
        assert lines["events"][0].startswith("warn no events of ended connections (Operation")
        status, lines = in_namespace(name, "-", "--collector.source=netlink", prefix=NOBODY)
        assert lines["source"] == [
            "fail no permission to dump the table by netlink: run as root or with CAP_NET_ADMIN"
        ]
        sysctl(name, net__netfilter__nf_conntrack_events=0)
        assert in_namespace(name, "-")[1]["events"][0].startswith("warn the kernel sends no events")
        sysctl(name, net__netfilter__nf_conntrack_events=2)
        # It changed nothing. (The table counts what the kernel itself sends.)
        assert call(*inside(name), "sysctl", "net.netfilter") == before


def test_other_event_listeners_are_named(tmp_path: Path) -> None:
    need("ip", root=True)
    with namespaces("check") as (name,):
        state_file = f"--state.file={tmp_path}/state"
        alone = in_namespace(name, "-", state_file)[1]["events"]
        assert alone[1].startswith("warn no socket holds events between two runs of write")
        code = (
            "import sys; from conntrack_textfile.kernel import events\n"
            "with events.listen(4096): print('there', flush=True); sys.stdin.read()"
        )
        with subprocess.Popen(
            [*inside(name), sys.executable, "-c", code], stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, text=True,
        ) as process:  # fmt: skip
            assert process.stdout is not None
            assert process.stdout.readline() == "there\n"
            lines = in_namespace(name, "-", state_file)[1]["events"]
            process.communicate()  # ends it
        assert len(lines) == 1
        assert f"other listeners: python3 (pid {process.pid})" in lines[0].replace(
            Path(sys.executable).name, "python3"
        )
    assert list(tmp_path.iterdir()) == []


SYSTEMCTL = """#!/bin/sh
test "$1" = show || exit 9
exec cat "$0.txt"
"""
UNIT = "Id={}\nLoadState=loaded\nActiveState={}\nUnitFileState={}\nResult={}\n"
WRITER, EXPORTER = "conntrack-textfile.service", "conntrack-exporter.service"
TIMER, SOCKET = "conntrack-textfile.timer", "conntrack-exporter.socket"
EVENTS = "conntrack-events.socket"


@pytest.mark.parametrize(
    ("units", "expected"),
    [
        ([], ["ok no unit of conntrack-textfile is installed"]),
        (
            [(TIMER, "active", "enabled", "success"), (EVENTS, "active", "static", "success")],
            [f"ok {TIMER} is active, enabled", f"ok {EVENTS} is active, static"],
        ),
        (
            [(WRITER, "failed", "static", "exit-code"), (TIMER, "active", "enabled", "success")],
            [
                f"fail {WRITER} is failed, static (exit-code): journalctl -u {WRITER}",
                f"ok {TIMER} is active, enabled",
            ],
        ),
        (
            [(EXPORTER, "inactive", "disabled", "success")],
            [f"warn no unit is active: systemctl enable --now {TIMER}, or {EXPORTER}"],
        ),
        (
            [(TIMER, "active", "enabled", "success"), (EVENTS, "inactive", "static", "success")],
            [
                f"ok {TIMER} is active, enabled",
                f"warn {EVENTS} is not active: counters come from dumps only",
            ],
        ),
        (
            [
                (EXPORTER, "active", "enabled", "success"),
                (SOCKET, "inactive", "enabled", "success"),
            ],
            [
                f"ok {EXPORTER} is active, enabled",
                f"warn {SOCKET} is inactive, enabled: systemctl start {SOCKET}",
                f"warn {EXPORTER} and {SOCKET} are both enabled: systemctl disable one of them",
            ],
        ),
    ],
)
def test_units(
    root: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    units: list[tuple[str, ...]],
    expected: list[str],
) -> None:
    where = f"--path.procfs={root}"
    assert found(where, name="systemd") == []  # not booted
    monkeypatch.setattr(check, "_SYSTEMD", str(tmp_path))
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    program = tmp_path / "systemctl"
    program.write_text(SYSTEMCTL)
    program.chmod(0o755)
    absent = "Id=x.service\nLoadState=not-found\nActiveState=inactive\n"
    text = "\n".join([absent, *(UNIT.format(*unit) for unit in units)])
    (tmp_path / "systemctl.txt").write_text(text)
    assert [f"{level} {text}" for level, text in found(where, name="systemd")] == expected


def test_a_systemctl_that_hangs_or_fails_is_a_warning(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(check, "_SYSTEMD", str(tmp_path))
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    program = tmp_path / "systemctl"
    for script, seconds, said in (
        ("exec sleep 600", 0.2, "TimeoutExpired"),
        ("echo no bus >&2; exit 1", 60.0, "no bus"),
    ):
        monkeypatch.setattr(check, "_SYSTEMCTL_SECONDS", seconds)
        program.write_text(f"#!/bin/sh\n{script}\n")
        program.chmod(0o755)
        level, text = one(f"--path.procfs={root}", name="systemd")
        assert level == "warn"
        assert text.startswith("cannot be checked: ")
        assert said in text


@pytest.mark.parametrize("prefix", [[], "nobody"])
def test_without_procfs_there_is_no_traceback(tmp_path: Path, prefix: list[str]) -> None:
    need("setpriv", root=True)
    where = tmp_path / "nothing"
    done = run(
        "check", f"--path.procfs={where}", f"{where}/a.prom", f"--state.file={where}/s",
        "--web.config.file=/nope", "--networks.file=/nope", prefix=NOBODY if prefix else [],
    )  # fmt: skip
    assert done.returncode == 1
    assert "Traceback" not in done.stderr + done.stdout
    assert "cannot be checked" not in done.stdout
    names = {line.split()[1] for line in done.stdout.splitlines() if line.startswith("fail")}
    assert {"source", "names", "web", "textfile", "state"} <= names


def test_a_check_that_crashes_does_not_hide_others(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(_: object) -> list[tuple[str, str]]:
        raise RuntimeError("a\nb")

    checks = [c._replace(run=broken) if c.name == "table" else c for c in check._CHECKS]
    monkeypatch.setattr(check, "_CHECKS", checks)
    results = check.run(parse(["check", f"--path.procfs={root}", "-"]))
    lines = check.table(results).splitlines()
    assert "warn  table      cannot be checked: RuntimeError: a\\nb" in lines
    assert len(lines) == len(results) > 5


def test_settings_and_tables_are_those_of_each_namespace() -> None:
    need("ip", root=True)
    with namespaces("on", "off") as (on, off):
        sysctl(on, net__netfilter__nf_conntrack_acct=1)
        sysctl(off, net__netfilter__nf_conntrack_acct=0)
        argv = [f"--netns={on}", f"--netns={off}", f"--netns={off}-not"]
        both = ", ".join(sorted((on, off)))
        assert sorted(found(*argv, name="accounting")) == [
            ("ok", f"{on}: packets and bytes are counted"),
            (
                "warn",
                f"{off}: packets and bytes are not counted: sysctl -w net.netfilter."
                "nf_conntrack_acct=1 in that namespace (ip netns exec, or nsenter --net)",
            ),
        ]
        assert sorted(found(*argv, name="netns")) == [
            ("fail", f"{off}-not: there is no /run/netns/{off}-not"),
            ("ok", f"{both}: can be entered"),
        ]
        source = ("ok", f"{both}: netlink: root may dump the table")
        assert found(*argv, name="source") == [source]
        ((level, text),) = found(*argv, name="table")
        assert level == "warn"
        assert text.startswith(f"{both}: 0 of ")


def test_each_invalid_file_of_names_is_reported(tmp_path: Path) -> None:
    argv = [f"--{kind}.file={tmp_path}/{kind}" for kind in ("networks", "hosts", "services")]
    reasons = [text.partition(":")[0] for _, text in found(*argv, name="names")]
    assert reasons == ["--networks.file", "--hosts.file", "--services.file"]


def test_events_are_checked_without_the_list_of_listeners(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    need("ip", root=True)

    def missing() -> list[int]:
        raise FileNotFoundError(2, "No such file or directory")

    monkeypatch.setattr(events, "listeners", missing)
    level, text = one(name="events")
    assert (level, text.partition(", with a buffer of ")[0]) == (
        "ok",
        "ended connections are reported",
    )
    assert "listen" not in text


def test_missing_namespaces_do_not_hide_other_checks(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: object) -> dict[str, str]:
        raise SourceError("cannot list the network namespaces: no /proc")

    monkeypatch.setattr(namespace, "find", missing)
    level, text = one("--netns=all", name="netns")
    assert (level, text.partition(":")[0]) == ("fail", "cannot list the network namespaces")
    assert one("--netns=all", name="engine")[0] == "ok"
    monkeypatch.setattr(namespace, "find", lambda *_: {})
    assert one("--netns=all", name="netns") == ("ok", "none is named in /run/netns")
