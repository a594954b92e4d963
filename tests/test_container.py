"""The container image: built from a base that Debian's archive gives, and run by podman.

podman makes capabilities ambient for a user other than root; Docker and what
Kubernetes uses do not. Their ways are had by a runtime that changes what podman
hands to runc.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from conntrack_textfile import __version__
from tests.booted import check
from tests.conftest import need
from tests.netns import inside, namespaces, sysctl
from tests.waiting import until

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parent.parent
IMAGE = "localhost/conntrack-textfile"

# As in Docker's own image: no documentation, and no package files left by apt.
# usr-is-merged and its hook spare the perl that usrmerge would bring.
CLEAN = """
cat >"$1/etc/apt/apt.conf.d/docker-clean" <<'END'
DPkg::Post-Invoke { "rm -f /var/cache/apt/archives/*.deb"; };
Dir::Cache::pkgcache "";
Dir::Cache::srcpkgcache "";
Acquire::Languages "none";
END
rm -rf "$1"/var/cache/apt/*.bin "$1"/var/lib/apt/lists/*
"""
BASE = [
    *("mmdebstrap", "--quiet", "--variant=apt", "--include=usr-is-merged"),
    "--hook-dir=/usr/share/mmdebstrap/hooks/merged-usr",
    *(f"--dpkgopt=path-exclude=/usr/share/{name}/*" for name in ("doc", "man", "locale")),
    f"--customize-hook={CLEAN}",
    "bookworm",
]

# What the container's engine is: the capability sets that a process gets.
#   docker  the bounding set alone, but root all (moby: oci.SetCapabilities)
#   cri     bounding, permitted, effective (containerd: oci.WithCapabilities)
RUNTIME = """#!{python}
import json, os, sys
if "--bundle" in sys.argv:
    file = sys.argv[sys.argv.index("--bundle") + 1] + "/config.json"
    config = json.load(open(file))
    process = config["process"]
    given = process["capabilities"].get("bounding", [])
    process["capabilities"] = {{"bounding": given}}
    if process["user"]["uid"] == 0 or sys.argv[0].endswith("-cri"):
        process["capabilities"] |= {{"permitted": given, "effective": given}}
    json.dump(config, open(file, "w"))
os.execvp("runc", ["runc", *sys.argv[1:]])
"""


class Engine:
    """podman with a store of its own."""

    def __init__(self, store: Path) -> None:
        self.store = store
        self.where = ["--root", f"{store}/root", "--runroot", f"{store}/run"]
        for name in ("runc-as-docker", "runc-as-cri"):
            file = store / name
            file.write_text(RUNTIME.format(python=sys.executable))
            file.chmod(0o755)

    def podman(self, *argv: str, runtime: str = "podman") -> list[str]:
        binary = "runc" if runtime == "podman" else f"{self.store}/runc-as-{runtime}"
        settings = ["--cgroup-manager", "cgroupfs", "--runtime", binary]
        return ["podman", *self.where, *settings, *argv]

    def run(self, runtime: str, options: list[str], *argv: str) -> subprocess.CompletedProcess[str]:
        """Run the image in the way that it should be run: nothing writable, no capability."""
        # Limits that a machine without CAP_SYS_RESOURCE can set.
        limits = ["--ulimit=nofile=1024:1024", "--ulimit=nproc=1024:1024"]
        given = ["run", "--rm", "--read-only", "--cap-drop=ALL", *limits, *options, IMAGE, *argv]
        return subprocess.run(
            self.podman(*given, runtime=runtime),
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    need("podman", "buildah", "runc", "mmdebstrap", root=True)
    store = tmp_path_factory.mktemp("store")
    made = Engine(store)
    try:
        base = store / "base.tar"
        check(*BASE, base, seconds=600)
        name = "docker.io/library/debian:bookworm-slim"  # that FROM has
        check(*made.podman("import", "--quiet", str(base), name))
        base.unlink()
        # pip has certificates of its own. Where a proxy has others, it gets those
        # of this machine. Not at their usual place: a package wants to write there.
        (store / "pip.conf").write_text("[global]\ncert = /run/ca.crt\n")
        certificates = "/etc/ssl/certs/ca-certificates.crt"
        check(
            *("buildah", *made.where, "bud", "--quiet", "--isolation=chroot", "--network=host"),
            *("--pull=never", "--jobs=2", "--volume", f"{store}/pip.conf:/etc/pip.conf:ro"),
            *("--volume", f"{certificates}:/run/ca.crt:ro", "--tag", IMAGE, str(ROOT)),
            seconds=600,
        )
        yield made
    finally:
        rest = made.podman("rm", "--all", "--force", "--time", "0")
        for argv in (rest, ["umount", f"{store}/root/overlay"]):
            subprocess.run(argv, capture_output=True, check=False)
        shutil.rmtree(store, ignore_errors=True)


@pytest.fixture(scope="module")
def net() -> Iterator[str]:
    """A network namespace with a table of 50 entries of one key each."""
    need("ip", "nft", "sysctl", root=True)
    with namespaces("host") as (name,):
        sysctl(name, net__netfilter__nf_conntrack_acct=1)
        sysctl(name, net__netfilter__nf_conntrack_udp_timeout=600)
        hook = "type filter hook output priority 0; ct state new accept;"
        check(*inside(name), "nft", "table inet t { chain c { " + hook + " }; }")
        send = (
            "import socket\n"
            "for n in range(50):\n"
            "    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:\n"
            "        sock.bind(('127.0.0.1', 20000 + n))\n"
            "        sock.sendto(b'x', ('127.0.0.1', 53))\n"
        )
        check(*inside(name), sys.executable, "-c", send)
        yield name


def has_the_table(text: str) -> bool:
    """Whether metrics have the 50 entries. The connections of scrapes may be there too."""
    return bool(re.search(r'^conntrack_connections{.*dport="53"} 50$', text, re.MULTILINE))


def source(done: subprocess.CompletedProcess[str]) -> str:
    """Where a run of write read the table of 50 entries, or "none" where it was not permitted."""
    if done.returncode == 0:
        assert has_the_table(done.stdout)
        found = re.search(r'engine="compiled",source="(\w+)"', done.stdout)
        assert found, done.stdout[:500]
        return found[1]
    assert "no permission" in done.stderr, done.stderr
    return "none"


ADMIN, SEARCH = "--cap-add=NET_ADMIN", "--cap-add=DAC_READ_SEARCH"
NO_NEW, ROOT_USER = "--security-opt=no-new-privileges", "--user=0"
HOST = ["-v", "/proc:/host/proc:ro"]
FOREIGN = ["-e", "PYTHONPATH=/evil", "-e", "PYTHONUSERBASE=/evil", "-e", "HOME=/evil"]
HOST_PROC = "--path.procfs=/host/proc"


EVIL = "import os; os.write(1, b'evil\\n'); os._exit(0)"


def evil(directory: Path) -> None:
    """Fill a directory with what Python would run, were it on its path."""
    (directory / "conntrack_textfile").mkdir()
    for name in ("sitecustomize.py", "docopt.py", "re.py", "conntrack_textfile/__init__.py"):
        (directory / name).write_text(EVIL)
    directory.chmod(0o755)


def test_the_entry_point_takes_no_code_from_its_caller(tmp_path: Path) -> None:
    need("gcc")
    launch, place = tmp_path / "launch", tmp_path / "evil"
    python = f'-DPYTHON="{sys.executable}"'
    warnings = ("-Wall", "-Wextra", "-Werror")
    check("gcc", *warnings, python, "-o", launch, ROOT / "container" / "launch.c")
    place.mkdir()
    evil(place)
    startup = dict.fromkeys(("PYTHONPATH", "PYTHONHOME", "PYTHONUSERBASE", "HOME"), str(place))
    said = subprocess.run(
        [launch, "--version"],
        cwd=place,
        env={**os.environ, **startup, "PYTHONINSPECT": "1", "PYTHONWARNINGS": "error"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert said.returncode == 0, said.stderr
    assert said.stdout.startswith(f"conntrack-textfile {__version__} (")
    assert "evil" not in said.stdout
    # What the command reads is passed on, and nothing else.
    show = tmp_path / "show"
    show.write_text("#!/bin/sh\nprintf '%s\\n' \"$*\"\nexec /usr/bin/env\n")
    show.chmod(0o755)
    check("gcc", f'-DPYTHON="{show}"', "-o", launch, ROOT / "container" / "launch.c")
    kept = {"CONNTRACK_TEXTFILE_ENGINE": "pure", "TZ": "UTC", "LISTEN_FDS": "1"}
    lost = {"LD_LIBRARY_PATH": "/nowhere", "OPENSSL_CONF": "x", "TZDIR": "x", "PATH": "/nowhere"}
    done = subprocess.run(
        [launch, "write", "a b"], env={**kept, **lost}, capture_output=True, text=True, check=True
    )
    first, *lines = done.stdout.splitlines()
    assert first == "-I -m conntrack_textfile write a b"
    ours = {line for line in lines if not re.match("(PWD|_|SHLVL|OLDPWD)=", line)}
    assert ours == {f"{name}={value}" for name, value in kept.items()}


def test_nobody_brings_code_to_the_capabilities(engine: Engine, tmp_path: Path) -> None:
    evil(tmp_path)
    given = [*FOREIGN, "-v", f"{tmp_path}:/evil:ro", "--workdir=/evil", ADMIN]
    for runtime in ("podman", "docker", "cri"):
        done = engine.run(runtime, ["--net=none", *given], "--help")
        assert done.stdout.startswith("Prometheus metrics from the Linux connection"), done.stdout


def test_it_starts_and_is_no_root_without_any_capability(engine: Engine) -> None:
    for runtime in ("podman", "docker", "cri"):
        done = engine.run(runtime, ["--net=none"], "--help")
        assert done.stdout.startswith("Prometheus metrics from the Linux connection")
    inspected = json.loads(check(*engine.podman("image", "inspect", IMAGE)))
    assert inspected[0]["Config"]["User"] == "65532:65532"
    assert inspected[0]["Size"] < 150_000_000


@pytest.mark.parametrize(
    ("options", "argv", "found"),
    [
        ([], [], {"podman": "none", "docker": "none", "cri": "none"}),
        ([ADMIN], [], {"podman": "netlink", "docker": "netlink", "cri": "netlink"}),
        ([ADMIN, NO_NEW], [], {"podman": "netlink", "docker": "none", "cri": "netlink"}),
        ([ADMIN, NO_NEW, ROOT_USER], [], {"podman": "netlink", "docker": "netlink"}),
        ([SEARCH, *HOST], [HOST_PROC], {"podman": "procfs", "docker": "procfs", "cri": "procfs"}),
        ([ADMIN, *HOST], [HOST_PROC], {"podman": "none", "docker": "none", "cri": "none"}),
        ([ROOT_USER, NO_NEW], [], {"podman": "procfs", "docker": "procfs"}),
    ],
)
def test_one_capability_is_enough_with_every_engine(
    engine: Engine, net: str, options: list[str], argv: list[str], found: dict[str, str]
) -> None:
    for runtime, wanted in found.items():
        done = engine.run(runtime, [f"--net=ns:/run/netns/{net}", *options], "write", *argv)
        assert source(done) == wanted, (runtime, done.stderr)


def test_the_hosts_table_is_seen_from_another_network_namespace(
    engine: Engine, net: str, tmp_path: Path
) -> None:
    # A host whose first process is in the namespace.
    host = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc", "sleep", "600"]
    process = subprocess.Popen([*inside(net), *host])
    try:
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        first = until(lambda: children.read_text().strip())
        check("nsenter", "--target", first, "--pid", "mount", "-t", "proc", "proc", tmp_path)
        for options, wanted in (([ROOT_USER], "procfs"), ([SEARCH], "procfs"), ([ADMIN], "none")):
            given = ["--net=none", "-v", f"{tmp_path}:/host/proc:ro", *options]
            done = engine.run("docker", given, "write", "--path.procfs=/host/proc/1")
            assert source(done) == wanted, options
    finally:
        subprocess.run(["umount", tmp_path], check=False)
        process.kill()
        process.wait()


def test_serve_answers_and_stops_at_once(engine: Engine, net: str) -> None:
    options = [f"--net=ns:/run/netns/{net}", ADMIN, NO_NEW, "-d", "--name", net]
    started = engine.run("cri", options)
    assert started.returncode == 0, started.stderr
    get = (
        "import urllib.request as u, sys;"
        "sys.stdout.write(u.urlopen('http://127.0.0.1:9095/metrics', timeout=9).read().decode())"
    )
    text = until(lambda: check(*inside(net), sys.executable, "-c", get))
    assert has_the_table(text)
    # With the host's network namespace all addresses would be those of the host.
    listening = check(*inside(net), "cat", "/proc/net/tcp", "/proc/net/tcp6")
    ports = re.findall(r"^ *\d+: ([0-9A-F]+):2387 [0-9A-F]+:0000 0A", listening, re.MULTILINE)
    assert ports == ["0100007F"]
    before = time.monotonic()
    check(*engine.podman("stop", "--time", "20", net))
    assert time.monotonic() - before < 15  # else podman kills it, after 20
