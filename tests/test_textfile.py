from __future__ import annotations

import errno
import fcntl
import grp
import os
import shutil
import stat
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pytest

from conntrack_textfile import textfile
from conntrack_textfile.errors import OutputError
from conntrack_textfile.textfile import replace
from tests.conftest import DATA, need
from tests.program import COMMAND, run

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
def test_other_files_than_regular_ones_are_not_replaced(
    tmp_path: Path, name: str, reason: str
) -> None:
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


def test_a_temporary_file_removed_before_it_was_locked_is_made_again(
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


# Directories that somebody else owns


NOBODY = 65534


def as_nobody(script: str, *args: Path | str) -> subprocess.Popen[bytes]:
    """A Python script, run by the second user. It ends at the end of its input."""
    code = EXCHANGE + script
    return subprocess.Popen(
        ["/usr/bin/python3", "-c", code, *map(str, args)],
        user=NOBODY,
        group=NOBODY,
        extra_groups=[],
        stdin=subprocess.PIPE,
    )


def nobody(script: str, *args: Path | str) -> None:
    process = as_nobody(script, *args)
    process.communicate(timeout=60)
    assert process.returncode == 0


EXCHANGE = """
import ctypes, os, sys
AT_FDCWD, RENAME_EXCHANGE = -100, 2
def exchange(one, other):
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.renameat2(AT_FDCWD, one.encode(), AT_FDCWD, other.encode(), RENAME_EXCHANGE) == 0
"""


class Place(NamedTuple):
    """A directory that belongs to the second user, with one in it that is written to."""

    theirs: Path
    directory: Path  # in theirs
    ours: Path  # beside theirs: of root, with the file "secret"

    @property
    def file(self) -> Path:
        return self.directory / "conntrack.prom"

    def is_ours_untouched(self) -> bool:
        secret = self.ours / "secret"
        return (
            files(self.ours) == ["secret"]
            and secret.read_text() == "secret\n"
            and stat.S_IMODE(secret.stat().st_mode) == 0o600
        )


@pytest.fixture
def place() -> Iterator[Place]:
    need(root=True)
    with tempfile.TemporaryDirectory(dir="/tmp") as made:
        top = Path(made)
        top.chmod(0o755)  # others must come in, unlike to tmp_path
        found = Place(top / "theirs", top / "theirs" / "node-exporter", top / "ours")
        for path in found:
            path.mkdir()
        for path in (found.theirs, found.directory):
            os.chown(path, NOBODY, NOBODY)
        (found.ours / "secret").write_text("secret\n")
        (found.ours / "secret").chmod(0o600)
        yield found


def test_a_plain_file_in_a_foreign_directory_is_written(place: Place) -> None:
    for text in (b"one\n", b"two\n"):
        replace(str(place.file), [text])
        assert place.file.read_bytes() == text
    assert files(place.directory) == ["conntrack.prom"]
    nobody("open(sys.argv[1]).read()", place.file)


REPLACED = """
theirs, secret = sys.argv[1:]
os.chdir(theirs)
os.rename("node-exporter", "x")
os.mkdir("node-exporter")
os.symlink(secret, "node-exporter/conntrack.prom")
"""


def test_a_link_of_the_directorys_owner_is_refused(place: Place) -> None:
    nobody(REPLACED, place.theirs, place.ours / "secret")
    done = run("write", f"--path.procfs={DATA / 'kernel-6.18'}", str(place.file))
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    for word in (f"the symbolic link {place.file} belongs to nobody", "chown -h root"):
        assert word in done.stderr
    assert place.is_ours_untouched()


LINK = "os.rename(sys.argv[1], sys.argv[1] + '.old'); os.symlink(sys.argv[2], sys.argv[1])"


def test_a_link_on_the_way_is_refused(place: Place) -> None:
    nobody(LINK, place.directory, place.ours)
    with pytest.raises(OutputError, match=f"symbolic link {place.directory} belongs to nobody"):
        replace(str(place.file), [b"text\n"])
    # By a link of root that leads through it, too.
    (place.ours.parent / "link").symlink_to("theirs/node-exporter/../node-exporter/x.prom")
    with pytest.raises(OutputError, match=r"node-exporter belongs to nobody, .*name the file"):
        replace(str(place.ours.parent / "link"), [b"text\n"])
    assert place.is_ours_untouched()


def test_a_link_that_root_made_in_a_foreign_directory_is_followed(place: Place) -> None:
    target = place.ours.parent / "state" / "conntrack.prom"
    target.parent.mkdir()
    place.file.symlink_to(target)
    replace(str(place.file), [b"text\n"])
    assert target.read_bytes() == b"text\n"
    assert place.file.is_symlink()
    assert files(place.directory) == ["conntrack.prom"]


def test_a_second_name_for_a_link_of_root_is_refused(place: Place) -> None:
    link = place.ours.parent / "link"
    link.symlink_to("ours/secret")
    # As users can where fs.protected_hardlinks is 0.
    os.link(link, place.file, follow_symlinks=False)
    with pytest.raises(OutputError, match="has other names, and is in a directory that nobody"):
        replace(str(place.file), [b"text\n"])
    assert place.is_ours_untouched()
    replace(str(link), [b"text\n"])  # where nobody else could make one
    assert (place.ours / "secret").read_text() == "text\n"


def test_users_other_than_root_follow_their_own_links_and_those_of_root(place: Place) -> None:
    (place.theirs / "own").symlink_to("node-exporter/own.prom")
    os.lchown(place.theirs / "own", NOBODY, NOBODY)
    (place.theirs / "roots").symlink_to("node-exporter/roots.prom")
    (place.theirs / "strangers").symlink_to("node-exporter/strangers.prom")
    os.lchown(place.theirs / "strangers", 4242, 4242)
    script = (
        "from conntrack_textfile import textfile\n"
        "for name in ('own', 'roots', 'strangers'):\n"
        "    textfile.replace(f'{sys.argv[2]}/{name}', [b'text\\n'])\n"
    )
    package = place.ours.parent / "package"  # where this user can read it
    shutil.copytree(Path(textfile.__file__).parent, package / "conntrack_textfile")
    path = f"sys.path.insert(0, {str(package)!r})\n"
    process = subprocess.run(
        ["/usr/bin/python3", "-c", "import sys\n" + path + script, "", place.theirs],
        user=NOBODY,
        group=NOBODY,
        extra_groups=[],
        capture_output=True,
        text=True,
        check=False,
    )
    assert "strangers belongs to 4242, who could" in process.stderr
    assert "chown -h nobody" in process.stderr
    assert files(place.directory) == ["own.prom", "roots.prom"]


def test_a_sticky_directory_that_all_may_write(place: Place) -> None:
    sticky = place.ours.parent / "sticky"
    sticky.mkdir()
    sticky.chmod(0o1777)
    plain, theirs, ours = (sticky / name for name in ("plain.prom", "theirs.prom", "ours.prom"))
    nobody("os.symlink(sys.argv[2], sys.argv[1])", theirs, place.ours / "secret")
    with pytest.raises(OutputError, match=r"symbolic link .*theirs.prom belongs to nobody"):
        replace(str(theirs), [b"text\n"])
    ours.symlink_to("target.prom")
    for file in (plain, ours):
        replace(str(file), [b"text\n"])
    assert files(sticky) == ["ours.prom", "plain.prom", "target.prom", "theirs.prom"]
    assert (sticky / "target.prom").read_bytes() == plain.read_bytes() == b"text\n"
    assert place.is_ours_untouched()


def test_a_directory_that_is_exchanged_between_create_and_rename(place: Place) -> None:
    link = place.theirs / "link"
    nobody("os.symlink(sys.argv[2], sys.argv[1])", link, place.ours)

    def exchanging() -> Iterator[bytes]:
        yield b"half\n"
        (temporary,) = files(place.directory)
        nobody("exchange(*sys.argv[1:])", place.directory, link)
        assert files(link) == [temporary]
        yield b"whole\n"

    replace(str(place.file), exchanging())
    assert place.is_ours_untouched()
    assert files(link) == ["conntrack.prom"]
    assert (link / "conntrack.prom").read_bytes() == b"half\nwhole\n"


FLIPPING = """
import threading
threading.Thread(target=lambda: (sys.stdin.read(), os._exit(0)), daemon=True).start()
libc, flip = ctypes.CDLL(None), [name.encode() for name in sys.argv[1:]]
while True:
    assert libc.renameat2(AT_FDCWD, flip[0], AT_FDCWD, flip[1], RENAME_EXCHANGE) == 0
"""


def test_a_directory_that_is_exchanged_all_the_time(place: Place) -> None:
    link = place.theirs / "link"
    nobody("os.symlink(sys.argv[2], sys.argv[1])", link, place.ours)
    process = as_nobody(FLIPPING, place.directory, link)
    written = refused = 0
    try:
        end = time.monotonic() + 30
        while (written < 50 or refused < 50) and time.monotonic() < end:
            try:
                replace(str(place.file), [b"text\n"])
                written += 1
            except OutputError:
                refused += 1
            assert place.is_ours_untouched()
        assert process.poll() is None
    finally:
        process.communicate(timeout=60)
    # It was seen in both states, and every file is in the one directory.
    assert written
    assert refused
    (real,) = (path for path in (place.directory, link) if not path.is_symlink())
    assert files(real) == ["conntrack.prom"]


def test_a_directory_that_is_moved_away_keeps_no_temporary_file(tmp_path: Path) -> None:
    directory, moved = tmp_path / "a", tmp_path / "b"
    directory.mkdir()

    def moving() -> Iterator[bytes]:
        yield b"half\n"
        directory.rename(moved)
        assert len(files(moved)) == 1
        raise OSError(28, "No space left on device")

    with pytest.raises(OutputError, match="No space"):
        replace(str(directory / "a.prom"), moving())
    assert files(moved) == []


def test_a_directory_that_is_removed_is_an_error(tmp_path: Path) -> None:
    directory = tmp_path / "a"
    directory.mkdir()

    def removing() -> Iterator[bytes]:
        yield b"half\n"
        shutil.rmtree(directory)

    with pytest.raises(OutputError, match=r"cannot write .*a.prom: its directory was removed"):
        replace(str(directory / "a.prom"), removing())


def test_a_temporary_file_that_is_always_removed_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def removing(_fd: int, _operation: int) -> None:
        for name in files(tmp_path):
            (tmp_path / name).unlink()

    monkeypatch.setattr(fcntl, "flock", removing)
    with pytest.raises(OutputError, match="its temporary file is removed, again and again"):
        replace(str(tmp_path / "a.prom"), [b"text\n"])


@pytest.mark.parametrize("name", ["a/../b/../../x/a.prom", "./a//.././a.prom", "up/x/a.prom"])
def test_a_path_is_walked_as_the_kernel_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    for made in ("x/a", "x/b"):
        (tmp_path / made).mkdir(parents=True)
    (tmp_path / "x" / "up").symlink_to("a/../../")  # to tmp_path
    monkeypatch.chdir(tmp_path / "x")
    replace(name, [b"text\n"])
    assert (tmp_path / "x" / "a.prom").read_bytes() == b"text\n"
    replace(f"{tmp_path}/x/{name}", [b"again\n"])
    assert (tmp_path / "x" / "a.prom").read_bytes() == b"again\n"


def test_forty_links_are_followed_and_no_more(tmp_path: Path) -> None:
    for n in range(41):
        (tmp_path / str(n)).symlink_to(str(n - 1) if n else "a.prom")
    replace(str(tmp_path / "39"), [b"text\n"])
    assert (tmp_path / "a.prom").read_bytes() == b"text\n"
    with pytest.raises(OutputError, match="Too many levels of symbolic links"):
        replace(str(tmp_path / "40"), [b"text\n"])


def test_dev_stdout_is_refused_with_a_hint() -> None:
    done = run("write", f"--path.procfs={DATA / 'kernel-6.18'}", "/dev/stdout")
    assert done.returncode == 1
    assert "cannot write /dev/stdout: use - for standard output" in done.stderr


def test_a_directory_that_may_be_written_and_not_read(place: Place) -> None:
    place.directory.chmod(0o333)
    code = (
        "from conntrack_textfile.textfile import replace; import sys; replace(sys.argv[1], [b''])"
    )
    package = place.ours.parent / "package"
    shutil.copytree(Path(textfile.__file__).parent, package / "conntrack_textfile")
    argv: list[str | Path] = ["/usr/bin/python3", "-c", code, place.file]
    subprocess.run(argv, user=NOBODY, group=NOBODY, extra_groups=[], cwd=package, check=True)
    assert files(place.directory) == ["conntrack.prom"]


# Mode and group


def test_the_mode_and_the_group_are_those_asked_for(tmp_path: Path) -> None:
    need(root=True)
    file = tmp_path / "a.prom"
    seen = []

    def watching() -> Iterator[bytes]:
        yield b"text\n"
        seen.append(stat.S_IMODE((tmp_path / files(tmp_path)[0]).stat().st_mode))

    replace(str(file), watching(), 0o640, NOBODY)
    assert seen == [0o600]  # never more than in the end
    assert (file.stat().st_gid, stat.S_IMODE(file.stat().st_mode)) == (NOBODY, 0o640)


def test_the_options_set_mode_and_group(tmp_path: Path) -> None:
    file = tmp_path / "a.prom"
    group = grp.getgrgid(os.getegid()).gr_name
    given = ("--file.mode=0640", f"--file.group={group}", str(file))
    assert run("write", f"--path.procfs={DATA / 'kernel-6.18'}", *given).returncode == 0
    assert (file.stat().st_gid, stat.S_IMODE(file.stat().st_mode)) == (os.getegid(), 0o640)


def test_a_group_that_cannot_be_given_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refusing(_fd: int, _user: int, _group: int) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "fchown", refusing)
    (tmp_path / "a.prom").write_text("old\n")
    with pytest.raises(OutputError, match="run as root or as a member of it"):
        replace(str(tmp_path / "a.prom"), [b"text\n"], 0o640, 4242)
    assert files(tmp_path) == ["a.prom"]
    assert (tmp_path / "a.prom").read_text() == "old\n"


# The disk


@pytest.mark.parametrize("number", [errno.EINVAL, errno.EOPNOTSUPP])
def test_a_file_system_that_does_not_flush_is_no_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def refusing(_fd: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", refusing)
    replace(str(tmp_path / "a.prom"), [b"text\n"])
    assert (tmp_path / "a.prom").read_bytes() == b"text\n"


def test_a_disk_that_fails_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(_fd: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "fsync", failing)
    with pytest.raises(OutputError, match="Input/output error"):
        replace(str(tmp_path / "a.prom"), [b"text\n"])
    assert files(tmp_path) == []


def test_what_was_written_outlives_a_power_loss(tmp_path: Path) -> None:
    """What the disk holds at the end of a run is copied and looked at, as after a power loss."""
    need("mkfs.ext4", "mount", "umount", root=True)
    image, copy, disk = (tmp_path / name for name in ("image", "copy", "disk"))
    disk.mkdir()
    with open(image, "wb") as made:
        made.truncate(16 << 20)
    subprocess.run(["mkfs.ext4", "-q", image], check=True)
    # No commit by itself while this goes on.
    subprocess.run(["mount", "-o", "loop,commit=600", image, disk], check=True)
    try:
        for n in range(10):
            replace(str(disk / "a.prom"), [b"%d\n" % n])
            shutil.copyfile(image, copy)
            after = tmp_path / f"after-{n}"
            after.mkdir()
            subprocess.run(["mount", "-o", "loop", copy, after], check=True)
            try:
                assert (after / "a.prom").read_bytes() == b"%d\n" % n
            finally:
                subprocess.run(["umount", after], check=True)
    finally:
        subprocess.run(["umount", disk], check=True)
