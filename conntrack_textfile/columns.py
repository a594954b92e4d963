"""Text in the columns of a terminal: how wide it is, and how it is cut where it is too wide."""

from __future__ import annotations

import re
import unicodedata

CUT = "…"
_ADDRESS = re.compile(r"[0-9a-fA-F]*[:.][0-9a-fA-F:.]*(/[0-9]+)?")


def width(text: str) -> int:
    """How many columns printable text takes: wcwidth(3), by the Unicode database of Python."""
    if text.isascii():
        return len(text)
    return sum(map(_columns, text))


def _columns(letter: str) -> int:
    if unicodedata.combining(letter) or unicodedata.category(letter) in ("Mn", "Me", "Cf"):
        return 0
    return 2 if unicodedata.east_asian_width(letter) in "WF" else 1


def printable(text: str) -> str:
    """Text that cannot move the cursor: a name from a file may hold what would."""
    return text if text.isprintable() else ascii(text)


def left(text: str, room: int) -> str:
    """Text with spaces behind it, up to a width."""
    return text + " " * (room - width(text))


def right(text: str, room: int) -> str:
    """Text with spaces before it, up to a width."""
    return " " * (room - width(text)) + text


def cut(text: str, room: int) -> str:
    """Text without its end, where it would be wider than there is room."""
    if width(text) <= room:
        return text
    return _first(text, room - 1) + CUT if room > 0 else ""


def cut_address(text: str, room: int) -> str:
    """An address or a name without its middle, where it would be too wide.

    Of an address whole numbers are left, of a host more of its end, where hosts of a
    network differ, and of a network more of its beginning.
    """
    if width(text) <= room:
        return text
    if not _ADDRESS.fullmatch(text):
        end = _first(text[::-1], (room - 1) // 2)[::-1]
        return _first(text, room - 1 - width(end)) + CUT + end if room > 0 else ""
    separator = ":" if ":" in text else "."
    parts = text.split(separator)
    found = []
    for head in range(len(parts)):
        for tail in range(len(parts) - head):
            kept = separator.join([*parts[:head], CUT, *parts[len(parts) - tail :]])
            near, far = (head, tail) if "/" in text else (tail, head)
            if head + tail and width(kept) <= room:
                found.append((near > 0, width(kept), -abs(head - tail), near >= far, kept))
    return max(found)[-1] if found else cut(CUT, room)


def _first(text: str, room: int) -> str:
    """As much of the beginning of a text as there is room for."""
    end = len(text)
    while width(text[:end]) > max(0, room):
        end -= 1
    return text[:end]
