"""Numbers with units, as text. A number that is not 0 is never shown as 0."""

from __future__ import annotations


def binary(number: float) -> str:
    """Format a number of bytes with a binary prefix: 1.5 MiB."""
    units = ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"]
    while number >= 1023.5 and len(units) > 1:
        number /= 1024
        del units[0]
    return f"{_digits(number, whole=units[0] == 'B')} {units[0]}"


def decimal(number: float, unit: str) -> str:
    """Format a number with a decimal prefix: 1.5 Mbit/s."""
    prefixes = ["", "k", "M", "G", "T", "P", "E"]
    while number >= 999.5 and len(prefixes) > 1:
        number /= 1000
        del prefixes[0]
    return f"{_digits(number, whole=not prefixes[0])} {prefixes[0]}{unit}"


def _digits(number: float, *, whole: bool) -> str:
    if whole and 0 < number < 0.5:
        return "<1"
    return f"{number:.0f}" if whole or number >= 99.95 else f"{number:.1f}"


def per_second(number: float) -> str:
    """Format a rate: 0.25/s, 1,200/s."""
    if 0 < number < 0.005:
        return "<0.01/s"
    digits = 2 if 0 < number < 9.995 else 1 if 0 < number < 99.95 else 0
    return f"{number:,.{digits}f}/s"


def percent(share: float) -> str:
    """Format a ratio as a percentage: 12.3%."""
    return "<0.1%" if 0 < share < 0.0005 else f"{share:.1%}"
