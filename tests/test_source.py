from __future__ import annotations

import errno
import os
import socket
import struct
from typing import TYPE_CHECKING

import pytest
import tenacity

from conntrack_textfile import source
from conntrack_textfile.errors import SourceError
from conntrack_textfile.tally import Tally, engine
from tests.conftest import DATA

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

EMPTY = Tally([], ([],) * 5, {}, 0, 0, {}, {})


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
    with pytest.raises(SourceError) as error:
        source.read("procfs", str(tmp_path), engine())
    for word in (str(tmp_path), "modprobe nf_conntrack", "namespace", "CONFIG_NF_CONNTRACK_PROCFS"):
        assert word in str(error.value)


def test_a_missing_proc_root_is_not_blamed_on_the_module(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"no proc root .*nope: see --path.procfs"):
        source.read("procfs", str(tmp_path / "nope"), engine())


def test_a_file_that_cannot_be_read_says_why(tmp_path: Path) -> None:
    # The kernel answers EIO to every read of this file at its beginning.
    (tmp_path / "net").mkdir()
    (tmp_path / "net" / "nf_conntrack").symlink_to("/proc/self/mem")
    with pytest.raises(SourceError, match="Input/output error"):
        source.read("procfs", str(tmp_path), engine())


def test_a_fifo_is_an_error_and_not_waited_for(tmp_path: Path) -> None:
    (tmp_path / "net").mkdir()
    fifo = tmp_path / "net" / "nf_conntrack"
    os.mkfifo(fifo)
    with pytest.raises(SourceError, match="nf_conntrack: it is not a regular file"):
        source.read("procfs", str(tmp_path), engine())
    fifo.unlink()
    fifo.touch()
    assert source.read("procfs", str(tmp_path), engine())[1].sums == {}


@pytest.mark.parametrize(
    "stumble", [OSError(errno.EIO, "Input/output error"), BlockingIOError(errno.EAGAIN, "again")]
)
def test_a_reading_that_fails_in_the_middle_starts_again(
    monkeypatch: pytest.MonkeyPatch, capture: Path, stumble: OSError
) -> None:
    whole = source.read("procfs", str(capture), engine())[1].sums
    blocks = source._blocks
    left = [2]

    def stumbling(path: str) -> Iterator[memoryview]:
        for block in blocks(path):
            if left[0]:
                left[0] -= 1
                yield block[:500]
                raise stumble
            yield block

    monkeypatch.setattr(source, "_blocks", stumbling)
    assert source.read("procfs", str(capture), engine())[1].sums == whole
    assert left == [0]


def test_nothing_to_read_yet_is_not_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    with open(fifo, "wb") as writer:
        writer.write(b"half an entry")
        writer.flush()
        monkeypatch.setattr("builtins.open", lambda *_given, **_opener: os.fdopen(reader, "rb"))
        blocks = source._blocks(str(fifo))
        assert bytes(next(blocks)) == b"half an entry"
        with pytest.raises(BlockingIOError):
            next(blocks)


# The netlink source


DUMP = (DATA / "kernel-6.18" / "ctnetlink.bin").read_bytes()
KERNEL = (0, 0)


class Dump:
    """A netlink socket that gives what the test says."""

    def __init__(self, *answers: bytes | OSError | tuple[bytes, int, tuple[int, int]]) -> None:
        self.answers = list(answers)

    def __enter__(self) -> Dump:  # noqa: PYI034
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def recvmsg_into(self, buffers: list[memoryview]) -> tuple[int, list[object], int, object]:
        answer = self.answers.pop(0)
        if isinstance(answer, OSError):
            raise answer
        data, flags, sender = answer if isinstance(answer, tuple) else (answer, 0, KERNEL)
        buffers[0][: len(data)] = data
        return len(data), [], flags, sender


def dumps(monkeypatch: pytest.MonkeyPatch, *dumped: Dump | OSError) -> list[Dump | OSError]:
    """Let these be the dumps, one after the other."""
    left = list(dumped)

    def start() -> Dump:
        dump = left.pop(0)
        if isinstance(dump, OSError):
            raise dump
        return dump

    monkeypatch.setattr(source, "_dump", start)
    return left


def message(kind: int, flags: int = 2, payload: bytes = b"") -> bytes:
    return struct.pack("=IHHII", 16 + len(payload), kind, flags, 1, 0) + payload


def test_netlink_gives_what_the_proc_file_gives(
    monkeypatch: pytest.MonkeyPatch, capture: Path
) -> None:
    dumps(monkeypatch, Dump((capture / "ctnetlink.bin").read_bytes()))
    used, netlink = source.read("netlink", "/proc", engine())
    assert used == "netlink"
    _, procfs = source.read("procfs", str(capture), engine())
    assert netlink.sums == procfs.sums
    assert (netlink.malformed, netlink.uncounted) == (procfs.malformed, procfs.uncounted)


@pytest.mark.parametrize(
    "broken",
    [
        Dump(DUMP[:3000], OSError(errno.ENOBUFS, "No buffer space available")),
        Dump(DUMP[:284], InterruptedError(errno.EINTR, "Interrupted system call")),
        Dump(DUMP[:284], message(3, flags=0x12, payload=bytes(4))),  # NLM_F_DUMP_INTR
        Dump(DUMP[:284], message(4)),  # NLMSG_OVERRUN
        OSError(errno.ENOBUFS, "No buffer space available"),
    ],
)
def test_a_broken_dump_starts_again_and_nothing_of_it_counts(
    monkeypatch: pytest.MonkeyPatch, broken: Dump | OSError
) -> None:
    left = dumps(monkeypatch, broken, Dump(DUMP))
    _, tally = source.read("netlink", "/proc", engine())
    assert not left
    assert sum(tally.columns[0]) == 91


@pytest.mark.parametrize(
    ("dump", "reason"),
    [
        (Dump(message(2, payload=struct.pack("=i", -1))), "CAP_NET_ADMIN"),
        (Dump(message(2, payload=struct.pack("=i", -95))), "Operation not supported"),
        (Dump(DUMP[:284], message(3, payload=struct.pack("=i", -22))), "Invalid argument"),
        (Dump((DUMP[:100], socket.MSG_TRUNC, KERNEL)), "Message too long"),
        (Dump(BlockingIOError(errno.EAGAIN, "would block")), "silent for 10 seconds"),
        (OSError(errno.EPROTONOSUPPORT, "Protocol not supported"), "Protocol not supported"),
    ],
)
def test_a_dump_that_fails_says_why(
    monkeypatch: pytest.MonkeyPatch, dump: Dump | OSError, reason: str
) -> None:
    dumps(monkeypatch, dump)
    with pytest.raises(SourceError, match=reason):
        source.read("netlink", "/proc", engine())


def test_what_does_not_come_from_the_kernel_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    dumps(monkeypatch, Dump((DUMP, 0, (4711, 0)), DUMP))
    assert sum(source.read("netlink", "/proc", engine())[1].columns[0]) == 91


def test_auto_is_netlink_only_for_the_live_proc(
    monkeypatch: pytest.MonkeyPatch, capture: Path
) -> None:
    dumps(monkeypatch, Dump(DUMP))
    assert source.read("auto", str(capture), engine())[0] == "procfs"
    assert source.read("auto", "/proc", engine())[0] == "netlink"


def test_when_both_fail_one_error_names_both(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    dumps(monkeypatch, Dump(message(2, payload=struct.pack("=i", -1))))
    monkeypatch.setattr(source, "_is_live", lambda _root: True)
    with pytest.raises(SourceError) as error:
        source.read("auto", str(tmp_path), engine())
    assert "CAP_NET_ADMIN" in str(error.value)
    assert "modprobe nf_conntrack" in str(error.value)
