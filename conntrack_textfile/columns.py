"""Text in the columns of a terminal: its width, padding and truncation."""

from __future__ import annotations

import re
import unicodedata

CUT = "…"
CUT_ASCII = "~"  # for terminals without it
_ADDRESS = re.compile(r"[0-9a-fA-F]*[:.][0-9a-fA-F:.]*(/[0-9]+)?")


def width(text: str) -> int:
    """Return the columns of printable text, as wcswidth(3), by Python's Unicode database."""
    if text.isascii():
        return len(text)
    return sum(map(_columns, text))


def _columns(letter: str) -> int:
    if unicodedata.combining(letter) or unicodedata.category(letter) in ("Mn", "Me", "Cf"):
        return 0
    return 2 if unicodedata.east_asian_width(letter) in "WF" else 1


def printable(text: str) -> str:
    """Return text with control characters escaped: in a name they could move the cursor."""
    return text if text.isprintable() else ascii(text)


def left(text: str, room: int) -> str:
    """Align text to the left."""
    return text + " " * (room - width(text))


def right(text: str, room: int) -> str:
    """Align text to the right."""
    return " " * (room - width(text)) + text


def cut(text: str, room: int) -> str:
    """Truncate text at its end, where it is wider than room."""
    if width(text) <= room:
        return text
    return _first(text, room - 1) + CUT if room > 0 else ""


def cut_address(text: str, room: int) -> str:
    """Truncate an address or a name in its middle, where it is wider than room.

    An address is cut between numbers. A host keeps more of its end, where the hosts of a
    network differ, and a network (with "/") more of its beginning.
    """
    if width(text) <= room:
        return text
    if not _ADDRESS.fullmatch(text):
        end = _first(text[::-1], (room - 1) // 2)[::-1]
        return _first(text, room - 1 - width(end)) + CUT + end if room > 0 else ""
    separator = ":" if ":" in text else "."
    parts = text.split(separator)
    # Keep the more telling end if possible; then the longest, and most balanced, text is best.
    found = []
    for head in range(len(parts)):
        for tail in range(len(parts) - head):
            kept = separator.join([*parts[:head], CUT, *parts[len(parts) - tail :]])
            near, far = (head, tail) if "/" in text else (tail, head)
            if head + tail and width(kept) <= room:
                found.append((near > 0, width(kept), -abs(head - tail), near >= far, kept))
    return max(found)[-1] if found else cut(CUT, room)


def _first(text: str, room: int) -> str:
    """Return the longest beginning of a text that fits."""
    end = len(text)
    while width(text[:end]) > max(0, room):
        end -= 1
    return text[:end]
