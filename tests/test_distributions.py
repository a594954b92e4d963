"""Release archives and packages: their builds, and installation, upgrade and removal on Debian."""

from __future__ import annotations

import concurrent.futures
import os
import re
import shutil
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests import booted
from tests.booted import Machine, boot, builder, check, fresh, suite
from tests.conftest import need
from tests.test_systemd import traffic, udp_packets, value
from tests.waiting import until

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parent.parent
VERSION = "7.8.9"
MAINTAINER = "A Packager <packager@example.org>"
NOT_OURS = shutil.ignore_patterns(
    *(".git", ".venv*", ".*_cache", ".hypothesis", "build", "dist"),
    *("*.egg-info", "*.so", "*.c", "__pycache__"),
)
# To compile quickly is good enough.
QUICK = {"CFLAGS": "-O0", "DEB_CFLAGS_APPEND": "-O0"}

TEXTFILES = "/var/lib/prometheus/node-exporter"
STATE = "/var/lib/conntrack-textfile"
TIMER = "conntrack-textfile.timer"
WRITER = "conntrack-textfile.service"
EVENTS = "conntrack-events.socket"
EXPORTER = "conntrack-exporter.service"
PUBLISH = "conntrack-textfile-publish.service"
SHOWN = (f"{STATE}/conntrack.prom", f"{TEXTFILES}/conntrack.prom")
NODE_EXPORTER = "http://127.0.0.1:9100/metrics"


def make(where: Path, *argv: str) -> str:
    return check("make", *argv, cwd=str(where), env={**os.environ, **QUICK}, seconds=900)


def checkout(where: Path) -> Path:
    """Create a clone with a release commit of the current files."""
    shutil.copytree(ROOT, where, ignore=NOT_OURS)
    for name, pattern, text in (
        ("conntrack_textfile/__init__.py", r'(__version__ = )".*"', rf'\1"{VERSION}"'),
        ("CHANGELOG.md", r"## \[.*", f"## [{VERSION}] - 2026-01-02"),
    ):
        file = where / name
        changed, count = re.subn(pattern, text, file.read_text(), count=1)
        assert count
        file.write_text(changed)
    of = ["-c", "user.name=a", "-c", "user.email=a@b.example"]
    env = {**os.environ, "GIT_COMMITTER_DATE": "2026-01-02T03:04:05Z"}
    for argv in (["init", "-q"], ["add", "-A"], [*of, "commit", "-qm", "A release"]):
        check("git", *argv, cwd=str(where), env=env)
    return where


@pytest.fixture(scope="module")
def releases(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The results of `make release` in two directories, at different times."""
    need("dpkg-buildpackage", "dh", "dh_python3", "gcc", "git", "make", "rpmbuild")
    clones = [checkout(tmp_path_factory.mktemp(name) / "clone") for name in ("one", "the-other")]
    with concurrent.futures.ThreadPoolExecutor() as pool:
        argv = ("release", f"VERSION={VERSION}", f"MAINTAINER={MAINTAINER}")
        first = pool.submit(make, clones[0], *argv)
        time.sleep(2)  # archives know even seconds only
        make(clones[1], *argv)
        first.result()
    return [clone / "dist" for clone in clones]


@pytest.fixture(scope="module")
def released(releases: list[Path]) -> Path:
    """The directory with the results of `make release`."""
    return releases[0]


def only(where: Path, pattern: str) -> Path:
    (found,) = where.glob(pattern)
    return found


def test_a_release_has_all_archives_and_packages(released: Path) -> None:
    names = sorted(file.name for file in released.iterdir())
    assert [name.rpartition(".")[2] for name in names] == ["SHA256SUMS", "rpm", "deb", "whl", "gz"]
    assert all(VERSION in name for name in names[1:])
    assert "manylinux" in names[3]
    check("sha256sum", "--check", "--strict", "SHA256SUMS", cwd=str(released))
    package = only(released, "*.deb")
    assert check("dpkg-deb", "--field", package, "Maintainer").strip() == MAINTAINER
    rpm = only(released, "*.rpm")
    assert check("rpm", "-qp", "--queryformat", "%{PACKAGER}", rpm) == MAINTAINER


def test_the_same_commit_gives_the_same_bytes(releases: list[Path]) -> None:
    one, other = ((where / "SHA256SUMS").read_text() for where in releases)
    assert one == other


def test_a_release_requires_a_clean_commit_of_its_version(tmp_path: Path) -> None:
    where = checkout(tmp_path / "clone")
    for version, change, why in (
        ("1.2.3", None, "conntrack_textfile/__init__.py is not of version 1.2.3"),
        (VERSION, "README.md", "there are changes that are not committed"),
        (VERSION, "CHANGELOG.md", f"CHANGELOG.md has no dated section of version {VERSION}"),
    ):
        if change:
            (where / change).write_text("## [Unreleased]\n")
        done = subprocess.run(
            ["make", "release", f"VERSION={version}"],
            cwd=where,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 2
        assert done.stderr.splitlines()[0] == f"make: {why}"
        assert not (where / "dist").exists()


def test_lintian_finds_no_error(released: Path) -> None:
    need("lintian")
    argv = ["lintian", "--allow-root", "--fail-on=error", str(only(released, "*.deb"))]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "E:" not in done.stdout


def test_rpmlint_finds_no_error_except_the_missing_signature(
    released: Path, tmp_path: Path
) -> None:
    need("rpmlint")
    argv = ["rpmlint", str(only(released, "*.rpm"))]
    done = subprocess.run(argv, capture_output=True, text=True, check=False, cwd=tmp_path)
    errors = re.findall(r": E: (\S+)", done.stdout)
    assert errors == ["no-signature"], done.stdout


def installed_files(root: Path) -> set[str]:
    return {
        str(path.relative_to(root))
        for path in root.rglob("*")
        if path.is_symlink() or path.is_file()
    }


def of_a_package(names: set[str]) -> set[str]:
    """Return file names without differences between distributions: compression, directories."""
    usual = (
        (r"^lib/systemd", "usr/lib/systemd"),
        (r"\.gz$", ""),
        (r"^usr/share/zsh/[\w-]+/", "usr/share/zsh/"),
    )
    for pattern, text in usual:
        names = {re.sub(pattern, text, name) for name in names}
    own = r"/__pycache__/|^usr/share/(licenses|python3)/|/(copyright|changelog.*|CHANGELOG.md)$"
    return {name for name in names if not re.search(own, name)}


def test_packages_have_what_make_install_installs(
    released: Path, compiled: Path, tmp_path: Path
) -> None:
    make(
        compiled, "-o", "site", "install", f"DESTDIR={tmp_path}/make", "PREFIX=/usr", "SYSTEMD=yes"
    )
    expected = of_a_package(installed_files(tmp_path / "make"))
    for name in (
        "etc/default/conntrack-textfile",
        "usr/bin/conntrack-textfile",
        "usr/lib/systemd/system/conntrack-events.socket",
        "usr/lib/sysctl.d/conntrack-textfile.conf",
        "usr/share/conntrack-textfile/conntrack-alerts.yml",
        "usr/share/conntrack-textfile/conntrack.json",
        "usr/share/doc/conntrack-textfile/examples/cron",
        "usr/share/man/man1/conntrack-textfile.1",
    ):
        assert name in expected
    assert any(name.endswith(".so") for name in expected)
    check("dpkg-deb", "--extract", only(released, "*.deb"), tmp_path / "deb")
    assert of_a_package(installed_files(tmp_path / "deb")) == expected
    rpm = only(released, "*.rpm")
    listed = check("rpm", "-qp", "--queryformat", r"[%{FILEMODES:perms} %{FILENAMES}\n]", rpm)
    lines = [line.split(" ", 1) for line in listed.splitlines()]
    names = {name.lstrip("/") for mode, name in lines if not mode.startswith("d")}
    assert of_a_package(names) == expected
    settings = check("rpm", "-qp", "--configfiles", rpm).split()
    assert settings == ["/etc/default/conntrack-exporter", "/etc/default/conntrack-textfile"]


@pytest.fixture(scope="module")
def compiled(released: Path) -> Path:
    """A clone in which `make -o site install` does not build."""
    make(released.parent, "site")
    return released.parent


def tree(root: Path) -> list[str]:
    return sorted(f"{path.relative_to(root)}" for path in root.rglob("*"))


@pytest.mark.parametrize(
    ("prefix", "systemd"), [("/usr/local", "yes"), ("/opt/tools", "yes"), ("/usr/local", "no")]
)
def test_make_uninstall_leaves_nothing_of_make_install(
    compiled: Path, tmp_path: Path, prefix: str, systemd: str
) -> None:
    root = tmp_path / "root"
    for name in ("bin", "lib", "share/man" if prefix == "/usr/local" else "share"):
        (root / prefix[1:] / name).mkdir(parents=True)
    (root / "etc/default").mkdir(parents=True)
    (root / "etc/default/other").touch()
    before = tree(root)
    where = (f"DESTDIR={root}", f"PREFIX={prefix}", f"SYSTEMD={systemd}")
    make(compiled, "-o", "site", "install", *where)
    program = (root / prefix[1:] / "bin/conntrack-textfile").read_text()
    assert program.startswith("#!/usr/bin/python3 -I\n")
    assert f'"{prefix}/lib/conntrack-textfile"' in program
    units = list(root.rglob("conntrack-textfile.service"))
    assert len(units) == (systemd == "yes")
    for unit in units:
        assert f"\nExecStart={prefix}/bin/conntrack-textfile write" in unit.read_text()
        places = {"/usr/local": "usr/local/lib/systemd/system", "/opt/tools": "etc/systemd/system"}
        assert str(unit.parent.relative_to(root)) == places[prefix]
    # Settings that were made stay, when it is installed again.
    settings = list((root / "etc/default").glob("conntrack-*"))
    for file in settings:
        file.write_text("ARGS=--limit.keys=7\n")
    make(compiled, "-o", "site", "install", *where)
    assert {file.read_text() for file in settings} <= {"ARGS=--limit.keys=7\n"}
    make(compiled, "uninstall", *where)
    assert tree(root) == before


INSTALL_RPM = """
tree=$1 package=$2
mount -t tmpfs -o mode=755 tmpfs /mnt
mkdir /mnt/upper /mnt/work /mnt/root
mount -t overlay -o "lowerdir=$tree,upperdir=/mnt/upper,workdir=/mnt/work" overlay /mnt/root
mount --rbind /dev /mnt/root/dev
mount -t proc proc /mnt/root/proc
left() {
    find /mnt/upper -not -type d -not -type c -path '*conntrack*' -printf '/%P\\n' | sort
}
do_rpm() { rpm --root=/mnt/root --nodeps "$@" 2>&1; }
do_rpm -i "$package"
chroot /mnt/root conntrack-textfile --version
chroot /mnt/root systemctl is-enabled conntrack-textfile.timer
grep ^ExecStart= /mnt/root/usr/lib/systemd/system/conntrack-textfile.service
chroot /mnt/root getent group conntrack-metrics
echo ARGS=--limit.keys=7 >/mnt/root/etc/default/conntrack-textfile
do_rpm -e conntrack-textfile
left
"""


def test_the_rpm_installs_runs_and_is_removed(released: Path) -> None:
    """Installed with rpm on Debian: dnf and the names of dependencies are not tested."""
    need("rpm", "unshare", "mmdebstrap", root=True)
    argv = ["unshare", "-m", "--propagation=private", "sh", "-euc", INSTALL_RPM, "sh"]
    said = check(*argv, booted.tree(), only(released, "*.rpm")).splitlines()
    said = [line for line in said if not line.startswith(("rpm: ", "Creating group"))]
    assert re.fullmatch(rf"conntrack-textfile {VERSION} \(compiled engine, Python .*\)", said[0])
    assert said[1] == "enabled"
    assert said[2].startswith("ExecStart=/usr/bin/conntrack-textfile write")
    assert said[3].startswith("conntrack-metrics:")
    # Settings that were made stay beside.
    saved = "/etc/default/conntrack-textfile.rpmsave"
    assert said[4:] == [f"warning: {saved[:-8]} saved as {saved}", saved]


def newer(package: Path, where: Path) -> Path:
    """Return a copy of a package with a later version."""
    check("dpkg-deb", "--raw-extract", package, where / "tree")
    control = where / "tree/DEBIAN/control"
    control.write_text(control.read_text().replace(f": {VERSION}-", ": 7.9-"))
    made = where / "newer.deb"
    check("dpkg-deb", "--root-owner-group", "--build", where / "tree", made)
    return made


BUILD = """
tree=$1 clone=$2 result=$3
mount -t tmpfs -o mode=755 tmpfs /mnt
mkdir /mnt/upper /mnt/work /mnt/root
mount -t overlay -o "lowerdir=$tree,upperdir=/mnt/upper,workdir=/mnt/work" overlay /mnt/root
mount --rbind /dev /mnt/root/dev
mount -t proc proc /mnt/root/proc
cp /etc/resolv.conf /mnt/root/etc/
cp /etc/ssl/certs/ca-certificates.crt /mnt/root/ca.crt
mkdir /mnt/root/clone
tar -C "$clone" -xzf "$clone"/dist/*.tar.gz -C /mnt/root/clone --strip-components=1
env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin LC_ALL=C.UTF-8 PIP_CERT=/ca.crt DEB_CFLAGS_APPEND=-O0 \\
    chroot /mnt/root make -C /clone deb
cp /mnt/root/clone/dist/*.deb "$result"
"""


@pytest.fixture(scope="module", params=["bookworm", "trixie"])
def package(request: pytest.FixtureRequest, released: Path, tmp_path_factory: Any) -> Path:
    """The package for a Debian release, built on that release."""
    need("mmdebstrap", "unshare", root=True)
    release = str(request.param)
    where: Path = tmp_path_factory.mktemp(release)
    if release == suite():
        shutil.copy(only(released, "*.deb"), where)
    else:
        argv = ["unshare", "-m", "--propagation=private", "sh", "-euc", BUILD, "sh"]
        check(*argv, builder(release), released.parent, where, seconds=900)
    made = only(where, "*.deb")
    return made.rename(where / f"{release}.deb")


@pytest.fixture
def machine(package: Path, tmp_path: Path) -> Iterator[Machine]:
    """A booted container of a fresh Debian, with two packages in /root."""
    need("nft", "systemd-nspawn", "nsenter", root=True)
    files = tmp_path / "files" / "root"
    files.mkdir(parents=True)
    shutil.copy(package, files / "first.deb")
    shutil.copy(newer(package, tmp_path), files)
    with boot(fresh(package.stem), files.parent) as made:
        yield made


def apt(machine: Machine, *argv: str) -> None:
    # What others recommend is not in the tree of fresh().
    quiet = ("apt-get", "--quiet", "--yes", "--no-install-recommends")
    machine.run("env", "DEBIAN_FRONTEND=noninteractive", *quiet, *argv, seconds=300)


def missing(machine: Machine, *paths: str) -> bool:
    """Return whether none of these paths exists, not even as a dangling link."""
    script = 'for path; do if [ -e "$path" ] || [ -L "$path" ]; then echo "$path"; fi; done'
    return machine.run("sh", "-c", script, "sh", *paths) == ""


def node_exporter(machine: Machine, port: int = 0) -> str:
    """Return the metrics of node_exporter, when they include the datagrams of traffic()."""
    text = until(
        lambda: (
            "conntrack_snapshot_success 1" in (text := machine.get(NODE_EXPORTER))
            and (not port or udp_packets(text, port) == 5)
            and text
        ),
        90,
    )
    assert value(text, "node_textfile_scrape_error") == 0
    return str(text)


BY_HAND = "/proc/sys/net/netfilter/nf_conntrack_tcp_be_liberal"


def set_by_hand(machine: Machine) -> None:
    """Change a setting of the kernel by hand, which an installation must not reset."""
    machine.write("/etc/sysctl.d/another.conf", "net.netfilter.nf_conntrack_tcp_be_liberal = 0\n")
    machine.write(BY_HAND, "1")


def counted(machine: Machine) -> tuple[float, float]:
    text = machine.run("cat", f"{STATE}/conntrack.prom")
    names = ("conntrack_counters_start_timestamp_seconds", "conntrack_snapshot_timestamp_seconds")
    start, taken = (value(text, name) for name in names)
    return start, taken


def test_a_package_from_the_first_metric_to_its_removal(machine: Machine) -> None:
    recommended = machine.run("dpkg-deb", "--field", "/root/first.deb", "Recommends")
    assert recommended == "kmod, python3-bcrypt, python3-yaml\n"
    set_by_hand(machine)
    apt(machine, "install", "/root/first.deb", *recommended.replace(",", "").split())
    shown = {unit: machine.show(unit, "ActiveState") for unit in (TIMER, EVENTS, EXPORTER)}
    assert shown == {TIMER: "active", EVENTS: "active", EXPORTER: "inactive"}
    assert machine.run("cat", "/proc/sys/net/netfilter/nf_conntrack_acct") == "1\n"
    # Debian 13 itself sets all of sysctl.d anew when a package brings a file there.
    triggers = machine.run("cat", "/var/lib/dpkg/info/systemd.triggers")
    if "/usr/lib/sysctl.d" not in triggers:
        assert machine.run("cat", BY_HAND) == "1\n"
    until(lambda: not missing(machine, SHOWN[0]))  # of the first run
    traffic(machine, 4242)
    machine.systemctl("start", WRITER)  # before the datagrams are forgotten
    apt(machine, "install", "prometheus-node-exporter")
    text = node_exporter(machine, 4242)
    assert 'engine="compiled"' in text
    # With what is recommended there are passwords.
    machine.run("python3", "-c", "import bcrypt, yaml")

    # An upgrade keeps settings and counters, and loses no event.
    machine.write("/etc/default/conntrack-textfile", 'ARGS="--limit.keys=77"\n')
    machine.systemctl("start", EXPORTER)
    until(lambda: machine.get("http://127.0.0.1:9095/metrics"))
    pid = machine.show(EXPORTER, "MainPID")
    held = machine.show(EVENTS, "InvocationID")
    published = machine.show(PUBLISH, "InvocationID")
    start, taken = counted(machine)
    assert start > 0
    apt(machine, "install", "/root/newer.deb")
    machine.systemctl("start", WRITER)  # and not in a minute
    assert counted(machine)[1] > taken
    assert counted(machine)[0] == start
    assert machine.show(EVENTS, "InvocationID") == held
    assert machine.show(PUBLISH, "InvocationID") == published
    until(lambda: machine.show(EXPORTER, "MainPID") not in ("0", pid))
    until(lambda: machine.get("http://127.0.0.1:9095/metrics"))
    assert "limit.keys=77" in machine.run("cat", "/etc/default/conntrack-textfile")

    # Removal stops all of it, and nothing is left that looks alive.
    apt(machine, "remove", "conntrack-textfile")
    for unit in (TIMER, EVENTS, EXPORTER, PUBLISH):
        assert machine.show(unit, "ActiveState") == "inactive", unit
    assert missing(machine, *SHOWN, "/usr/bin/conntrack-textfile", "/usr/lib/conntrack-textfile")
    text = until(lambda: machine.get(NODE_EXPORTER))
    assert "conntrack_snapshot_success" not in text
    assert value(text, "node_textfile_scrape_error") == 0
    assert "limit.keys=77" in machine.run("cat", "/etc/default/conntrack-textfile")


# Every path with its owner and mode, but for what a package manager keeps for itself.
LIST = r"""
find / -xdev \( -path /proc -o -path /sys -o -path /tmp -o -path /var/tmp -o -path /var/log \
    -o -path /var/cache -o -path /var/lib/apt -o -path /var/lib/dpkg -o -path /var/lib/systemd \
    -o -name __pycache__ \) -prune -o -printf '%p %u %g %m %l\n' | sort
find /run -name '*conntrack*'
find /var/lib/systemd -name '*conntrack*'
find /usr -path '*conntrack*'
cat /etc/passwd /etc/group
"""


def test_purged_it_leaves_nothing(machine: Machine) -> None:
    apt(machine, "install", "prometheus-node-exporter", "python3-bcrypt", "python3-yaml", "kmod")
    # An administrator says no to the settings of the kernel.
    machine.write("/etc/sysctl.d/conntrack-textfile.conf", "")
    before = machine.run("sh", "-c", LIST)
    apt(machine, "install", "/root/first.deb")
    node_exporter(machine)
    assert machine.run("cat", "/proc/sys/net/netfilter/nf_conntrack_acct") == "0\n"
    machine.systemctl("enable", "--now", EXPORTER)

    # A run that fails leaves the file; a restart of the timer, too.
    published = machine.show(PUBLISH, "InvocationID")
    machine.write("/etc/default/conntrack-textfile", 'ARGS="--nope"\n')
    machine.fails("systemctl", "start", WRITER)
    machine.systemctl("restart", TIMER)
    assert machine.show(PUBLISH, "InvocationID") == published
    node_exporter(machine)

    # Disabled, it says nothing more.
    machine.systemctl("disable", "--now", TIMER)
    until(lambda: missing(machine, *SHOWN))
    text = machine.get(NODE_EXPORTER)
    assert "conntrack_snapshot_success" not in text
    assert value(text, "node_textfile_scrape_error") == 0
    # That choice outlives an upgrade.
    apt(machine, "install", "/root/newer.deb")
    assert machine.show(TIMER, "ActiveState") == "inactive"

    # Nor is one that has failed remembered without its file.
    machine.fails("systemctl", "start", WRITER)
    apt(machine, "purge", "conntrack-textfile")
    assert "conntrack" not in machine.systemctl("list-units", "--all", "--plain", "--no-legend")
    assert machine.run("sh", "-c", LIST).splitlines() == before.splitlines()


def test_make_install_on_a_system_that_runs(compiled: Path, tmp_path: Path) -> None:
    """Without DESTDIR, with systemd and with cron."""
    need("nft", "systemd-nspawn", "nsenter", root=True)
    root = tmp_path / "root"
    (root / "usr/bin").mkdir(parents=True)
    for directory in (root, root / "usr", root / "usr/bin"):
        directory.chmod(0o755)
    shutil.copy("/usr/bin/make", root / "usr/bin")
    with boot(booted.tree(), root, f"--bind={compiled}:/mnt") as machine:
        make_here = ("make", "-C", "/mnt", "-o", "site", "PYTHON=/usr/bin/python3")
        machine.run("mkdir", "-p", "/etc/cron.d", TEXTFILES)

        def listed() -> list[str]:
            """But for what passwd and group were before."""
            lines = machine.run("sh", "-c", LIST).splitlines()
            return [line for line in lines if not re.match(r"/etc/\w+- ", line)]

        set_by_hand(machine)
        before = listed()
        machine.run(*make_here, "install")
        assert machine.run("cat", BY_HAND) == "1\n"
        shown = {unit: machine.show(unit, "ActiveState") for unit in (TIMER, EVENTS, PUBLISH)}
        assert shown == dict.fromkeys(shown, "active")
        assert machine.show(WRITER, "FragmentPath") == f"/usr/local/lib/systemd/system/{WRITER}"
        for name in ("acct", "timestamp"):
            assert machine.run("cat", f"/proc/sys/net/netfilter/nf_conntrack_{name}") == "1\n"
        assert 'engine="compiled"' in node_exporter(machine)
        assert machine.show(TIMER, "UnitFileState") == "enabled"

        # Again is the upgrade: counters go on, and no event is lost.
        held = machine.show(EVENTS, "InvocationID")
        start, taken = counted(machine)
        machine.run(*make_here, "install")
        assert counted(machine)[0] == start
        assert counted(machine)[1] > taken
        assert machine.show(EVENTS, "InvocationID") == held

        machine.systemctl("enable", "--now", EXPORTER)
        machine.run(*make_here, "uninstall")
        assert listed() == before
        assert "conntrack" not in machine.systemctl("list-units", "--all", "--plain", "--no-legend")

        machine.run(*make_here, "install", "SYSTEMD=no")
        page = (ROOT / "docs/write.md").read_text()
        (block,) = re.findall(r"^## cron\n.*?^```sh\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
        machine.run("sh", "-euc", f"cd /mnt; {block}")
        line = machine.run(
            "sed", "-n", r"s/^\* \* \* \* \* root //p", "/etc/cron.d/conntrack-textfile"
        )
        machine.run("sh", "-euc", f"PATH=/usr/local/bin:$PATH; {line}")
        node_exporter(machine)
        machine.run(*make_here, "uninstall", "SYSTEMD=no")
        assert listed() == before
