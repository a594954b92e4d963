"""Network namespaces: where they are found, how one is entered, and which one it is."""

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

# Where ip-netns(8) keeps the named ones.
DIRECTORY = "/run/netns"

# include/uapi/linux/sched.h
_CLONE_NEWNET = 0x40000000
# include/uapi/asm-generic/socket.h, since Linux 5.14
_SO_NETNS_COOKIE = 71
_COOKIE_SIZE = 8
# include/uapi/linux/sockios.h: a descriptor of the namespace that a socket is in
_SIOCGSKNS = 0x894C

_Result = TypeVar("_Result")


class Namespace:
    """A network namespace, and netlink sockets in it: made there, or handed over.

    A socket stays in the namespace that it was made in, whoever uses it. Each that
    is open keeps its namespace from being freed.
    """

    def __init__(self, path: str = "", handed: Iterable[socket.socket] = ()) -> None:
        """The namespace of a file such as /run/netns/NAME, or that of this process.

        Of sockets that were handed over each serves one request at a time.
        """
        self.path = path
        self._idle = list(handed)
        self._handed = tuple(self._idle)

    def run(self, function: Callable[[], _Result]) -> _Result:
        """Call a function inside. Raises SourceError, as without CAP_SYS_ADMIN.

        The sockets that it makes are of the namespace, and so is what it opens in
        /proc/sys/net and /proc/thread-self/net. (/proc/net is of the main thread.)
        """
        if not self.path:
            return function()
        # Imported here: most runs enter none.
        import threading

        results: list[_Result] = []
        errors: list[BaseException] = []

        def inside() -> None:
            try:
                _enter(self.path)
                results.append(function())
            except BaseException as error:  # noqa: BLE001
                errors.append(error)

        # setns(2) is of the thread that calls it, which ends here and need not go back.
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
        """A netlink socket in it, for one request. Raises SourceError and OSError."""
        if not self._handed:
            with self.run(_socket) as sock:
                yield sock
            return
        try:
            sock = self._idle.pop()
        except IndexError:
            raise OSError(errno.EBUSY, "every socket that was handed over is in use") from None
        try:
            _drain(sock)
            yield sock
        finally:
            self._idle.append(sock)

    def identity(self) -> list[str]:
        """What is the same as long as its table is: boot id, number, cookie.

        The number of a namespace's inode is given again to another when it is gone;
        its cookie is not. Raises SourceError.
        """
        try:
            if not self.path:
                with _socket() as sock:
                    return [boot(), os.readlink("/proc/self/ns/net"), cookie(sock)]
            with self.socket() as sock:
                return [boot(), f"net:[{_inode(sock)}]", cookie(sock)]
        except OSError as error:
            raise SourceError(
                f"cannot tell which network namespace it is: {error.strerror}"
            ) from error

    def check(self) -> None:
        """Raise SourceError where it is gone, though there are sockets in it still."""
        if not self._handed:
            return
        here = stamp(self.path)
        if here is None:
            raise SourceError(f"there is no {self.path}")
        if _is_namespace(here) and here[1] != _inode(self._handed[0]):
            raise SourceError(
                f"{self.path} was made anew, and systemd's sockets are of the one before: "
                "restart its socket unit"
            )

    def close(self) -> None:
        """Close what was handed over."""
        for sock in self._handed:
            sock.close()


OWN = Namespace()


def find(wanted: Iterable[str], proc_root: str, handed: Iterable[str] = ()) -> dict[str, str]:
    """The namespaces that users mean: paths by names, of which "" is our own.

    A name is one under /run/netns, a path, pid:N, host (our own), or all, which is
    what is named there now. Those of handed need not be seen to be namespaces.
    Raises SourceError.
    """
    found: dict[str, str] = {}
    for name in wanted:
        if name == "all":
            try:
                found.update(_named(set(handed)))
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


def _named(handed: set[str]) -> Iterator[tuple[str, str]]:
    try:
        names = os.listdir(DIRECTORY)
    except FileNotFoundError:
        return  # none was ever made
    for name in names:
        path = os.path.join(DIRECTORY, name)
        # There is the file before it is one, and after.
        if name in handed or ((here := stamp(path)) and _is_namespace(here)):
            reserved = name in ("all", "host") or name.startswith("pid:")
            yield os.fsencode(path if reserved else name).decode("utf-8", "backslashreplace"), path


def stamp(path: str) -> tuple[int, int] | None:
    """What tells the namespace at a path from another that takes its place, None without one."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _is_namespace(of: tuple[int, int]) -> bool:
    """Whether a file is on nsfs, where namespaces are."""
    return of[0] == os.stat("/proc/self/ns/net").st_dev


def boot() -> str:
    """What is another after each boot."""
    with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
        return file.read(64).strip()


def cookie(sock: socket.socket) -> str:
    """The cookie of the network namespace that a socket is in, "" before Linux 5.14."""
    # Imported here, as below: to import that costs more than to read a small table.
    import socket

    try:
        return sock.getsockopt(socket.SOL_SOCKET, _SO_NETNS_COOKIE, _COOKIE_SIZE).hex()
    except OSError:
        return ""


def seconds() -> int:
    """Seconds since the boot, also those in which the machine slept."""
    return int(time.clock_gettime(time.CLOCK_BOOTTIME))


def _enter(path: str) -> None:
    """Take the calling thread into a namespace. Raises SourceError."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
        try:
            _setns(fd)
        finally:
            os.close(fd)
    except (FileNotFoundError, ProcessLookupError):
        raise SourceError(f"there is no {path}") from None
    except PermissionError:
        raise SourceError(
            f"no permission to enter {path}: run as root or with CAP_SYS_ADMIN, "
            "or let systemd make the sockets in it"
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
    """The number of the namespace that a socket is in. Raises SourceError."""
    try:
        fd = fcntl.ioctl(sock.fileno(), _SIOCGSKNS)
    except OSError as error:
        raise SourceError(
            "cannot tell which namespace systemd's sockets are in: "
            f"{error.strerror} (it takes CAP_NET_ADMIN)"
        ) from error
    try:
        return os.fstat(fd).st_ino
    finally:
        os.close(fd)


def _drain(sock: socket.socket) -> None:
    """Read to its end what a request before has left, as that of a run that was killed.

    Until then the kernel would refuse another dump (EBUSY).
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
