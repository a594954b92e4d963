"""Files of users: opened where they are regular, and never waited for."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from conntrack_textfile.files import regular

if TYPE_CHECKING:
    from pathlib import Path


def test_a_regular_file_is_opened_also_by_a_link(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("text\n")
    (tmp_path / "link").symlink_to("file")
    with open(tmp_path / "link", opener=regular) as file:
        assert file.read() == "text\n"


def test_what_is_no_regular_file_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    before = os.listdir("/proc/self/fd")
    with pytest.raises(IsADirectoryError):
        open(tmp_path, opener=regular)  # noqa: SIM115
    for path in (tmp_path / "fifo", "/dev/null", "/dev/zero"):
        with pytest.raises(OSError, match="it is not a regular file") as error:
            open(path, opener=regular)  # noqa: SIM115
        assert error.value.filename == str(path)
    assert os.listdir("/proc/self/fd") == before
