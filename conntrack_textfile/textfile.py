"""The textfile: text to a file that is old or new, never partial.

The text goes to a temporary file in the same directory, which is flushed to the
disk and then renamed over the old one. node_exporter reads only names that end
in .prom, so never the temporary file.

Root writes into directories of other users, as that of node_exporter. Whatever
their owner renames or links meanwhile, the file ends up in the directory that
was opened: it is opened once, all that follows goes by its descriptor, and
symbolic links of other users on the way to it are refused.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import stat
from typing import TYPE_CHECKING

from conntrack_textfile.errors import OutputError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

STDOUT = 1

# O_PATH needs no permission to read a directory. O_DIRECTORY triggers an automount.
_HANDLE = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
_DIRECTORY = _HANDLE | os.O_DIRECTORY
_MAX_LINKS = 40  # MAXSYMLINKS, include/linux/namei.h
_ATTEMPTS = 100  # to create a temporary file

NOT_READ = "node_exporter does not read {}: only names that end in .prom"


def stream(pieces: Iterable[bytes]) -> bool:
    """Write to standard output. Return False on EPIPE (| head), which is not an error.

    Raises OutputError.
    """
    try:
        for piece in pieces:
            _write(STDOUT, piece)
    except BrokenPipeError:
        return False
    except OSError as error:
        raise OutputError(f"cannot write to standard output: {error.strerror}") from error
    return True


def replace(
    file: str, pieces: Iterable[bytes], mode: int = 0o644, group: int | None = None
) -> None:
    """Replace a file atomically.

    A symbolic link of root or of the caller is followed: its target is replaced,
    the link stays.

    mode: of the new file, whatever the umask.
    group: gid of the new file; None is that of the process.

    Raises OutputError, also for an OSError of pieces; the old file is then
    unchanged, unless the disk failed after the rename.
    """
    try:
        directory, name = _open_directory(file)
        try:
            _sweep(directory, name)
            with _temporary(directory, name) as (temporary, fd):
                for piece in pieces:
                    _write(fd, piece)
                if group is not None:
                    _set_group(fd, group, file)
                os.fchmod(fd, mode)
                _flush(fd)
                os.rename(temporary, name, src_dir_fd=directory, dst_dir_fd=directory)
            # Else a power loss can undo the rename.
            _flush(directory)
        except FileNotFoundError:
            if os.fstat(directory).st_nlink:
                raise
            raise OutputError(f"cannot write {file}: its directory was removed") from None
        finally:
            os.close(directory)
    except OSError as error:
        why = "use - for standard output" if file.startswith("/dev/") else reason(error)
        raise OutputError(f"cannot write {file}: {why}") from error


def reason(error: OSError) -> str:
    """Return why a write failed, for EROFS with the systemd directive that causes it.

    Under ProtectSystem=strict all directories but ReadWritePaths= are read-only.
    """
    if error.errno != errno.EROFS:
        return error.strerror or str(error)
    return f"{error.strerror} (under systemd: name its directory in ReadWritePaths= of the unit)"


def _open_directory(file: str) -> tuple[int, str]:
    """Open the directory of a file. Return its descriptor and the file's name in it.

    Resolves the path as the kernel does (path_resolution(7)), directory by directory, but
    checks each symbolic link: open(2) has no flag to follow only links of some users.
    Raises OutputError and OSError.
    """
    path = "/" if file.startswith("/") else ""  # as far as resolved, for messages
    at = os.open(path or ".", _DIRECTORY)
    try:
        rest = file.split("/")[::-1]
        links = 0
        while True:
            name = rest.pop()
            path = os.path.join(path, name)
            try:
                inner = os.open(name or ".", _DIRECTORY, dir_fd=at)
            except (FileNotFoundError, NotADirectoryError) as error:
                missing = isinstance(error, FileNotFoundError)
                target = None if missing else _follow(at, name, path, file)
                if target is None:
                    if not rest:
                        break
                    raise OutputError(
                        f"cannot write {file}: there is no directory {path}"
                    ) from None
                links += 1
                if links > _MAX_LINKS:
                    raise OSError(errno.ELOOP, os.strerror(errno.ELOOP)) from None
                inner = os.open("/" if target.startswith("/") else ".", _DIRECTORY, dir_fd=at)
                path = "/" if target.startswith("/") else os.path.dirname(path)
                rest += target.split("/")[::-1]
            else:
                if not rest:
                    os.close(inner)
                    raise OutputError(f"cannot write {file}: it is a directory; name a file in it")
            os.close(at)
            at = inner
        # _sweep() and fsync(2) need read permission. To write a file does not.
        with contextlib.suppress(PermissionError):
            handle, at = at, os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=at)
            os.close(handle)
    except BaseException:
        os.close(at)
        raise
    return at, name


def _follow(at: int, name: str, path: str, file: str) -> str | None:
    """Return the target of a symbolic link, None for a regular file.

    Raises OutputError for other files, and for links that another user may have
    made: who makes the link chooses the file that is replaced. Raises OSError.
    """
    fd = os.open(name, _HANDLE, dir_fd=at)
    try:
        found = os.fstat(fd)
        if stat.S_ISREG(found.st_mode):
            return None
        if not stat.S_ISLNK(found.st_mode):
            # A rename would put a plain file in the place of /dev/null.
            raise OutputError(f"cannot write {file}: not a regular file; use - for standard output")
        trusted = (0, os.geteuid())
        if found.st_uid not in trusted:
            raise OutputError(
                f"cannot write {file}: the symbolic link {path} belongs to {_user(found.st_uid)}, "
                f"who could make it lead anywhere: name the file itself, or, if the link is "
                f"right, make it yours (chown -h {_user(trusted[1])} {path})"
            )
        # With fs.protected_hardlinks=0 users can hard link a symbolic link of root into
        # their own directory.
        parent = os.fstat(at)
        if found.st_nlink > 1 and (parent.st_uid not in trusted or parent.st_mode & 0o022):
            raise OutputError(
                f"cannot write {file}: the symbolic link {path} has other names, and is in a "
                f"directory that {_user(parent.st_uid)} or others may write: name the file "
                "itself, or remove the link and make it again"
            )
        return os.readlink("", dir_fd=fd)
    finally:
        os.close(fd)


def _user(uid: int) -> str:
    # Imported here: for error messages only.
    import pwd

    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


@contextlib.contextmanager
def _temporary(directory: int, name: str) -> Iterator[tuple[str, int]]:
    """Yield the name and descriptor of a new file. Remove it on an error."""
    temporary, fd = _create(directory, name)
    try:
        yield temporary, fd
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary, dir_fd=directory)
        raise
    finally:
        os.close(fd)


def _create(directory: int, name: str) -> tuple[str, int]:
    """Create a file and lock it: the lock shows _sweep() that its writer is alive."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    for _ in range(_ATTEMPTS):
        temporary = f".{name}.{os.urandom(8).hex()}.tmp"
        fd = os.open(temporary, flags, 0o600, dir_fd=directory)
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(fd, fcntl.LOCK_EX)
        if os.fstat(fd).st_nlink:
            return temporary, fd
        os.close(fd)  # another run removed it before it was locked
    raise OSError(errno.EBUSY, "its temporary file is removed, again and again")


def _sweep(directory: int, name: str) -> None:
    """Remove the temporary files of killed runs: the kernel has released their locks."""
    temporary = re.compile(rf"\.{re.escape(name)}\.[0-9a-f]{{16}}\.tmp")
    flags = os.O_WRONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC
    with contextlib.suppress(OSError):
        for entry in filter(temporary.fullmatch, os.listdir(directory)):
            with contextlib.suppress(OSError):
                fd = os.open(entry, flags, dir_fd=directory)
                try:
                    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    os.unlink(entry, dir_fd=directory)
                finally:
                    os.close(fd)


def _set_group(fd: int, group: int, file: str) -> None:
    try:
        os.fchown(fd, -1, group)
    except PermissionError:
        raise OutputError(
            f"cannot set the group of {file} (--file.group): run as root or as a member of it"
        ) from None


def _flush(fd: int) -> None:
    """Flush to the disk, if the file system can."""
    try:
        os.fsync(fd)
    except OSError as error:
        # EBADF: the O_PATH descriptor of a directory without read permission.
        if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP, errno.EBADF):
            raise


def _write(fd: int, piece: bytes) -> None:
    view = memoryview(piece)
    while view:
        view = view[os.write(fd, view) :]
