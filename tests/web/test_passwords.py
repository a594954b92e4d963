from __future__ import annotations

import base64
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import bcrypt
import pytest

from conntrack_textfile.web import passwords as module
from conntrack_textfile.web.passwords import Passwords
from tests.certificates import HASH, basic


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
def test_what_is_not_a_name_and_its_password_is_refused(authorization: str) -> None:
    assert not Passwords({"alice": HASH}).admit(authorization)


def test_names_and_passwords_of_any_letters() -> None:
    password = "pä:ss " * 3
    hashed = bcrypt.hashpw(password.encode(), bcrypt.gensalt(4)).decode()
    assert Passwords({"älice": hashed}).admit(basic("älice", password))
    assert Passwords({"älice": hashed}).admit(basic("älice", password).replace("Basic", "basic"))


def test_a_name_that_does_not_exist_is_checked_all_the_same() -> None:
    """As much work for a name as for no name: counted, since time is noisy here."""
    passwords = Passwords({"alice": HASH, "bob": HASH.replace("$04$", "$05$")})
    checked: list[bytes] = []

    def noted(_: bytes, hashed: bytes) -> bool:
        checked.append(hashed)
        return False

    passwords._checkpw = noted
    work = []
    for name in ("nobody", "bob", "alice"):
        passwords.admit(basic(name, "x"))
        work.append([hashed[:7] for hashed in checked])
        checked.clear()
    assert work == [[b"$2b$05$"], [b"$2b$05$"], [b"$2b$04$", b"$2b$05$"]]
    assert not bcrypt.checkpw(b"x", passwords._nobody.encode())  # bcrypt works on it


def test_answers_are_remembered_right_and_wrong_apart() -> None:
    passwords = Passwords({"alice": HASH})
    assert passwords.admit(basic("alice", "secret"))
    checks = 0

    def counted(_: bytes, __: bytes) -> bool:
        nonlocal checks
        checks += 1
        return False

    passwords._checkpw = counted
    for n in range(600):
        assert not passwords.admit(basic("alice", f"guess {n}"))
    assert checks == 600
    assert not passwords.admit(basic("alice", "guess 599"))
    assert passwords.admit(basic("alice", "secret"))  # not driven out by those who guess
    assert checks == 600
    assert len(passwords._wrong) <= 256


def test_a_known_client_does_not_wait_for_those_who_guess(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MAX_WAIT_SECONDS", 0.05)
    passwords = Passwords({"alice": HASH})
    assert passwords.admit(basic("alice", "secret"))
    with Passwords._check_lock:
        assert passwords.admit(basic("alice", "secret"))
        with pytest.raises(TimeoutError):
            passwords.admit(basic("alice", "guess"))


def test_the_same_password_at_once_is_checked_once() -> None:
    passwords = Passwords({"alice": HASH})
    checks: list[bytes] = []

    def slow(_: bytes, hashed: bytes) -> bool:
        time.sleep(0.2)
        checks.append(hashed)
        return True

    passwords._checkpw = slow
    with ThreadPoolExecutor(10) as pool:
        assert all(pool.map(passwords.admit, [basic("alice", "secret")] * 10))
    assert len(checks) == 1


def test_few_wait_to_be_checked() -> None:
    passwords = Passwords({"alice": HASH})
    go_on = threading.Event()
    passwords._checkpw = lambda *_: go_on.wait(20) and False
    with ThreadPoolExecutor(100) as pool:
        guesses = [pool.submit(passwords.admit, basic("alice", str(n))) for n in range(100)]
        time.sleep(1)
        refused = [guess for guess in guesses if guess.done() and guess.exception()]
        go_on.set()
        assert len(refused) == 100 - 64
