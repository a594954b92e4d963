"""Fixtures and hooks of all tests."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hypothesis
import pytest

from tests.certificates import authority, certificate

if TYPE_CHECKING:
    from collections.abc import Generator

# How long an example takes says how busy the machine is.
hypothesis.settings.register_profile(
    "unhurried", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("unhurried")

DATA = Path(__file__).parent / "data"
ROOT = Path(__file__).parent.parent


def need(*programs: str, root: bool = False) -> None:
    """Skip the calling test where a program, or root, is missing."""
    if root and os.geteuid() != 0:
        pytest.skip("needs root")
    for program in programs:
        if shutil.which(program) is None:
            pytest.skip(f"needs the program {program}")


def pytest_addoption(parser: pytest.Parser) -> None:
    """See test_exposition.py."""
    parser.addoption("--rewrite-golden", action="store_true", help="write tests/golden anew")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,  # noqa: ARG001  # named by pytest
    call: pytest.CallInfo[None],  # noqa: ARG001
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Fail a skipped test where CONNTRACK_TEXTFILE_NO_SKIPS is set: all is installed there."""
    report = yield
    if report.skipped and os.environ.get("CONNTRACK_TEXTFILE_NO_SKIPS"):
        report.outcome = "failed"
        report.longrepr = f"skipped, which is not allowed here: {report.longrepr}"
    return report


@pytest.fixture(params=["kernel-6.18", "kernel-6.18-defaults"])
def capture(request: pytest.FixtureRequest) -> Path:
    """A proc root with a capture of a real table."""
    return DATA / str(request.param)


@pytest.fixture(scope="module")
def dashboard() -> Any:
    """The Grafana dashboard."""
    return json.loads((ROOT / "grafana" / "conntrack.json").read_text())


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with certificates and keys of two authorities."""
    need("openssl")
    directory = tmp_path_factory.mktemp("certificates")
    for name in ("ca", "other"):
        authority(directory, name)
    for name in ("server", "second", "client"):
        certificate(directory, name)
    certificate(directory, "stranger", by="other")
    return directory


@pytest.fixture
def place(made: Path, tmp_path: Path) -> Path:
    """A directory with a copy of the server's files, for the test to change."""
    for name in ("ca.crt", "server.crt", "server.key", "second.crt", "second.key", "client.key"):
        shutil.copy(made / name, tmp_path)
    return tmp_path
