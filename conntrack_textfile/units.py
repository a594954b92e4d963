"""Numbers in units for people."""

from __future__ import annotations


def binary(number: float) -> str:
    """A number of bytes with a binary prefix, as 1.5 MiB."""
    units = ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"]
    while number >= 1023.5 and len(units) > 1:
        number /= 1024
        del units[0]
    whole = units[0] == "B" or number >= 99.95
    return f"{number:.0f} {units[0]}" if whole else f"{number:.1f} {units[0]}"
