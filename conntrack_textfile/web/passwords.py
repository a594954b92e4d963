"""Passwords: who may ask, by name and bcrypt hash."""

from __future__ import annotations

import base64
import hashlib
import os
import re
import threading
from typing import TYPE_CHECKING

from conntrack_textfile.errors import UsageError
from conntrack_textfile.web.yamlfile import MISSING_PACKAGES, NodeError, printable, text

if TYPE_CHECKING:
    from collections.abc import Callable

    from conntrack_textfile.web.yamlfile import Fields

_BCRYPT_HASH = re.compile(
    r"\$2[aby]\$(0[4-9]|[12][0-9]|3[01])\$[./A-Za-z0-9]{21}[.Oeu][./A-Za-z0-9]{31}"
)

_MAX_WAITING_CHECKS = 64
_MAX_WAIT_SECONDS = 5.0
_MAX_CACHED_VERDICTS = 256


class Passwords:
    """Names and bcrypt hashes of those who may ask.

    bcrypt is slow by design. So a password that was right once is remembered,
    as are some that were wrong, and one is checked at a time: guessing costs
    one core at most, and a known client does not wait for those who guess.
    """

    _check_lock = threading.Lock()
    _slots = threading.Semaphore(_MAX_WAITING_CHECKS)

    def __init__(self, users: dict[str, str]) -> None:
        # Imported here, and before it is needed: it may be missing.
        from bcrypt import checkpw

        self._checkpw: Callable[[bytes, bytes], bool] = checkpw
        self.users = users
        # What a name that does not exist is checked against: as slow as the slowest.
        self._cost = max(map(_cost, users.values()))
        self._nobody = f"$2b${self._cost}$" + "." * 53
        self._secret = os.urandom(16)
        self._right: dict[bytes, None] = {}
        self._wrong: dict[bytes, None] = {}

    def admit(self, authorization: str) -> bool:
        """Whether the value of an Authorization header is a name and its password.

        Raises TimeoutError where too many wait to be checked.
        """
        scheme, _, credentials = authorization.partition(" ")
        try:
            decoded = base64.b64decode(credentials.strip(), validate=True)
        except ValueError:
            return False
        name, colon, password = decoded.partition(b":")
        if scheme.lower() != "basic" or not colon:
            return False
        asked = hashlib.blake2b(name + b":" + password, key=self._secret).digest()
        known = self._known(asked)
        if known is not None:
            return known
        if not self._slots.acquire(blocking=False):
            raise TimeoutError
        try:
            return self._wait_and_check(asked, name.decode("utf-8", "replace"), password)
        finally:
            self._slots.release()

    def _known(self, asked: bytes) -> bool | None:
        if asked in self._right:
            return True
        return False if asked in self._wrong else None

    def _wait_and_check(self, asked: bytes, name: str, password: bytes) -> bool:
        if not self._check_lock.acquire(timeout=_MAX_WAIT_SECONDS):
            raise TimeoutError
        try:
            right = self._known(asked)  # while it waited, another asked the same
            if right is None:
                right = self._check(name, password)
                known = self._right if right else self._wrong
                if len(known) >= _MAX_CACHED_VERDICTS:
                    known.clear()
                known[asked] = None
            return right
        finally:
            self._check_lock.release()

    def _check(self, name: str, password: bytes) -> bool:
        # Go looks at 72 bytes, as bcrypt does by its nature.
        looked_at = password[:72]
        plain = looked_at.replace(b"\0", b"\xff")
        hashed = self.users.get(name, self._nobody)
        right = self._checkpw(plain, hashed.encode())
        if _cost(hashed) != self._cost:  # nor shall a cheap hash tell that the name exists
            self._checkpw(plain, self._nobody.encode())
        return right and name in self.users and plain == looked_at


def _cost(hashed: str) -> str:
    """The cost of a bcrypt hash, of two digits."""
    return hashed[4:6]


def from_fields(users: Fields) -> Passwords | None:
    """The passwords of basic_auth_users, None where it names nobody.

    Raises NodeError for what is no bcrypt hash, and UsageError without bcrypt.
    """
    hashes = {}
    for name, node in users.items():
        place = f"the password of {printable(name)}"
        hashes[name] = text(node, place)
        if not _BCRYPT_HASH.fullmatch(hashes[name]):
            raise NodeError(node, f"{place} is not a bcrypt hash: htpasswd -nBC 10 makes one")
    if not hashes:
        return None
    try:
        return Passwords(hashes)
    except ImportError:
        raise UsageError(f"--web.config.file with basic_auth_users {MISSING_PACKAGES}") from None
