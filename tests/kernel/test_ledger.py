"""The ledger against a simple model, and its two engines against each other."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conntrack_textfile.kernel import ctnetlink, ledger
from conntrack_textfile.plan import Plan
from tests.flows import DESTROY, Flow, message

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

PLAN = Plan(labels=("src", "dport"))
DONE = b"\x14\0\0\0\x03\0\x02\0" + bytes(12)


class Engine(NamedTuple):
    ledger: Callable[..., Any]
    decoder: Callable[[Any], Any]


def engines() -> list[Engine]:
    try:
        from conntrack_textfile.kernel import _speedups
    except ImportError:
        pytest.skip("needs the compiled engine")
    plan = _speedups.Plan(PLAN)
    return [
        Engine(
            lambda saved=b"": ledger.Ledger(PLAN, saved),
            lambda book: ctnetlink.Decoder(PLAN, book.observe),
        ),
        Engine(
            lambda saved=b"": _speedups.Ledger(plan, saved),
            lambda book: _speedups.NetlinkDecoder(plan, book),
        ),
    ]


@pytest.fixture(params=[0, 1], ids=["pure", "compiled"])
def engine(request: pytest.FixtureRequest) -> Engine:
    number: int = request.param
    return engines()[number]


def dump(
    engine: Engine, book: Any, flows: Sequence[Flow], now: int, *, events: bool = True
) -> None:
    """A whole dump of the table."""
    decoder = engine.decoder(book)
    book.begin_dump()
    for flow in flows:
        decoder.feed(message(flow))
    decoder.feed(DONE)
    book.end_dump(now, events=events)
    decoder.finish()


def end(book: Any, flow: Flow, now: int) -> None:
    book.destroy(message(flow, DESTROY), now)


def sums(book: Any) -> dict[tuple[str, ...], tuple[int, ...]]:
    tally = book.traffic()
    rows = tally.groups.rows(0, "bytes")
    found = dict(zip(rows.groups, map(tuple, zip(*rows.columns, strict=True)), strict=True))
    assert tuple(map(sum, zip(*tally.protocols.values(), strict=True))) == tuple(
        map(sum, zip(*found.values(), strict=True))
    )
    return found


FLOW = Flow(counters=(1, 100, 2, 200))
GROUP = ("10.0.0.1", "443")


def grown(flow: Flow, a: int, b: int, c: int, d: int) -> Flow:
    return flow._replace(counters=(a, b, c, d))


def test_a_connection_counts_what_is_more_than_was_last_seen(engine: Engine) -> None:
    book = engine.ledger()
    dump(engine, book, [FLOW], 10)
    assert sums(book) == {GROUP: (1, 1, 100, 2, 200)}
    dump(engine, book, [FLOW], 20)
    assert sums(book) == {}
    dump(engine, book, [grown(FLOW, 2, 150, 2, 200)], 30)
    assert sums(book) == {GROUP: (0, 1, 50, 0, 0)}
    end(book, grown(FLOW, 3, 200, 4, 300), 35)
    assert sums(book) == {GROUP: (0, 1, 50, 2, 100)}
    assert len(book) == 0


def test_a_connection_that_no_dump_saw_counts_by_its_event(engine: Engine) -> None:
    book = engine.ledger()
    end(book, FLOW, 1)
    assert sums(book) == {GROUP: (1, 1, 100, 2, 200)}
    assert book.statistics["received"] == 1


def test_what_was_there_at_the_baseline_is_no_traffic(engine: Engine) -> None:
    book = engine.ledger()
    book.baseline = True
    other = FLOW._replace(sport=1)
    dump(engine, book, [FLOW], 10)
    end(book, other, 11)  # it may have been older than the start
    dump(engine, book, [grown(FLOW, 2, 150, 2, 200)], 12)
    book.baseline = False
    assert sums(book) == {GROUP: (0, 1, 50, 0, 0)}
    dump(engine, book, [grown(FLOW, 2, 160, 2, 200), FLOW._replace(sport=2)], 20)
    assert sums(book) == {GROUP: (1, 1, 110, 2, 200)}


def test_counters_that_somebody_zeroed_count_from_0(engine: Engine) -> None:
    book = engine.ledger()
    dump(engine, book, [FLOW], 10)
    sums(book)
    dump(engine, book, [grown(FLOW, 2, 30, 0, 0)], 20)
    assert sums(book) == {GROUP: (0, 2, 30, 0, 0)}
    assert book.statistics["zeroed"] == 1


def test_an_event_that_comes_twice_is_a_duplicate(engine: Engine) -> None:
    book = engine.ledger()
    dump(engine, book, [FLOW], 10)
    for _ in range(3):
        end(book, FLOW, 12)
    assert sums(book) == {GROUP: (1, 1, 100, 2, 200)}
    assert book.statistics["duplicate"] == 2


def test_where_nobody_else_listens_nothing_comes_twice(engine: Engine) -> None:
    """Then it is a new connection with the same tuple, id and counters."""
    book = engine.ledger()
    book.duplicates = False
    for _ in range(3):
        end(book, FLOW, 12)
    assert sums(book) == {GROUP: (3, 3, 300, 6, 600)}
    assert book.statistics["duplicate"] == 0


def test_a_tuple_made_anew_counts_anew(engine: Engine) -> None:
    """One with the same id is told from a duplicate by its counters, or by its start."""
    book = engine.ledger()
    for counters in ((1, 10, 0, 0), (2, 20, 0, 0), (1, 11, 0, 0)):
        end(book, grown(FLOW, *counters), 1)
    assert sums(book) == {GROUP: (3, 4, 41, 0, 0)}
    for start in (7, 8, 9):
        end(book, FLOW._replace(start=start), 1)
    assert sums(book) == {GROUP: (3, 3, 300, 6, 600)}


def test_a_dump_may_still_show_what_has_ended(engine: Engine) -> None:
    book = engine.ledger()
    decoder = engine.decoder(book)
    book.begin_dump()
    end(book, FLOW, 1)
    decoder.feed(message(FLOW))
    book.end_dump(2, events=True)
    assert sums(book) == {GROUP: (1, 1, 100, 2, 200)}
    assert len(book) == 0
    # Long after that it is a new one.
    end(book, FLOW._replace(sport=1), 30)
    dump(engine, book, [FLOW], 31)
    assert sums(book) == {GROUP: (2, 2, 200, 4, 400)}


def test_what_ends_unseen_is_kept_some_minutes(engine: Engine) -> None:
    book = engine.ledger()
    dump(engine, book, [FLOW], 10)
    sums(book)
    dump(engine, book, [], 20)
    assert (len(book), book.statistics["ended_unseen"]) == (1, 0)
    end(book, grown(FLOW, 1, 110, 2, 200), 200)
    assert sums(book) == {GROUP: (0, 0, 10, 0, 0)}
    dump(engine, book, [FLOW._replace(sport=1)], 210)
    dump(engine, book, [], 220)
    dump(engine, book, [], 530)
    assert (len(book), book.statistics["ended_unseen"]) == (0, 1)


def test_without_events_what_is_gone_from_two_dumps_has_ended(engine: Engine) -> None:
    book = engine.ledger()
    dump(engine, book, [FLOW], 10, events=False)
    dump(engine, book, [], 20, events=False)  # which may have missed it
    dump(engine, book, [FLOW], 30, events=False)
    assert sums(book) == {GROUP: (1, 1, 100, 2, 200)}
    for now in (40, 50):
        dump(engine, book, [], now, events=False)
    assert (len(book), book.statistics["ended_unseen"]) == (0, 1)


def test_a_dump_that_fails_keeps_nothing_in_memory(engine: Engine) -> None:
    book = engine.ledger()
    end(book, FLOW, 10)
    for now in (100, 200, 300):
        book.begin_dump()
        book.abandon_dump()
        end(book, FLOW._replace(sport=now), now)
    end(book, FLOW, 310)  # forgotten, so it is another one
    assert book.statistics["duplicate"] == 0


def test_zones_and_equal_tuples_are_apart(engine: Engine) -> None:
    book = engine.ledger()
    dump(engine, book, [FLOW, FLOW._replace(zone=1), FLOW._replace(zone=2), FLOW._replace(id=2)], 1)
    assert sums(book) == {GROUP: (4, 4, 400, 8, 800)}
    assert len(book) == 4


def test_without_accounting_connections_count_alone(engine: Engine) -> None:
    book = engine.ledger()
    bare = FLOW._replace(counters=None)
    dump(engine, book, [bare], 1)
    end(book, bare, 2)
    end(book, bare._replace(sport=1), 2)
    assert sums(book) == {GROUP: (2, 0, 0, 0, 0)}
    assert book.statistics["ended_uncounted"] == 2


@pytest.mark.parametrize("saved", [b"x", bytes(100), b"\0" * 39])
def test_what_was_not_saved_by_a_ledger_is_refused(engine: Engine, saved: bytes) -> None:
    with pytest.raises(ValueError, match="a ledger"):
        engine.ledger(saved)


def test_each_engine_goes_on_with_what_the_other_saved() -> None:
    one, other = engines()
    for first, second in ((one, other), (other, one), (one, one), (other, other)):
        book = first.ledger()
        flows = [FLOW._replace(sport=port, start=port) for port in range(1, 600)]
        dump(first, book, flows, 10)
        sums(book)
        again = second.ledger(bytes(book.save()))
        assert len(again) == len(book) == 599
        dump(second, again, [grown(flow, 1, 101, 2, 200) for flow in flows], 20)
        assert sums(again) == {GROUP: (0, 0, 599, 0, 0)}


def test_an_event_that_comes_again_while_another_listener_stalls(engine: Engine) -> None:
    """One comes again and again, all others only when the stall ends: minutes later."""
    book = engine.ledger()
    flows = [FLOW._replace(sport=port) for port in range(1, 200)]
    for now, flow in enumerate(flows, 100):
        end(book, flow, now)
        end(book, flows[0], now)
    for flow in flows:
        end(book, flow, 300)
    assert sums(book) == {GROUP: (199, 199, 19900, 398, 39800)}
    # After it they are forgotten as ever.
    for now in (310, 316, 322):
        end(book, FLOW._replace(sport=now), now)
    end(book, flows[5], 323)
    assert sums(book)[GROUP][0] == 4


def test_an_event_that_comes_again_after_a_restart(engine: Engine) -> None:
    """Between one-shot runs they wait in the socket, a minute and more."""
    book = engine.ledger()
    flows = [FLOW._replace(sport=port) for port in range(1, 100)]
    for flow in flows:
        end(book, flow, 100)
    for now in (160, 220, 280):  # the stall lasts
        for other in engines():
            book = other.ledger(bytes(book.save()))
            end(book, flows[0], now)
    book = engine.ledger(bytes(book.save()))
    for flow in flows:
        end(book, flow, 340)
    assert sums(book) == {}
    assert book.statistics["duplicate"] == 99


def test_what_ended_is_kept_for_one_run_and_no_longer(engine: Engine) -> None:
    book = engine.ledger()
    for run in range(5):
        for port in range(1, 51):
            end(book, FLOW._replace(sport=run * 100 + port), 100 + run * 60)
        assert len(book.save()) == ledger.HEADER.size + 50 * ledger.CONNECTION.size
        book = engine.ledger(bytes(book.save()))


def test_memory_of_ended_connections_is_bounded(
    monkeypatch: pytest.MonkeyPatch, engine: Engine
) -> None:
    """However long a stall lasts."""
    monkeypatch.setattr(ledger, "MAX_REMEMBERED", 50)
    book = engine.ledger()
    for port in range(1, 1000):
        now = 100 + port
        end(book, FLOW._replace(sport=port), now)
        end(book, FLOW._replace(sport=port), now)
    assert book.statistics["duplicate"] == 999
    assert len(book.save()) < ledger.HEADER.size + 120 * ledger.CONNECTION.size


def test_one_made_anew_is_seen_by_a_dump_some_seconds_later(engine: Engine) -> None:
    book = engine.ledger()
    end(book, FLOW, 100)
    book = engine.ledger(bytes(book.save()))
    book.destroy(b"", 160)
    dump(engine, book, [grown(FLOW, 9, 900, 0, 0)], 160)
    assert sums(book) == {GROUP: (1, 9, 900, 0, 0)}


def test_what_ended_late_in_a_long_dump_is_remembered_after_it(engine: Engine) -> None:
    book = engine.ledger()
    end(book, FLOW._replace(sport=1), 100)
    book.begin_dump()
    end(book, FLOW, 200)
    book.end_dump(201, events=True)
    end(book, FLOW, 202)
    assert book.statistics["duplicate"] == 1


class World:
    """A kernel, and a model of what the ledger is to find, connection by connection.

    What was carried since the baseline is the truth. It knows whether events were
    lost or counters zeroed, so that less than the truth may be found.
    """

    def __init__(self, kinds: Sequence[Engine], *, timestamps: bool) -> None:
        self.kinds = kinds  # the ledger's of now, and the one after a restart
        self.timestamps = timestamps
        self.now = 1000
        self.live: dict[int, list[int]] = {}
        self.starts = 0
        self.truth = [0, 0, 0, 0, 0]
        self.found = [0, 0, 0, 0, 0]
        self.exact = timestamps
        self.sent: list[tuple[int, Flow]] = []
        self.statistics: dict[str, int] = dict.fromkeys(ledger.STATISTICS, 0)
        self.book = kinds[0].ledger()
        self.book.baseline = True
        for port in (5, 6):
            self.make(port)
            self.live[port][:4] = [7, 70, 7, 70]
        self.truth = [0, 0, 0, 0, 0]
        self.dump()
        self.dump()
        self.book.baseline = False
        self.saved = bytes(self.book.save()), list(self.found), len(self.sent)

    def flow(self, port: int, counters: Sequence[int] | None = None) -> Flow:
        a, b, c, d, start = counters or self.live[port]
        return Flow(sport=port, counters=(a, b, c, d), start=start if self.timestamps else 0)

    def make(self, port: int) -> None:
        if port not in self.live:
            self.starts += 1
            self.live[port] = [0, 0, 0, 0, self.starts]
            self.truth[0] += 1

    def count(self, port: int, amount: int) -> None:
        if port in self.live:
            for i in range(4):
                self.live[port][i] += amount * (i + 1)
                self.truth[i + 1] += amount * (i + 1)

    def die(self, port: int) -> None:
        if port in self.live:
            flow = self.flow(port, self.live.pop(port))
            self.sent.append((self.now, flow))
            end(self.book, flow, self.now)

    def lose(self, port: int) -> None:
        if self.live.pop(port, None):
            self.exact = False

    def zero(self, port: int) -> None:
        if port in self.live:
            self.live[port][:4] = [0, 0, 0, 0]
            self.exact = False

    def duplicate(self, amount: int) -> None:
        for at, flow in self.sent[-amount:]:
            if self.now - at < ledger.REMEMBER_SECONDS:
                end(self.book, flow, self.now)

    def stall(self, port: int) -> None:
        """Of a listener in reliable mode: one event comes on and on, another when it ends."""
        self.make(port)
        self.die(port)
        begun = self.now
        for _ in range(6):
            self.now += 3
            end(self.book, self.sent[-1][1], self.now)
        for at, flow in self.sent:
            if at >= begun:
                end(self.book, flow, self.now)
        self.now += 3 * ledger.REMEMBER_SECONDS

    def dump(self, dying: int = 0) -> None:
        """A dump that repeats what is in it, and in the middle of which one ends."""
        decoder = self.kinds[0].decoder(self.book)
        self.book.begin_dump()
        flows = [self.flow(port) for port in self.live]
        for flow in flows[:2]:
            decoder.feed(message(flow))
        if dying:
            self.die(dying)
        for flow in flows:
            decoder.feed(message(flow))
        self.book.end_dump(self.now, events=True)

    def break_off(self) -> None:
        decoder = self.kinds[0].decoder(self.book)
        self.book.begin_dump()
        for port in list(self.live)[::2]:
            decoder.feed(message(self.flow(port)))
        self.book.abandon_dump()

    def sleep(self) -> None:
        self.now += ledger.ABSENT_SECONDS + 1

    def save(self) -> None:
        self.saved = bytes(self.book.save()), list(self.found), len(self.sent)

    def restart(self) -> None:
        """In the other engine, and with what was counted until the state was saved."""
        saved, found, sent = self.saved
        for name, number in self.book.statistics.items():
            self.statistics[name] += number
        self.exact = self.exact and sent == len(self.sent)  # events since are lost
        self.found = list(found)
        self.kinds = self.kinds[::-1]
        self.book = self.kinds[0].ledger(saved)

    def read(self) -> None:
        """The traffic: never negative, never more than there was."""
        for row in sums(self.book).values():
            assert all(value >= 0 for value in row)
            self.found = [a + b for a, b in zip(self.found, row, strict=True)]
        assert all(a <= b for a, b in zip(self.found, self.truth, strict=True))

    def step(self, step: str, port: int, amount: int) -> None:
        self.now += 1
        if step in ("make", "die", "lose", "zero", "stall"):
            getattr(self, step)(port)
        elif step == "count":
            self.count(port, amount)
        elif step == "duplicate":
            self.duplicate(amount)
        elif step == "dump":
            self.dump(port)
        else:
            getattr(self, step)()
        self.read()


STEPS = st.lists(
    st.tuples(
        st.sampled_from(
            "make make count count die die dump dump save save duplicate lose zero stall "
            "break_off sleep restart".split()
        ),
        st.integers(1, 6),
        st.integers(0, 5),
    ),
    max_size=60,
)


@given(STEPS, st.booleans())
@settings(max_examples=400)
def test_any_interleaving_adds_up_to_the_truth(
    steps: list[tuple[str, int, int]], timestamps: bool
) -> None:
    """Exact where nothing is lost or zeroed; never more than the truth, and engines agree."""
    outcomes = []
    one, other = engines()
    for kinds in ((one, other), (other, one)):
        world = World(kinds, timestamps=timestamps)
        for step in steps:
            world.step(*step)
        world.sleep()
        world.dump()
        world.read()
        if world.exact:
            assert world.found == world.truth
        outcomes.append((world.found, world.statistics, world.book.statistics, len(world.book)))
    assert outcomes[0] == outcomes[1]


# Events of new groups while the address space cannot grow, until 100 of them have failed.
OUT_OF_MEMORY = """
import json, resource, socket, struct
from conntrack_textfile.kernel import _speedups
from conntrack_textfile.plan import Plan
from tests.flows import DESTROY, Flow, message

EVENTS, FAILURES, QUEUED = 200_000, 100, 10  # net.unix.max_dgram_qlen
flow = Flow(src="1.2.3.4", counters=(1, 10, 1, 10))
parts = message(flow, DESTROY).split(socket.inet_aton(flow.src))
events = [struct.pack("!I", i).join(parts) for i in range(EVENTS)]
book = _speedups.Ledger(_speedups.Plan(Plan(labels=("src",))))
book.duplicates = False
here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
soft, hard = resource.getrlimit(resource.RLIMIT_AS)
failed = 0

def drain():
    global failed
    while True:
        try:
            return book.drain(there.fileno(), 1)
        except MemoryError:
            failed += 1
            if failed == FAILURES:
                resource.setrlimit(resource.RLIMIT_AS, (soft, hard))

with open("/proc/self/statm") as file:
    used = int(file.read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used, hard))
for i, event in enumerate(events):
    here.send(event)
    if i % QUEUED == QUEUED - 1:
        drain()
tally = book.traffic()
groups = [sum(column) for column in tally.groups.rows(0, "bytes").columns]
print(json.dumps([failed, book.statistics["malformed"], groups, *tally.protocols.values()]))
"""


def test_out_of_memory_an_event_is_counted_or_lost() -> None:
    """A batch of sums that could not be added was written beyond its end, and added twice."""
    done = subprocess.run(
        [sys.executable, "-c", OUT_OF_MEMORY],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    failed, lost, groups, protocols = json.loads(done.stdout)
    assert failed == lost == 100
    assert groups == protocols == [199_900, 199_900, 1_999_000, 199_900, 1_999_000]
