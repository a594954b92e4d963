"""The state file: whole or nothing, ours or not touched, one run at a time."""

from __future__ import annotations

import json
import os
import re
import stat
import struct
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conntrack_textfile import state
from conntrack_textfile.errors import DamagedStateError, OutputError, StateError
from conntrack_textfile.state import State
from tests.conftest import need
from tests.netns import check, inside, namespaces, sysctl
from tests.program import run

if TYPE_CHECKING:
    from collections.abc import Iterator

STATE = State({"a": [1, "ä"], "b": {"c": None}}, bytes(range(256)) * 3)
NO_STATE = b"127.0.0.1 localhost\n"


def test_what_was_saved_is_loaded(tmp_path: Path) -> None:
    path = tmp_path / "state"
    assert state.load(str(path)) is None
    for saved in (STATE, State({}, b""), State({"n": 2**70}, os.urandom(1 << 16))):
        state.save(str(path), saved)
        assert state.load(str(path)) == saved
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert os.listdir(tmp_path) == ["state"]


def test_an_empty_file_is_no_state_yet(tmp_path: Path) -> None:
    path = tmp_path / "state"
    path.touch()
    assert state.load(str(path)) is None


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("state") / "state"
    state.save(str(path), STATE)
    return path


@given(st.data())
def test_a_damaged_file_is_never_taken_for_another_state(whole: Path, data: st.DataObject) -> None:
    good = whole.read_bytes()
    damaged = bytearray(good)
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(damaged) - 1))
        how = data.draw(st.sampled_from(["flip", "cut", "add", "remove"]))
        if how == "flip":
            damaged[at] ^= data.draw(st.integers(1, 255))
        elif how == "cut":
            del damaged[at + 1 :]
        elif how == "add":
            damaged[at:at] = data.draw(st.binary(min_size=1, max_size=9))
        elif len(damaged) > 1:
            del damaged[at]
    path = whole.with_name("damaged")
    path.write_bytes(damaged)
    if bytes(damaged) == good:
        assert state.load(str(path)) == STATE
    else:
        with pytest.raises(StateError, match=re.escape(str(path))):
            state.load(str(path))


def test_each_length_of_a_file_that_is_cut_is_ours(whole: Path) -> None:
    """So it is replaced, and nobody has to remove it."""
    good = whole.read_bytes()
    path = whole.with_name("cut")
    for size in range(1, len(good)):
        path.write_bytes(good[:size])
        with pytest.raises(DamagedStateError):
            state.load(str(path))


def test_a_boundary_that_moved_is_damage(tmp_path: Path) -> None:
    """JSON and the same with a space of the ledger after it are equal; the ledgers are not."""
    path = tmp_path / "state"
    state.save(str(path), State({}, b" rest"))
    data = path.read_bytes()
    at = len(b"conntrack-textfile state\n") + 2
    assert struct.unpack_from("<QQ", data, at) == (2, 5)
    path.write_bytes(data[:at] + struct.pack("<QQ", 3, 4) + data[at + 16 :])
    with pytest.raises(DamagedStateError, match="damaged"):
        state.load(str(path))


def test_a_newer_version_says_so(whole: Path, tmp_path: Path) -> None:
    data = bytearray(whole.read_bytes())
    data[len(b"conntrack-textfile state\n")] = 3
    path = tmp_path / "state"
    path.write_bytes(data)
    with pytest.raises(DamagedStateError, match="version 3"):
        state.load(str(path))


def test_what_is_not_ours_is_refused_and_nothing_is_put_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "hosts"
    path.write_bytes(NO_STATE)
    with pytest.raises(StateError, match="not a state file"), state.run(str(path)):
        pass
    with pytest.raises(StateError, match="not a state file"):
        state.load(str(path))
    assert os.listdir(tmp_path) == ["hosts"]
    os.mkfifo(tmp_path / "fifo")
    for name in (tmp_path, tmp_path / "fifo", "/dev/null", "/dev/tty"):
        with pytest.raises(StateError, match=r"not a regular file|cannot read"):
            state.load(str(name))
    with pytest.raises(StateError, match="cannot read"):
        state.load(f"{path}/state")


def test_a_run_that_ends_well_empties_its_lock_file(tmp_path: Path) -> None:
    path = str(tmp_path / "state")
    for _ in range(2):
        with state.run(path) as first:
            assert first.interrupted == 0
            first.begin(0)
            first.end()
    lock = tmp_path / "state.lock"
    assert (lock.read_bytes(), stat.S_IMODE(lock.stat().st_mode)) == (b"", 0o600)


def test_each_interrupted_run_is_counted_once(tmp_path: Path) -> None:
    """Whether it was killed before or after its state, with the number, was saved."""
    path = str(tmp_path / "state")
    saved, killed = 0, 0
    for saves in (False, False, True, False, True, True, *[False] * 30, True):
        with state.run(path) as found:
            total = max(saved, found.interrupted)
            assert total == killed
            found.begin(total)
            if saves:
                saved = total
        killed += 1
    with state.run(path) as found:
        assert found.interrupted == killed
        found.begin(found.interrupted)
        found.end()
    with state.run(path) as found:
        assert found.interrupted == 0  # the state has it


def test_two_runs_at_once_are_one_too_many(tmp_path: Path) -> None:
    path = str(tmp_path / "state")
    with state.run(path) as first:
        first.begin(4)
        before = (tmp_path / "state.lock").read_bytes()
        with pytest.raises(StateError, match="another run"), state.run(path):
            pass
        assert (tmp_path / "state.lock").read_bytes() == before
        first.end()
    with state.run(path):
        pass


def test_a_lock_file_that_is_something_else_is_not_overwritten(tmp_path: Path) -> None:
    lock = tmp_path / "state.lock"
    for text in (b"somebody's\n", b"1" * 4000):
        lock.write_bytes(text)
        with pytest.raises(StateError, match="not a lock file"), state.run(str(tmp_path / "state")):
            pass
        assert lock.read_bytes() == text
    lock.unlink()
    lock.mkdir()
    with pytest.raises(StateError, match="cannot open"), state.run(str(tmp_path / "state")):
        pass
    lock.rmdir()
    os.mkfifo(lock)
    with pytest.raises(StateError, match="cannot use"), state.run(str(tmp_path / "state")):
        pass
    lock.unlink()
    lock.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(StateError, match="cannot open"), state.run(str(tmp_path / "state")):
        pass
    assert os.listdir(tmp_path) == ["state.lock"]


def test_a_full_disk_leaves_the_old_state(tmp_path: Path) -> None:
    need("unshare", "mount", root=True)
    script = f"""
set -e
mount -t tmpfs -o size=64k tmpfs {tmp_path}
{os.path.realpath("/proc/self/exe")} - <<'END'
import os
from conntrack_textfile import state
from conntrack_textfile.errors import OutputError
path = {str(tmp_path / "state")!r}
state.save(path, state.State({{"a": 1}}, b"old"))
try:
    state.save(path, state.State({{}}, bytes(1 << 20)))
except OutputError as error:
    print(error)
assert state.load(path) == state.State({{"a": 1}}, b"old")
assert os.listdir({str(tmp_path)!r}) == ["state"]
END
"""
    done = subprocess.run(
        ["unshare", "-m", "--propagation", "private", "sh", "-c", script],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(__import__("sys").path)},
    )
    assert done.returncode == 0, done.stderr
    assert "No space left on device" in done.stdout


def test_a_directory_that_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="no directory"):
        state.save(str(tmp_path / "gone" / "state"), STATE)
    missing = tmp_path / "gone"
    with pytest.raises(StateError, match=f"there is no directory {missing}$"):
        state.run(str(missing / "x")).__enter__()


# The whole command, on a live table.


class Host:
    """A namespace of its own with traffic, and a file for the state."""

    def __init__(self, namespace: str, directory: Path) -> None:
        self.namespace = namespace
        self.state = directory / "state"
        self.prom = directory / "out.prom"

    def ping(self, address: str = "127.0.0.1") -> None:
        check(*inside(self.namespace), "ping", "-q", "-c", "1", "-W", "5", address)

    def write(self, *args: str, **more: str) -> subprocess.CompletedProcess[str]:
        env = [f"{name}={value}" for name, value in more.items()]
        return run(
            "write",
            f"--state.file={self.state}",
            *args,
            str(self.prom),
            prefix=[*inside(self.namespace), "env", *env],
        )

    def total(self, name: str, protocol: str = "icmp") -> int | None:
        """A value of the textfile, by protocol or alone."""
        for line in self.prom.read_text().splitlines():
            if line.startswith(
                (f'{name}{{l3protocol="ipv4",l4protocol="{protocol}"}}', f"{name} ")
            ):
                return int(line.split()[-1])
        return None


RULES = """
table inet t {
    chain o {
        type filter hook output priority 0;
        ct state new accept
    }
}
"""
PACKETS = "conntrack_protocol_traffic_sent_packets_total"
INTERRUPTED = "conntrack_runs_interrupted_total"


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    need("ip", "nft", "ping", root=True)
    with namespaces("state") as (name,):
        sysctl(
            name, net__netfilter__nf_conntrack_acct=1, net__netfilter__nf_conntrack_icmp_timeout=600
        )
        check(*inside(name), "nft", "-f", "-", text=RULES)
        found = Host(name, tmp_path)
        found.ping()
        yield found


def counted(host: Host) -> None:
    """Runs with counters behind them: three packets."""
    assert host.write().returncode == 0
    assert host.total(PACKETS) is None  # what was there is no traffic
    for _ in range(3):
        host.ping()
    for _ in range(2):
        done = host.write()
        assert (done.returncode, done.stderr) == (0, "")
    assert host.total(PACKETS) == 3


def test_write_counts_from_one_run_to_the_next(host: Host) -> None:
    counted(host)
    for engine in ("pure", "compiled", "pure"):
        host.ping()
        done = host.write(CONNTRACK_TEXTFILE_ENGINE=engine)
        assert (done.returncode, done.stderr) == (0, "")
    assert host.total(PACKETS) == 6
    assert host.total(INTERRUPTED) == 0


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(lambda data: data[:-1], id="cut"),
        pytest.param(lambda data: data[:9], id="cut in its first line"),
        pytest.param(lambda data: data[:100] + b"?" + data[101:], id="flipped"),
        pytest.param(lambda data: data[:25] + b"\3" + data[26:], id="newer"),
    ],
)
def test_a_state_of_no_use_is_one_warning_and_a_new_baseline(host: Host, damage: object) -> None:
    counted(host)
    assert callable(damage)
    host.state.write_bytes(damage(host.state.read_bytes()))
    done = host.write()
    assert done.returncode == 0
    assert done.stderr.count("\n") == 1
    assert "counting from 0" in done.stderr
    assert host.total(PACKETS) is None  # no spike
    host.ping()
    for _ in range(2):
        done = host.write()
        assert (done.returncode, done.stderr) == (0, "")
    assert host.total(PACKETS) == 1


def test_another_boot_and_another_namespace_are_a_new_baseline(host: Host) -> None:
    counted(host)
    for change in (0, 1, 2):  # boot id, inode and cookie of the namespace
        saved = state.load(str(host.state))
        assert saved is not None
        saved.numbers["tables"][""]["table"][change] += "0"
        state.save(str(host.state), saved)
        done = host.write()
        assert done.returncode == 0
        assert len(done.stderr.splitlines()) == 1
        assert "another boot or network namespace" in done.stderr
        assert host.total(PACKETS) is None
        for _ in range(3):
            host.ping()
        for _ in range(2):
            assert host.write().returncode == 0
        assert host.total(PACKETS) == 3


def test_what_the_version_before_saved_is_gone_on_with(host: Host) -> None:
    """Version 1 had one table, whose numbers stood beside the counters."""
    counted(host)
    saved = state.load(str(host.state))
    assert saved is not None
    one = saved.numbers["tables"][""]
    assert one.pop("ledger") == len(saved.ledger)
    numbers = {**one, "counters": saved.numbers["counters"]}
    del numbers["counters"]["namespaces"]
    state.save(str(host.state), State(numbers, saved.ledger))
    data = bytearray(host.state.read_bytes())
    data[len(b"conntrack-textfile state\n")] = 1
    host.state.write_bytes(data)
    before = host.total(PACKETS)
    host.ping()
    for _ in range(2):
        done = host.write()
        assert (done.returncode, done.stderr) == (0, "")
    assert before is not None
    assert host.total(PACKETS) == before + 1


def test_filters_that_let_more_pass_make_no_spike(host: Host) -> None:
    counted(host)
    assert host.write("--filter.exclude=l4protocol=icmp").returncode == 0
    for _ in range(2):
        assert host.write().returncode == 0
    assert host.total(PACKETS) == 3


def test_the_command_does_not_touch_what_is_not_ours(host: Host) -> None:
    host.state.write_bytes(NO_STATE)
    before = host.state.stat()
    done = host.write()
    assert done.returncode == 0
    assert len(done.stderr.splitlines()) == 1
    assert f"{host.state} is not a state file" in done.stderr
    assert "conntrack_total_connections" in host.prom.read_text()
    assert "conntrack_traffic" not in host.prom.read_text()
    after = host.state.stat()
    assert host.state.read_bytes() == NO_STATE
    assert (before.st_ino, before.st_mtime_ns, before.st_mode) == (
        after.st_ino,
        after.st_mtime_ns,
        after.st_mode,
    )
    assert sorted(os.listdir(host.state.parent)) == sorted([host.prom.name, "state"])


def test_a_second_run_fails_and_touches_nothing(host: Host) -> None:
    counted(host)
    before = host.state.read_bytes(), host.prom.read_bytes()
    with state.run(str(host.state)) as first:
        first.begin(0)
        done = host.write()
        first.end()
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert "another run uses" in done.stderr
    assert (host.state.read_bytes(), host.prom.read_bytes()) == before
    assert host.write().returncode == 0
    assert host.total(INTERRUPTED) == 0


def test_a_run_that_fails_is_interrupted_and_the_next_goes_on(host: Host) -> None:
    counted(host)
    host.ping()
    host.prom.unlink()
    host.prom.mkdir()  # the state is saved, the textfile cannot be written
    done = host.write()
    assert done.returncode == 1
    host.prom.rmdir()
    assert host.write().returncode == 0
    assert host.total(PACKETS) == 4
    assert host.total(INTERRUPTED) == 1


def test_nobody_without_the_right_to_it_reads_or_writes_a_state(host: Host) -> None:
    need("setpriv")
    with tempfile.TemporaryDirectory() as name:  # that of pytest cannot be passed by others
        os.chmod(name, 0o755)
        host.state = Path(name) / "state"
        assert host.write().returncode == 0
        done = write_as_nobody(host)
    assert done.returncode == 1
    assert done.stdout == ""
    assert f"cannot read {host.state}: Permission denied" in done.stderr


def write_as_nobody(host: Host) -> subprocess.CompletedProcess[str]:
    return run(
        "write",
        f"--state.file={host.state}",
        prefix=[
            *inside(host.namespace),
            *("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"),
            *("--inh-caps=+net_admin", "--ambient-caps=+net_admin"),
        ],
    )


def test_json_is_what_the_numbers_are(host: Host) -> None:
    """What a later version has to read; no secrets but that of the ledger."""
    assert host.write().returncode == 0
    saved = state.load(str(host.state))
    assert saved is not None
    assert saved.numbers.keys() == {"boot", "tables", "counters"}
    assert saved.numbers["tables"].keys() == {""}
    assert saved.numbers["tables"][""].keys() == {
        *("table", "filters", "socket", "drops", "others_at", "ledger")
    }
    assert json.loads(json.dumps(saved.numbers)) == saved.numbers
