from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

import pytest
import tenacity

from conntrack_textfile import source
from conntrack_textfile.tally import Tally

if TYPE_CHECKING:
    from pathlib import Path

EMPTY = Tally({}, 0, 0)


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tenacity.nap, "sleep", lambda _seconds: None)


class Attempts:
    """Fails with an error for the first few calls."""

    def __init__(self, failures: int, number: int) -> None:
        self.left = failures
        self.number = number
        self.calls = 0

    def __call__(self) -> Tally:
        self.calls += 1
        if self.left:
            self.left -= 1
            raise OSError(self.number, os.strerror(self.number))
        return EMPTY


@pytest.mark.parametrize("number", [errno.EINTR, errno.EAGAIN, errno.EIO])
def test_errors_that_pass_are_tried_again(number: int) -> None:
    attempts = Attempts(3, number)
    assert source.retrying(attempts) is EMPTY
    assert attempts.calls == 4


def test_trying_again_ends() -> None:
    attempts = Attempts(1000, errno.EIO)
    with pytest.raises(OSError, match="Input/output error"):
        source.retrying(attempts)
    assert attempts.calls < 10


def test_errors_that_stay_are_not_tried_again() -> None:
    attempts = Attempts(1, errno.EACCES)
    with pytest.raises(PermissionError):
        source.retrying(attempts)
    assert attempts.calls == 1


def test_a_missing_file_is_explained(tmp_path: Path) -> None:
    with pytest.raises(source.SourceError) as error:
        source.read(str(tmp_path))
    for word in (str(tmp_path), "modprobe nf_conntrack", "namespace", "CONFIG_NF_CONNTRACK_PROCFS"):
        assert word in str(error.value)


def test_a_missing_proc_root_is_not_blamed_on_the_module(tmp_path: Path) -> None:
    with pytest.raises(source.SourceError, match=r"no proc root .*nope: see --path.procfs"):
        source.read(str(tmp_path / "nope"))


def test_a_file_that_cannot_be_read_says_why(tmp_path: Path) -> None:
    # The kernel answers EIO to every read of this file at its beginning.
    (tmp_path / "net").mkdir()
    (tmp_path / "net" / "nf_conntrack").symlink_to("/proc/self/mem")
    with pytest.raises(source.SourceError, match="Input/output error"):
        source.read(str(tmp_path))


def test_a_reading_that_fails_in_the_middle_starts_again(
    monkeypatch: pytest.MonkeyPatch, capture: Path
) -> None:
    whole = source.read(str(capture))
    read = os.read
    left = [2]

    def stumbling(fd: int, size: int) -> bytes:
        if left[0] and os.lseek(fd, 0, os.SEEK_CUR) > 500:
            left[0] -= 1
            raise OSError(errno.EIO, "Input/output error")
        return read(fd, min(size, 300))

    monkeypatch.setattr(os, "read", stumbling)
    assert source.read(str(capture)) == whole
    assert left == [0]
