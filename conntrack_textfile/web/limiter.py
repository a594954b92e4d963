"""Client connections and their limit: which one is evicted when there are too many."""

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

# The states of a connection, in the order of eviction: kept alive after a response,
# before the end of a request, with a response in progress.
IDLE, READING, RESPONDING = range(3)

# Why connections are refused or evicted: values of the label "reason".
REASONS = ("full", "idle", "silent", "share", "outdated", "resources")

# struct linger of socket(7): close() resets the connection and drops unsent data.
_LINGER_RESET = struct.pack("ii", 1, 0)

_IPV4_MAPPED = bytes(10) + b"\xff\xff"  # ::ffff:0:0/96 (RFC 4291, 2.5.5.2)


class Connection:
    """A client connection. Any thread may close it."""

    def __init__(
        self, sock: socket.socket, address: tuple[Any, ...], refused: Callable[[str], None]
    ) -> None:
        """address: as of accept(). refused: called with the reason of close()."""
        self.socket = sock
        self.address = address
        self.client = _client(address[0])
        self.tls: ssl.SSLContext | None = None  # of its handshake
        self.closed = False
        self._refused = refused
        self.set_state(READING)

    def set_state(self, state: int) -> None:
        """Set the state, and since when the connection has it."""
        self.state = state
        self.since = time.monotonic()

    def has_unread_data(self) -> bool:
        """Return whether there is data to read, or the end of the connection."""
        poll = select.poll()
        try:
            poll.register(self.socket, select.POLLIN)
        except ValueError:  # closed
            return False
        return bool(poll.poll(0))

    def use_tls(self, sock: ssl.SSLSocket) -> None:
        """Replace the socket. Raises ConnectionAbortedError if close() was called before."""
        self.socket = sock  # first: close() sets closed before it takes the socket
        if self.closed:
            raise ConnectionAbortedError("evicted")

    def close(self, reason: str) -> None:
        """Reset the connection, so that its thread fails, and count the reason."""
        self.closed = True
        self._refused(reason)
        with contextlib.suppress(OSError):  # disconnected already
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_RESET)
            # Not SSLSocket.shutdown(): its thread's next write would be in plain text.
            socket.socket.shutdown(self.socket, socket.SHUT_RDWR)


class Limiter:
    """A limit of connections, with a fair share for each client once it is reached.

    First a connection without a request is evicted, of the client that has most of these.
    If all have requests, the client with most connections loses one to a client with fewer.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._connections: dict[Connection, None] = {}
        self._evicted: set[Connection] = set()  # not released yet: their threads are ending
        self._released = threading.Condition()

    def acquire(self, connection: Connection, timeout: float = 0.0) -> bool:
        """Add a connection if there is room within the timeout (seconds), or by an eviction."""
        with self._released:
            if len(self._connections) >= self._limit and timeout:
                self._released.wait_for(lambda: len(self._connections) < self._limit, timeout)
            if len(self._connections) >= self._limit and not self._evict_for(connection.client):
                return False
            self._connections[connection] = None
            return True

    def release(self, connection: Connection) -> None:
        """Remove a connection. It may have been evicted."""
        with self._released:
            self._connections.pop(connection, None)
            self._evicted.discard(connection)
            self._released.notify()

    def evict_idle(self, number: int) -> None:
        """Evict up to this many connections without a request, to free descriptors."""
        with self._released:
            while number and self._evict_waiting():
                number -= 1

    def _evict_for(self, client: bytes) -> bool:
        """Evict a connection to make room for one of a client. Return whether there was any."""
        if len(self._evicted) >= self._limit:
            return False
        if self._evict_waiting():
            return True
        shares = Counter(map(attrgetter("client"), self._connections))
        largest, share = shares.most_common(1)[0]
        if share <= shares[client] + 1:
            return False
        theirs = [c for c in self._connections if c.client == largest]
        self._evict(min(theirs, key=attrgetter("since")), "share")
        return True

    def _evict_waiting(self) -> bool:
        """Evict a connection without a request. Return whether there was any."""
        for state, reason in ((IDLE, "idle"), (READING, "silent")):
            waiting = [c for c in self._connections if c.state == state]
            if waiting:
                shares = Counter(map(attrgetter("client"), waiting))
                largest = shares.most_common(1)[0][0]
                for connection in sorted(waiting, key=attrgetter("since")):
                    if connection.client == largest and not connection.has_unread_data():
                        self._evict(connection, reason)
                        return True
        return False

    def _evict(self, connection: Connection, reason: str) -> None:
        del self._connections[connection]
        self._evicted.add(connection)
        connection.close(reason)


def _client(address: str) -> bytes:
    """Return what counts as one client: an IPv4 address, or the /64 of an IPv6 address."""
    try:
        packed = socket.inet_pton(socket.AF_INET6, address.partition("%")[0])
    except OSError:
        return socket.inet_aton(address)
    return packed[12:] if packed.startswith(_IPV4_MAPPED) else packed[:8]
