from __future__ import annotations

import socket
from typing import TYPE_CHECKING

import pytest

from conntrack_textfile.web.limiter import IDLE, READING, RESPONDING, Connection, Limiter

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Make = Callable[..., Connection]


@pytest.fixture
def made(reasons: list[str]) -> Iterator[Make]:
    """Return a function that makes a connection of an address, in a state."""
    ends: list[socket.socket] = []

    def make(address: str, state: int = READING, *, unread: bool = False) -> Connection:
        here, there = socket.socketpair()
        ends.extend((here, there))
        if unread:
            there.sendall(b"G")
        connection = Connection(here, (address, 1), reasons.append)
        connection.set_state(state)
        return connection

    yield make
    for end in ends:
        end.close()


@pytest.fixture
def reasons() -> list[str]:
    return []


A, B, C = "192.0.2.1", "192.0.2.2", "192.0.2.3"


def test_the_limit(made: Make) -> None:
    limiter = Limiter(2)
    one, two, three = (made(A, RESPONDING) for _ in range(3))
    assert limiter.acquire(one)
    assert limiter.acquire(two)
    assert not limiter.acquire(three)
    limiter.release(one)
    limiter.release(one)  # already released
    assert limiter.acquire(three)
    assert not limiter.acquire(one)


def test_connections_without_a_request_are_evicted_first_the_oldest_before_others(
    made: Make, reasons: list[str]
) -> None:
    limiter = Limiter(4)
    held = [made(A, state) for state in (READING, RESPONDING, IDLE, READING)]
    for connection in held:
        assert limiter.acquire(connection)
    for gone, reason in ((2, "idle"), (0, "silent"), (3, "silent")):
        assert limiter.acquire(made(A, RESPONDING))
        assert held[gone].closed
        assert reasons.pop() == reason
    assert not limiter.acquire(made(A))
    assert not held[1].closed


def test_the_client_with_most_silent_connections_loses_one(made: Make) -> None:
    limiter = Limiter(4)
    first = made(B)
    held = [first, *(made(A) for _ in range(3))]
    for connection in held:
        assert limiter.acquire(connection)
    assert limiter.acquire(made(C))
    assert [connection.closed for connection in held] == [False, True, False, False]


def test_a_connection_with_unread_data_is_not_evicted(made: Make) -> None:
    limiter = Limiter(2)
    unread, silent = made(A, unread=True), made(A)
    assert limiter.acquire(unread)
    assert limiter.acquire(silent)
    assert limiter.acquire(made(A, unread=True))
    assert silent.closed
    assert not limiter.acquire(made(A))
    assert not unread.closed


def test_each_client_has_a_fair_share(made: Make, reasons: list[str]) -> None:
    limiter = Limiter(4)
    held = [made(A, RESPONDING) for _ in range(4)]
    for connection in held:
        assert limiter.acquire(connection)
    for _ in range(2):
        assert limiter.acquire(made(B, RESPONDING))
    assert not limiter.acquire(made(B, RESPONDING))  # it has its share
    assert [connection.closed for connection in held] == [True, True, False, False]
    assert reasons == ["share", "share"]
    assert limiter.acquire(made(C, RESPONDING))


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("192.0.2.1", "::ffff:192.0.2.1", True),
        ("192.0.2.1", "192.0.2.2", False),
        ("2001:db8::1", "2001:db8::ffff:0:0:1", True),
        ("2001:db8:0:1::1", "2001:db8:0:2::1", False),
        ("fe80::1%eth0", "fe80::2", True),
    ],
)
def test_what_counts_as_one_client(made: Make, one: str, other: str, same: bool) -> None:
    assert (made(one).client == made(other).client) is same


def test_evicted_connections_are_limited_until_their_release(made: Make) -> None:
    """Their threads and descriptors still exist."""
    limiter = Limiter(2)
    held = [made(A) for _ in range(4)]
    for connection in held:
        assert limiter.acquire(connection)
    assert not limiter.acquire(made(A))
    limiter.release(held[0])
    assert limiter.acquire(made(A))


def test_idle_connections_are_evicted_on_demand(made: Make) -> None:
    limiter = Limiter(9)
    held = [made(A, RESPONDING), *(made(A) for _ in range(3))]
    for connection in held:
        assert limiter.acquire(connection)
    limiter.evict_idle(2)
    assert [connection.closed for connection in held] == [False, True, True, False]
    limiter.evict_idle(2)
    assert [connection.closed for connection in held] == [False, True, True, True]
