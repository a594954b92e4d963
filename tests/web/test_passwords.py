from __future__ import annotations

import base64
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import bcrypt
import pytest
import yaml

from conntrack_textfile.logs import LOG
from conntrack_textfile.web.passwords import (
    _BCRYPT_HASH,
    Passwords,
    _dummy_hash,
    from_fields,
)
from conntrack_textfile.web.yamlfile import mapping
from tests.certificates import HASH, basic

CLIENT = b"\xc0\0\2\1"


@pytest.mark.parametrize(
    "authorization",
    [
        "",
        "Basic",
        "Basic !",
        "Basic é",
        "Bearer " + basic("alice", "secret")[6:],
        "Basic " + base64.b64encode(b"alice").decode(),
        basic("alice", ""),
        basic("alice", "Secret"),
        basic("alice", "secret\0"),
        basic("alice", "secret" + "x" * 100),
        basic("", ""),
        basic("nobody", "secret"),
        basic("Alice", "secret"),
    ],
)
def test_wrong_credentials(authorization: str) -> None:
    assert not Passwords({"alice": HASH}).verify(authorization, CLIENT)


def test_credentials_in_utf_8() -> None:
    password = "pä:ss " * 3
    hashed = bcrypt.hashpw(password.encode(), bcrypt.gensalt(4)).decode()
    assert Passwords({"älice": hashed}).verify(basic("älice", password), CLIENT)
    assert Passwords({"älice": hashed}).verify(
        basic("älice", password).replace("Basic", "basic"), CLIENT
    )


def recorded(passwords: Passwords) -> list[bytes]:
    """Return the list of hashes that verify() compares from now on; all fail."""
    hashes: list[bytes] = []

    def compare(_: bytes, hashed: bytes) -> bool:
        hashes.append(hashed)
        return False

    passwords._checkpw = compare
    return hashes


def work(hashes: list[bytes]) -> int:
    return sum(2 ** int(hashed[4:6]) for hashed in hashes)


def test_a_wrong_password_costs_the_same_for_every_name_and_for_none() -> None:
    """Rounds of bcrypt are counted, since time is noisy."""
    users = {name: HASH.replace("$04$", f"${cost}$") for name, cost in COSTS.items()}
    passwords = Passwords(users)
    hashes = recorded(passwords)
    for name in ("nobody", *users):
        assert not passwords.verify(basic(name, "x"), CLIENT)
        assert work(hashes) == 2**12, name
        hashes.clear()


COSTS = {"alice": "10", "bob": "11", "carol": "12"}


def test_a_hash_above_the_padded_cost_slows_down_its_own_user_alone() -> None:
    passwords = Passwords({"alice": HASH, "slow": HASH.replace("$04$", "$18$")})
    hashes = recorded(passwords)
    costs = {}
    for name in ("nobody", "alice", "slow"):
        assert not passwords.verify(basic(name, "x"), CLIENT)
        costs[name] = work(hashes)
        hashes.clear()
    assert costs == {"nobody": 2**12, "alice": 2**12, "slow": 2**18}


def test_others_do_not_wait_for_a_slow_hash() -> None:
    passwords = Passwords({"alice": HASH, "slow": HASH.replace("$04$", "$18$")})
    started, go_on = threading.Event(), threading.Event()

    def compare(_: bytes, hashed: bytes) -> bool:
        if hashed.startswith(b"$2b$18$"):
            started.set()
            assert go_on.wait(30)
        return True

    passwords._checkpw = compare
    with ThreadPoolExecutor(1) as pool:
        slow = pool.submit(passwords.verify, basic("slow", "secret"), CLIENT)
        assert started.wait(10)
        assert passwords.verify(basic("alice", "secret"), CLIENT)
        assert not slow.done()
        go_on.set()
        assert slow.result(10)


@pytest.mark.parametrize("cost", range(4, 13))
def test_bcrypt_takes_its_time_for_a_dummy_hash(cost: int) -> None:
    """It would return at once for an invalid hash."""
    hashed = _dummy_hash(cost)
    assert _BCRYPT_HASH.fullmatch(hashed.decode())
    assert not bcrypt.checkpw(b"x", hashed)


def test_an_expensive_hash_is_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    LOG.propagate = True
    for cost, warned in (("12", 0), ("13", 1)):
        place = yaml.compose(f"alice: {HASH.replace('$04$', f'${cost}$')}", yaml.SafeLoader)
        assert place is not None
        from_fields(mapping(place, "basic_auth_users", None))
        assert caplog.text.count("the password of alice has bcrypt cost 13") == warned


def test_right_and_wrong_passwords_have_separate_caches() -> None:
    passwords = Passwords({"alice": HASH})
    assert passwords.verify(basic("alice", "secret"), CLIENT)
    checks = 0

    def counted(_: bytes, __: bytes) -> bool:
        nonlocal checks
        checks += 1
        return False

    passwords._checkpw = counted
    for n in range(600):
        assert not passwords.verify(basic("alice", f"guess {n}"), CLIENT)
    assert checks == 600
    assert not passwords.verify(basic("alice", "guess 599"), CLIENT)
    assert passwords.verify(basic("alice", "secret"), CLIENT)  # still cached
    assert checks == 600
    assert len(passwords._wrong) <= 256


def test_a_cached_password_does_not_wait_for_a_check() -> None:
    passwords = Passwords({"alice": HASH})
    assert passwords.verify(basic("alice", "secret"), CLIENT)
    started, go_on = threading.Event(), threading.Event()

    def compare(*_: bytes) -> bool:
        started.set()
        assert go_on.wait(30)
        return False

    passwords._checkpw = compare
    with ThreadPoolExecutor(1) as pool:
        guess = pool.submit(passwords.verify, basic("alice", "guess"), CLIENT)
        assert started.wait(10)
        assert passwords.verify(basic("alice", "secret"), CLIENT)
        assert not guess.done()
        go_on.set()
        assert not guess.result(10)


def test_simultaneous_logins_with_one_password_are_checked_once() -> None:
    passwords = Passwords({"alice": HASH})
    checks: list[bytes] = []

    def slow(_: bytes, hashed: bytes) -> bool:
        time.sleep(0.2)
        checks.append(hashed)
        return True

    passwords._checkpw = slow
    with ThreadPoolExecutor(100) as pool:
        logins = [
            pool.submit(passwords.verify, basic("alice", "secret"), CLIENT) for _ in range(100)
        ]
        assert all(login.result(30) for login in logins)
    assert len(checks) == 1
