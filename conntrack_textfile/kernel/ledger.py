"""The ledger: the counters of each connection as last seen, and the traffic since then.

Gauges of live connections fall when connections end. So traffic is counted by
connection: each observation, in a dump of the table or in the DESTROY event with
the final counters, adds its difference to the last one.

- A new connection counts from 0; while the baseline is taken, from its counters:
  those include traffic from before the start.
- If a counter is below its last value, the counters were zeroed (conntrack -L -z):
  the connection counts from 0.
- After its DESTROY event a connection is remembered for some seconds. The same event
  again is a duplicate: while another listener in reliable mode (NETLINK_BROADCAST_ERROR)
  has a full receive buffer, the kernel repeats events, to all listeners. Some are repeated
  only when the buffer has room, but at least one is repeated all the time: while
  duplicates arrive, nothing is forgotten.
- A dump may still show an ended connection, or a new one with the same identity. It is
  skipped, and a new one counts from 0 in the next dump.
- A connection that is in neither a dump nor an event has ended unseen. It is
  kept for some minutes, since its event may be late.

ledger.pxi is the same in C, with the same format of the saved state.
"""

from __future__ import annotations

import errno
import itertools
import os
import socket
import struct
from typing import TYPE_CHECKING

from conntrack_textfile.kernel import uapi
from conntrack_textfile.kernel.ctnetlink import identity_parts, messages, parse
from conntrack_textfile.kernel.grouping import Grouping

if TYPE_CHECKING:
    from collections.abc import Sequence

    from conntrack_textfile.kernel.grouping import Entry
    from conntrack_textfile.plan import Plan
    from conntrack_textfile.tally import Tally

# Ended connections are remembered for at least this time, and at most twice as long.
REMEMBER_SECONDS = 5
# While duplicates arrive: until there are this many; at most twice as many are remembered.
MAX_REMEMBERED = 1 << 19
# How long after its last dump the DESTROY event of a connection may arrive.
ABSENT_SECONDS = 300

SECRET_SIZE = 32
_WORD = (1 << 64) - 1
# In native byte order, as in C: a state is of one boot of one machine.
HEADER = struct.Struct(f"={SECRET_SIZE}sQQ")  # secret, number of live and of ended connections
CONNECTION = struct.Struct("=16s4QI")  # identity, counters, absent since or ended at

# The most events in one call of drain(): they may arrive faster than they are read.
MAX_DRAINED = 1 << 19

# The counters of a ledger.
STATISTICS = ("received", "duplicate", "zeroed", "ended_unseen", "ended_uncounted", "malformed")


class _Connection:
    __slots__ = ("absent", "counters", "dump")

    def __init__(self, counters: Sequence[int], dump: int, absent: int = 0) -> None:
        self.counters = counters
        self.dump = dump  # number of the last dump that had it
        self.absent = absent  # since when dumps lack it, in seconds; 0 if the last one had it


class Ledger:
    """Turns observations of connections into traffic."""

    def __init__(self, plan: Plan, saved: bytes = b"") -> None:
        """Start empty or with the result of save(). Raises ValueError if its format is wrong."""
        self._plan = plan
        self._traffic = Grouping(plan)
        self._connections: dict[bytes, _Connection] = {}
        # Counters and time of ended connections: recent ones, and those before.
        self._ended: list[dict[bytes, tuple[tuple[int, ...], int]]] = [{}, {}]
        self._ended_since = 0
        self._ended_last = 0
        self._duplicate_at = 0
        self._now = 0
        self._dump = 0
        self._dump_since = 0
        self._in_dump = False
        self.baseline = False
        self.duplicates = True  # whether the kernel can repeat events (see above)
        self.statistics = dict.fromkeys(STATISTICS, 0)
        self._secret = os.urandom(SECRET_SIZE)
        if saved:
            self._load(saved)
        self._keys = [word | 1 for word in struct.unpack("=4Q", self._secret)]

    def __len__(self) -> int:
        return len(self._connections)

    def begin_dump(self) -> None:
        """Begin a dump, also one that is repeated."""
        self._dump += 1
        self._dump_since = self._now
        self._in_dump = True

    def abandon_dump(self) -> None:
        """Note that a dump was not read to its end."""
        self._in_dump = False

    def end_dump(self, now: int, *, events: bool) -> None:
        """Note that a dump, and all events sent meanwhile, were read to their end.

        A dump can miss a connection, for example while the hash table is resized. So a
        connection is removed when two dumps in a row miss it, or with events after ABSENT_SECONDS.
        """
        self._in_dump = False
        for identity, connection in list(self._connections.items()):
            if connection.dump == self._dump:
                connection.absent = 0
            elif not connection.absent:
                connection.absent = now
            elif not events or now - connection.absent > ABSENT_SECONDS:
                del self._connections[identity]
                self.statistics["ended_unseen"] += 1

    def observe(self, message: bytes, entry: Entry, group: bytes) -> None:
        """Take an entry of a dump."""
        identity = self._identity(message)
        for ended in self._ended:
            # The kernel sends the event before it removes the entry from the table.
            if identity in ended and ended[identity][1] + REMEMBER_SECONDS >= self._dump_since:
                return  # stale, or a new connection: that counts from 0 in the next dump
        counters = entry.counters or (0, 0, 0, 0)
        connection = self._connections.get(identity)
        if connection is None:
            self._connections[identity] = _Connection(counters, self._dump)
            if not self.baseline:
                self._traffic.add_sums(group, entry, (1, *counters))
        else:
            self._add_difference(connection, counters, entry, group)
            connection.counters = counters
            connection.dump = self._dump

    def destroy(self, datagram: bytes, now: int) -> None:
        """Take a datagram of DESTROY events."""
        self._forget(now)
        size = 0
        for kind, message in messages(datagram):
            size += len(message) + 3 & ~3
            if kind != uapi.IPCTNL_MSG_CT_DELETE:
                continue
            self.statistics["received"] += 1
            try:
                entry = parse(message)
            except ValueError:
                self.statistics["malformed"] += 1
                continue
            group = self._traffic.group_of(entry)
            if group is not None:
                self._end(self._identity(message), entry, group)
        self.statistics["malformed"] += size < len(datagram)  # the next is cut off

    def drain(self, descriptor: int, now: int) -> None:
        """Read the events that a socket has received. Raises OSError, but not for lost events."""
        self._forget(now)
        with socket.socket(fileno=os.dup(descriptor)) as sock:
            for _ in range(MAX_DRAINED):
                datagram = _receive(sock)
                if datagram is None:
                    break
                self.destroy(datagram, now)

    def remember(self, datagram: bytes | memoryview, now: int) -> bool:
        """Take a datagram of a dump of the dying list. Return whether it ends the dump.

        Events of connections on that list may be repeated. Those on it during the
        baseline ended before the start: their events are not traffic.
        """
        for kind, message in messages(bytes(datagram)):
            if kind in (uapi.NLMSG_DONE, uapi.NLMSG_ERROR):
                return True
            try:
                entry = parse(message)
            except ValueError:
                continue
            identity = self._identity(message)
            late, before = self._ended
            if identity in before:
                late.setdefault(identity, before[identity])
            elif self.baseline:
                late.setdefault(identity, (entry.counters or (0, 0, 0, 0), now))
            self._ended_last = now
        return False

    def traffic(self) -> Tally:
        """Return the traffic since the last call; connections are those first seen since then."""
        tally = self._traffic.tally()
        self._traffic = Grouping(self._plan)
        return tally

    def save(self) -> bytes:
        """Return the ledger for the next run, without statistics. Format: HEADER, CONNECTION."""
        late, before = self._ended
        if not self._is_repeated():
            before = {}
        return b"".join(
            itertools.chain(
                [HEADER.pack(self._secret, len(self._connections), len(late) + len(before))],
                (
                    CONNECTION.pack(identity, *connection.counters, connection.absent)
                    for identity, connection in self._connections.items()
                ),
                (
                    CONNECTION.pack(identity, *counters, at)
                    for identity, (counters, at) in itertools.chain(late.items(), before.items())
                ),
            )
        )

    def _load(self, saved: bytes) -> None:
        if len(saved) < HEADER.size:
            raise ValueError("a ledger that is cut off")
        self._secret, count, ended = HEADER.unpack_from(saved)
        if len(saved) != HEADER.size + (count + ended) * CONNECTION.size:
            raise ValueError("a ledger of the wrong size")
        rows = CONNECTION.iter_unpack(saved[HEADER.size :])
        for identity, *counters, absent in itertools.islice(rows, count):
            self._connections.setdefault(identity, _Connection(counters, 0, absent))
        for identity, *counters, at in rows:
            self._ended[1].setdefault(identity, (tuple(counters), at))

    def _end(self, identity: bytes, entry: Entry, group: bytes) -> None:
        """Count a DESTROY event with the final counters."""
        counters = entry.counters or (0, 0, 0, 0)
        connection = self._connections.pop(identity, None)
        if connection is not None:
            self._add_difference(connection, counters, entry, group)
        elif self.duplicates and any(
            identity in of and of[identity][0] == counters for of in self._ended
        ):
            self.statistics["duplicate"] += 1
            self._duplicate_at = self._now
            return
        elif not self.baseline:
            self._traffic.add_sums(group, entry, (1, *counters))
        self.statistics["ended_uncounted"] += entry.counters is None
        self._ended[0][identity] = counters, self._now
        self._ended_last = self._now

    def _add_difference(
        self, connection: _Connection, counters: Sequence[int], entry: Entry, group: bytes
    ) -> None:
        last = connection.counters
        if any(now < before for now, before in zip(counters, last, strict=True)):
            self.statistics["zeroed"] += 1
            last = (0, 0, 0, 0)
        row = [now - before for now, before in zip(counters, last, strict=True)]
        if any(row):
            self._traffic.add_sums(group, entry, (0, *row))

    def _forget(self, now: int) -> None:
        """Forget ended connections, except while a dump may still show them."""
        self._now = now
        if not self._ended_since:  # events that are queued may repeat those in the saved state
            self._ended_since = now
        if self._in_dump or now - self._ended_since < REMEMBER_SECONDS:
            return
        if not self._is_repeated() or len(self._ended[0]) >= MAX_REMEMBERED:
            if now - self._ended_last > REMEMBER_SECONDS:
                self._ended[0] = {}
            self._ended = [{}, self._ended[0]]
        self._ended_since = now

    def _is_repeated(self) -> bool:
        """Return whether duplicates arrived recently."""
        return self._duplicate_at > 0 and self._now - self._duplicate_at <= REMEMBER_SECONDS

    def _identity(self, message: bytes) -> bytes:
        """Return a keyed hash of 128 bits of what identifies a connection.

        It replaces some hundred bytes of memory. The key is secret, since two connections
        with the same hash would falsify the sums.
        """
        data = b"".join([bytes([len(part) & 255]) + part for part in identity_parts(message)])
        size = len(data)
        one, two = self._keys[0] ^ size, self._keys[1] + size & _WORD
        for (word,) in struct.iter_unpack("=Q", data + bytes(-size % 8)):
            one = _mix(one ^ word, self._keys[2])
            two = _mix(two ^ word, self._keys[3])
        return struct.pack("=QQ", _mix(one, self._keys[3]), _mix(two, self._keys[2]))


def _receive(sock: socket.socket) -> bytes | None:
    """Return the next event: empty if events were lost, None if there is none."""
    try:
        datagram, sender = sock.recvfrom(1 << 16, socket.MSG_DONTWAIT)
    except BlockingIOError:
        return None
    except OSError as error:
        if error.errno != errno.ENOBUFS:
            raise
        return b""  # the socket counts the lost ones; others are queued
    return datagram if sender[0] == 0 else b""  # the kernel has port 0


def _mix(a: int, b: int) -> int:
    product = a * b
    return (product ^ product >> 64) & _WORD
