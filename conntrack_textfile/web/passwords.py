"""Passwords: who may ask, by name and bcrypt hash."""

from __future__ import annotations

import base64
import hashlib
import os
import re
from typing import TYPE_CHECKING

from conntrack_textfile.errors import UsageError
from conntrack_textfile.logs import LOG
from conntrack_textfile.web.checkqueue import CheckQueue
from conntrack_textfile.web.yamlfile import NodeError, missing_packages, printable, text

if TYPE_CHECKING:
    from collections.abc import Callable

    from conntrack_textfile.web.yamlfile import Fields

_BCRYPT_HASH = re.compile(
    r"\$2[aby]\$(0[4-9]|[12][0-9]|3[01])\$[./A-Za-z0-9]{21}[.Oeu][./A-Za-z0-9]{31}"
)

# Wrong passwords are all made to cost as much as the most expensive hash, up to
# this cost (a quarter of a second). Hashes that cost more stand out by that.
_MAX_PADDED_COST = 12

# Less than http.RESPONSE_SECONDS, which a client has for all of its answer.
_MAX_WAIT_SECONDS = 10.0
_MAX_WAIT_SECONDS_SLOW = 50.0

_MAX_CACHED_VERDICTS = 256


class Passwords:
    """Names and bcrypt hashes of those who may ask.

    bcrypt is slow by design. So a password that was right once is remembered,
    as are some that were wrong, and the others are checked one at a time: guessing
    costs one core at most, and a known client does not wait for those who guess.
    """

    def __init__(self, users: dict[str, str]) -> None:
        # Imported here, and before it is needed: it may be missing.
        from bcrypt import checkpw

        self._checkpw: Callable[[bytes, bytes], bool] = checkpw
        self.users = users
        self._padded_cost = min(_MAX_PADDED_COST, max(map(_cost, users.values())))
        # bcrypt releases the GIL while it works, so that its thread keeps nobody waiting.
        self._checks = CheckQueue(_MAX_WAIT_SECONDS)
        # Of hashes above the padded cost, which would hold up the others for seconds.
        self._slow_checks = CheckQueue(_MAX_WAIT_SECONDS_SLOW)
        self._secret = os.urandom(16)
        self._right: dict[bytes, None] = {}
        self._wrong: dict[bytes, None] = {}

    def admit(self, authorization: str, client: bytes) -> bool:
        """Whether the value of an Authorization header is a name and its password.

        Where many wait to be checked, the network of the client says who is next.
        Raises TimeoutError where it is not the turn of this one in time.
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
        known = self._known(key)
        if known is not None:
            return known
        user = name.decode("utf-8", "replace")
        sources = (self._digest(client), self._digest(client + b" " + name))
        slow = _cost(self.users.get(user, "")) > _MAX_PADDED_COST
        queue = self._slow_checks if slow else self._checks
        return queue.result(key, sources, lambda: self._check(key, user, password))

    def _digest(self, text: bytes) -> bytes:
        return hashlib.blake2b(text, key=self._secret).digest()

    def _known(self, key: bytes) -> bool | None:
        if key in self._right:
            return True
        return False if key in self._wrong else None

    def _check(self, key: bytes, name: str, password: bytes) -> bool:
        right = self._known(key)  # another may have asked the same a moment before
        if right is None:
            right = self._compare(name, password)
            verdicts = self._right if right else self._wrong
            if len(verdicts) >= _MAX_CACHED_VERDICTS:
                verdicts.clear()
            verdicts[key] = None
        return right

    def _compare(self, name: str, password: bytes) -> bool:
        # Go looks at 72 bytes, as bcrypt does by its nature.
        looked_at = password[:72]
        plain = looked_at.replace(b"\0", b"\xff")
        hashed = self.users.get(name)
        if hashed is None:
            self._checkpw(plain, _nobody(self._padded_cost))
            return False
        right = self._checkpw(plain, hashed.encode())
        if not right:
            # The time doubles with each cost: 2^10 + 2^10 + 2^11 are 2^12.
            for cost in range(_cost(hashed), self._padded_cost):
                self._checkpw(plain, _nobody(cost))
        return right and plain == looked_at


def _cost(hashed: str) -> int:
    """The cost of a bcrypt hash, 0 of none."""
    return int(hashed[4:6] or 0)


def _nobody(cost: int) -> bytes:
    """A hash of no password, which takes as long as others of this cost."""
    return b"$2b$%02d$" % cost + b"." * 53


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
        if _cost(hashes[name]) > _MAX_PADDED_COST:
            LOG.warning(
                "%s has bcrypt cost %d: logins as this user are slow, and tell that the name"
                " exists; htpasswd -nBC %d makes a hash without that",
                *(place, _cost(hashes[name]), _MAX_PADDED_COST),
            )
    if not hashes:
        return None
    try:
        return Passwords(hashes)
    except ImportError:
        raise UsageError(f"--web.config.file with basic_auth_users {missing_packages()}") from None
