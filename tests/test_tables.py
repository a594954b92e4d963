"""Which tables are open. Any file stands for a namespace here: none is read."""

from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING

import pytest

from conntrack_textfile.options import parse
from conntrack_textfile.plan import Plan
from conntrack_textfile.tables import Tables
from tests import engines
from tests.flows import Flow

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from conntrack_textfile.kernel.table import Table


class Opened:
    """The tables of two files, a and b, and the names that were retired."""

    def __init__(self, directory: Path, sockets: Iterable[socket.socket] = ()) -> None:
        self.paths = [directory / name for name in "ab"]
        for path in self.paths:
            path.touch()
        argv = [f"--netns={path}" for path in self.paths]
        self.tables = Tables(parse(["write", *argv]), {str(self.paths[0]): sockets})
        self.retired: list[str] = []

    def update(self) -> list[Table]:
        self.tables.update(lambda table: self.retired.append(os.path.basename(table.name)))
        return list(self.tables.by_name.values())


def test_a_table_stays_open_as_long_as_its_namespace_is_the_same(tmp_path: Path) -> None:
    opened = Opened(tmp_path)
    one, two = opened.update()
    assert opened.update() == [one, two]
    assert opened.retired == []
    # Another namespace at the same path.
    (tmp_path / "new").touch()
    (tmp_path / "new").rename(opened.paths[0])
    found = opened.update()
    assert opened.retired == ["a"]
    assert two in found
    assert one not in found
    assert len(found) == 2


def test_sockets_of_a_namespace_are_closed_with_it_and_not_used_again(tmp_path: Path) -> None:
    with socket.socket() as sock:
        opened = Opened(tmp_path, [sock])
        opened.update()
        opened.paths[0].unlink()
        opened.update()
        assert sock.fileno() == -1
        opened.paths[0].touch()
        opened.update()
        assert opened.tables.by_name[str(opened.paths[0])].space._passed == ()


def test_a_retirement_that_fails_is_repeated(tmp_path: Path) -> None:
    """Else the last traffic of the namespace would be in no counter."""
    opened = Opened(tmp_path)
    opened.update()
    for path in opened.paths:
        path.unlink()

    def fail(table: Table) -> None:
        raise MemoryError(table.name)

    with pytest.raises(MemoryError):
        opened.tables.update(fail)
    assert list(opened.tables.by_name) == list(map(str, opened.paths))
    opened.update()
    assert opened.retired == ["a", "b"]


def test_without_namespaces_there_is_our_own_table_without_a_label() -> None:
    tables = Tables(parse(["write"]), {})
    tables.update(lambda _: None)
    assert list(tables.by_name) == [""]
    plan = Plan(labels=("dst",))
    tally = engines.make("pure", plan).tally([Flow()])
    assert tables.labels(plan) == ("dst",)
    assert tables.merge({"": tally}) is tally
    assert tally.groups.get([tables.key_parser(plan)(("192.0.2.1",)) or b""]) != [None]


def test_with_namespaces_groups_have_their_label() -> None:
    tables = Tables(parse(["write", "--netns=x", "--netns=y"]), {})
    plan = Plan(labels=("dst",))
    feed = engines.make("pure", plan)
    tally = tables.merge({name: feed.tally([Flow()]) for name in "xy"})
    assert tables.labels(plan) == ("netns", "dst")
    key = tables.key_parser(plan)(("y", "192.0.2.1"))
    assert key is not None
    assert tally.groups.labels(key) == ("y", "192.0.2.1")
    assert tally.groups.get([key]) != [None]
