"""The text grammar of /proc/net/nf_conntrack.

The kernel writes one entry a line (ct_seq_show() in
net/netfilter/nf_conntrack_standalone.c):

    <l3 name> <l3 number> <l4 name> <l4 number> [timeout] [state]
      src= dst= <l4 fields> [zone-orig=] [packets= bytes=] [[UNREPLIED]]
      src= dst= <l4 fields> [zone-reply=] [packets= bytes=]
      [flags] [mark=] [secctx=] [zone=] [delta-time=] use=

A line is split at its two " src=": the first half holds the original tuple,
the second the reply. Only the first four columns have fixed places; all else
is found by its name, except the state, which is the last column before the
original tuple. [UNREPLIED] ends the first half, and of the second half the
first column in brackets is the flag. Columns are separated by spaces and lines
by newlines; no other byte separates anything. Numbers are ASCII digits.
"""

from __future__ import annotations

import functools
import re
from socket import AF_INET, AF_INET6, inet_pton
from typing import TYPE_CHECKING

from conntrack_textfile.kernel.grouping import Entry, Grouping
from conntrack_textfile.kernel.uapi import ID_OF, MAX_LINE, STATES, UNKNOWN_STATE

if TYPE_CHECKING:
    from conntrack_textfile.plan import Plan
    from conntrack_textfile.tally import Tally

_HEAD = re.compile(rb"(?:ipv(4) +2|ipv(6) +10) +[^ ]+ +([0-9]{1,3})(?: |\Z)")
_FLAGS = {b"ASSURED]": "assured", b"OFFLOAD]": "offload", b"HW_OFFLOAD]": "hw_offload"}
_NAMES = {number: {name.encode(): name for name in names} for number, names in STATES.items()}
# ICMP has an id in place of ports.
_SOURCE = [b" id=" if l4 in ID_OF else b" sport=" for l4 in range(256)]
_REPLY_DESTINATION = [b" id=" if l4 in ID_OF else b" dport=" for l4 in range(256)]
_COUNTERS = re.compile(rb"([0-9]{1,20}) bytes=([0-9]{1,20})(?: |\Z)")
_MAX_COUNTER = (1 << 64) - 1
_DIGITS = {255: 3, 65535: 5, 0xFFFFFFFF: 10}  # of a maximum


class Decoder:
    """Sum the entries of one read of the file: feed() blocks, then finish().

    A block may end anywhere in a line.
    """

    def __init__(self, plan: Plan) -> None:
        self._grouping = Grouping(plan)
        self._tail = b""
        self._skipping = False  # the rest of a line longer than MAX_LINE

    def feed(self, block: bytes | memoryview) -> None:
        """Add the lines that end in this block; keep the rest for the next one."""
        lines = (self._tail + bytes(block)).split(b"\n")
        self._tail = lines.pop()
        if self._skipping and lines:
            del lines[0]
            self._skipping = False
        self._add(lines)
        if self._skipping:
            self._tail = b""
        elif len(self._tail) > MAX_LINE:
            self._grouping.add_malformed(self._tail)
            self._tail = b""
            self._skipping = True

    def finish(self) -> Tally:
        """Return the tally. The last line needs no newline."""
        self._add([self._tail])
        self._tail = b""
        return self._grouping.tally()

    def _add(self, lines: list[bytes]) -> None:
        for line in lines:
            if line:
                try:
                    self._grouping.add(parse(line))
                except ValueError:
                    self._grouping.add_malformed(line)


def parse(line: bytes) -> Entry:
    """Parse one line. Raises ValueError with the reason if the kernel would not write it."""
    if len(line) > MAX_LINE:
        raise ValueError(f"a line longer than {MAX_LINE} bytes")
    head, _, first = line.partition(b" src=")
    first, replied, second = first.partition(b" src=")
    if not replied:
        raise ValueError("it has no two tuples that begin with src=")
    columns = _HEAD.match(head)
    if columns is None:
        raise ValueError("it does not begin with the names and numbers of two protocols")
    l3 = 4 if columns[1] else 6
    l4 = _number(columns[3], 255, "protocol number")

    # Counters stand in both halves or in none. Those of the reply are
    # always in the second half, whatever the first half has.
    original, sent, sent_counters = first.partition(b" packets=")
    _, received, reply_counters = second.partition(b" packets=")
    counters = None
    if sent or received:
        counters = (
            *(_pair(sent_counters) if sent else (0, 0)),
            *(_pair(reply_counters) if received else (0, 0)),
        )

    src, _, rest = original.partition(b" dst=")
    rest, zoned, zone = rest.partition(b" zone-orig=")
    _, sported, sport = rest.partition(_SOURCE[l4])
    dst, ported, dport = rest.partition(b" dport=")
    reply_src, _, rest = second.partition(b" dst=")
    _, reply_sported, reply_sport = rest.partition(b" sport=")
    _, reply_ported, reply_dport = rest.partition(_REPLY_DESTINATION[l4])
    _, marked, mark = rest.partition(b" mark=")
    _, replied_zone, reply_zone = rest.partition(b" zone-reply=")
    if not zoned:
        _, zoned, zone = rest.partition(b" zone=")
        if not replied_zone:
            replied_zone, reply_zone = zoned, zone
    flag = second.partition(b" [")[2].partition(b" ")[0]
    # Without keywords, which take twice the time for a tuple of this size.
    return Entry(
        l3,
        l4,
        _packed(l3, src),
        _packed(l3, dst.partition(b" ")[0]),
        _number(dport, 65535, "dport") if ported else 0,
        _packed(l3, reply_src),
        _packed(l3, rest.partition(b" ")[0]),
        _number(zone, 65535, "zone") if zoned else 0,
        _number(mark, 0xFFFFFFFF, "mark") if marked else 0,
        counters,
        _state(head, columns.end(), _NAMES[l4]) if l4 in _NAMES else "",
        first.endswith(b" [UNREPLIED]"),
        _FLAGS.get(flag, ""),
        _number(sport, 65535, "sport or id") if sported else 0,
        _number(reply_sport, 65535, "sport") if reply_sported else 0,
        _number(reply_dport, 65535, "dport or id") if reply_ported else 0,
        _number(reply_zone, 65535, "zone") if replied_zone else 0,
    )


def _state(head: bytes, fourth: int, names: dict[bytes, str]) -> str:
    """Return the state: the last column before the original tuple, after the fourth."""
    start = head.rfind(b" ") + 1
    state = head[start:]
    if start < fourth or not state or state[:1].isdigit():
        return ""
    return names.get(state, UNKNOWN_STATE)


def _pair(text: bytes) -> tuple[int, int]:
    """Return packets and bytes from the start of a text. The kernel's counters have 64 bits."""
    match = _COUNTERS.match(text)
    if match is not None:
        packets, octets = int(match[1]), int(match[2])
        if packets <= _MAX_COUNTER and octets <= _MAX_COUNTER:
            return packets, octets
    raise ValueError("its packets= and bytes= are not two numbers of 64 bits")


def _number(text: bytes, maximum: int, what: str) -> int:
    """Return the number at the start of a text, up to a space."""
    digits = text.partition(b" ")[0]
    # int() alone accepts signs and underscores.
    if digits.isdigit() and len(digits) <= _DIGITS[maximum]:
        number = int(digits)
        if number <= maximum:
            return number
    raise ValueError(f"its {what} is not a number up to {maximum}")


@functools.lru_cache(1 << 12)
def _packed(l3: int, text: bytes) -> bytes:
    try:
        return inet_pton(AF_INET if l3 == 4 else AF_INET6, text.decode("ascii"))
    except (OSError, ValueError):
        raise ValueError(f"its src= and dst= are not IPv{l3} addresses") from None
