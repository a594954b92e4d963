"""HTTP basic authentication (RFC 7617): user names and bcrypt hashes."""

from __future__ import annotations

import base64
import hashlib
import os
import re
from typing import TYPE_CHECKING

from conntrack_textfile.errors import UsageError
from conntrack_textfile.logs import LOG
from conntrack_textfile.web.throttle import Throttle
from conntrack_textfile.web.yamlfile import NodeError, missing_packages, printable, text

if TYPE_CHECKING:
    from collections.abc import Callable

    from conntrack_textfile.web.yamlfile import Fields

_BCRYPT_HASH = re.compile(
    r"\$2[aby]\$(0[4-9]|[12][0-9]|3[01])\$[./A-Za-z0-9]{21}[.Oeu][./A-Za-z0-9]{31}"
)

# A wrong password takes as long as the hash with the highest cost, up to this cost (a
# quarter of a second), so that timing does not reveal which users exist. It does reveal
# users with a higher cost.
_MAX_PADDED_COST = 12

# Less than http.RESPONSE_SECONDS, the time of the whole response.
_MAX_WAIT_SECONDS = 10.0
_MAX_WAIT_SECONDS_SLOW = 50.0

_MAX_CACHED = 256  # passwords, right and wrong ones each


class Passwords:
    """User names and bcrypt hashes, with a cache of results.

    bcrypt is slow by design. So right passwords and some wrong ones are cached (as
    keyed hashes), and others are checked one at a time: a brute-force attack costs
    one core at most, and clients with a cached password do not wait for it.
    """

    def __init__(self, users: dict[str, str]) -> None:
        # Imported here, not at the first check: it may be missing.
        from bcrypt import checkpw

        self._checkpw: Callable[[bytes, bytes], bool] = checkpw
        self.users = users
        self._padded_cost = min(_MAX_PADDED_COST, max(map(_cost, users.values())))
        # bcrypt releases the GIL while it works.
        self._checks = Throttle(_MAX_WAIT_SECONDS)
        # For hashes above the padded cost: they would delay the others by seconds.
        self._slow_checks = Throttle(_MAX_WAIT_SECONDS_SLOW)
        self._secret = os.urandom(16)
        self._right: dict[bytes, None] = {}
        self._wrong: dict[bytes, None] = {}

    def verify(self, authorization: str, client: bytes) -> bool:
        """Return whether an Authorization header has a user name and its password.

        client: limiter.Connection.client; it orders the checks during an attack.
        Raises TimeoutError if the password was not checked in time.
        """
        scheme, _, credentials = authorization.partition(" ")
        try:
            decoded = base64.b64decode(credentials.strip(), validate=True)
        except ValueError:
            return False
        name, colon, password = decoded.partition(b":")
        if scheme.lower() != "basic" or not colon:
            return False
        key = self._digest(name + b":" + password)
        cached = self._cached(key)
        if cached is not None:
            return cached
        user = name.decode("utf-8", "replace")
        sources = (self._digest(client), self._digest(client + b" " + name))
        slow = _cost(self.users.get(user, "")) > _MAX_PADDED_COST
        throttle = self._slow_checks if slow else self._checks
        return throttle.check(key, sources, lambda: self._check(key, user, password))

    def _digest(self, text: bytes) -> bytes:
        return hashlib.blake2b(text, key=self._secret).digest()

    def _cached(self, key: bytes) -> bool | None:
        if key in self._right:
            return True
        return False if key in self._wrong else None

    def _check(self, key: bytes, name: str, password: bytes) -> bool:
        right = self._cached(key)  # another check of it may have ended meanwhile
        if right is None:
            right = self._compare(name, password)
            cache = self._right if right else self._wrong
            if len(cache) >= _MAX_CACHED:
                cache.clear()
            cache[key] = None
        return right

    def _compare(self, name: str, password: bytes) -> bool:
        # bcrypt ignores what follows 72 bytes; Python's raises ValueError since 5.0.
        prefix = password[:72]
        # bcrypt ends at a NUL: with one, a password is never right.
        plain = prefix.replace(b"\0", b"\xff")
        hashed = self.users.get(name)
        if hashed is None:
            self._checkpw(plain, _dummy_hash(self._padded_cost))
            return False
        right = self._checkpw(plain, hashed.encode())
        if not right:
            # The time doubles with each step of cost: 2^10 + 2^10 + 2^11 = 2^12.
            for cost in range(_cost(hashed), self._padded_cost):
                self._checkpw(plain, _dummy_hash(cost))
        return right and plain == prefix


def _cost(hashed: str) -> int:
    """Return the cost (log2 of the rounds) of a bcrypt hash, 0 for ""."""
    return int(hashed[4:6] or 0)


def _dummy_hash(cost: int) -> bytes:
    """Return a hash that no password has, and that takes as long as others of this cost."""
    return b"$2b$%02d$" % cost + b"." * 53


def from_fields(users: Fields) -> Passwords | None:
    """Return the Passwords of basic_auth_users, None if it is empty.

    Raises NodeError if a value is no bcrypt hash, UsageError if bcrypt is not installed.
    """
    hashes = {}
    for name, node in users.items():
        place = f"the password of {printable(name)}"
        hashes[name] = text(node, place)
        if not _BCRYPT_HASH.fullmatch(hashes[name]):
            raise NodeError(node, f"{place} is not a bcrypt hash: htpasswd -nBC 10 makes one")
        if _cost(hashes[name]) > _MAX_PADDED_COST:
            LOG.warning(
                "%s has bcrypt cost %d: logins of this user are slow, and their time reveals that"
                " the name exists; htpasswd -nBC %d makes a faster hash",
                *(place, _cost(hashes[name]), _MAX_PADDED_COST),
            )
    if not hashes:
        return None
    try:
        return Passwords(hashes)
    except ImportError:
        raise UsageError(f"--web.config.file with basic_auth_users {missing_packages()}") from None
