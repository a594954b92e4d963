from __future__ import annotations

import json
import re

import pytest

from conntrack_textfile import logs
from conntrack_textfile.logs import LOG

HOSTILE = 'a "quoted" name\nlevel=error msg="forged" \x1b[31m'


def test_logfmt_keeps_an_event_on_one_line(capfd: pytest.CaptureFixture[str]) -> None:
    logs.configure("info", "logfmt")
    LOG.warning("%s", HOSTILE)
    line = capfd.readouterr().err
    found = re.fullmatch(r'ts=\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z level=warn msg=(".*")\n', line)
    assert found
    assert json.loads(found[1]) == HOSTILE


def test_json_is_one_object_a_line(capfd: pytest.CaptureFixture[str]) -> None:
    logs.configure("info", "json")
    LOG.error("%s", HOSTILE)
    event = json.loads(capfd.readouterr().err)
    assert event["level"] == "error"
    assert event["msg"] == HOSTILE


@pytest.mark.parametrize(("level", "count"), [("debug", 4), ("info", 3), ("warn", 2), ("error", 1)])
def test_lower_levels_are_not_logged(
    capfd: pytest.CaptureFixture[str], level: str, count: int
) -> None:
    logs.configure(level, "logfmt")
    LOG.debug("a")
    LOG.info("b")
    LOG.warning("c")
    LOG.error("d")
    assert capfd.readouterr().err.count("\n") == count


@pytest.mark.parametrize("form", ["logfmt", "json"])
def test_a_traceback_stays_in_its_event(capfd: pytest.CaptureFixture[str], form: str) -> None:
    logs.configure("debug", form)
    try:
        int(HOSTILE)
    except ValueError:
        LOG.debug("failed", exc_info=True)
    line = capfd.readouterr().err
    assert line.count("\n") == 1
    assert "Traceback" in line


def test_buffered_lines_are_written_at_the_end(capfd: pytest.CaptureFixture[str]) -> None:
    log = logs.configure("info", "logfmt")
    with logs.buffered(log) as messages:
        for number in range(200):
            log.warning("%d of them", number)
        assert messages == ["197 of them", "198 of them", "199 of them"]
        assert capfd.readouterr().err == ""
    lines = capfd.readouterr().err.splitlines()
    assert [line.partition("msg=")[2] for line in lines] == [
        f'"{number} of them"' for number in range(100, 200)
    ]
    log.warning("after it")
    assert "after it" in capfd.readouterr().err
