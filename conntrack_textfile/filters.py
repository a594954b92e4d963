"""Filters: conditions on entries, for --filter.include and --filter.exclude."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from conntrack_textfile.networks import Network


class Mark(NamedTuple):
    """A value of the masked bits of the mark (CTA_MARK)."""

    value: int
    mask: int


class Filter(NamedTuple):
    """Conditions that an entry must all meet. None is no condition."""

    src: Network | None = None
    dst: Network | None = None
    l3protocol: int | None = None  # 4 or 6
    l4protocol: int | None = None
    dport: range | None = None
    zone: int | None = None
    mark: Mark | None = None
    egress: Network | None = None  # not met without source NAT
    backend: Network | None = None


def parse(text: str, conditions: Mapping[str, Callable[[str], object]]) -> Filter:
    """Parse a filter, as "src=10.0.0.0/8,dport=53".

    conditions: the parser of each condition's value.

    Raises ValueError that quotes the condition.
    """
    found: dict[str, object] = {}
    if any(map(str.isspace, text)):
        raise ValueError(f"{text!r} has a space: a comma alone joins conditions")
    for part in text.split(","):
        name, _, value = part.partition("=")
        where = repr(part) if part == text else f"{part!r} in {text!r}"
        if name not in conditions:
            raise ValueError(f"{where}: a condition is {'=, '.join(conditions)}= and a value")
        if name in found:
            raise ValueError(f"{where}: {name} is given twice")
        try:
            found[name] = conditions[name](value)
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from None
    return Filter(**found)  # type: ignore[arg-type]  # each by its own parser


def parse_ports(text: str) -> range:
    """Parse N or N-M, ports up to 65535. Raises ValueError."""
    first, dash, last = text.partition("-")
    numbers = [first, last] if dash else [first]
    if all(n.isascii() and n.isdigit() and len(n) <= 5 for n in numbers):
        low, high = int(numbers[0]), int(numbers[-1])
        if low <= high <= 65535:
            return range(low, high + 1)
    raise ValueError("ports are N or N-M, up to 65535")


def parse_zone(text: str) -> int:
    """Parse the number of a conntrack zone. Raises ValueError."""
    if text.isascii() and text.isdigit() and len(text) <= 5 and int(text) <= 65535:
        return int(text)
    raise ValueError("a zone is a number up to 65535")


def parse_mark(text: str) -> Mark:
    """Parse VALUE or VALUE/MASK. Raises ValueError."""
    value, slash, mask = text.partition("/")
    mark = Mark(parse_bits(value), parse_bits(mask) if slash else 0xFFFFFFFF)
    if mark.value & ~mark.mask:
        raise ValueError("the mark has bits outside of its mask")
    return mark


_DECIMAL = frozenset("0123456789")
_HEXADECIMAL = _DECIMAL | set("abcdefABCDEF")


def parse_bits(text: str) -> int:
    """Parse a number of 32 bits, decimal or hexadecimal with 0x. Raises ValueError."""
    # Not int(text, 16), which takes 0x0x1, 1_0 and digits of all scripts.
    # Nor a regular expression: re.compile() takes longer than the rest.
    hexadecimal = text[:2] in ("0x", "0X")
    digits, known = (text[2:], _HEXADECIMAL) if hexadecimal else (text, _DECIMAL)
    if 0 < len(digits) <= (8 if hexadecimal else 10) and known.issuperset(digits):
        number = int(digits, 16 if hexadecimal else 10)
        if number < 1 << 32:
            return number
    raise ValueError("a mark is a number of 32 bits, decimal or 0x and hexadecimal digits")
