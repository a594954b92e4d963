"""The text grammar of /proc/net/nf_conntrack.

The kernel writes one entry a line (ct_seq_show() in
net/netfilter/nf_conntrack_standalone.c):

    <l3 name> <l3 number> <l4 name> <l4 number> [timeout] [state]
      src= dst= <l4 fields> [zone-orig=] [packets= bytes=] [[UNREPLIED]]
      src= dst= <l4 fields> [zone-reply=] [packets= bytes=]
      [flags] [mark=] [secctx=] [zone=] [delta-time=] use=

A line is split at its two " src=": the first half holds the original tuple,
the second the reply. Only the first four columns have fixed places; all else
is found by its name, but for the state, which is the last column before the
original tuple. [UNREPLIED] ends the first half, and of the second half the
first column in brackets is the flag. Columns are separated by spaces and lines
by newlines; no other byte separates anything. Numbers are ASCII digits.
"""

from __future__ import annotations

import re
from socket import AF_INET, AF_INET6, inet_pton
from typing import TYPE_CHECKING

from conntrack_textfile.tally import STATES, UNKNOWN_STATE, Gathered, Key, Tally

if TYPE_CHECKING:
    from socket import AddressFamily

# No line of the kernel comes near this: the longest part of one is a security
# context. It bounds what is kept of a line that does not end.
MAX_LINE = 16384

_HEAD = re.compile(rb"(ipv4 +2|ipv6 +10) +[^ ]+ +([0-9]{1,3})(?: |\Z)")
_FLAGS = {b"ASSURED]": "assured", b"OFFLOAD]": "offload", b"HW_OFFLOAD]": "hw_offload"}
_NAMES = {number: {name.encode(): name for name in names} for number, names in STATES.items()}
_COUNTERS = re.compile(rb"([0-9]{1,20}) bytes=([0-9]{1,20})(?: |\Z)")
_DPORT = re.compile(rb" dport=([0-9]{1,5})")

_RawKey = tuple[bytes, bytes, bytes, bytes, bytes]


class Counter:
    """Counts the entries of one reading: feed() it blocks, then finish() it.

    Lines may be cut between blocks anywhere. The result does not depend on where.
    """

    def __init__(self) -> None:
        self._gathered = Gathered()
        self._seen: dict[_RawKey, tuple[list[int], int, int]] = {}  # sums, layer 3, layer 4
        self._tail = b""
        self._skipping = False  # inside a line that is already too long

    def feed(self, block: bytes | memoryview) -> None:
        """Count the lines that end in this block of the file, and keep the rest for the next."""
        lines = (self._tail + bytes(block)).split(b"\n")
        self._tail = lines.pop()
        if self._skipping and lines:
            del lines[0]
            self._skipping = False
        if self._skipping:
            self._tail = b""
        elif len(self._tail) > MAX_LINE:
            self._gathered.malformed += 1
            self._tail = b""
            self._skipping = True
        self._count(lines)

    def finish(self) -> Tally:
        """The tally of all that was fed. A last line needs no newline."""
        self._count([self._tail])
        self._tail = b""
        return self._gathered.tally()

    def _count(self, lines: list[bytes]) -> None:
        for line in lines:
            if line:
                try:
                    self._add(line)
                except ValueError:
                    self._gathered.malformed += 1

    def _add(self, line: bytes) -> None:
        """Count one entry. Raises ValueError where it is not what the kernel writes."""
        head, _, first = line.partition(b" src=")
        first, replied, second = first.partition(b" src=")
        protocols = _HEAD.match(head)
        if not replied or protocols is None or len(line) > MAX_LINE:
            raise ValueError

        # Counters stand in both halves or in none. Those of the reply are
        # always in the second half, whatever the first half has.
        original, sent, counters = first.partition(b" packets=")
        sent_packets, sent_bytes = _pair(counters) if sent else (0, 0)
        _, received, counters = second.partition(b" packets=")
        reply_packets, reply_bytes = _pair(counters) if received else (0, 0)

        src, _, dst = original.partition(b" dst=")
        dst, ported, dport = dst.partition(b" dport=")
        dst, _, _ = dst.partition(b" ")
        dport, _, _ = dport.partition(b" ")
        raw = protocols[1], protocols[2], src, dst, ported + dport
        seen = self._seen.get(raw)
        if seen is None:
            key = _key(*raw)
            sums = self._gathered.sums.setdefault(key, [0, 0, 0, 0, 0])
            seen = self._seen[raw] = sums, 4 if len(key[0]) == 4 else 6, key[2]
        sums, l3, l4 = seen
        sums[0] += 1
        sums[1] += sent_packets
        sums[2] += sent_bytes
        sums[3] += reply_packets
        sums[4] += reply_bytes
        if not sent and not received:
            self._gathered.uncounted += 1
        state = _state(head, protocols.end(), _NAMES[l4]) if l4 in _NAMES else ""
        flag, _, _ = second.partition(b" [")[2].partition(b" ")
        unreplied = first.endswith(b" [UNREPLIED]")
        self._gathered.mark(l3, l4, state, unreplied, _FLAGS.get(flag, ""))


def _state(head: bytes, fourth: int, names: dict[bytes, str]) -> str:
    """The state that stands last before the original tuple, after the fourth column and timeout."""
    start = head.rfind(b" ") + 1
    state = head[start:]
    if start < fourth or not state or state[:1].isdigit():
        return ""
    return names.get(state, UNKNOWN_STATE)


def _pair(text: bytes) -> tuple[int, int]:
    """The packets and bytes that a text begins with. The kernel's counters have 64 bits."""
    match = _COUNTERS.match(text)
    if match is None:
        raise ValueError
    packets, octets = int(match[1]), int(match[2])
    if (packets | octets) >> 64:
        raise ValueError
    return packets, octets


def _key(l3: bytes, l4: bytes, src: bytes, dst: bytes, dport: bytes) -> Key:
    """The key of one entry's texts."""
    number = int(l4)
    port = 0
    if dport:
        digits = _DPORT.fullmatch(dport)
        if digits is None:
            raise ValueError
        port = int(digits[1])
    if number > 255 or port > 65535:
        raise ValueError
    family = AF_INET if l3.startswith(b"ipv4") else AF_INET6
    return _packed(family, src), _packed(family, dst), number, port


def _packed(family: AddressFamily, text: bytes) -> bytes:
    try:
        return inet_pton(family, text.decode("ascii"))
    except OSError:
        raise ValueError from None
