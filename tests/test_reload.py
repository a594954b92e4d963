"""Files that are read again: when they change, on request, and never replaced by invalid ones."""

from __future__ import annotations

import logging
import os
import threading
from typing import TYPE_CHECKING

import pytest

from conntrack_textfile import reload
from conntrack_textfile.reload import Reloader, stamp

if TYPE_CHECKING:
    from pathlib import Path

    from conntrack_textfile.reload import Stamps


class Number:
    """Reads a number from a file."""

    def __init__(self, path: Path, text: str) -> None:
        self.path = path
        self.readings = 0
        path.write_text(text)
        self.watched = Reloader("the number", self.read)

    def read(self, before: int | None) -> tuple[int, Stamps]:
        assert before is None or before > 0
        self.readings += 1
        stamps = {str(self.path): stamp(str(self.path))}
        return int(self.path.read_text()), stamps

    def replace(self, text: str) -> None:
        new = self.path.with_name("new")
        new.write_text(text)
        os.replace(new, self.path)


@pytest.fixture
def number(tmp_path: Path) -> Number:
    return Number(tmp_path / "number", "5")


def test_a_file_is_read_again_when_it_changes_and_not_before(number: Number) -> None:
    for _ in range(3):
        assert number.watched.current() == 5
    assert number.readings == 1
    number.replace("6")
    for _ in range(3):
        assert number.watched.current() == 6
    assert number.readings == 2


def test_an_error_at_the_first_reading_is_raised(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="nonsense"):
        Number(tmp_path / "number", "nonsense")


def test_a_later_error_is_logged_once_and_the_value_stays(
    number: Number, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    number.replace("nonsense")
    for _ in range(5):
        assert number.watched.current() == 5
    assert number.readings == 2  # not at each call, until it changes or time has passed
    assert [record.levelno for record in caplog.records] == [logging.ERROR]
    assert "going on with what was read before" in caplog.text
    monkeypatch.setattr(reload, "_RETRY_SECONDS", -1.0)
    number.watched.reload()
    assert number.watched.current() == 5
    assert number.readings == 4
    number.path.unlink()
    assert number.watched.current() == 5
    number.replace("7")
    assert number.watched.current() == 7


def test_an_expired_value_is_read_again_though_no_file_changed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "number"
    path.write_text("5")
    values = ["a", "a", "b"]
    over = False
    watched = Reloader("it", lambda _: (values[0], {str(path): stamp(str(path))}), lambda: over)
    caplog.set_level(logging.INFO)
    assert (watched.current(), caplog.text) == ("a", "")
    over = True
    assert values.pop(0) == watched.current() == "a"
    assert caplog.text == ""  # read, and no other
    values.pop(0)
    assert watched.current() == "b"
    assert "read it again" in caplog.text
    # What is wrong then is tried again after a while, and not each time.
    values.clear()
    assert [watched.current() for _ in range(3)] == ["b"] * 3
    assert [record.levelno for record in caplog.records].count(logging.ERROR) == 1
    monkeypatch.setattr(reload, "_RETRY_SECONDS", -1.0)
    values.append("c")
    watched.reload()
    assert watched.current() == "c"


def test_reload_reads_unchanged_files(number: Number) -> None:
    number.watched.reload()
    assert (number.watched.current(), number.readings) == (5, 2)


def test_current_does_not_wait_for_a_reading_of_another_thread(tmp_path: Path) -> None:
    begun, go_on = threading.Event(), threading.Event()
    path = tmp_path / "number"
    path.write_text("1")

    def read(before: int | None) -> tuple[int, Stamps]:
        if before is not None:
            begun.set()
            assert go_on.wait(30)
        return int(path.read_text()), {str(path): stamp(str(path))}

    watched = Reloader("the number", read)
    path.write_text("22")
    thread = threading.Thread(target=watched.current)
    thread.start()
    assert begun.wait(30)
    assert watched.current() == 1
    go_on.set()
    thread.join(30)
    assert watched.current() == 22


def test_the_stamp_of_a_missing_file_is_none(tmp_path: Path) -> None:
    path = tmp_path / "file"
    assert stamp(str(path)) is None
    path.write_text("a")
    before = stamp(str(path))
    assert before is not None
    path.write_text("ab")
    assert stamp(str(path)) != before
