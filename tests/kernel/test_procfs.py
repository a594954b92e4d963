from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from conntrack_textfile.kernel import procfs

if TYPE_CHECKING:
    from pathlib import Path


def test_the_file_is_under_the_proc_root(capture: Path) -> None:
    path = procfs.path_of(str(capture))
    assert path == str(capture / "net" / "nf_conntrack")
    text = (capture / "net" / "nf_conntrack").read_bytes()
    assert b"".join(map(bytes, procfs.blocks(path))) == text


def test_blocks_are_of_bounded_size(tmp_path: Path) -> None:
    text = os.urandom(1_000_000)
    (tmp_path / "large").write_bytes(text)
    blocks = [bytes(block) for block in procfs.blocks(str(tmp_path / "large"))]
    assert b"".join(blocks) == text
    assert 1 < len(blocks) < 100
    assert max(map(len, blocks)) <= 1 << 18


def test_an_empty_file_has_no_blocks(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    assert list(procfs.blocks(str(tmp_path / "empty"))) == []


def test_eagain_is_an_error_not_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    with open(fifo, "wb") as writer:
        writer.write(b"half an entry")
        writer.flush()
        monkeypatch.setattr("builtins.open", lambda *_given, **_opener: os.fdopen(reader, "rb"))
        blocks = procfs.blocks(str(fifo))
        assert bytes(next(blocks)) == b"half an entry"
        with pytest.raises(BlockingIOError):
            next(blocks)
