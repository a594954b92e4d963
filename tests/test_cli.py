from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING

import pytest
from prometheus_client.parser import text_string_to_metric_families

from conntrack_textfile import __version__
from tests.conftest import DATA
from tests.program import COMMAND, run

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
    assert len(names) == len(set(names)) == 25


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


def test_accounting_that_is_off_is_told_once() -> None:
    done = run("write", f"--path.procfs={DATA / 'kernel-6.18-defaults'}")
    assert done.returncode == 0
    assert done.stderr.count("\n") == 1
    assert "only connections made after it is switched on are counted" in done.stderr


@pytest.mark.parametrize("argv", [["write", "--collector.interval=0", "x.prom"], ["nope"], []])
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
    assert "conntrack-textfile (write [FILE] | serve | top) [options]" in done.stdout


@pytest.mark.parametrize("flag", ["-v", "--version"])
def test_version(flag: str) -> None:
    done = run(flag)
    assert (done.returncode, done.stdout) == (0, f"conntrack-textfile {__version__}\n")


def test_a_reader_that_has_seen_enough_is_no_error() -> None:
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


def test_accounting_that_cannot_be_switched_on_is_a_warning(tmp_path: Path) -> None:
    (tmp_path / "net").mkdir()
    (tmp_path / "net" / "nf_conntrack").touch()
    done = run("write", f"--path.procfs={tmp_path}", "--configure.nf_conntrack_acct")
    assert done.returncode == 0
    assert "level=warn" in done.stderr
    assert "cannot set net.netfilter.nf_conntrack_acct=1: No such file" in done.stderr
    assert "conntrack_total_connections 0\n" in done.stdout
