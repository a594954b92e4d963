"""The limiter: which connections stay when there are more than are served at once."""

from __future__ import annotations

import contextlib
import select
import socket
import struct
import threading
import time
from collections import Counter
from operator import attrgetter
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable

# What a connection does, in the order in which it has to go when there are too many:
# kept after an answer, no request yet, an answer under way.
KEPT, SILENT, ANSWERING = range(3)

# Why a connection was refused or closed before its time: the values of a label.
REASONS = ("full", "idle", "silent", "share", "outdated", "resources")

_RESET = struct.pack("ii", 1, 0)  # SO_LINGER: what was not sent is forgotten
_MAPPED = bytes(10) + b"\xff\xff"  # ::ffff:0:0/96, IPv4 on a socket of IPv6


class Connection:
    """A client's connection, which another thread than its own may close."""

    def __init__(
        self, sock: socket.socket, address: tuple[Any, ...], refused: Callable[[str], None]
    ) -> None:
        self.socket = sock
        self.address = address
        self.client = _client(address[0])
        self.tls: ssl.SSLContext | None = None  # by which it is secured
        self.closed = False
        self._refused = refused
        self.turn(SILENT)

    def turn(self, state: int) -> None:
        """Say what it does from now on."""
        self.state = state
        self.since = time.monotonic()

    def asks(self) -> bool:
        """Whether something came that was not read yet."""
        ready = select.poll()
        try:
            ready.register(self.socket, select.POLLIN)
        except ValueError:  # closed
            return False
        return bool(ready.poll(0))

    def secured(self, sock: socket.socket) -> None:
        """Go on with TLS. Raises ConnectionAbortedError if it was closed meanwhile."""
        self.socket = sock  # before the look at closed: see close()
        if self.closed:
            raise ConnectionAbortedError("closed to make room")

    def close(self, reason: str) -> None:
        """Wake its thread with an error, and count why."""
        self.closed = True
        self._refused(reason)
        with contextlib.suppress(OSError):  # it has gone by itself
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            # Not SSLSocket.shutdown(): what its thread writes next would go out in plain text.
            socket.socket.shutdown(self.socket, socket.SHUT_RDWR)


class Limiter:
    """A limit on connections, shared out among clients when it is reached.

    First those go that wait for a request, of the client that has most of them.
    If none does, the client with most connections loses one to a client that has fewer.
    """

    def __init__(self, number: int) -> None:
        self._number = number
        self._held: dict[Connection, None] = {}
        self._leaving: set[Connection] = set()  # closed, and their threads are about to end
        self._changed = threading.Condition()

    def enter(self, connection: Connection, patience: float = 0.0) -> bool:
        """Take a place, if there is one within some seconds or another has to go for it."""
        with self._changed:
            if len(self._held) >= self._number and patience:
                self._changed.wait_for(lambda: len(self._held) < self._number, patience)
            full = len(self._held) >= self._number
            if full and not self._make_room(connection.client):
                return False
            self._held[connection] = None
            return True

    def leave(self, connection: Connection) -> None:
        """Give the place back, if it still has one."""
        with self._changed:
            self._held.pop(connection, None)
            self._leaving.discard(connection)
            self._changed.notify()

    def spare(self, number: int) -> None:
        """Close some that wait for a request, for the descriptors that they hold."""
        with self._changed:
            while number and self._close_waiting():
                number -= 1

    def _make_room(self, client: bytes) -> bool:
        if len(self._leaving) >= self._number:  # their threads are still there
            return False
        if self._close_waiting():
            return True
        shares = Counter(map(attrgetter("client"), self._held))
        largest, share = shares.most_common(1)[0]
        if share <= shares[client] + 1:
            return False
        answering = [held for held in self._held if held.client == largest]
        self._close(min(answering, key=attrgetter("since")), "share")
        return True

    def _close_waiting(self) -> bool:
        for state, reason in ((KEPT, "idle"), (SILENT, "silent")):
            waiting = [held for held in self._held if held.state == state]
            if waiting:
                shares = Counter(map(attrgetter("client"), waiting))
                largest = shares.most_common(1)[0][0]
                for held in sorted(waiting, key=attrgetter("since")):
                    if held.client == largest and not held.asks():
                        self._close(held, reason)
                        return True
        return False

    def _close(self, held: Connection, reason: str) -> None:
        del self._held[held]
        self._leaving.add(held)
        held.close(reason)


def _client(address: str) -> bytes:
    """What is taken for one client: an IPv4 address, or the /64 of an IPv6 one."""
    try:
        packed = socket.inet_pton(socket.AF_INET6, address.partition("%")[0])
    except OSError:
        return socket.inet_aton(address)
    return packed[12:] if packed.startswith(_MAPPED) else packed[:8]
