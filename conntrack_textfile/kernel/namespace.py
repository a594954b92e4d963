"""Network namespaces: to list, to enter and to identify them (network_namespaces(7))."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import sys
import time
from typing import TYPE_CHECKING, TypeVar

from conntrack_textfile.errors import SourceError
from conntrack_textfile.kernel import uapi

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Iterable, Iterator

# Named network namespaces: ip-netns(8).
DIRECTORY = "/run/netns"

# include/uapi/linux/sched.h
_CLONE_NEWNET = 0x40000000
# include/uapi/asm-generic/socket.h, since Linux 5.14
_SO_NETNS_COOKIE = 71
_COOKIE_SIZE = 8
# include/uapi/linux/sockios.h: returns a descriptor of the namespace of a socket
_SIOCGSKNS = 0x894C

_Result = TypeVar("_Result")


class Namespace:
    """A network namespace, and NETLINK_NETFILTER sockets in it.

    A socket belongs to the namespace that it was made in, whichever process uses it. An
    open socket keeps its namespace alive.
    """

    def __init__(self, path: str = "", passed: Iterable[socket.socket] = ()) -> None:
        """A namespace by its file, such as /run/netns/NAME; "" is that of this process.

        passed: sockets made in it by systemd, used in place of new ones, each for one
            request at a time.
        """
        self.path = path
        self._idle = list(passed)
        self._passed = tuple(self._idle)

    def run(self, function: Callable[[], _Result]) -> _Result:
        """Call a function in the namespace, on a thread of its own. Return its result.

        Its sockets, /proc/sys/net and /proc/thread-self/net are those of the namespace;
        /proc/net is that of the main thread. Raises what the function raises, and
        SourceError, as without CAP_SYS_ADMIN.
        """
        if not self.path:
            return function()
        # Imported here: without --netns no namespace is entered.
        import threading

        results: list[_Result] = []
        errors: list[BaseException] = []

        def inside() -> None:
            try:
                _enter(self.path)
                results.append(function())
            except BaseException as error:  # noqa: BLE001
                errors.append(error)

        # setns(2) moves the calling thread alone.
        thread = threading.Thread(target=inside, name="netns")
        try:
            thread.start()
        except RuntimeError as refused:  # by TasksMax= of a unit, for one
            raise SourceError(f"cannot enter {self.path}: {refused}") from refused
        thread.join()
        for error in errors:
            raise error
        return results[0]

    @contextlib.contextmanager
    def socket(self) -> Iterator[socket.socket]:
        """Yield a netlink socket in the namespace, for one request.

        Raises SourceError, and OSError (EBUSY if all passed sockets are in use).
        """
        if not self._passed:
            with self.run(_socket) as sock:
                yield sock
            return
        try:
            sock = self._idle.pop()
        except IndexError:
            raise OSError(errno.EBUSY, "all sockets passed by systemd are in use") from None
        try:
            _drain(sock)
            yield sock
        finally:
            self._idle.append(sock)

    def identity(self) -> list[str]:
        """Return boot ID, inode number and cookie: they change when the table does.

        The kernel reuses inode numbers of namespaces, but not cookies. Raises SourceError.
        """
        try:
            if not self.path:
                with _socket() as sock:
                    return [boot(), os.readlink("/proc/self/ns/net"), cookie(sock)]
            with self.socket() as sock:
                return [boot(), f"net:[{_inode(sock)}]", cookie(sock)]
        except OSError as error:
            raise SourceError(f"cannot identify the network namespace: {error.strerror}") from error

    def check(self) -> None:
        """Raise SourceError if its path is gone or is that of another namespace.

        Passed sockets stay in the namespace that they were made in, and keep it alive.
        """
        if not self._passed:
            return
        here = stamp(self.path)
        if here is None:
            raise SourceError(f"there is no {self.path}")
        if _is_namespace(here) and here[1] != _inode(self._passed[0]):
            raise SourceError(
                f"{self.path} was replaced, and the sockets of systemd are in the namespace "
                "before: restart its socket unit"
            )

    def close(self) -> None:
        """Close the passed sockets."""
        for sock in self._passed:
            sock.close()


OWN = Namespace()


def find(names: Iterable[str], proc_root: str, passed: Iterable[str] = ()) -> dict[str, str]:
    """Resolve the values of --netns to paths by name; the path "" is our own namespace.

    names: names under /run/netns, paths, pid:N, host (our own), or all (every name under
        /run/netns now).
    passed: names with passed sockets: part of all also where this process does not see
        the mount of the namespace.

    Raises SourceError.
    """
    found: dict[str, str] = {}
    for name in names:
        if name == "all":
            try:
                found.update(_named(set(passed)))
            except OSError as error:
                where = f"{error.filename}: {error.strerror}"
                raise SourceError(f"cannot list the network namespaces: {where}") from error
        elif name == "host":
            found[name] = ""
        elif name.startswith("pid:"):
            found[name] = os.path.join(proc_root, name[4:], "ns", "net")
        elif "/" in name:
            found[name] = name
        else:
            found[name] = os.path.join(DIRECTORY, name)
    return dict(sorted(found.items()))


def _named(passed: set[str]) -> Iterator[tuple[str, str]]:
    try:
        names = os.listdir(DIRECTORY)
    except FileNotFoundError:
        return  # ip netns add makes it
    for name in names:
        path = os.path.join(DIRECTORY, name)
        if name in passed or exists(path):
            reserved = name in ("all", "host") or name.startswith("pid:")
            yield os.fsencode(path if reserved else name).decode("utf-8", "backslashreplace"), path


def stamp(path: str) -> tuple[int, int] | None:
    """Return device and inode of a path, None if it does not exist.

    They change when another namespace takes the path.
    """
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_dev, status.st_ino


def exists(path: str) -> bool:
    """Return whether a path is a namespace: ip-netns(8) makes a file first, then mounts over it."""
    found = stamp(path)
    return found is not None and _is_namespace(found)


def _is_namespace(found: tuple[int, int]) -> bool:
    """Return whether the stamp is of a file on nsfs, the file system of namespaces."""
    return found[0] == os.stat("/proc/self/ns/net").st_dev


def boot() -> str:
    """Return the boot ID (random(4)). Raises OSError."""
    with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
        return file.read(64).strip()


def cookie(sock: socket.socket) -> str:
    """Return the cookie of the network namespace of a socket, "" before Linux 5.14."""
    # Imported here, as below: the import takes longer than to read a small table.
    import socket

    try:
        return sock.getsockopt(socket.SOL_SOCKET, _SO_NETNS_COOKIE, _COOKIE_SIZE).hex()
    except OSError:
        return ""


def seconds() -> int:
    """Return seconds since boot, suspend included (CLOCK_BOOTTIME)."""
    return int(time.clock_gettime(time.CLOCK_BOOTTIME))


def _enter(path: str) -> None:
    """Move the calling thread into a namespace. Raises SourceError."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
        try:
            _setns(fd)
        finally:
            os.close(fd)
    except (FileNotFoundError, ProcessLookupError):
        raise SourceError(f"there is no {path}") from None
    except PermissionError as error:
        if error.filename:  # open(2): /proc/PID/ns is for those who may trace PID
            raise SourceError(
                f"no permission to open {path}: under /proc it takes CAP_SYS_PTRACE"
            ) from None
        raise SourceError(
            f"no permission to enter {path}: run as root or with CAP_SYS_ADMIN, "
            "or let systemd pass sockets of it"
        ) from None
    except OSError as error:
        reason = error.strerror
        if error.errno == errno.EINVAL:
            reason = "it is not a network namespace"
        raise SourceError(f"cannot enter {path}: {reason}") from error


def _setns(fd: int) -> None:
    if sys.version_info >= (3, 12):
        os.setns(fd, _CLONE_NEWNET)
        return
    import ctypes

    if ctypes.CDLL(None, use_errno=True).setns(fd, _CLONE_NEWNET):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def _socket() -> socket.socket:
    import socket

    return socket.socket(
        socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, uapi.NETLINK_NETFILTER
    )


def _inode(sock: socket.socket) -> int:
    """Return the inode number of the namespace of a socket. Raises SourceError."""
    try:
        fd = fcntl.ioctl(sock.fileno(), _SIOCGSKNS)
    except OSError as error:
        raise SourceError(
            "cannot identify the namespace of the sockets of systemd: "
            f"{error.strerror} (needs CAP_NET_ADMIN)"
        ) from error
    try:
        return os.fstat(fd).st_ino
    finally:
        os.close(fd)


def _drain(sock: socket.socket) -> None:
    """Discard the datagrams of an earlier request, as of a run that was killed.

    During a dump the kernel refuses another (EBUSY).
    """
    import socket

    with contextlib.suppress(BlockingIOError):
        while True:
            with _ignoring(errno.ENOBUFS):
                sock.recv(1 << 16, socket.MSG_DONTWAIT)


@contextlib.contextmanager
def _ignoring(number: int) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno != number:
            raise
