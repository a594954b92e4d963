"""The tracker: a ledger, fed by dumps of the table and by the events in between."""

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


# How long events may come twice after another listener was last seen: the kernel
# sends again to all what that one had not taken when it was closed.
_OTHERS_SECONDS = 300


class Reading(NamedTuple):
    """What came between two snapshots."""

    traffic: Tally
    statistics: dict[str, int]  # of ledger.STATISTICS, and "lost"
    tracked: int  # connections in the ledger
    buffer: Buffer | None  # of the event socket, None without one
    ledger: bytes  # as saved at the same moment, empty where it was not to be


class Tracker:
    """Holds a ledger and the socket with its events, or none.

    A thread may drain the socket while another reads a dump: the lock orders them.
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
        """Of the socket so many events were lost before, and are accounted for.

        stale says that the first events on it may be of connections that the ledger
        had and gave up: what it does not know is then no traffic.
        """
        self.ledger = ledger
        self.socket = sock
        self.drops = drops
        self._space = space
        self._stale = stale
        self._listening = sock is not None
        self._closed = False
        self._looked_at = 0
        # When another socket was last seen to listen, in seconds since the boot.
        self.others_at = -_OTHERS_SECONDS - 1
        self._dying = memoryview(bytearray(1 << 16))  # datagrams of the dying list
        self._statistics: dict[str, int] = {}
        self._lock = threading.Lock()

    @contextlib.contextmanager
    def dump(self) -> Iterator[None]:
        """Around a dump of the table, which ends with the events of what ended meanwhile."""
        with self.locked():
            self.ledger.begin_dump()
        try:
            yield
            with self.locked():
                self.ledger.end_dump(namespace.seconds(), events=self._listening)
        except BaseException:
            self.ledger.abandon_dump()
            raise

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Around a datagram of a dump: all events before it are in the ledger."""
        with self._lock:
            self._drain()
            yield

    def reading(self, *, listening: bool, save: bool, last: bool = False) -> Reading:
        """The traffic since the last call, or since the baseline, which ends with the first.

        listening is whether the kernel sends events.

        The ledger is saved under the same lock: events that come later are in
        neither. After the last reading they wait in the socket for the next run.
        """
        with self._lock:
            self._drain()
            self._closed = last
            self.ledger.baseline = False
            self._listening = listening
            return self._take(save=save)

    def replace(self, make: Callable[[bytes], Ledger], *, anew: bool = False) -> Reading:
        """Go on with another ledger, made of this one as saved. Gives its last reading.

        anew begins with an empty one, whose baseline is to be taken.
        """
        with self._lock:
            self._drain()
            ledger = make(b"" if anew else bytes(self.ledger.save()))
            ledger.baseline = anew or self.ledger.baseline
            reading = self._take(save=False)
            self.ledger = ledger
            self._statistics = {}
            return reading

    def close(self) -> None:
        """Read no more events, and close the socket."""
        with self._lock:
            self._closed = True
            if self.socket:
                self.socket.close()

    def _take(self, *, save: bool) -> Reading:
        """Return a reading. Until the ledger gives its traffic nothing is changed."""
        buffer = events.buffer(self.socket) if self.socket else None
        now = dict(self.ledger.statistics)
        statistics = {name: count - self._statistics.get(name, 0) for name, count in now.items()}
        statistics["lost"] = statistics.pop("malformed")  # their last traffic is lost, too
        if buffer:
            statistics["lost"] += buffer.drops - self.drops & 0xFFFFFFFF
        saved = bytes(self.ledger.save()) if save else b""
        traffic = self.ledger.traffic()
        self._statistics = now
        if buffer:
            self.drops = buffer.drops
        return Reading(traffic, statistics, len(self.ledger), buffer, saved)

    def drain(self) -> bool:
        """Read the events that wait. False after the last reading: they are left there."""
        with self._lock:
            self._drain()
            return not self._closed

    def _remember_dying(self, now: int) -> None:
        """Keep in mind those whose events the kernel may send again."""
        # Where there is no list to be had, they are forgotten by time alone.
        with (
            contextlib.suppress(OSError, SourceError),
            netlink.dump(netlink.DYING_REQUEST, self._space) as dump,
        ):
            while not self.ledger.remember(netlink.datagram(dump, self._dying), now):
                pass

    def _drain(self) -> None:
        if self.socket is None or self._closed:
            return
        now = namespace.seconds()
        if now != self._looked_at:
            self._looked_at = now
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
    """A thread that reads events as they come, of all trackers that are added.

    It ends with the process.
    """

    def __init__(self) -> None:
        """Begin, without any."""
        self._epoll = select.epoll()
        self._trackers: dict[int, Tracker] = {}
        self._lock = threading.Lock()
        threading.Thread(target=self._run, name="events", daemon=True).start()

    def add(self, tracker: Tracker) -> None:
        """Read the events of a tracker with a socket, up to its last reading."""
        assert tracker.socket is not None
        with self._lock:
            self._trackers[tracker.socket.fileno()] = tracker
            self._epoll.register(tracker.socket, select.EPOLLIN)

    def remove(self, tracker: Tracker) -> None:
        """Read no more of a tracker, before its socket is closed.

        To close it would not do where systemd has it open too: epoll would go on to say
        that there is something to read, and there would be no descriptor to end that by.
        """
        if tracker.socket is None:
            return
        with self._lock:
            self._trackers.pop(tracker.socket.fileno(), None)
            # Where its last events were read before, it is out already.
            with contextlib.suppress(OSError):
                self._epoll.unregister(tracker.socket)

    def _run(self) -> None:
        while True:
            for descriptor, _ in self._epoll.poll():
                try:
                    with self._lock:
                        tracker = self._trackers.get(descriptor)
                        if tracker is not None and not tracker.drain():
                            # Where it was closed it is out already.
                            with contextlib.suppress(OSError):
                                self._epoll.unregister(descriptor)
                # Whatever it was: without this thread the buffers would overflow.
                except Exception as error:  # noqa: BLE001, PERF203
                    LOG.error("cannot read events: %s", error)
                    threading.Event().wait(1.0)
