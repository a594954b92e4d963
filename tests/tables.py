"""Tables for tests: the captures, entries made up at random, and damage done to both.

An entry that is made up is written as the proc file has it and as ctnetlink
sends it, and says what is expected of it in the terms of conntrack_l.
"""

from __future__ import annotations

import ipaddress
import struct
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol

from tests import conntrack_l

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from random import Random

    from conntrack_textfile.tally import Tally

    class Decoder(Protocol):
        def feed(self, block: bytes, /) -> object: ...
        def finish(self) -> Tally: ...


DATA = Path(__file__).parent / "data"
CAPTURES = [DATA / "kernel-6.18", DATA / "kernel-6.18-defaults"]


def messages(data: bytes) -> Iterator[bytes]:
    """The netlink messages of a dump."""
    while data:
        (length,) = struct.unpack_from("=I", data)
        length = (length + 3) & ~3
        yield data[:length]
        data = data[length:]


LINES = [
    line
    for capture in CAPTURES
    for line in (capture / "net" / "nf_conntrack").read_bytes().splitlines(keepends=True)
]
MESSAGES = [
    message
    for capture in CAPTURES
    for message in messages((capture / "ctnetlink.bin").read_bytes())
]

# An entry whose source is translated.
TCP = (
    b"ipv4     2 tcp      6 431999 ESTABLISHED src=10.0.0.1 dst=10.0.0.2 sport=40000 dport=443 "
    b"packets=3 bytes=300 src=10.0.0.2 dst=192.0.2.1 sport=443 dport=1024 packets=4 bytes=4000 "
    b"[ASSURED] mark=0 zone=0 use=2\n"
)

# Netlink


def attribute(kind: int, payload: bytes, *, nested: bool = False) -> bytes:
    """Return a netlink attribute, padded; NLA_F_NESTED in its type if it contains others."""
    padding = bytes(-len(payload) % 4)
    return struct.pack("=HH", 4 + len(payload), kind | nested << 15) + payload + padding


def nest(kind: int, *attributes: bytes) -> bytes:
    return attribute(kind, b"".join(attributes), nested=True)


def control(kind: int, flags: int = 2, payload: bytes = b"") -> bytes:
    """Return a netlink message: struct nlmsghdr and a payload."""
    return struct.pack("=IHHII", 16 + len(payload), kind, flags, 1, 0) + payload


def message(family: int, *attributes: bytes) -> bytes:
    """Return an IPCTNL_MSG_CT_NEW of a dump."""
    return control(0x100, 2, struct.pack("=BBH", family, 0, 0) + b"".join(attributes))


# Made up entries: few values, so that they meet each other, networks and filters.

ADDRESSES = {
    "ipv4": [
        *("0.0.0.0", "10.0.0.1", "10.77.1.1", "10.77.1.2", "10.77.2.1", "10.77.2.2"),
        *("127.255.255.255", "128.0.0.0", "192.0.2.1", "255.255.255.255"),
    ],
    "ipv6": [
        *("::", "fd77:1::1", "fd77:1::2", "fd77:1:0:1::2", "fd77:2::1", "fd77:2::2", "fe80::1"),
        *("2001:db8::1", "2001:db8:8000::1", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"),
    ],
}
# The kernel's name and number of a protocol, and ours.
PROTOCOLS = [
    *(("tcp", 6, "tcp"), ("udp", 17, "udp"), ("dccp", 33, "dccp"), ("sctp", 132, "sctp")),
    *(("udplite", 136, "udplite"), ("icmp", 1, "icmp"), ("gre", 47, "gre"), ("unknown", 4, "ipv4")),
    ("unknown", 255, "255"),
]
PORTS = [0, 1, 22, 53, 80, 443, 4711, 5004, 40000, 65535]
ZONES = [0, 1, 5, 255, 256, 65535]
MARKS = [0, 1, 42, 0x2A00, 0xFF, 0x80000000, 0xDEADBEEF, 0xFFFFFFFF]
COUNTS = [0, 1, 1, 2, 2, 3, 60, 1500, 2**32, 2**63, 2**64 - 1]
_WITH_PORTS = {6, 17, 33, 132, 136}
# Number, name and number of the attribute of the protocol: all others are in uapi.py.
_STATES = {
    6: [(1, "SYN_SENT", 1), (3, "ESTABLISHED", 1), (9, "SYN_SENT2", 1)],
    33: [(1, "REQUEST", 2), (4, "OPEN", 2), (7, "TIMEWAIT", 2)],
    132: [(1, "CLOSED", 3), (4, "ESTABLISHED", 3), (9, "HEARTBEAT_ACKED", 3)],
}
_FLAGS = {"": 0, "assured": 1 << 2, "offload": 1 << 14, "hw_offload": 1 << 15}


class Made(NamedTuple):
    """An entry: its line of the proc file, its ctnetlink message, and its decoded values."""

    line: bytes
    message: bytes
    entry: conntrack_l.Entry


def made(rand: Random) -> Made:
    """Return a random entry."""
    l3 = rand.choice(("ipv4", "ipv4", "ipv6"))
    kernel_name, l4, name = rand.choice(PROTOCOLS)
    src, dst = (ipaddress.ip_address(rand.choice(ADDRESSES[l3])) for _ in range(2))
    egress, backend = (
        ipaddress.ip_address(rand.choice(ADDRESSES[l3])) if rand.randrange(3) == 0 else None
        for _ in range(2)
    )
    egress = None if egress == src else egress
    backend = None if backend == dst else backend
    sport, dport = rand.choice(PORTS), rand.choice(PORTS)
    # Most ports are left as they are.
    reply_sport, reply_dport = (
        rand.choice(PORTS) if rand.randrange(4) == 0 else port for port in (dport, sport)
    )
    zone, mark = rand.choice((0, rand.choice(ZONES))), rand.choice((0, rand.choice(MARKS)))
    direction = rand.choice(("zone", "zone", "zone-orig", "zone-reply"))
    counters = [rand.choice(COUNTS) for _ in range(4)] if rand.randrange(4) else None
    flag = rand.choice(("", "", "assured", "offload", "hw_offload"))
    unreplied = rand.randrange(3) == 0
    offloaded = flag.endswith("offload")
    state = rand.choice(_STATES[l4]) if l4 in _STATES and not offloaded else None

    reply = backend or dst, egress or src
    ports = l4 in _WITH_PORTS
    line = _line(
        [
            ("ipv4     2 " if l3 == "ipv4" else "ipv6     10 ") + f"{kernel_name:8} {l4}",
            "" if offloaded else "431999",
            "timeout=30, stream_timeout=180" if l4 == 47 and not offloaded else "",
            state[1] if state else "",
            f"src={src.exploded} dst={dst.exploded}",
            _l4_text(l4, sport, dport),
            f"zone-orig={zone}" if direction == "zone-orig" else "",
            "packets={} bytes={}".format(*counters) if counters else "",
            "[UNREPLIED]" if unreplied else "",
            f"src={reply[0].exploded} dst={reply[1].exploded}",
            _l4_text(l4, reply_sport, reply_dport, reply=True),
            f"zone-reply={zone}" if direction == "zone-reply" else "",
            "packets={2} bytes={3}".format(*counters) if counters else "",
            f"[{flag.upper()}]" if flag else "",
            f"mark={mark}",
            rand.choice(("", "secctx=system_u:object_r:unlabeled_t:s0")),
            f"zone={zone}" if direction == "zone" else "",
            rand.choice(("", "delta-time=5")),
            "use=2",
        ]
    )
    # Of zone 0 it sends nothing.
    zoned = struct.pack("!H", zone) if zone else b""
    sent_zone = zoned if direction == "zone-orig" else b""
    reply_zone = zoned if direction == "zone-reply" else b""
    sent = message(
        2 if l3 == "ipv4" else 10,
        _tuple(1, src, dst, l4, (sport, dport), zone=sent_zone),
        _tuple(2, *reply, l4, (reply_sport, reply_dport), zone=reply_zone, reply=True),
        attribute(18, zoned) if zoned and direction == "zone" else b"",
        attribute(3, struct.pack("!I", _FLAGS[flag] | (not unreplied) << 1)),
        b"" if offloaded else attribute(7, struct.pack("!I", 431999)),
        *(_counters(9 + i, *counters[2 * i : 2 * i + 2]) for i in (0, 1) if counters),
        nest(4, nest(state[2], attribute(1, bytes([state[0]])))) if state else b"",
        attribute(8, struct.pack("!I", mark)) if mark or rand.randrange(2) else b"",
    )
    return Made(
        line,
        sent,
        conntrack_l.Entry(
            src=src,
            dst=dst,
            l3protocol=l3,
            l4protocol=name,
            dport=dport if ports else 0,
            zone=0 if direction == "zone-reply" else zone,
            mark=mark,
            egress=egress,
            backend=backend,
            sums=(1, *(counters or (0, 0, 0, 0))),
            counted=counters is not None,
            state=state[1] if state else "",
            flags=tuple(["unreplied"] * unreplied + [flag] * bool(flag)),
            sport=sport if ports or l4 == 1 else 0,
            reply_sport=reply_sport if ports else 0,
            reply_dport=reply_dport if ports or l4 == 1 else 0,
            reply_zone=0 if direction == "zone-orig" else zone,
        ),
    )


def _line(columns: list[str]) -> bytes:
    return " ".join(filter(None, columns)).encode() + b"\n"


def _l4_text(l4: int, sport: int, dport: int, *, reply: bool = False) -> str:
    if l4 in _WITH_PORTS:
        return f"sport={sport} dport={dport}"
    icmp = f"type=0 code=0 id={dport}" if reply else f"type=8 code=0 id={sport}"
    return {1: icmp, 47: f"srckey=0x{sport:x} dstkey=0x{dport:x}"}.get(l4, "")


def _tuple(
    kind: int,
    src: conntrack_l.Address,
    dst: conntrack_l.Address,
    l4: int,
    ports: tuple[int, int],
    *,
    zone: bytes,
    reply: bool = False,
) -> bytes:
    first = 1 if src.version == 4 else 3
    sport, dport = (struct.pack("!H", port) for port in ports)
    return nest(
        kind,
        nest(1, attribute(first, src.packed), attribute(first + 1, dst.packed)),
        nest(
            2,
            attribute(1, bytes([l4])),
            attribute(4, dport if reply else sport) if l4 == 1 else b"",
            # Of protocols without a name it sends nothing more.
            attribute(2, sport) if l4 in {*_WITH_PORTS, 47} else b"",
            attribute(3, dport) if l4 in {*_WITH_PORTS, 47} else b"",
        ),
        attribute(3, zone) if zone else b"",
    )


def _counters(kind: int, packets: int, size: int) -> bytes:
    return nest(
        kind, attribute(1, struct.pack("!Q", packets)), attribute(2, struct.pack("!Q", size))
    )


# Damage

JUNK = [
    *(b"", b"\0", b"\t", b"\r", b"\n", b"\x0b", b"\xa0", b"\xd9\xa3", b" ", b"  ", b"="),
    *(b"+", b"-"),
    *(b"_", b"0", b"00", b"255", b"256", b"65535", b"65536", b"18446744073709551615", b"."),
    *(b"18446744073709551616", b"99999999999999999999", b"9" * 30, b"0" * 30, b" src=", b":"),
    *(b" [UNREPLIED]", b" [ASSURED] ", b" [OFFLOAD]", b" [HW_OFFLOAD] ", b"[", b"NONE"),
    *(b" ESTABLISHED", b" CLOSE ", b" REQUEST ", b"tcp 6 ", b"sctp 132 5 ", b"dccp 33"),
    *(b" SYN_SENT", b"TIME_WAIT\0"),
    *(b" dst=", b" dport=", b" packets=", b" bytes=", b" packets=1 bytes=2 ", b"ipv4", b"ipv6"),
    *(b" zone-orig=", b" zone-orig=65535 ", b" zone-orig=65536 ", b" zone=", b" zone=7 "),
    *(b" zone=00007", b" zone=000007 ", b" zone-reply=3 ", b" mark=", b" mark=4294967295 "),
    *(b" mark=4294967296 ", b" mark=0x2a ", b" secctx=", b" secctx=zone=3 ", b" secctx=[x] "),
    *(b" secctx=a mark=3 ", b" dst=10.77.2.1 ", b" src=10.77.2.2", b" src=::1 dst=::2 "),
    *(b" dport=99999 ", b" packets=1 ", b" [SEEN] ", b" [", b"] "),
]
# Before these a text is most likely to be read another way.
_PLACES = [
    *(b" src=", b" dst=", b" dport=", b" zone-orig=", b" packets=", b" bytes=", b" [", b" mark="),
    *(b" secctx=", b" zone=", b" use=", b" zone-reply="),
]
ODD_ADDRESSES = [
    *(b"0.0.0.0", b"255.255.255.255", b"01.2.3.4", b"1.2.3", b"1.2.3.4.5", b"1.2.3.4.", b".1.2.3"),
    *(b"1..2.3", b"0x1.2.3.4", b"1.2.3.04", b"256.1.1.1", b"1.2.3.4\0", b"::", b"::1", b"1::"),
    *(b"1:2:3:4:5:6:7:8", b"1:2:3:4:5:6:7", b"1:2:3:4:5:6:7:8:9", b"::ffff:1.2.3.4", b"1::2::3"),
    *(b"fe80::1%lo", b"0000:0000:0000:0000:0000:0000:0000:000g", b"FD77:0001:0000:0000:0000:0000:"),
    *(b"FD77:0001:0000:0000:0000:0000:0000:0002", b"fd77-0001:0000:0000:0000:0000:0000:0002"),
    *(b"0000:0000:0000:0000:0000:0000:1.2.3.400", b"0000:0000:0000:0000:0000:ffff:192.0.2.100"),
    *(b"12345::", b":1", b"::0001", b"00001::", b"\xff", b"1" * 100, b""),
]


def damaged(data: bytes, rand: Random) -> bytes:
    """Return a line with bytes inserted, deleted or changed."""
    for _ in range(rand.choice((0, 1, 1, 2, 4))):
        at = rand.randrange(len(data) + 1)
        if rand.randrange(3) == 0:  # at the end of a value, or in the place of one
            found = data.find(rand.choice(_PLACES), at)
            at = at if found < 0 else found + rand.choice((0, 0, 1, 5, 6))
        gone = rand.choice((0, 0, 1, 1, 2, 5))
        kind = rand.randrange(3)
        new = rand.choice(JUNK) if kind else bytes([rand.randrange(256)])
        data = data[:at] + new + data[at + gone :]
    return data


def damaged_text(rand: Random) -> bytes:
    """Return lines of the captures and random ones, most of them damaged."""
    return b"".join(
        damaged(rand.choice(LINES) if rand.randrange(2) else made(rand).line, rand)
        for _ in range(rand.randrange(1, 8))
    )


def damaged_message(rand: Random) -> bytes:
    message = bytearray(rand.choice(MESSAGES) if rand.randrange(2) else made(rand).message)
    for _ in range(rand.choice((0, 1, 1, 2, 4))):
        # Mostly small numbers: lengths and types.
        at = rand.randrange(len(message))
        message[at] = rand.choice(
            (0, 1, 2, 3, 4, 5, 6, 8, 9, 10, 12, 18, 20, 255, rand.randrange(256))
        )
    if rand.randrange(8) == 0:  # an attribute once more, or another
        more = rand.choice(
            [
                attribute(18, bytes(rand.randrange(4))),
                attribute(8, bytes(rand.randrange(6))),
                attribute(8, b"\0\0\0\x2a"),
                attribute(18, b"\0\x05"),
                nest(2),
                nest(2, nest(1, attribute(1, b"\x0a\0\0\1"), attribute(2, b"\x0a\0\0\2"))),
                nest(1, attribute(3, bytes(2))),
                nest(9),
                b"\xff\xff\x12\0",
            ]
        )
        message += more
        message[:4] = struct.pack("=I", len(message))
    if rand.randrange(8) == 0:
        del message[rand.randrange(len(message)) :]
    return bytes(message)


def damaged_datagrams(rand: Random) -> list[bytes]:
    """Return datagrams with messages of the captures and random ones, most of them damaged."""
    return [
        b"".join(damaged_message(rand) for _ in range(rand.randrange(1, 5)))
        for _ in range(rand.randrange(1, 4))
    ]


def cut(data: bytes, rand: Random) -> list[bytes]:
    """Return a text cut into blocks at random."""
    blocks = []
    while data:
        size = rand.choice((1, 2, 7, 50, rand.randrange(1, len(data) + 1)))
        blocks.append(data[:size])
        data = data[size:]
    return blocks


class Dump:
    """A netlink socket with prepared answers: data, or data with msg_flags and the sender."""

    def __init__(self, *answers: bytes | OSError | tuple[bytes, int, tuple[int, int]]) -> None:
        self.answers = list(answers)

    def __enter__(self) -> Dump:  # noqa: PYI034
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def recvmsg_into(self, buffers: list[memoryview]) -> tuple[int, list[object], int, object]:
        answer = self.answers.pop(0)
        if isinstance(answer, OSError):
            raise answer
        data, flags, sender = answer if isinstance(answer, tuple) else (answer, 0, (0, 0))
        buffers[0][: len(data)] = data
        return len(data), [], flags, sender


# What comes out


def outcome(
    decoder: Decoder, blocks: Iterable[bytes], limit: int = 0, by: str = "bytes"
) -> list[object]:
    """Return the results of feed(), then the tally and its groups or the error."""
    seen: list[object] = []
    for block in blocks:
        try:
            seen.append(decoder.feed(block))
        except OSError as error:  # noqa: PERF203
            return [*seen, type(error), error.errno, str(error)]
    tally = decoder.finish()
    seen += [len(tally.groups), tally.entries, *tally[2:6]]
    seen += [list(tally.protocols.items()), list(tally.states.items()), list(tally.flags.items())]
    seen += [tally.nat and tally.nat.nat(limit, count) for count in (0, 2, 10)]
    rows = tally.groups.rows(limit, by)
    groups = list(rows.groups)
    columns = [list(column) for column in rows.columns]
    assert [rows.groups[i] for i in range(len(rows.groups))] == groups
    assert [[column[i] for i in range(len(groups))] for column in rows.columns] == columns
    return [*seen, groups, columns]


def beside_groups(tally: Tally) -> list[object]:
    """Return the fields of a tally except its groups."""
    return [*tally[1:-1], tally.nat and tally.nat.nat(0, 10)]


def sums(tally: Tally) -> dict[tuple[str, ...], list[int]]:
    """Return the sums by group. It can be called once: it frees the groups of the tally."""
    rows = tally.groups.rows(0, "bytes")
    columns = zip(*rows.columns, strict=True)
    return {group: list(row) for group, row in zip(rows.groups, columns, strict=True)}
