from __future__ import annotations

import errno
import os
import socket
import struct
from typing import TYPE_CHECKING

import pytest
import tenacity

from conntrack_textfile.errors import SourceError
from conntrack_textfile.kernel import netlink, procfile, procfs, source
from conntrack_textfile.kernel.engine import make
from conntrack_textfile.labels import LABELS
from conntrack_textfile.plan import Plan
from tests import conntrack_l, tables
from tests.conftest import DATA
from tests.program import run
from tests.tables import LINES, MESSAGES, TCP, Dump, control

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from conntrack_textfile.tally import Tally

EMPTY = procfile.Decoder(Plan()).finish()


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
def test_transient_errors_are_retried(number: int) -> None:
    attempts = Attempts(3, number)
    assert source.retrying(attempts) is EMPTY
    assert attempts.calls == 4


def test_retries_are_bounded() -> None:
    attempts = Attempts(1000, errno.EIO)
    with pytest.raises(OSError, match="Input/output error"):
        source.retrying(attempts)
    assert attempts.calls < 10


def test_permanent_errors_are_not_retried() -> None:
    attempts = Attempts(1, errno.EACCES)
    with pytest.raises(PermissionError):
        source.retrying(attempts)
    assert attempts.calls == 1


def test_a_missing_table_names_its_causes(tmp_path: Path) -> None:
    with pytest.raises(SourceError) as error:
        source.read("procfs", str(tmp_path), make(Plan()))
    for word in (str(tmp_path), "modprobe nf_conntrack", "namespace", "CONFIG_NF_CONNTRACK_PROCFS"):
        assert word in str(error.value)


def test_a_missing_proc_root_is_an_error_of_its_own(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"no proc root .*nope: see --path.procfs"):
        source.read("procfs", str(tmp_path / "nope"), make(Plan()))


def test_a_read_error_has_its_reason(tmp_path: Path) -> None:
    # The kernel answers EIO to every read of this file at its beginning.
    (tmp_path / "net").mkdir()
    (tmp_path / "net" / "nf_conntrack").symlink_to("/proc/self/mem")
    with pytest.raises(SourceError, match="Input/output error"):
        source.read("procfs", str(tmp_path), make(Plan()))


@pytest.mark.parametrize(
    "stumble", [OSError(errno.EIO, "Input/output error"), BlockingIOError(errno.EAGAIN, "again")]
)
def test_a_read_that_fails_in_the_middle_is_repeated(
    monkeypatch: pytest.MonkeyPatch, capture: Path, stumble: OSError
) -> None:
    engine = make(Plan(labels=LABELS))
    whole = tables.sums(source.read("procfs", str(capture), engine)[1])
    blocks = procfs.blocks
    left = [2]

    def stumbling(path: str) -> Iterator[memoryview]:
        for block in blocks(path):
            if left[0]:
                left[0] -= 1
                yield block[:500]
                raise stumble
            yield block

    monkeypatch.setattr(procfs, "blocks", stumbling)
    assert tables.sums(source.read("procfs", str(capture), engine)[1]) == whole
    assert left == [0]


# The netlink source


DUMP = (DATA / "kernel-6.18" / "ctnetlink.bin").read_bytes()
KERNEL = (0, 0)


def dumps(monkeypatch: pytest.MonkeyPatch, *dumped: Dump | OSError) -> list[Dump | OSError]:
    """Replace netlink.dump() by prepared dumps, one after the other."""
    left = list(dumped)

    def start(**_: object) -> Dump:
        dump = left.pop(0)
        if isinstance(dump, OSError):
            raise dump
        return dump

    monkeypatch.setattr(netlink, "dump", start)
    return left


@pytest.mark.parametrize("name", ["pure", "compiled"])
def test_sources_agree_on_all_labels(
    monkeypatch: pytest.MonkeyPatch, capture: Path, name: str
) -> None:
    monkeypatch.setenv("CONNTRACK_TEXTFILE_ENGINE", name)
    engine = make(Plan(labels=LABELS))
    dumps(monkeypatch, Dump((capture / "ctnetlink.bin").read_bytes()))
    used, dumped = source.read("netlink", "/proc", engine)
    assert used == "netlink"
    _, read = source.read("procfs", str(capture), engine)
    assert tables.beside_groups(dumped) == tables.beside_groups(read)
    rows = tables.sums(read)
    assert tables.sums(dumped) == rows
    # Without the service, which conntrack does not print.
    printed = conntrack_l.entries((capture / "conntrack-L.txt").read_text())
    at = LABELS.index("l7protocol")
    expected = conntrack_l.summed(printed, LABELS[:at] + LABELS[at + 1 :])
    assert {group[:at] + group[at + 1 :]: row for group, row in rows.items()} == expected


@pytest.mark.parametrize(
    "broken",
    [
        Dump(DUMP[:3000], OSError(errno.ENOBUFS, "No buffer space available")),
        Dump(DUMP[:284], InterruptedError(errno.EINTR, "Interrupted system call")),
        Dump(DUMP[:284], control(3, flags=0x12, payload=bytes(4))),  # NLM_F_DUMP_INTR
        Dump(DUMP[:284], control(4)),  # NLMSG_OVERRUN
        OSError(errno.ENOBUFS, "No buffer space available"),
    ],
)
def test_a_failed_dump_is_discarded_and_repeated(
    monkeypatch: pytest.MonkeyPatch, broken: Dump | OSError
) -> None:
    left = dumps(monkeypatch, broken, Dump(DUMP))
    _, tally = source.read("netlink", "/proc", make(Plan()))
    assert not left
    assert tally.entries == 91


@pytest.mark.parametrize(
    ("dump", "reason"),
    [
        (Dump(control(2, payload=struct.pack("=i", -1))), "CAP_NET_ADMIN"),
        (Dump(control(2, payload=struct.pack("=i", -95))), "Operation not supported"),
        (
            Dump(DUMP[:284], control(3, payload=struct.pack("=i", -22))),
            "Invalid argument.*modprobe nf_c",
        ),
        (Dump((DUMP[:100], socket.MSG_TRUNC, KERNEL)), "Message too long"),
        (Dump(BlockingIOError(errno.EAGAIN, "would block")), "sent nothing for 10 seconds"),
        (OSError(errno.EPROTONOSUPPORT, "Protocol not supported"), "modprobe nf_conntrack_netlink"),
    ],
)
def test_a_dump_error_has_its_reason(
    monkeypatch: pytest.MonkeyPatch, dump: Dump | OSError, reason: str
) -> None:
    dumps(monkeypatch, dump)
    with pytest.raises(SourceError, match=reason):
        source.read("netlink", "/proc", make(Plan()))


def test_datagrams_not_from_the_kernel_are_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    dumps(monkeypatch, Dump((DUMP, 0, (4711, 0)), DUMP))
    assert source.read("netlink", "/proc", make(Plan()))[1].entries == 91


def test_auto_is_netlink_only_for_the_live_proc(
    monkeypatch: pytest.MonkeyPatch, capture: Path
) -> None:
    dumps(monkeypatch, Dump(DUMP))
    assert source.read("auto", str(capture), make(Plan()))[0] == "procfs"
    assert source.read("auto", "/proc", make(Plan()))[0] == "netlink"


def test_when_both_fail_one_error_names_both(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    dumps(monkeypatch, Dump(control(2, payload=struct.pack("=i", -1))))
    monkeypatch.setattr(source, "_is_live", lambda _root: True)
    with pytest.raises(SourceError) as error:
        source.read("auto", str(tmp_path), make(Plan()))
    assert "CAP_NET_ADMIN" in str(error.value)
    assert "modprobe nf_conntrack" in str(error.value)


# Tables with only malformed entries


def proc_root(path: Path, text: bytes) -> str:
    (path / "net").mkdir()
    (path / "net" / "nf_conntrack").write_bytes(text)
    return str(path)


@pytest.mark.parametrize("name", ["pure", "compiled"])
def test_a_file_with_only_malformed_entries_is_an_error(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str
) -> None:
    monkeypatch.setenv("CONNTRACK_TEXTFILE_ENGINE", name)
    bad = TCP.replace(b"mark=0", b"mark=x\x1b[31m\xff" + b"y" * 200)
    with pytest.raises(SourceError) as error:
        source.read("procfs", proc_root(tmp_path, bad + b"more\n"), make(Plan()))
    text = str(error.value)
    assert text.startswith(f"nothing of {tmp_path}/net/nf_conntrack could be read: 2 malformed")
    assert "the first because its mark is not a number up to 4294967295: 'ipv4     2 tcp" in text
    assert text.isascii()
    assert text.isprintable()
    assert len(text) < 600


def test_a_very_long_line_is_a_short_error(tmp_path: Path) -> None:
    with pytest.raises(SourceError) as error:
        source.read("procfs", proc_root(tmp_path, b"\0" * 100_000), make(Plan()))
    assert "a line longer than 16384 bytes: '\\x00\\x00" in str(error.value)
    assert len(str(error.value)) < 1000


@pytest.mark.parametrize("name", ["pure", "compiled"])
def test_a_dump_with_only_malformed_entries_is_an_error(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv("CONNTRACK_TEXTFILE_ENGINE", name)
    bad = control(0x100, payload=b"\x07\0\0\0")
    dumps(monkeypatch, Dump(bad + bad + control(3, payload=bytes(4))))
    with pytest.raises(SourceError) as error:
        source.read("netlink", "/proc", make(Plan()))
    assert str(error.value) == (
        "nothing of the dump by netlink could be read: 2 malformed entries, "
        f"the first because its address family is 7: {bad.hex()}"
    )


def test_one_good_entry_is_a_reading(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    _, tally = source.read("procfs", proc_root(tmp_path, b"bad\n" + TCP), make(Plan()))
    assert (tally.entries, tally.malformed) == (1, 1)
    bad = control(0x100, payload=b"\x07\0\0\0")
    dumps(monkeypatch, Dump(bad + MESSAGES[0] + control(3, payload=bytes(4))))
    _, tally = source.read("netlink", "/proc", make(Plan()))
    assert (tally.entries, tally.malformed) == (1, 1)


def test_an_entry_that_is_filtered_out_could_be_read(tmp_path: Path) -> None:
    root = proc_root(tmp_path, b"bad\n" + TCP)
    done = run("write", f"--path.procfs={root}", "--filter.exclude=l4protocol=tcp")
    assert (done.returncode, done.stderr) == (0, "")
    assert "conntrack_filtered_connections 1\nconntrack" in "\n".join(
        line for line in done.stdout.splitlines() if not line.startswith("#")
    )


def test_a_table_that_cannot_be_read_leaves_the_old_file(tmp_path: Path) -> None:
    root = proc_root(tmp_path, b"".join(LINES).replace(b"src=", b"source="))
    file = tmp_path / "conntrack.prom"
    file.write_text("old\n")
    done = run("write", f"--path.procfs={root}", str(file))
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.count("\n") == 1
    assert "96 malformed entries, the first because it has no two tuples" in done.stderr
    assert "source=10.77." in done.stderr
    assert file.read_text() == "old\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["conntrack.prom", "net"]


def test_the_first_malformed_entry_is_logged_for_debugging(tmp_path: Path) -> None:
    bad = TCP.replace(b"zone=0", b"zone=65536")
    root = proc_root(tmp_path, TCP + bad + b"more\n")
    done = run("write", f"--path.procfs={root}", "--log.level=debug")
    assert done.returncode == 0
    assert "conntrack_malformed_entries 2\n" in done.stdout
    assert "level=debug" in done.stderr
    assert "2 malformed entries, the first because its zone is not a number up to 65535: " in (
        done.stderr
    )
    assert "zone=65536" not in run("write", f"--path.procfs={root}").stderr
