"""The tracker: a ledger, fed by dumps of the table and by the DESTROY events between them."""

from __future__ import annotations

import contextlib
import select
import threading
from typing import TYPE_CHECKING, NamedTuple

from conntrack_textfile.errors import SourceError
from conntrack_textfile.kernel import events, namespace, netlink
from conntrack_textfile.kernel.namespace import OWN
from conntrack_textfile.logs import LOG

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Iterator

    from conntrack_textfile.kernel.engine import Ledger
    from conntrack_textfile.kernel.events import Buffer
    from conntrack_textfile.kernel.namespace import Namespace
    from conntrack_textfile.tally import Tally


# How long events may come twice after another listener was last found. In reliable mode
# (NETLINK_BROADCAST_ERROR) the kernel queues what that one has not received, and when it
# is closed sends it again to all listeners.
_OTHERS_SECONDS = 300


class Reading(NamedTuple):
    """The traffic between two snapshots."""

    traffic: Tally
    statistics: dict[str, int]  # ledger.STATISTICS, with "lost" in place of "malformed"
    tracked: int  # connections in the ledger
    buffer: Buffer | None  # of the event socket, None without one
    ledger: bytes  # saved at the same moment; empty where not requested


class Tracker:
    """A ledger, with the event socket of its table, or without one.

    One thread may drain the socket while another reads a dump: the lock orders them.
    """

    def __init__(
        self,
        ledger: Ledger,
        sock: socket.socket | None,
        drops: int,
        *,
        stale: bool = False,
        space: Namespace = OWN,
    ) -> None:
        """Take over a ledger and a socket.

        drops: events that the socket lost and that are counted as lost already.
        stale: the socket may hold events of connections that the ledger has dropped as
        ended unseen. In the first drain, an event of an unknown connection is no traffic.
        """
        self.ledger = ledger
        self.socket = sock
        self.drops = drops
        """Events that the socket lost, up to the last reading."""
        self._space = space
        self._stale = stale
        self._listening = sock is not None
        self._closed = False
        self._searched_at = 0  # when other listeners were last searched for
        self.others_at = -_OTHERS_SECONDS - 1
        """When another listener was last found, in seconds since the boot."""
        self._dying = memoryview(bytearray(1 << 16))  # datagrams of the dying list
        self._statistics: dict[str, int] = {}
        self._lock = threading.Lock()

    @contextlib.contextmanager
    def dump(self) -> Iterator[None]:
        """Begin a dump of the table, and end it after the events that arrived meanwhile."""
        with self.locked():
            self.ledger.begin_dump()
        try:
            yield
            with self.locked():
                self.ledger.end_dump(namespace.seconds(), events=self._listening)
        except BaseException:
            with self._lock:
                self.ledger.abandon_dump()
            raise

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the lock for a datagram of a dump, after all earlier events were read."""
        with self._lock:
            self._drain()
            yield

    def reading(self, *, listening: bool, save: bool, last: bool = False) -> Reading:
        """Return the traffic since the last call; the first call ends the baseline.

        listening: whether the kernel sends events.
        save: also save the ledger, at the same moment: later events are in neither.
        last: leave later events in the socket, for the next run.
        """
        with self._lock:
            self._drain()
            self._closed = last
            self.ledger.baseline = False
            self._listening = listening
            return self._take(save=save)

    @contextlib.contextmanager
    def replacing(
        self, make: Callable[[bytes], Ledger], *, empty: bool = False
    ) -> Iterator[Reading]:
        """Replace the ledger at the end of the block, unless the block raises.

        Yields the last reading of the old ledger. No event is read in the block.

        make: makes a ledger of a saved one. empty: begin with an empty ledger, in its baseline.
        """
        with self._lock:
            self._drain()
            ledger = make(b"" if empty else bytes(self.ledger.save()))
            ledger.baseline = empty or self.ledger.baseline
            yield self._take(save=False)
            self.ledger, self._statistics = ledger, {}

    def close(self) -> None:
        """Read no more events, and close the socket."""
        with self._lock:
            self._closed = True
            if self.socket:
                self.socket.close()

    def _take(self, *, save: bool) -> Reading:
        """Return a reading. An exception changes nothing: the next one has all traffic."""
        buffer = events.buffer(self.socket) if self.socket else None
        now = dict(self.ledger.statistics)
        statistics = {name: count - self._statistics.get(name, 0) for name, count in now.items()}
        statistics["lost"] = statistics.pop("malformed")  # their traffic is lost, too
        if buffer:
            statistics["lost"] += buffer.drops - self.drops & 0xFFFFFFFF
        saved = bytes(self.ledger.save()) if save else b""
        tracked = len(self.ledger)
        traffic = self.ledger.traffic()
        self._statistics = now
        if buffer:
            self.drops = buffer.drops
        return Reading(traffic, statistics, tracked, buffer, saved)

    def drain(self) -> bool:
        """Read the queued events. Returns False, and reads none, after the last reading."""
        with self._lock:
            self._drain()
            return not self._closed

    def _remember_dying(self, now: int) -> None:
        """Add to the ledger the connections whose events the kernel may send again."""
        # Without the dying list the ledger forgets them by time alone.
        with (
            contextlib.suppress(OSError, SourceError),
            netlink.dump(netlink.DYING_REQUEST, self._space) as dump,
        ):
            while not self.ledger.remember(netlink.datagram(dump, self._dying), now):
                pass

    def _drain(self) -> None:
        """Read the queued events. The caller holds the lock."""
        if self.socket is None or self._closed:
            return
        now = namespace.seconds()
        if now != self._searched_at:  # at most once a second
            self._searched_at = now
            if events.others_listen(self.socket, self._space):
                self.others_at = now
            if self.ledger.baseline or self.others_at == now:
                self._remember_dying(now)
            self.ledger.duplicates = now - self.others_at <= _OTHERS_SECONDS
        baseline = self.ledger.baseline
        if self._stale:
            self.ledger.baseline = True
        try:
            self.ledger.drain(self.socket.fileno(), now)
        finally:
            self.ledger.baseline = baseline
        self._stale = False


class Drain:
    """A daemon thread that reads the events of all trackers as they come."""

    def __init__(self) -> None:
        """Start the thread, without a tracker."""
        self._epoll = select.epoll()
        self._trackers: dict[int, Tracker] = {}
        self._lock = threading.Lock()
        threading.Thread(target=self._run, name="events", daemon=True).start()

    def add(self, tracker: Tracker) -> None:
        """Read the events of a tracker, which has a socket, up to its last reading."""
        assert tracker.socket is not None
        with self._lock:
            self._trackers[tracker.socket.fileno()] = tracker
            self._epoll.register(tracker.socket, select.EPOLLIN)

    def remove(self, tracker: Tracker) -> None:
        """Read no more events of a tracker. To be called before its socket is closed.

        epoll watches the open file, not the descriptor: where systemd has the socket open,
        too, it would be reported readable for ever after a close (epoll(7), question 6).
        """
        if tracker.socket is None:
            return
        with self._lock:
            self._trackers.pop(tracker.socket.fileno(), None)
            # After the last reading _run() has unregistered it.
            with contextlib.suppress(OSError):
                self._epoll.unregister(tracker.socket)

    def _run(self) -> None:
        while True:
            for descriptor, _ in self._epoll.poll():
                try:
                    with self._lock:
                        tracker = self._trackers.get(descriptor)
                        if tracker is not None and not tracker.drain():
                            # The kernel has unregistered a socket that was closed.
                            with contextlib.suppress(OSError):
                                self._epoll.unregister(descriptor)
                # Any exception: without this thread the receive buffers would overflow.
                except Exception as error:  # noqa: BLE001, PERF203
                    LOG.error("cannot read events: %s", error)
                    threading.Event().wait(1.0)
