"""The compiled engine where it is more than the pure one: memory of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parent.parent


@pytest.fixture(scope="module", autouse=True)
def compiled() -> None:
    pytest.importorskip("conntrack_textfile.kernel._speedups", reason="needs the compiled engine")


def test_each_allocation_that_fails_is_an_error_that_loses_no_traffic(tmp_path: Path) -> None:
    library = tmp_path / "failing_malloc.so"
    compile_ = ["gcc", "-shared", "-fPIC", "-O1", "-Wall", "-Werror", "-o", str(library)]
    subprocess.run([*compile_, str(TESTS / "failing_malloc.c")], check=True)
    env = {**os.environ, "LD_PRELOAD": str(library)}
    argv = [sys.executable, "-m", "tests.without_memory"]
    done = subprocess.run(
        argv, env=env, cwd=TESTS.parent, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-1000:]
    # Each of them was reached: those of the ledger, its dump, events and traffic, and NAT.
    assert all(int(calls) > 50 for calls in done.stdout.split())
