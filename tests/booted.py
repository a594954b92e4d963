"""A systemd that was really booted: Debian in a container of systemd-nspawn.

It has a network namespace, a conntrack table and a copy of the tree of its own,
our units as an administrator installs them, and node_exporter.
"""

from __future__ import annotations

import contextlib
import re
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ROOT = Path(__file__).resolve().parent.parent
CACHE = ROOT / "build" / "booted"
PACKAGES = "systemd-sysv,dbus,python3,prometheus-node-exporter"
OPT = "/opt/conntrack-textfile"


def check(
    *argv: str | Path, text: str | None = None, seconds: float = 60, cwd: str | None = None
) -> str:
    """Run a program that must succeed; its standard output."""
    done = subprocess.run(
        argv, input=text, capture_output=True, text=True, timeout=seconds, check=False, cwd=cwd
    )
    if done.returncode:
        raise AssertionError(f"{argv} ended with {done.returncode}:\n{done.stdout}{done.stderr}")
    return done.stdout


def suite() -> str:
    """The Debian of this machine: its Python is that of the tree, so what pip builds here fits."""
    release = Path("/etc/os-release").read_text()
    return str(re.findall(r"^VERSION_CODENAME=(\w+)$", release, re.MULTILINE)[0])


def tree() -> Path:
    """A root file system that can boot, made once. Nothing in it is ever changed."""
    CACHE.mkdir(parents=True, exist_ok=True)
    made = CACHE / suite()
    if not made.exists():
        with tempfile.TemporaryDirectory(dir=CACHE) as directory:
            root = Path(directory) / "root"
            check(
                *("mmdebstrap", "--quiet", "--variant=minbase", f"--include={PACKAGES}"),
                *(f"--dpkgopt=path-exclude=/usr/share/{name}/*" for name in ("doc", "locale")),
                *(suite(), root),
                seconds=600,
            )
            root.chmod(0o755)
            root.rename(made)
    return made


def install(venv: Path) -> None:
    """Make a virtual environment for /opt/conntrack-textfile, as docs/install.md says."""
    with tempfile.TemporaryDirectory() as directory:
        copy = Path(directory)  # pip builds in the tree that it is given
        ignored = shutil.ignore_patterns("*.so", "*.c", "__pycache__")
        shutil.copytree(ROOT / "conntrack_textfile", copy / "conntrack_textfile", ignore=ignored)
        shutil.copytree(ROOT / "man", copy / "man", ignore=ignored)
        for name in ("pyproject.toml", "README.md", "LICENSE"):
            shutil.copy(ROOT / name, copy)
        check("/usr/bin/python3", "-m", "venv", venv)
        check(venv / "bin/pip", "install", "--quiet", f"{copy}[web]", seconds=600)
    # A virtual environment may be moved, but for the first line of its scripts.
    script = venv / "bin/conntrack-textfile"
    script.write_text(re.sub(r"\A#!.*", f"#!{OPT}/bin/python3", script.read_text()))


def shipped(root: Path) -> None:
    """Put our files where docs/write.md says, but for the enabling."""
    root.chmod(0o755)
    for name in ("systemd/system", "default", "tmpfiles.d", "sysctl.d", "modules-load.d"):
        (root / "etc" / name).mkdir(parents=True)  # what Debian has
    text = (ROOT / "docs" / "write.md").read_text()
    block = re.search(r"^## systemd\n\n```sh\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    assert block
    lines = [line for line in block[1].splitlines() if line.startswith(("cp ", "for "))]
    assert len(lines) == 3
    commands = "\n".join(lines).replace(" /etc/", f" {root}/etc/")
    check("sh", "-euc", commands, cwd=str(ROOT))
    (root / "usr/local/bin").mkdir(parents=True)
    (root / "usr/local/bin/conntrack-textfile").symlink_to(f"{OPT}/bin/conntrack-textfile")
    (root / OPT[1:]).mkdir(parents=True)
    # A second of the timer is enough for a test.
    dropin = root / "etc/systemd/system/conntrack-textfile.timer.d/often.conf"
    dropin.parent.mkdir()
    dropin.write_text("[Timer]\nOnCalendar=\nOnCalendar=*:*:0/3\nAccuracySec=1ms\n")


# Keeps a container until standard input ends, which it does however the caller
# ends; then ends every process of it by its cgroup. (To kill nspawn would leave
# the container running.) All mounts are of a namespace that is gone with this;
# the container's writes and nspawn's own files go to its tmpfs.
KEEP = """
tree=$1 venv=$2 files=$3; cgroup=/sys/fs/cgroup/$4
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
    --system-call-filter=bpf --bind-ro="$venv:/opt/conntrack-textfile" --console=pipe \\
    --boot </dev/null &
nspawn=$!
exec 3<&0
{ read -r _ <&3 || eval "$end"; } &
wait $nspawn || true
kill $! 2>/dev/null || true
"""


class Machine:
    """A booted container, seen from the host."""

    def __init__(self, leader: int) -> None:
        self.leader = leader
        self._all = ["nsenter", f"--target={leader}", "-m", "-p", "-n", "-u", "-i"]
        self._net = ["nsenter", f"--target={leader}", "-n"]

    def run(self, *argv: str, text: str | None = None) -> str:
        """Run a program of the container in it."""
        return check(*self._all, *argv, text=text, cwd="/")

    def fails(self, *argv: str) -> str:
        """Run a program that must fail; what it said."""
        done = subprocess.run(
            [*self._all, *argv], capture_output=True, text=True, timeout=60, check=False, cwd="/"
        )
        assert done.returncode, f"{argv} did not fail: {done.stdout}"
        return done.stdout + done.stderr

    def net(self, *argv: str, text: str | None = None) -> str:
        """Run a program of the host in the container's network namespace."""
        return check(*self._net, *argv, text=text)

    def get(self, url: str, seconds: float = 5) -> str:
        """The answer to a GET, from the container's own loopback."""
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
        """Set the drop-in of the test; an empty text removes it."""
        self.write(f"/run/systemd/system/{unit}.d/test.conf", text)
        self.systemctl("daemon-reload")

    def state(self, *argv: str) -> str:
        """What systemd says of itself; nothing while it does not listen."""
        argv = (*self._all, "systemctl", "is-system-running", *argv)
        done = subprocess.run(
            argv, capture_output=True, text=True, timeout=60, check=False, cwd="/"
        )
        return done.stdout.strip()

    def journal(self, unit: str) -> str:
        return self.run("journalctl", "--no-pager", "--output=cat", f"--unit={unit}")

    def status(self, pid: str) -> dict[str, str]:
        """/proc/PID/status of a process, by its number in the container."""
        text = self.run("cat", f"/proc/{pid}/status")
        return dict(re.findall(r"^(\w+):\s*(.*)$", text, re.MULTILINE))


@contextlib.contextmanager
def booted(root: Path, venv: Path) -> Iterator[Machine]:
    """A container with our files, gone afterwards whatever happened."""
    with tempfile.TemporaryDirectory() as files, tempfile.TemporaryFile("w+") as log:
        shipped(Path(files))
        process = subprocess.Popen(
            ["unshare", "-m", "--propagation=private", "sh", "-euc", KEEP, "sh",
             root, venv, files, f"ctf-{secrets.token_hex(4)}"],
            stdin=subprocess.PIPE, stdout=log, stderr=log, start_new_session=True,
        )  # fmt: skip
        try:
            try:
                machine = Machine(until(lambda: _leader(process.pid)))
                until(lambda: machine.state("--wait") in ("running", "degraded"), 30)
            except AssertionError as error:
                log.seek(0)
                raise AssertionError(f"{error}; nspawn said:\n{log.read()}") from None
            assert machine.state() == "running", machine.systemctl("--failed", "--no-legend")
            yield machine
        finally:
            process.communicate()  # closes its input


def _leader(pid: int) -> int:
    """The first process of the container: the descendant that is number 1 to itself."""
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        numbers = re.search(r"^NSpid:(.*)$", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
        if numbers and numbers[1].split()[1:] == ["1"]:
            return pid
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        return next(filter(None, map(_leader, map(int, children))), 0)
    return 0


def until(probe: Callable[[], Any], seconds: float = 10) -> Any:
    """The first true answer of a probe. An AssertionError of it counts as not yet."""
    end = time.monotonic() + seconds
    while True:
        try:
            if found := probe():
                return found
            why = "never true"
        except AssertionError as error:
            why = str(error)
        assert time.monotonic() < end, f"not within {seconds} s: {why}"
        time.sleep(0.05)
