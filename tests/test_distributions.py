"""What is given to others: archives and packages, and how these live and end on a Debian."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.booted import Machine, boot, check, fresh, suite, until
from tests.conftest import need

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parent.parent
VERSION = "7.8.9"
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
NODE_EXPORTER = "http://127.0.0.1:9100/metrics"


def make(where: Path, *argv: str) -> str:
    return check("make", *argv, cwd=str(where), env={**os.environ, **QUICK}, seconds=900)


def checkout(where: Path) -> Path:
    """A clone of a release, of the files as they are here."""
    shutil.copytree(ROOT, where, ignore=NOT_OURS)
    for name, pattern, text in (
        ("conntrack_textfile/__init__.py", r'(__version__ = )".*"', rf'\1"{VERSION}"'),
        ("CHANGELOG.md", r"## \[Unreleased\]", f"## [{VERSION}] - 2026-01-02"),
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
def released(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of what `make release` makes."""
    need("dpkg-buildpackage", "dh", "dh_python3", "gcc", "git", "make", "rpmbuild")
    where = checkout(tmp_path_factory.mktemp("one") / "clone")
    make(where, "release", f"VERSION={VERSION}")
    return where / "dist"


def only(where: Path, pattern: str) -> Path:
    (found,) = where.glob(pattern)
    return found


def test_a_release_is_all_of_it(released: Path) -> None:
    names = sorted(file.name for file in released.iterdir())
    assert [name.rpartition(".")[2] for name in names] == ["SHA256SUMS", "rpm", "deb", "whl", "gz"]
    assert all(VERSION in name for name in names[1:])
    assert "manylinux" in names[3]
    check("sha256sum", "--check", "--strict", "SHA256SUMS", cwd=str(released))


def test_the_same_commit_gives_the_same_bytes(released: Path, tmp_path: Path) -> None:
    # Elsewhere, and not at the same time.
    again = checkout(tmp_path / "another" / "place")
    make(again, "release", f"VERSION={VERSION}")
    assert (again / "dist/SHA256SUMS").read_text() == (released / "SHA256SUMS").read_text()


def test_a_release_is_of_a_commit_that_says_so(tmp_path: Path) -> None:
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


def test_rpmlint_finds_no_error_but_that_nobody_signed_it(released: Path, tmp_path: Path) -> None:
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
    """Names without what is a distribution's own way: compression, places of some kinds."""
    usual = (
        (r"^lib/systemd", "usr/lib/systemd"),
        (r"\.gz$", ""),
        (r"^usr/share/zsh/[\w-]+/", "usr/share/zsh/"),
    )
    for pattern, text in usual:
        names = {re.sub(pattern, text, name) for name in names}
    own = r"/__pycache__/|^usr/share/(licenses|python3)/|/(copyright|changelog.*|CHANGELOG.md)$"
    return {name for name in names if not re.search(own, name)}


def test_packages_have_what_make_install_installs(released: Path, tmp_path: Path) -> None:
    clone = released.parent
    make(clone, "install", f"DESTDIR={tmp_path}/make", "PREFIX=/usr", "SYSTEMD=yes")
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


def tree(root: Path) -> list[str]:
    return sorted(f"{path.relative_to(root)}" for path in root.rglob("*"))


@pytest.mark.parametrize(
    ("prefix", "systemd"), [("/usr/local", "yes"), ("/opt/tools", "yes"), ("/usr/local", "no")]
)
def test_make_uninstall_leaves_nothing_of_make_install(
    released: Path, tmp_path: Path, prefix: str, systemd: str
) -> None:
    clone = released.parent
    root = tmp_path / "root"
    for name in ("bin", "lib", "share"):
        (root / prefix[1:] / name).mkdir(parents=True)
    (root / "etc/default").mkdir(parents=True)
    (root / "etc/default/other").touch()
    before = tree(root)
    where = (f"DESTDIR={root}", f"PREFIX={prefix}", f"SYSTEMD={systemd}")
    make(clone, "install", *where)
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
    make(clone, "install", *where)
    assert {file.read_text() for file in settings} <= {"ARGS=--limit.keys=7\n"}
    make(clone, "uninstall", *where)
    assert tree(root) == before
