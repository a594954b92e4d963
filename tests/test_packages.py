"""What is built: wheels with and without a C compiler, and the sdist."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest

from tests.conftest import DATA, need

ROOT = Path(__file__).parent.parent
SAMPLE = f"--path.procfs={DATA / 'kernel-6.18'}"
NOT_OURS = shutil.ignore_patterns(".*", "build", "*.egg-info", "*.so", "*.c", "__pycache__")


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy without what earlier builds left."""
    return Path(shutil.copytree(ROOT, tmp_path / "checkout", ignore=NOT_OURS))


def build(hook: str, checkout: Path, **env: str) -> Path:
    """Build in a checkout with the backend that pyproject.toml names."""
    pytest.importorskip("Cython")
    code = f"import setuptools.build_meta as b; print(b.{hook}('dist'))"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=checkout,
        env={**os.environ, **env},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return checkout / "dist" / done.stdout.splitlines()[-1]


def write_with(wheel: Path, where: Path) -> str:
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(where)
    done = subprocess.run(
        # -S: without the finder of an editable installation.
        [sys.executable, "-S", "-m", "conntrack_textfile", "write", SAMPLE],
        cwd=where,
        env={**os.environ, "PYTHONPATH": f"{where}:{sysconfig.get_path('purelib')}"},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout


def test_a_wheel_has_the_compiled_engine_and_not_its_source(checkout: Path) -> None:
    need("gcc")
    wheel = build("build_wheel", checkout)
    names = zipfile.ZipFile(wheel).namelist()
    assert any(name.endswith(".so") for name in names)
    assert not any(name.endswith((".pyx", ".c")) for name in names)
    assert {"conntrack_textfile/py.typed", "conntrack_textfile/_speedups.pyi"} <= set(names)
    assert 'engine="compiled"' in write_with(wheel, checkout.parent / "site")


def test_without_a_compiler_there_is_a_pure_wheel_that_works(checkout: Path) -> None:
    wheel = build("build_wheel", checkout, CC="/bin/false")
    assert not any(name.endswith(".so") for name in zipfile.ZipFile(wheel).namelist())
    text = write_with(wheel, checkout.parent / "site")
    assert 'engine="pure"' in text
    assert "conntrack_total_connections 91\n" in text


def test_the_sdist_has_the_source_of_the_compiled_engine(checkout: Path) -> None:
    with tarfile.open(build("build_sdist", checkout)) as archive:
        names = [name.partition("/")[2] for name in archive.getnames()]
    assert {"conntrack_textfile/_speedups.pyx", "LICENSE", "pyproject.toml"} <= set(names)
