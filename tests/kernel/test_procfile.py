from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conntrack_textfile.kernel.procfile import Decoder, parse
from conntrack_textfile.kernel.uapi import MAX_LINE
from conntrack_textfile.plan import Plan
from tests import conntrack_l, tables
from tests.tables import TCP

if TYPE_CHECKING:
    from pathlib import Path
    from random import Random

    from conntrack_textfile.tally import Tally

BY = ("src", "dst", "l3protocol", "l4protocol", "dport")
GROUP = ("10.0.0.1", "10.0.0.2", "ipv4", "tcp", "443")


def count(*blocks: bytes) -> Tally:
    decoder = Decoder(Plan(labels=BY))
    for block in blocks:
        decoder.feed(block)
    return decoder.finish()


def sums(*blocks: bytes) -> dict[tuple[str, ...], list[int]]:
    return tables.sums(count(*blocks))


def same(one: Tally, other: Tally) -> bool:
    return tables.beside_groups(one) == tables.beside_groups(other) and (
        tables.sums(one) == tables.sums(other)
    )


def test_captures_sum_up_to_what_conntrack_prints(capture: Path) -> None:
    expected = conntrack_l.read((capture / "conntrack-L.txt").read_text())
    tally = count((capture / "net" / "nf_conntrack").read_bytes())
    assert (tally.malformed, tally.first_malformed, tally.filtered) == (0, b"", 0)
    assert (tally.entries, tally.uncounted) == (expected.entries, expected.uncounted)
    assert (tally.states, tally.flags) == (expected.states, expected.flags)
    assert [sum(column) for column in zip(*tally.protocols.values(), strict=True)] == (
        expected.totals
    )
    assert tables.sums(tally) == expected.sums


def test_an_entry_is_counted_by_its_original_tuple() -> None:
    assert sums(TCP) == {GROUP: [1, 3, 300, 4, 4000]}


def test_entries_of_one_group_are_summed() -> None:
    other = TCP.replace(b"sport=40000", b"sport=40001").replace(b"packets=3", b"packets=5")
    assert sums(TCP + other) == {GROUP: [2, 8, 600, 8, 8000]}


def test_an_entry_without_accounting_counts_as_a_connection() -> None:
    bare = TCP.replace(b"packets=3 bytes=300 ", b"").replace(b"packets=4 bytes=4000 ", b"")
    tally = count(bare)
    assert tally.uncounted == 1
    assert tables.sums(tally) == {GROUP: [1, 0, 0, 0, 0]}


def test_a_lone_second_pair_is_the_reply() -> None:
    assert sums(TCP.replace(b"packets=3 bytes=300 ", b"")) == {GROUP: [1, 0, 0, 4, 4000]}


def test_a_lone_first_pair_is_the_original() -> None:
    tally = count(TCP.replace(b"packets=4 bytes=4000 ", b""))
    assert tally.uncounted == 0
    assert tables.sums(tally) == {GROUP: [1, 3, 300, 0, 0]}


@pytest.mark.parametrize(
    ("line", "l4", "dport"),
    [
        # Offloaded: neither timeout nor state.
        (
            b"ipv4     2 tcp      6 src=10.0.0.1 dst=10.0.0.2 sport=1 dport=2 packets=1 bytes=60 "
            b"src=10.0.0.2 dst=10.0.0.1 sport=2 dport=1 packets=1 bytes=60 [OFFLOAD] mark=0 use=3",
            "tcp",
            "2",
        ),
        (
            b"ipv4     2 udp      17 src=10.0.0.1 dst=10.0.0.2 sport=1 dport=53 packets=1 bytes=60 "
            b"src=10.0.0.2 dst=10.0.0.1 sport=53 dport=1 packets=1 bytes=60 [HW_OFFLOAD] "
            b"mark=0 secctx=system_u:object_r:unlabeled_t:s0 zone=0 delta-time=5 use=3",
            "udp",
            "53",
        ),
        (
            b"ipv4     2 dccp     33 60 PARTOPEN src=10.0.0.1 dst=10.0.0.2 sport=1 dport=5004 "
            b"packets=1 bytes=60 src=10.0.0.2 dst=10.0.0.1 sport=5004 dport=1 packets=1 bytes=60 "
            b"mark=0 use=1",
            "dccp",
            "5004",
        ),
        (
            b"ipv4     2 gre      47 28 timeout=30, stream_timeout=180 src=10.0.0.1 dst=10.0.0.2 "
            b"srckey=0x0 dstkey=0x2a packets=1 bytes=60 [UNREPLIED] src=10.0.0.2 dst=10.0.0.1 "
            b"srckey=0x2a dstkey=0x0 packets=1 bytes=60 mark=0 use=2",
            "gre",
            "0",
        ),
        # Zones stand between the tuple and the counters.
        (
            b"ipv4     2 udp      17 29 src=10.0.0.1 dst=10.0.0.2 sport=1 dport=7 zone-orig=3 "
            b"packets=1 bytes=60 src=10.0.0.2 dst=10.0.0.1 sport=7 dport=1 zone-reply=4 "
            b"packets=1 bytes=60 mark=0 use=2",
            "udp",
            "7",
        ),
        (
            b"ipv4     2 unknown  255 599 src=10.0.0.1 dst=10.0.0.2 packets=1 bytes=60 "
            b"src=10.0.0.2 dst=10.0.0.1 packets=1 bytes=60 mark=0 use=2",
            "255",
            "0",
        ),
    ],
    ids=["offload", "hw-offload", "dccp", "gre", "zones", "unknown"],
)
def test_every_shape_of_line_is_read(line: bytes, l4: str, dport: str) -> None:
    assert sums(line) == {(*GROUP[:3], l4, dport): [1, 1, 60, 1, 60]}


HEAD = b"ipv4     2 tcp      6 431999 ESTABLISHED "


@pytest.mark.parametrize(
    ("head", "state"),
    [
        (HEAD, ("ipv4", "tcp", "ESTABLISHED")),
        (b"ipv4     2 tcp      6 SYN_SENT ", ("ipv4", "tcp", "SYN_SENT")),
        (b"ipv4     2 tcp      6 119 SYN_SENT2 ", ("ipv4", "tcp", "SYN_SENT2")),
        (b"ipv4     2 sctp     132 8 HEARTBEAT_ACKED ", ("ipv4", "sctp", "HEARTBEAT_ACKED")),
        (b"ipv4     2 dccp     33 8 CLOSEREQ ", ("ipv4", "dccp", "CLOSEREQ")),
        # A state of another protocol, or of a later kernel.
        (b"ipv4     2 dccp     33 8 ESTABLISHED ", ("ipv4", "dccp", "unknown")),
        (b"ipv4     2 tcp      6 8 ESTABLISHEDX ", ("ipv4", "tcp", "unknown")),
        (b"ipv4     2 tcp      6 8 ESTABLISH ", ("ipv4", "tcp", "unknown")),
        (b"ipv4     2 tcp      6 8 NEW_AND_MUCH_LONGER_THAN_ANY ", ("ipv4", "tcp", "unknown")),
        # Offloaded, an unnamed protocol, and protocols without states.
        (b"ipv4     2 tcp      6 ", None),
        (b"ipv4     2 unknown  33 599 ", None),
        (b"ipv4     2 gre      47 28 timeout=30, stream_timeout=180 ", None),
        (b"ipv4     2 udp      17 28 ESTABLISHED ", None),
    ],
)
def test_the_state_stands_before_the_original_tuple(
    head: bytes, state: tuple[str, str, str] | None
) -> None:
    tally = count(TCP.replace(HEAD, head))
    assert tally.malformed == 0
    assert tally.states == ({state: 1} if state else {})


@pytest.mark.parametrize(
    ("flags", "unreplied", "counted"),
    [
        (b"[ASSURED] ", False, ["assured"]),
        (b"[OFFLOAD] ", False, ["offload"]),
        (b"[HW_OFFLOAD] ", False, ["hw_offload"]),
        (b"", True, ["unreplied"]),
        (b"[ASSURED] ", True, ["assured", "unreplied"]),
        (b"", False, []),
        (b"[NEW] ", False, []),
        (b"[ASSURED]x ", False, []),
        (b"secctx=[ASSURED] ", False, []),
    ],
)
def test_flags_stand_in_brackets(flags: bytes, unreplied: bool, counted: list[str]) -> None:
    line = TCP.replace(b"[ASSURED] ", flags)
    if unreplied:
        line = line.replace(b"src=10.0.0.2", b"[UNREPLIED] src=10.0.0.2")
    assert count(line).flags == {("ipv4", "tcp", flag): 1 for flag in counted}


def test_a_malformed_line_counts_no_state_and_no_flag() -> None:
    tally = count(TCP.replace(b"dport=443", b"dport=x"))
    assert (tally.malformed, tally.states, tally.flags) == (1, {}, {})


def test_the_last_line_needs_no_newline() -> None:
    assert same(count(TCP.rstrip()), count(TCP))


def test_empty_lines_are_no_entries() -> None:
    assert same(count(b"\n\n" + TCP + b"\n"), count(TCP))


@pytest.mark.parametrize(
    "line",
    [
        b"\0",
        b" ",
        b"\r",
        b"ipv4",
        b"x" * 1_000_000,
        TCP[:100],  # cut before the reply
        TCP.replace(b"packets=3", b"packets=1" + b"0" * 30),
        TCP.replace(b"bytes=4000", b"bytes=18446744073709551616"),
        TCP.replace(b"packets=3", b"packets=+3"),
        TCP.replace(b"packets=3", b"packets=1_0"),
        TCP.replace(b"packets=3", "packets=٣".encode()),
        TCP.replace(b"packets=3", b"packets="),
        TCP.replace(b"bytes=300", b"octets=300"),
        TCP.replace(b"bytes=300", b"bytes=300\0"),
        TCP.replace(b"bytes=4000 ", b"bytes=4000\t"),
        TCP.replace(b"packets=4 bytes", b"packets=4  bytes"),
        TCP.replace(b"dport=443", b"dport=65536"),
        TCP.replace(b"dport=443", b"dport=44x"),
        TCP.replace(b"dport=443", b"dport="),
        TCP.replace(b"src=10.0.0.1", b"src=10.0.0.256"),
        TCP.replace(b"src=10.0.0.1", b"src="),
        TCP.replace(b"src=10.0.0.1", b"src=fe80::1"),
        TCP.replace(b"dst=10.0.0.2", b"dst=10.0.0.2\0"),
        TCP.replace(b"dst=10.0.0.2", b"dst=\xff"),
        TCP.replace(b" dst=10.0.0.2", b""),
        TCP.replace(b"ipv4     2", b"ipv4     10"),
        TCP.replace(b"ipv4     2", b"ipv5     2"),
        TCP.replace(b"ipv4     2", b"ipv4\t2"),
        TCP.replace(b"tcp      6", b"tcp      256"),
        TCP.replace(b"tcp      6", b"tcp      -6"),
        TCP.replace(b"mark=0", b"secctx=" + b"c" * MAX_LINE),
        TCP.replace(b"mark=0", b"mark=4294967296"),
        TCP.replace(b"mark=0", b"mark=0x2a"),
        TCP.replace(b"mark=0", b"mark="),
        TCP.replace(b"zone=0", b"zone=65536"),
        TCP.replace(b"zone=0", b"zone=-1"),
        TCP.replace(b"packets=3", b"zone-orig=x packets=3"),
        TCP.replace(b"src=10.0.0.2", b"src=10.0.0"),
        TCP.replace(b"src=10.0.0.2 dst=192.0.2.1", b"src=::1 dst=::2"),
        TCP.replace(b"dst=192.0.2.1", b"dst="),
        TCP.replace(b" dst=192.0.2.1", b""),
    ],
    ids=lambda line: repr(line[:60]),
)
def test_a_malformed_line_is_counted_and_skipped(line: bytes) -> None:
    tally = count(line.rstrip(b"\n") + b"\n" + TCP)
    assert tally.malformed == 1
    assert tally.uncounted == 0
    assert tally.first_malformed == line.rstrip(b"\n")[: MAX_LINE + 1]
    assert tables.sums(tally) == {GROUP: [1, 3, 300, 4, 4000]}


def test_counters_reach_to_64_bits_and_sums_beyond() -> None:
    most = 2**64 - 1
    line = TCP.replace(b"bytes=300", b"bytes=%d" % most)
    assert sums(line * 3)[GROUP][2] == 3 * most


def test_an_endless_line_has_bounded_memory() -> None:
    decoder = Decoder(Plan(labels=BY))
    for _ in range(100):
        decoder.feed(b"src=" * 10_000)
        assert len(decoder._tail) <= MAX_LINE
    decoder.feed(b"\n" + TCP)
    tally = decoder.finish()
    assert tally.malformed == 1
    assert list(tables.sums(tally)) == [GROUP]


@pytest.mark.parametrize("length", [MAX_LINE, MAX_LINE + 1])
@pytest.mark.parametrize("step", [1 << 20, 1000])
def test_the_limit_of_a_line_is_the_same_however_it_is_cut(length: int, step: int) -> None:
    line = TCP.rstrip(b"\n").ljust(length, b"x") + b"\n"
    tally = count(*(line[i : i + step] for i in range(0, len(line), step)))
    assert tally.malformed == (length > MAX_LINE)


def test_the_first_malformed_line_is_kept() -> None:
    tally = count(TCP, b"first\n" + TCP + b"second\nthi", b"rd")
    assert (tally.malformed, tally.first_malformed) == (3, b"first")


# An entry with all fields that the kernel writes.
FULL = (
    b"ipv4     2 tcp      6 431999 ESTABLISHED src=10.0.0.1 dst=10.0.0.2 sport=40000 dport=443 "
    b"zone-orig=5 packets=3 bytes=300 [UNREPLIED] src=10.0.0.3 dst=192.0.2.1 sport=443 dport=1024 "
    b"zone-reply=6 packets=4 bytes=4000 [ASSURED] mark=4294967295 secctx=a:b:c zone=7 delta-time=1 "
    b"use=2"
)


def test_all_fields_of_an_entry() -> None:
    entry = parse(FULL)
    assert (entry.l3, entry.l4, entry.dport, entry.zone, entry.mark) == (4, 6, 443, 5, 2**32 - 1)
    addresses = (entry.src, entry.dst, entry.reply_src, entry.reply_dst)
    assert [str(ipaddress.ip_address(address)) for address in addresses] == [
        *("10.0.0.1", "10.0.0.2", "10.0.0.3", "192.0.2.1")
    ]
    assert entry.counters == (3, 300, 4, 4000)
    assert (entry.state, entry.unreplied, entry.flag) == ("ESTABLISHED", True, "assured")


@pytest.mark.parametrize(
    ("old", "new", "zone"),
    [
        (b"", b"", 5),
        (b"zone-orig=5 ", b"", 7),
        # A zone of the reply direction alone does not count.
        (b"zone-orig=5 packets=3 bytes=300 [UNREPLIED] ", b"", 7),
        (b"zone-orig=5", b"zone-orig=65535", 65535),
        (b"zone-orig=5 packets=3 bytes=300", b"packets=3 bytes=300 zone-orig=5", 7),
    ],
)
def test_the_zone_is_that_of_the_original_direction(old: bytes, new: bytes, zone: int) -> None:
    assert parse(FULL.replace(old, new)).zone == zone
    if zone == 7:
        assert parse(FULL.replace(old, new).replace(b"zone=7 ", b"")).zone == 0


def test_an_entry_without_a_mark_has_mark_0() -> None:
    assert parse(FULL.replace(b"mark=4294967295 ", b"")).mark == 0
    # A security context may hold anything but spaces.
    assert parse(FULL.replace(b"mark=4294967295 secctx=a", b"secctx=mark=3,zone=4")).mark == 0


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        (b" src=10.0.0.3", b"", "no two tuples that begin with src="),
        (b"ipv4 ", b"ipx ", "does not begin with the names and numbers of two protocols"),
        (b"tcp      6", b"tcp      256", "its protocol number is not a number up to 255"),
        (b"packets=3", b"packets=x", "its packets= and bytes= are not two numbers of 64 bits"),
        (b"bytes=4000", b"bytes=18446744073709551616", "not two numbers of 64 bits"),
        (b"dport=443", b"dport=65536", "its dport is not a number up to 65535"),
        (b"zone-orig=5", b"zone-orig=65536", "its zone is not a number up to 65535"),
        (b"mark=4294967295", b"mark=4294967296", "its mark is not a number up to 4294967295"),
        (b"10.0.0.1 ", b"10.0.0 ", "its src= and dst= are not IPv4 addresses"),
        (b"192.0.2.1", b"::1", "its src= and dst= are not IPv4 addresses"),
        (b"a:b:c", b"x" * MAX_LINE, f"a line longer than {MAX_LINE} bytes"),
    ],
)
def test_a_malformed_line_has_a_reason(old: bytes, new: bytes, reason: str) -> None:
    assert old in FULL
    with pytest.raises(ValueError, match=reason):
        parse(FULL.replace(old, new))


RANDOM = st.randoms(use_true_random=False)


@given(RANDOM)
def test_the_tally_does_not_depend_on_block_boundaries(rand: Random) -> None:
    text = tables.damaged_text(rand)
    assert same(count(*tables.cut(text, rand)), count(text))
    assert same(count(*(text[i : i + 1] for i in range(len(text)))), count(text))


@given(RANDOM)
def test_every_line_is_an_entry_or_malformed(rand: Random) -> None:
    text = tables.damaged_text(rand)
    tally = count(text)
    assert tally.entries + tally.malformed == sum(1 for line in text.split(b"\n") if line)
    assert tally.uncounted <= tally.entries
    assert sum(row[0] for row in tables.sums(tally).values()) == tally.entries


@given(st.binary(max_size=2000))
def test_any_bytes_are_accepted(junk: bytes) -> None:
    count(junk)
