"""Parsers of the values of options: each takes the option's name, and raises UsageError."""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from conntrack_textfile import filters, labels
from conntrack_textfile.errors import UsageError
from conntrack_textfile.networks import Prefix

if TYPE_CHECKING:
    from collections.abc import Callable

    from conntrack_textfile.filters import Filter

_MAX_NAMESPACE_SIZE = 255  # bytes

_Parsed = TypeVar("_Parsed")


class Address(NamedTuple):
    """A TCP address to listen on. An empty host stands for all addresses, IPv4 and IPv6."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def unchanged(_: str, value: Any) -> Any:
    """Return the value: a switch, or any text."""
    return value


def inverse(_: str, value: bool) -> bool:  # noqa: FBT001  # docopt's value of a switch
    """Return the inverse of a switch."""
    return not value


def not_empty(name: str, value: str) -> str:
    """Return a text that is not empty."""
    if not value or "\0" in value:
        raise UsageError(f"{name} must not be empty")
    return value


def choice(*words: str) -> Callable[[str, str], str]:
    """Return a parser of one of some words."""

    def parse(name: str, value: str) -> str:
        if value in words:
            return value
        raise UsageError(f"{name} must be one of {', '.join(words)}, not {value!r}")

    return parse


def is_word(word: str, words: tuple[str, ...]) -> Callable[[str, str], bool]:
    """Return a parser of one of words, which returns whether the value is word."""
    parse = choice(*words)
    return lambda name, value: parse(name, value) == word


def some_of(*words: str) -> Callable[[str, str], tuple[str, ...]]:
    """Return a parser of a comma-separated list of some words, to a tuple in their order."""

    def parse(name: str, value: str) -> tuple[str, ...]:
        wanted = value.split(",") if value else []
        for word in wanted:
            if word not in words:
                raise UsageError(f"{name} takes some of {','.join(words)}, not {word!r}")
            if wanted.count(word) > 1:
                raise UsageError(f"{name} has {word} twice")
        return tuple(word for word in words if word in wanted)

    return parse


def each(parse: Callable[[str, str], _Parsed]) -> Callable[[str, list[str]], tuple[_Parsed, ...]]:
    """Return a parser of the values of a repeated option."""
    return lambda name, values: tuple(parse(name, value) for value in values)


def count(name: str, value: str) -> int:
    """Return a whole number, 0 or more."""
    if _is_number(value):
        return int(value)
    raise UsageError(f"{name} must be a whole number, 0 to 999999999, not {value!r}")


def seconds(name: str, value: str) -> float:
    """Return a number of seconds above 0."""
    whole, point, part = value.partition(".")
    if _is_number(whole) and (_is_number(part) or not point) and float(value) > 0:
        return float(value)
    raise UsageError(f"{name} must be above 0 and below 1000000000 seconds, not {value!r}")


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= 9


def bits(name: str, value: str) -> int:
    """Return a mask of 32 bits, decimal or hexadecimal."""
    try:
        return filters.parse_bits(value)
    except ValueError as error:
        raise UsageError(f"{name}: {error}, not {value!r}") from None


def condition(name: str, value: str) -> Filter:
    """Return a filter."""
    try:
        return filters.parse(value, labels.CONDITIONS)
    except ValueError as error:
        raise UsageError(f"{name}: {error}") from None


def prefix(name: str, value: str) -> Prefix:
    """Return prefix lengths: V4, or V4,V6."""
    v4, comma, v6 = value.partition(",")
    if _is_number(v4) and int(v4) <= 32:
        if not comma:
            return Prefix(int(v4), 128)
        if _is_number(v6) and int(v6) <= 128:
            return Prefix(int(v4), int(v6))
    raise UsageError(
        f"{name} must be a prefix length for IPv4, up to 32, and may have another "
        f"for IPv6, up to 128, after a comma, not {value!r}"
    )


def namespaces(name: str, values: list[str]) -> tuple[str, ...]:
    """Return the names and paths of network namespaces, without duplicates."""
    return tuple(dict.fromkeys(_namespace(name, value) for value in values))


def _namespace(name: str, value: str) -> str:
    """Return the name or path of a network namespace, which is also the value of a label."""
    kind, colon, number = value.partition(":")
    by_number = bool(colon) and kind == "pid"
    if (
        value not in ("", ".", "..")
        and "\0" not in value
        and len(os.fsencode(value)) <= _MAX_NAMESPACE_SIZE
        and value.isprintable()  # nor undecodable bytes (surrogates)
        and (not by_number or (_is_number(number) and int(number) > 0))
    ):
        return value
    raise UsageError(
        f"{name} must be a name under /run/netns, a path, pid: and the number of a process, host "
        f"or all, in at most {_MAX_NAMESPACE_SIZE} bytes, not {value[:_MAX_NAMESPACE_SIZE]!r}"
    )


def mode(name: str, value: str) -> int:
    """Return the permissions of a file, neither writable for others nor executable."""
    digits = value[1:] if len(value) == 4 and value[0] == "0" else value
    if len(digits) == 3 and set(digits) <= set("046") and digits[2] != "6":
        return int(digits, 8)
    raise UsageError(
        f"{name} must be in octal, such as 0640: read (4) and write (2) for owner and group, "
        f"read for others, not {value!r}"
    )


def group(name: str, value: str) -> int:
    """Return the id of a group, given by its name."""
    # Imported here: few runs need it.
    import grp

    try:
        return grp.getgrnam(not_empty(name, value)).gr_gid
    except KeyError:
        raise UsageError(f"{name}: there is no group {value!r}") from None


def path(name: str, value: str) -> str:
    """Return the path of a URL."""
    plain = all("!" <= letter <= "~" and letter not in "?#%" for letter in value)
    if plain and value.startswith("/") and not value.startswith(("//", "/-/")):
        return value
    raise UsageError(f"{name} must be a path that begins with / (and not with /-/), not {value!r}")


def address(name: str, value: str) -> Address:
    """Return a TCP address."""
    match = re.fullmatch(r"(?:\[([^\[\]]+)\]|([^:\[\]\s]*)):([0-9]{1,5})", value)
    if match and int(match[3]) <= 65535 and (match[1] is None or _is_ipv6(match[1])):
        return Address(match[1] or match[2] or "", int(match[3]))
    raise UsageError(
        f"{name} must be HOST:PORT, [IPV6]:PORT or :PORT with a port up to 65535, not {value!r}"
    )


def _is_ipv6(text: str) -> bool:
    # Imported here: the default address does not need it.
    from socket import AF_INET6, inet_pton

    try:
        inet_pton(AF_INET6, text.partition("%")[0])  # fe80::1%eth0
    except (OSError, ValueError):
        return False
    return True
