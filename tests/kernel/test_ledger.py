"""The ledger of both engines: against a model, and against each other."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conntrack_textfile.kernel import ctnetlink, ledger, uapi
from conntrack_textfile.plan import Plan
from tests import flows
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
    """Feed a whole dump of the table."""
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


def test_a_connection_adds_its_difference_to_the_last_observation(engine: Engine) -> None:
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


def test_a_connection_without_a_dump_counts_by_its_event(engine: Engine) -> None:
    book = engine.ledger()
    end(book, FLOW, 1)
    assert sums(book) == {GROUP: (1, 1, 100, 2, 200)}
    assert book.statistics["received"] == 1


def test_counters_at_the_baseline_are_not_traffic(engine: Engine) -> None:
    book = engine.ledger()
    book.baseline = True
    other = FLOW._replace(sport=1)
    dump(engine, book, [FLOW], 10)
    end(book, other, 11)  # it may be older than the start
    dump(engine, book, [grown(FLOW, 2, 150, 2, 200)], 12)
    book.baseline = False
    assert sums(book) == {GROUP: (0, 1, 50, 0, 0)}
    dump(engine, book, [grown(FLOW, 2, 160, 2, 200), FLOW._replace(sport=2)], 20)
    assert sums(book) == {GROUP: (1, 1, 110, 2, 200)}


def test_zeroed_counters_count_from_0(engine: Engine) -> None:
    book = engine.ledger()
    dump(engine, book, [FLOW], 10)
    sums(book)
    dump(engine, book, [grown(FLOW, 2, 30, 0, 0)], 20)
    assert sums(book) == {GROUP: (0, 2, 30, 0, 0)}
    assert book.statistics["zeroed"] == 1


def test_a_repeated_event_is_a_duplicate(engine: Engine) -> None:
    book = engine.ledger()
    dump(engine, book, [FLOW], 10)
    for _ in range(3):
        end(book, FLOW, 12)
    assert sums(book) == {GROUP: (1, 1, 100, 2, 200)}
    assert book.statistics["duplicate"] == 2


def test_without_another_listener_there_are_no_duplicates(engine: Engine) -> None:
    """An equal event is that of a new connection with the same tuple, id and counters."""
    book = engine.ledger()
    book.duplicates = False
    for _ in range(3):
        end(book, FLOW, 12)
    assert sums(book) == {GROUP: (3, 3, 300, 6, 600)}
    assert book.statistics["duplicate"] == 0


def test_a_new_connection_with_the_same_tuple_counts_from_0(engine: Engine) -> None:
    """Its counters or its start distinguish it from a duplicate."""
    book = engine.ledger()
    for counters in ((1, 10, 0, 0), (2, 20, 0, 0), (1, 11, 0, 0)):
        end(book, grown(FLOW, *counters), 1)
    assert sums(book) == {GROUP: (3, 4, 41, 0, 0)}
    for start in (7, 8, 9):
        end(book, FLOW._replace(start=start), 1)
    assert sums(book) == {GROUP: (3, 3, 300, 6, 600)}


def test_an_ended_connection_in_a_dump_is_stale(engine: Engine) -> None:
    book = engine.ledger()
    decoder = engine.decoder(book)
    book.begin_dump()
    end(book, FLOW, 1)
    decoder.feed(message(FLOW))
    book.end_dump(2, events=True)
    assert sums(book) == {GROUP: (1, 1, 100, 2, 200)}
    assert len(book) == 0
    # Some seconds later it is a new connection.
    end(book, FLOW._replace(sport=1), 30)
    dump(engine, book, [FLOW], 31)
    assert sums(book) == {GROUP: (2, 2, 200, 4, 400)}


def test_a_connection_that_ends_unseen_is_kept_some_minutes(engine: Engine) -> None:
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


def test_without_events_a_connection_missing_in_two_dumps_has_ended(engine: Engine) -> None:
    book = engine.ledger()
    dump(engine, book, [FLOW], 10, events=False)
    dump(engine, book, [], 20, events=False)  # which may have missed it
    dump(engine, book, [FLOW], 30, events=False)
    assert sums(book) == {GROUP: (1, 1, 100, 2, 200)}
    for now in (40, 50):
        dump(engine, book, [], now, events=False)
    assert (len(book), book.statistics["ended_unseen"]) == (0, 1)


def test_a_failed_dump_does_not_stop_forgetting(engine: Engine) -> None:
    book = engine.ledger()
    end(book, FLOW, 10)
    for now in (100, 200, 300):
        book.begin_dump()
        book.abandon_dump()
        end(book, FLOW._replace(sport=now), now)
    end(book, FLOW, 310)  # forgotten, so it is no duplicate
    assert book.statistics["duplicate"] == 0


def test_zone_and_id_are_part_of_the_identity(engine: Engine) -> None:
    book = engine.ledger()
    dump(engine, book, [FLOW, FLOW._replace(zone=1), FLOW._replace(zone=2), FLOW._replace(id=2)], 1)
    assert sums(book) == {GROUP: (4, 4, 400, 8, 800)}
    assert len(book) == 4


def test_without_accounting_only_connections_count(engine: Engine) -> None:
    book = engine.ledger()
    bare = FLOW._replace(counters=None)
    dump(engine, book, [bare], 1)
    end(book, bare, 2)
    end(book, bare._replace(sport=1), 2)
    assert sums(book) == {GROUP: (2, 0, 0, 0, 0)}
    assert book.statistics["ended_uncounted"] == 2


@pytest.mark.parametrize("saved", [b"x", bytes(100), b"\0" * 39])
def test_a_saved_ledger_of_the_wrong_format_raises_value_error(
    engine: Engine, saved: bytes
) -> None:
    with pytest.raises(ValueError, match="a ledger"):
        engine.ledger(saved)


# Unknown attributes make a tuple long.
LONG_PARTS = [b"", b"\1", bytes(4), bytes(8), bytes(60_000)]


@given(
    st.integers(uapi.MAX_TUPLE - 8, uapi.MAX_TUPLE + 40),
    st.sampled_from(LONG_PARTS),
    st.sampled_from(LONG_PARTS),
)
@settings(max_examples=100)
def test_an_identity_of_any_length_is_valid_or_malformed(
    size: int, id_: bytes, start: bytes
) -> None:
    tuple_ = flows.tuple_(1, FLOW)
    size = (size - len(tuple_)) & ~3
    body = struct.pack("!BBH", 2, 0, 0) + b"".join(
        [
            flows.nested(1, tuple_[4:], flows.attribute(99, bytes(size))),
            flows.tuple_(2, FLOW, reply=True),
            flows.attribute(12, id_),
            flows.nested(20, flows.attribute(1, start)),
        ]
    )
    outcomes = []
    for engine in engines():
        book = engine.ledger()
        for now in (1, 2):
            book.destroy(struct.pack("=IHHII", 16 + len(body), DESTROY, 2, 0, 0) + body, now)
        decoder = engine.decoder(book)
        decoder.feed(struct.pack("=IHHII", 16 + len(body), flows.NEW, 2, 0, 0) + body)
        tally = decoder.finish()
        outcomes.append((book.statistics, sums(book), tally.malformed))
    assert outcomes[0] == outcomes[1]
    assert outcomes[0][0]["malformed"] in (0, 2)


def test_an_event_that_is_cut_off_is_lost(engine: Engine) -> None:
    book = engine.ledger()
    event = message(FLOW, DESTROY)
    for size in range(len(event)):
        book.destroy(event + event[:size], 1)
    assert book.statistics["malformed"] == len(event) - 1


TIMES = st.sampled_from([0, 1, 9, 10, 11, 299, 300, 301, 310, 311, 2**31, 2**32 - 6, 2**32 - 1])


@given(
    st.lists(st.tuples(st.integers(1, 4), st.integers(0, 2), TIMES), max_size=8),
    st.integers(0, 8),
    st.lists(st.tuples(st.integers(1, 4), TIMES, st.booleans()), max_size=6),
)
@settings(max_examples=300)
def test_engines_agree_on_any_rows_and_times_of_a_saved_ledger(
    rows: list[tuple[int, int, int]], live: int, steps: list[tuple[int, int, bool]]
) -> None:
    """Identities more than once, and times that are not past yet."""
    kinds = engines()
    flows_ = [FLOW._replace(sport=port) for port in range(1, 5)]
    live = min(live, len(rows))
    book = kinds[0].ledger()
    for flow in flows_:
        dump(kinds[0], book, [flow], 10)
    saved = bytes(book.save())
    head, size = ledger.HEADER.size, ledger.CONNECTION.size
    identities = [saved[head + i * size :][:16] for i in range(4)]
    made = ledger.HEADER.pack(saved[: ledger.SECRET_SIZE], live, len(rows) - live) + b"".join(
        ledger.CONNECTION.pack(identities[port - 1], *[n * 50] * 4, at) for port, n, at in rows
    )
    outcomes = []
    for engine in kinds:
        book = engine.ledger(made)
        found: list[object] = []
        for port, now, is_dump in steps:
            if is_dump:
                book.destroy(b"", now)
                dump(engine, book, [flows_[port - 1]], now)
            else:
                end(book, flows_[port - 1], now)
            found.append((sums(book), len(book), len(book.save()), book.statistics.copy()))
        outcomes.append(found)
    assert outcomes[0] == outcomes[1]


@given(st.binary(max_size=200), st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1))
def test_engines_agree_on_a_damaged_ledger(rows: bytes, live: int, ended: int) -> None:
    seen: list[object] = []
    for data in (rows, ledger.HEADER.pack(bytes(32), live, ended) + rows):
        for engine in engines():
            try:
                seen.append(len(engine.ledger(data)))
            except ValueError as error:  # noqa: PERF203
                seen.append(str(error))
    assert seen[0::2] == seen[1::2]


def test_each_engine_loads_the_ledger_of_the_other() -> None:
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


def test_events_repeated_while_another_listener_stalls_are_duplicates(engine: Engine) -> None:
    """One is repeated all the time, the others minutes later, when the stall ends."""
    book = engine.ledger()
    flows = [FLOW._replace(sport=port) for port in range(1, 200)]
    for now, flow in enumerate(flows, 100):
        end(book, flow, now)
        end(book, flows[0], now)
    for flow in flows:
        end(book, flow, 300)
    assert sums(book) == {GROUP: (199, 199, 19900, 398, 39800)}
    # After that, ended connections are forgotten again.
    for now in (310, 316, 322):
        end(book, FLOW._replace(sport=now), now)
    end(book, flows[5], 323)
    assert sums(book)[GROUP][0] == 4


def test_events_repeated_after_a_restart_are_duplicates(engine: Engine) -> None:
    """Between one-shot runs events are queued for a minute and more."""
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


def test_ended_connections_are_saved_for_one_run(engine: Engine) -> None:
    book = engine.ledger()
    for run in range(5):
        for port in range(1, 51):
            end(book, FLOW._replace(sport=run * 100 + port), 100 + run * 60)
        assert len(book.save()) == ledger.HEADER.size + 50 * ledger.CONNECTION.size
        book = engine.ledger(bytes(book.save()))


def test_memory_of_ended_connections_is_bounded(
    monkeypatch: pytest.MonkeyPatch, engine: Engine
) -> None:
    monkeypatch.setattr(ledger, "MAX_REMEMBERED", 50)
    book = engine.ledger()
    for port in range(1, 1000):
        now = 100 + port
        end(book, FLOW._replace(sport=port), now)
        end(book, FLOW._replace(sport=port), now)
    assert book.statistics["duplicate"] == 999
    assert len(book.save()) < ledger.HEADER.size + 120 * ledger.CONNECTION.size


def test_a_new_connection_is_not_stale_some_seconds_later(engine: Engine) -> None:
    book = engine.ledger()
    end(book, FLOW, 100)
    book = engine.ledger(bytes(book.save()))
    book.destroy(b"", 160)
    dump(engine, book, [grown(FLOW, 9, 900, 0, 0)], 160)
    assert sums(book) == {GROUP: (1, 9, 900, 0, 0)}


def test_a_connection_that_ended_in_a_long_dump_is_remembered_after_it(engine: Engine) -> None:
    book = engine.ledger()
    end(book, FLOW._replace(sport=1), 100)
    book.begin_dump()
    end(book, FLOW, 200)
    book.end_dump(201, events=True)
    end(book, FLOW, 202)
    assert book.statistics["duplicate"] == 1


class World:
    """A model of the kernel and of the traffic that the ledger is to find.

    truth: the traffic since the baseline. exact: False after lost events or zeroed
    counters, when the ledger may find less.
    """

    def __init__(self, kinds: Sequence[Engine], *, timestamps: bool) -> None:
        self.kinds = kinds  # the engine of the ledger, and that after a restart
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
        """Let another listener in reliable mode stall: one event is repeated, others at its end."""
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
        """Dump with repeated entries; a connection may end in the middle."""
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
        """Load the saved state in the other engine."""
        saved, found, sent = self.saved
        for name, number in self.book.statistics.items():
            self.statistics[name] += number
        self.exact = self.exact and sent == len(self.sent)  # events since are lost
        self.found = list(found)
        self.kinds = self.kinds[::-1]
        self.book = self.kinds[0].ledger(saved)

    def read(self) -> None:
        """Add the traffic: never negative, never more than the truth."""
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
def test_any_interleaving_equals_the_model(
    steps: list[tuple[str, int, int]], timestamps: bool
) -> None:
    """Exact unless events are lost or counters zeroed; and engines agree."""
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
