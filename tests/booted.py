"""Debian with systemd as its first process, booted by systemd-nspawn(1).

A machine has its own network namespace, and so its own conntrack table. What it writes to
its root file system is on a tmpfs.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from tests.waiting import until

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).resolve().parent.parent
CACHE = ROOT / "build" / "booted"
PACKAGES = "systemd-sysv,dbus,python3,prometheus-node-exporter"
OPT = "/opt/conntrack-textfile"
BUILDERS = "build-essential,debhelper,dh-python,python3-dev,python3-venv"
NO_DOCUMENTATION = [f"--dpkgopt=path-exclude=/usr/share/{name}/*" for name in ("doc", "locale")]
FETCHED = "prometheus-node-exporter python3-bcrypt python3-yaml kmod"


def check(
    *argv: str | Path,
    text: str | None = None,
    seconds: float = 60,
    cwd: str | None = None,
    env: dict[str, str] | None = None,
) -> str:
    """Run a program that must succeed; return its standard output."""
    done = subprocess.run(
        argv,
        input=text,
        capture_output=True,
        text=True,
        timeout=seconds,
        check=False,
        cwd=cwd,
        env=env,
    )
    if done.returncode:
        raise AssertionError(f"{argv} ended with {done.returncode}:\n{done.stdout}{done.stderr}")
    return done.stdout


def suite() -> str:
    """Return the release of this machine: what pip builds here fits the Python of that tree."""
    release = Path("/etc/os-release").read_text()
    return str(re.findall(r"^VERSION_CODENAME=(\w+)$", release, re.MULTILINE)[0])


def _debian(name: str, release: str, packages: str, *options: str) -> Path:
    """Return a root file system of Debian. It is made once and never changed.

    name: of its directory in CACHE. packages: what mmdebstrap(1) installs beside dpkg.
    """
    CACHE.mkdir(parents=True, exist_ok=True)
    made = CACHE / name
    if not made.exists():
        with tempfile.TemporaryDirectory(dir=CACHE) as directory:
            root = Path(directory) / "root"
            argv = ("--quiet", "--variant=minbase", f"--include={packages}", *options)
            check("mmdebstrap", *argv, release, root, seconds=600)
            root.chmod(0o755)
            root.rename(made)
    return made


def tree() -> Path:
    """Return a Debian that can boot, with node_exporter."""
    return _debian(suite(), suite(), PACKAGES, *NO_DOCUMENTATION)


def fresh(release: str) -> Path:
    """Return a Debian that can boot, with the dependencies of our package in apt's cache."""
    fetch = "apt-get install --quiet --quiet --download-only --yes"
    hook = f'--customize-hook=chroot "$1" {fetch} {FETCHED}'
    return _debian(f"fresh-{release}", release, "systemd-sysv,dbus", "--skip=cleanup/apt", hook)


def builder(release: str) -> Path:
    """Return a Debian with the build dependencies of our package."""
    return _debian(f"builder-{release}", release, BUILDERS, *NO_DOCUMENTATION)


def install(venv: Path) -> None:
    """Make a virtual environment for /opt/conntrack-textfile."""
    with tempfile.TemporaryDirectory() as directory:
        copy = Path(directory)  # pip builds in the tree that it is given
        ignored = shutil.ignore_patterns("*.so", "*.c", "__pycache__")
        shutil.copytree(ROOT / "conntrack_textfile", copy / "conntrack_textfile", ignore=ignored)
        for name in ("man", "completion"):
            shutil.copytree(ROOT / name, copy / name, ignore=ignored)
        for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
            shutil.copy(ROOT / name, copy)
        check("/usr/bin/python3", "-m", "venv", venv)
        quick = {**os.environ, "CFLAGS": "-O0 -g0"}  # to compile
        check(venv / "bin/pip", "install", "--quiet", f"{copy}[web]", seconds=600, env=quick)
    # A virtual environment may be moved, but for the first line of its scripts.
    script = venv / "bin/conntrack-textfile"
    script.write_text(re.sub(r"\A#!.*", f"#!{OPT}/bin/python3", script.read_text()))


def shipped(root: Path) -> None:
    """Copy our units and settings to where an administrator installs them; enable nothing."""
    root.chmod(0o755)
    for name in ("systemd/system", "default", "tmpfiles.d", "sysctl.d", "modules-load.d"):
        (root / "etc" / name).mkdir(parents=True)  # what Debian has
    units = ROOT / "systemd"
    for pattern in ("*.service", "*.socket", "*.timer"):
        for unit in units.glob(pattern):
            shutil.copy(unit, root / "etc/systemd/system")
    for name in ("default", "sysusers.d", "tmpfiles.d", "sysctl.d", "modules-load.d"):
        shutil.copytree(units / name, root / "etc" / name, dirs_exist_ok=True)
    (root / "usr/local/bin").mkdir(parents=True)
    (root / "usr/local/bin/conntrack-textfile").symlink_to(f"{OPT}/bin/conntrack-textfile")
    (root / OPT[1:]).mkdir(parents=True)
    # A test need not wait for the next minute.
    dropin = root / "etc/systemd/system/conntrack-textfile.timer.d/often.conf"
    dropin.parent.mkdir()
    dropin.write_text("[Timer]\nOnCalendar=\nOnCalendar=*:*:0/3\nAccuracySec=1ms\n")


# Runs a container until end of file on standard input, which comes however the caller
# ends, then kills its cgroup: to kill systemd-nspawn alone would leave the container
# running. The mounts are in a mount namespace of this shell; what the container and
# systemd-nspawn write is on its tmpfs.
KEEP = """
tree=$1 files=$2 cgroup=/sys/fs/cgroup/$3; shift 3
mount -t tmpfs -o mode=755 tmpfs /run
mkdir /run/upper /run/work /run/root
cp -a "$files/." /run/upper
mount -t overlay -o "lowerdir=$tree,upperdir=/run/upper,workdir=/run/work" overlay /run/root
mount -t cgroup2 cgroup2 /sys/fs/cgroup
mkdir "$cgroup"
end='echo 1 >"$cgroup/cgroup.kill"'
trap "$end; "'until rmdir $(find "$cgroup" -depth -type d); do sleep 0.02; done 2>/dev/null' EXIT
sh -euc 'echo $$ >"$0/cgroup.procs"; exec "$@"' "$cgroup" \\
    systemd-nspawn --quiet --directory=/run/root --machine=ctf --settings=no --register=no \\
    --keep-unit --private-network --link-journal=no --resolv-conf=off --timezone=off \\
    --system-call-filter=bpf --console=pipe "$@" --boot </dev/null &
nspawn=$!
exec 3<&0
{ read -r _ <&3 || eval "$end"; } &
wait $nspawn || true
kill $! 2>/dev/null || true
"""


class Machine:
    """A booted container, as the host sees it."""

    def __init__(self, leader: int) -> None:
        self.leader = leader
        self._all = ["nsenter", f"--target={leader}", "-m", "-p", "-n", "-u", "-i"]
        self._net = ["nsenter", f"--target={leader}", "-n"]

    def run(self, *argv: str, text: str | None = None, seconds: float = 60) -> str:
        """Run a program of the container in it; return its standard output."""
        return check(*self._all, *argv, text=text, seconds=seconds, cwd="/")

    def fails(self, *argv: str) -> str:
        """Run a program that must fail; return its output."""
        done = subprocess.run(
            [*self._all, *argv], capture_output=True, text=True, timeout=60, check=False, cwd="/"
        )
        assert done.returncode, f"{argv} did not fail: {done.stdout}"
        return done.stdout + done.stderr

    def net(self, *argv: str, text: str | None = None) -> str:
        """Run a program of the host in the container's network namespace; return its output."""
        return check(*self._net, *argv, text=text)

    def get(self, url: str, seconds: float = 30) -> str:
        """Return the body of a GET that is sent in the container's network namespace."""
        code = (
            "import sys, urllib.request as u;"
            "sys.stdout.write(u.urlopen(sys.argv[1], timeout=float(sys.argv[2])).read().decode())"
        )
        return self.net(sys.executable, "-c", code, url, str(seconds))

    def systemctl(self, *argv: str) -> str:
        return self.run("systemctl", *argv)

    def show(self, unit: str, name: str) -> str:
        return self.systemctl("show", "--value", f"--property={name}", unit).strip()

    def write(self, path: str, text: str) -> None:
        self.run("sh", "-c", 'mkdir -p "$(dirname "$1")" && cat >"$1"', "sh", path, text=text)

    def dropin(self, unit: str, text: str) -> None:
        """Write the drop-in of the test, and reload systemd."""
        self.write(f"/run/systemd/system/{unit}.d/test.conf", text)
        self.systemctl("daemon-reload")

    def state(self, *argv: str) -> str:
        """Return the state of systemd as `systemctl is-system-running`; "" before it listens."""
        argv = (*self._all, "systemctl", "is-system-running", *argv)
        done = subprocess.run(
            argv, capture_output=True, text=True, timeout=60, check=False, cwd="/"
        )
        return done.stdout.strip()

    def journal(self, unit: str) -> str:
        """Return the messages of a unit, with what journald has not yet read of its output."""
        self.run("journalctl", "--sync")
        return self.run("journalctl", "--no-pager", "--output=cat", f"--unit={unit}")

    def status(self, pid: str) -> dict[str, str]:
        """Return /proc/PID/status of a process, by its PID in the container."""
        text = self.run("cat", f"/proc/{pid}/status")
        return dict(re.findall(r"^(\w+):\s*(.*)$", text, re.MULTILINE))


@contextlib.contextmanager
def booted(root: Path, venv: Path) -> Iterator[Machine]:
    """Boot a container with our units and, at /opt, a virtual environment."""
    with tempfile.TemporaryDirectory() as files:
        shipped(Path(files))
        with boot(root, Path(files), f"--bind-ro={venv}:{OPT}") as machine:
            yield machine


@contextlib.contextmanager
def boot(root: Path, files: Path, *options: str) -> Iterator[Machine]:
    """Boot a container; end it afterwards.

    root: its root file system, which stays as it is. files: copied over that.
    options: of systemd-nspawn(1).
    """
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(
            ["unshare", "-m", "--propagation=private", "sh", "-euc", KEEP, "sh",
             root, files, f"ctf-{secrets.token_hex(4)}", *options],
            stdin=subprocess.PIPE, stdout=log, stderr=log, start_new_session=True,
        )  # fmt: skip
        try:
            try:
                machine = Machine(until(lambda: _leader(process.pid)))
                until(lambda: machine.state("--wait") in ("running", "degraded"))
            except AssertionError as error:
                log.seek(0)
                raise AssertionError(f"{error}; nspawn said:\n{log.read()}") from None
            assert machine.state() == "running", machine.systemctl("--failed", "--no-legend")
            yield machine
        finally:
            process.communicate()  # closes its input


def _leader(pid: int) -> int:
    """Return the first process of the container: the descendant whose own PID is 1; else 0."""
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        numbers = re.search(r"^NSpid:(.*)$", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
        if numbers and numbers[1].split()[1:] == ["1"]:
            return pid
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        return next(filter(None, map(_leader, map(int, children))), 0)
    return 0
