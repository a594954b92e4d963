from __future__ import annotations

import fcntl
import os
import stat
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from conntrack_textfile.errors import OutputError
from conntrack_textfile.textfile import replace
from tests.conftest import need
from tests.program import COMMAND

if TYPE_CHECKING:
    from collections.abc import Iterator


def failing() -> Iterator[bytes]:
    yield b"half"
    raise OSError(28, "No space left on device")


def files(directory: Path) -> list[str]:
    return sorted(os.listdir(directory))


def test_the_file_has_the_text_and_can_be_read_by_all(tmp_path: Path) -> None:
    file = tmp_path / "a.prom"
    umask = os.umask(0o077)
    try:
        replace(str(file), [b"one\n", b"two\n"])
    finally:
        os.umask(umask)
    assert file.read_bytes() == b"one\ntwo\n"
    assert stat.S_IMODE(file.stat().st_mode) == 0o644
    assert files(tmp_path) == ["a.prom"]


def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    file = tmp_path / "a.prom"
    file.write_text("old\n")
    with pytest.raises(OutputError, match=r"cannot write .*a.prom: No space left on device"):
        replace(str(file), failing())
    assert file.read_text() == "old\n"
    assert files(tmp_path) == ["a.prom"]


def test_a_link_is_followed_and_stays(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    link = tmp_path / "a.prom"
    link.symlink_to("real/b.prom")
    for text in (b"one\n", b"two\n"):  # a target that is not there yet, and one that is
        replace(str(link), [text])
        assert link.is_symlink()
        assert (tmp_path / "real" / "b.prom").read_bytes() == text


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("", "it is a directory"),
        ("missing/a.prom", "there is no directory"),
        ("missing/", "there is no directory"),
        ("fifo", "not a regular file"),
        ("null", "not a regular file"),
        ("loop", "symbolic links"),
    ],
)
def test_what_cannot_be_replaced_is_refused(tmp_path: Path, name: str, reason: str) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "null").symlink_to("/dev/null")
    (tmp_path / "loop").symlink_to("loop")
    before = files(tmp_path)
    with pytest.raises(OutputError, match=reason):
        replace(f"{tmp_path}/{name}", [b"text\n"])
    assert files(tmp_path) == before
    assert stat.S_ISCHR(Path("/dev/null").stat().st_mode)


def test_a_directory_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    if os.geteuid() == 0:
        directory = "/proc/self"  # where not even root makes a file
    else:
        tmp_path.chmod(0o500)
        directory = str(tmp_path)
    with pytest.raises(OutputError, match="cannot write"):
        replace(f"{directory}/a.prom", [b"text\n"])


def test_temporary_files_of_killed_runs_are_removed_and_no_others(tmp_path: Path) -> None:
    stale = tmp_path / ".a.prom.0123456789abcdef.tmp"
    others = [".a.prom.notes.tmp", ".b.prom.0123456789abcdef.tmp", "a.prom.tmp"]
    for path in (stale, *(tmp_path / name for name in others)):
        path.touch()
    os.mkfifo(tmp_path / ".a.prom.fedcba9876543210.tmp")  # must not be waited for
    others.append(".a.prom.fedcba9876543210.tmp")
    replace(str(tmp_path / "a.prom"), [b"text\n"])
    assert files(tmp_path) == sorted([*others, "a.prom"])


def test_the_temporary_file_of_a_live_run_is_left_alone(tmp_path: Path) -> None:
    def meanwhile() -> Iterator[bytes]:
        yield b"first\n"
        replace(str(tmp_path / "a.prom"), [b"second\n"])
        assert len(files(tmp_path)) == 2

    replace(str(tmp_path / "a.prom"), meanwhile())
    assert (tmp_path / "a.prom").read_bytes() == b"first\n"
    assert files(tmp_path) == ["a.prom"]


def test_a_run_that_was_swept_before_it_had_its_lock_starts_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    swept: list[str] = []
    lock = fcntl.flock

    def late(fd: int, operation: int) -> None:
        if not swept:
            swept.extend(files(tmp_path))
            for name in swept:
                (tmp_path / name).unlink()
        lock(fd, operation)

    monkeypatch.setattr(fcntl, "flock", late)
    replace(str(tmp_path / "a.prom"), [b"text\n"])
    assert len(swept) == 1
    assert files(tmp_path) == ["a.prom"]


SLOW = """
import sys, time
from conntrack_textfile.textfile import replace
def slowly():
    for i in range(2000):
        yield b"new %d\\n" % i
        if i == 1000:
            print("half", flush=True)
        if i > 1000:
            time.sleep(0.01)
replace(sys.argv[1], slowly())
"""


def test_kill_in_the_middle_leaves_the_old_file(tmp_path: Path) -> None:
    file = tmp_path / "a.prom"
    file.write_text("old\n")
    for _ in range(3):
        process = subprocess.Popen([sys.executable, "-c", SLOW, file], stdout=subprocess.PIPE)
        assert process.stdout is not None
        with process.stdout as output:
            assert output.readline() == b"half\n"
        process.kill()
        process.wait()
        assert file.read_text() == "old\n"
        assert len([name for name in files(tmp_path) if name.endswith(".prom")]) == 1
        assert len(files(tmp_path)) == 2  # the one before was swept
    replace(str(file), [b"new\n"])
    assert files(tmp_path) == ["a.prom"]


def test_kill_at_any_moment_leaves_a_whole_file(tmp_path: Path, capture: Path) -> None:
    file = tmp_path / "a.prom"
    argv = [*COMMAND, "write", f"--path.procfs={capture}", "--log.level=error", str(file)]
    subprocess.run(argv, check=True)
    size = len(file.read_bytes().splitlines())
    for step in range(15):
        process = subprocess.Popen(argv)
        time.sleep(0.02 * step)
        process.kill()
        process.wait()
        assert len(file.read_bytes().splitlines()) == size
    subprocess.run(argv, check=True)
    assert files(tmp_path) == ["a.prom"]


def test_runs_at_once_leave_one_whole_file(tmp_path: Path, capture: Path) -> None:
    file = tmp_path / "a.prom"
    argv = [*COMMAND, "write", f"--path.procfs={capture}", "--log.level=error", str(file)]
    processes = [subprocess.Popen(argv) for _ in range(6)]
    assert [process.wait(60) for process in processes] == [0] * 6
    assert file.read_bytes().endswith(b"\n")
    assert files(tmp_path) == ["a.prom"]


def test_a_full_disk_leaves_the_old_file(tmp_path: Path, capture: Path) -> None:
    need("mount", "umount", root=True)
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16k", "none", disk], check=True)
    try:
        file = disk / "a.prom"
        file.write_text("old\n")
        (disk / "ballast").write_bytes(b"x" * 8192)
        argv = [*COMMAND, "write", f"--path.procfs={capture.parent / 'kernel-6.18'}", str(file)]
        done = subprocess.run(argv, capture_output=True, text=True, check=False)
        assert done.returncode == 1
        assert done.stderr.count("\n") == 1
        assert "No space left on device" in done.stderr
        assert file.read_text() == "old\n"
        assert files(disk) == ["a.prom", "ballast"]
    finally:
        subprocess.run(["umount", disk], check=True)
