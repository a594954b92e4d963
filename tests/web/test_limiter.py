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
    """Connections of an address in a state; with something to read, where wanted."""
    ends: list[socket.socket] = []

    def make(address: str, state: int = READING, *, asks: bool = False) -> Connection:
        here, there = socket.socketpair()
        ends.extend((here, there))
        if asks:
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


def test_there_are_as_many_as_said(made: Make) -> None:
    limiter = Limiter(2)
    one, two, three = (made(A, RESPONDING) for _ in range(3))
    assert limiter.acquire(one)
    assert limiter.acquire(two)
    assert not limiter.acquire(three)
    limiter.release(one)
    limiter.release(one)  # it has left
    assert limiter.acquire(three)
    assert not limiter.acquire(one)


def test_those_that_wait_go_first_and_the_oldest_of_them(made: Make, reasons: list[str]) -> None:
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


def test_of_those_that_wait_the_client_with_most_loses_one(made: Make) -> None:
    limiter = Limiter(4)
    first = made(B)
    held = [first, *(made(A) for _ in range(3))]
    for connection in held:
        assert limiter.acquire(connection)
    assert limiter.acquire(made(C))
    assert [connection.closed for connection in held] == [False, True, False, False]


def test_what_asked_already_does_not_wait(made: Make) -> None:
    limiter = Limiter(2)
    asking, silent = made(A, asks=True), made(A)
    assert limiter.acquire(asking)
    assert limiter.acquire(silent)
    assert limiter.acquire(made(A, asks=True))
    assert silent.closed
    assert not limiter.acquire(made(A))
    assert not asking.closed


def test_a_share_for_each_client(made: Make, reasons: list[str]) -> None:
    limiter = Limiter(4)
    held = [made(A, RESPONDING) for _ in range(4)]
    for connection in held:
        assert limiter.acquire(connection)
    for _ in range(2):
        assert limiter.acquire(made(B, RESPONDING))
    assert not limiter.acquire(made(B, RESPONDING))  # it has its half
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
def test_who_is_one_client(made: Make, one: str, other: str, same: bool) -> None:
    assert (made(one).client == made(other).client) is same


def test_the_closed_are_bounded_too(made: Make) -> None:
    """Their threads may be there yet."""
    limiter = Limiter(2)
    held = [made(A) for _ in range(4)]
    for connection in held:
        assert limiter.acquire(connection)
    assert not limiter.acquire(made(A))
    limiter.release(held[0])
    assert limiter.acquire(made(A))


def test_some_can_be_spared(made: Make) -> None:
    limiter = Limiter(9)
    held = [made(A, RESPONDING), *(made(A) for _ in range(3))]
    for connection in held:
        assert limiter.acquire(connection)
    limiter.evict_idle(2)
    assert [connection.closed for connection in held] == [False, True, True, False]
    limiter.evict_idle(2)
    assert [connection.closed for connection in held] == [False, True, True, True]
