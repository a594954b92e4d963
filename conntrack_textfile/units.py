"""Numbers with units and prefixes."""

from __future__ import annotations


def binary(number: float) -> str:
    """Format a number of bytes with a binary prefix: 1.5 MiB."""
    units = ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"]
    while number >= 1023.5 and len(units) > 1:
        number /= 1024
        del units[0]
    whole = units[0] == "B" or number >= 99.95
    return f"{number:.0f} {units[0]}" if whole else f"{number:.1f} {units[0]}"


def decimal(number: float, unit: str) -> str:
    """Format a number with a decimal prefix: 1.5 Mbit/s."""
    prefixes = ["", "k", "M", "G", "T", "P", "E"]
    while number >= 999.5 and len(prefixes) > 1:
        number /= 1000
        del prefixes[0]
    whole = not prefixes[0] or number >= 99.95
    return f"{number:.0f} {prefixes[0]}{unit}" if whole else f"{number:.1f} {prefixes[0]}{unit}"


def per_second(number: float) -> str:
    """Format a rate: 0.25/s, 1,200/s."""
    digits = 2 if 0 < number < 9.995 else 1 if 0 < number < 99.95 else 0
    return f"{number:,.{digits}f}/s"
