"""Filters: which keys a user wants to see, and which not."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from conntrack_textfile import names, networks

if TYPE_CHECKING:
    from conntrack_textfile.networks import Network
    from conntrack_textfile.tally import Key

_L3 = {"ipv4": 4, "ipv6": 16}


class Filter(NamedTuple):
    """Conditions that a key must meet, all of them. None is no condition."""

    src: Network | None = None
    dst: Network | None = None
    dport: range | None = None
    l3protocol: int | None = None  # bytes of an address
    l4protocol: int | None = None

    def matches(self, key: Key) -> bool:
        """Whether a key meets all of them."""
        src, dst, l4, dport = key
        return (
            (self.l4protocol is None or self.l4protocol == l4)
            and (self.dport is None or dport in self.dport)
            and (self.l3protocol is None or self.l3protocol == len(src))
            and (self.src is None or self.src.holds(src))
            and (self.dst is None or self.dst.holds(dst))
        )


def parse(text: str) -> Filter:
    """Read "src=10.0.0.0/8,dport=53" and the like. Raises ValueError that points at the part."""
    found: dict[str, object] = {}
    for part in text.split(","):
        name, _, value = part.partition("=")
        where = repr(part) if part == text else f"{part!r} in {text!r}"
        if name not in _VALUES:
            raise ValueError(f"{where}: a condition is {'=, '.join(_VALUES)}= and a value")
        if name in found:
            raise ValueError(f"{where}: {name} stands twice")
        try:
            found[name] = _VALUES[name](value)
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from None
    return Filter(**found)  # type: ignore[arg-type]  # each by its own parser


def _ports(text: str) -> range:
    first, dash, last = text.partition("-")
    numbers = [first, last] if dash else [first]
    if all(n.isascii() and n.isdigit() and len(n) <= 5 for n in numbers):
        low, high = int(numbers[0]), int(numbers[-1])
        if low <= high <= 65535:
            return range(low, high + 1)
    raise ValueError("ports are N or N-M, up to 65535")


def _l3(text: str) -> int:
    if text.lower() not in _L3:
        raise ValueError("it is ipv4 or ipv6")
    return _L3[text.lower()]


def _l4(text: str) -> int:
    for number in range(256):
        if text.lower() in (names.l4protocol(number), str(number)):
            return number
    raise ValueError("no protocol has this name or number")


_VALUES = {
    "src": networks.parse,
    "dst": networks.parse,
    "dport": _ports,
    "l3protocol": _l3,
    "l4protocol": _l4,
}
