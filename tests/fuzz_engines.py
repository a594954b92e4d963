"""One invariant: both engines give the same outcome for the same bytes, and neither crashes.

python tests/fuzz_engines.py --seconds=60            random damage to real input
python tests/fuzz_engines.py --atheris -max_total_time=60   guided by coverage
"""

from __future__ import annotations

import random
import struct
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable

Random = random.Random

DATA = Path(__file__).parent / "data"
CAPTURES = [DATA / "kernel-6.18", DATA / "kernel-6.18-defaults"]
LINES = [
    line
    for capture in CAPTURES
    for line in (capture / "net" / "nf_conntrack").read_bytes().splitlines(keepends=True)
]


def messages(data: bytes) -> Iterable[bytes]:
    while data:
        (length,) = struct.unpack_from("=I", data)
        length = (length + 3) & ~3
        yield data[:length]
        data = data[length:]


MESSAGES = [
    message
    for capture in CAPTURES
    for message in messages((capture / "ctnetlink.bin").read_bytes())
]

JUNK = [
    *(b"", b"\0", b"\t", b"\r", b"\n", b"\x0b", b"\xa0", b"\xd9\xa3", b" ", b"  ", b"="),
    *(b"+", b"-"),
    *(b"_", b"0", b"00", b"255", b"256", b"65535", b"65536", b"18446744073709551615", b"."),
    *(b"18446744073709551616", b"99999999999999999999", b"9" * 30, b"0" * 30, b" src=", b":"),
    *(b" [UNREPLIED]", b" [ASSURED] ", b" [OFFLOAD]", b" [HW_OFFLOAD] ", b"[", b"NONE"),
    *(b" ESTABLISHED", b" CLOSE ", b" REQUEST ", b"tcp 6 ", b"sctp 132 5 ", b"dccp 33"),
    *(b" SYN_SENT", b"TIME_WAIT\0"),
    *(b" dst=", b" dport=", b" packets=", b" bytes=", b" packets=1 bytes=2 ", b"ipv4", b"ipv6"),
]
ADDRESSES = [
    *(b"0.0.0.0", b"255.255.255.255", b"01.2.3.4", b"1.2.3", b"1.2.3.4.5", b"1.2.3.4.", b".1.2.3"),
    *(b"1..2.3", b"0x1.2.3.4", b"1.2.3.04", b"256.1.1.1", b"1.2.3.4\0", b"::", b"::1", b"1::"),
    *(b"1:2:3:4:5:6:7:8", b"1:2:3:4:5:6:7", b"1:2:3:4:5:6:7:8:9", b"::ffff:1.2.3.4", b"1::2::3"),
    *(b"fe80::1%lo", b"0000:0000:0000:0000:0000:0000:0000:000g", b"FD77:0001:0000:0000:0000:0000:"),
    *(b"FD77:0001:0000:0000:0000:0000:0000:0002", b"fd77-0001:0000:0000:0000:0000:0000:0002"),
    *(b"0000:0000:0000:0000:0000:0000:1.2.3.400", b"0000:0000:0000:0000:0000:ffff:192.0.2.100"),
    *(b"12345::", b":1", b"::0001", b"00001::", b"\xff", b"1" * 100),
]


def damaged(data: bytes, rand: Random, junk: list[bytes]) -> bytes:
    for _ in range(rand.choice((0, 1, 1, 2, 4))):
        at = rand.randrange(len(data) + 1)
        gone = rand.choice((0, 0, 1, 1, 2, 5))
        kind = rand.randrange(3)
        new = rand.choice(junk) if kind else bytes([rand.randrange(256)])
        data = data[:at] + new + data[at + gone :]
    return data


def damaged_text(rand: Random) -> bytes:
    return b"".join(damaged(rand.choice(LINES), rand, JUNK) for _ in range(rand.randrange(1, 5)))


def damaged_datagrams(rand: Random) -> list[bytes]:
    datagrams = []
    for _ in range(rand.randrange(1, 4)):
        parts = []
        for _ in range(rand.randrange(1, 4)):
            message = bytearray(rand.choice(MESSAGES))
            for _ in range(rand.choice((0, 1, 1, 2, 4))):
                # Mostly small numbers: lengths and types.
                at = rand.randrange(len(message))
                message[at] = rand.choice((0, 1, 2, 3, 4, 5, 8, 12, 20, 255, rand.randrange(256)))
            if rand.randrange(8) == 0:
                del message[rand.randrange(len(message)) :]
            parts.append(bytes(message))
        datagrams.append(b"".join(parts))
    return datagrams


def outcome(counter: Any, blocks: Iterable[bytes]) -> object:
    """What a counter makes of blocks: its tally, or the error and where it came."""
    verdicts: list[object] = []
    for block in blocks:
        try:
            verdicts.append(counter.feed(block))
        except OSError as error:  # noqa: PERF203
            return verdicts, type(error), error.errno
    tally = counter.finish()
    rows = list(zip(tally.keys, zip(*tally.columns, strict=True), strict=True))
    assert len(tally.keys) == len(rows)
    return verdicts, rows, tally[2:]


def check(blocks: list[bytes], *, netlink: bool) -> None:
    from conntrack_textfile import _speedups, ctnetlink, procfile

    if netlink:
        twins = _speedups.NetlinkCounter(), ctnetlink.Counter()
    else:
        twins = _speedups.TextCounter(), procfile.Counter()  # type: ignore[assignment]
    compiled, pure = (outcome(twin, blocks) for twin in twins)
    assert compiled == pure, (blocks, compiled, pure)


def one(data: bytes) -> None:
    """A first byte that says which grammar, a second where to cut, and the input."""
    if len(data) < 2:
        return
    netlink, step, rest = data[0] & 1 == 1, data[1] * 4 + 4, data[2:]
    check([rest[i : i + step] for i in range(0, len(rest), step)] + [rest], netlink=netlink)


def main(argv: list[str]) -> None:
    if "--atheris" in argv:
        import atheris

        with atheris.instrument_imports(include=["conntrack_textfile"]):
            from conntrack_textfile import ctnetlink, procfile  # noqa: F401
        argv.remove("--atheris")
        atheris.Setup(argv, one)
        atheris.Fuzz()
    seconds = float(next(arg.partition("=")[2] for arg in argv if arg.startswith("--seconds=")))
    from conntrack_textfile import _speedups

    rand = Random(1)
    rounds = 0
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        rounds += 1
        text = damaged_text(rand)
        check([text], netlink=False)
        cut = rand.randrange(len(text) + 1)
        check([text[:cut], text[cut:]], netlink=False)
        check(damaged_datagrams(rand), netlink=True)
    print(f"{rounds} rounds without a finding, on {_speedups.__file__}")


if __name__ == "__main__":
    main(sys.argv)
