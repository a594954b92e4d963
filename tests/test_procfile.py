from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conntrack_textfile import names
from conntrack_textfile.procfile import MAX_LINE, Counter
from tests import conntrack_l
from tests.conftest import DATA

if TYPE_CHECKING:
    from pathlib import Path

    from conntrack_textfile.tally import Tally

TCP = (
    b"ipv4     2 tcp      6 431999 ESTABLISHED src=10.0.0.1 dst=10.0.0.2 sport=40000 dport=443 "
    b"packets=3 bytes=300 src=10.0.0.2 dst=192.0.2.1 sport=443 dport=1024 packets=4 bytes=4000 "
    b"[ASSURED] mark=0 zone=0 use=2\n"
)
KEY = (bytes([10, 0, 0, 1]), bytes([10, 0, 0, 2]), 6, 443)

LINES = [
    line
    for name in ("kernel-6.18", "kernel-6.18-defaults")
    for line in (DATA / name / "net" / "nf_conntrack").read_bytes().splitlines(keepends=True)
]


def count(*blocks: bytes) -> Tally:
    counter = Counter()
    for block in blocks:
        counter.feed(block)
    return counter.finish()


def sums(text: bytes) -> dict[tuple[bytes, bytes, int, int], list[int]]:
    return {key: list(values) for key, values in count(text).sums.items()}


def test_there_are_captured_lines() -> None:
    assert len(LINES) == 96


def test_captures_sum_up_to_what_conntrack_prints(capture: Path) -> None:
    expected = conntrack_l.read((capture / "conntrack-L.txt").read_text())
    tally = count((capture / "net" / "nf_conntrack").read_bytes())
    found = {
        (
            str(ipaddress.ip_address(src)),
            str(ipaddress.ip_address(dst)),
            "ipv4" if len(src) == 4 else "ipv6",
            names.l4protocol(l4),
            str(dport),
        ): list(values)
        for (src, dst, l4, dport), values in tally.sums.items()
    }
    assert found == expected.sums
    assert tally.malformed == 0
    assert tally.uncounted == expected.uncounted
    for counts, printed in ((tally.states, expected.states), (tally.flags, expected.flags)):
        assert {
            ("ipv4" if l3 == 4 else "ipv6", names.l4protocol(l4), name): n
            for (l3, l4, name), n in counts.items()
        } == printed


def test_an_entry_is_counted_by_its_original_tuple() -> None:
    assert sums(TCP) == {KEY: [1, 3, 300, 4, 4000]}


def test_entries_of_one_key_are_summed() -> None:
    other = TCP.replace(b"sport=40000", b"sport=40001").replace(b"packets=3", b"packets=5")
    assert sums(TCP + other) == {KEY: [2, 8, 600, 8, 8000]}


def test_an_entry_without_accounting_counts_as_a_connection() -> None:
    bare = TCP.replace(b"packets=3 bytes=300 ", b"").replace(b"packets=4 bytes=4000 ", b"")
    tally = count(bare)
    assert {key: list(values) for key, values in tally.sums.items()} == {KEY: [1, 0, 0, 0, 0]}
    assert tally.uncounted == 1


def test_a_lone_second_pair_is_the_reply() -> None:
    assert sums(TCP.replace(b"packets=3 bytes=300 ", b"")) == {KEY: [1, 0, 0, 4, 4000]}


def test_a_lone_first_pair_is_the_original() -> None:
    tally = count(TCP.replace(b"packets=4 bytes=4000 ", b""))
    assert list(tally.sums[KEY]) == [1, 3, 300, 0, 0]
    assert tally.uncounted == 0


@pytest.mark.parametrize(
    ("line", "l4", "dport"),
    [
        # Offloaded: neither timeout nor state.
        (
            b"ipv4     2 tcp      6 src=10.0.0.1 dst=10.0.0.2 sport=1 dport=2 packets=1 bytes=60 "
            b"src=10.0.0.2 dst=10.0.0.1 sport=2 dport=1 packets=1 bytes=60 [OFFLOAD] mark=0 use=3",
            6,
            2,
        ),
        (
            b"ipv4     2 udp      17 src=10.0.0.1 dst=10.0.0.2 sport=1 dport=53 packets=1 bytes=60 "
            b"src=10.0.0.2 dst=10.0.0.1 sport=53 dport=1 packets=1 bytes=60 [HW_OFFLOAD] "
            b"mark=0 secctx=system_u:object_r:unlabeled_t:s0 zone=0 delta-time=5 use=3",
            17,
            53,
        ),
        (
            b"ipv4     2 dccp     33 60 PARTOPEN src=10.0.0.1 dst=10.0.0.2 sport=1 dport=5004 "
            b"packets=1 bytes=60 src=10.0.0.2 dst=10.0.0.1 sport=5004 dport=1 packets=1 bytes=60 "
            b"mark=0 use=1",
            33,
            5004,
        ),
        (
            b"ipv4     2 gre      47 28 timeout=30, stream_timeout=180 src=10.0.0.1 dst=10.0.0.2 "
            b"srckey=0x0 dstkey=0x2a packets=1 bytes=60 [UNREPLIED] src=10.0.0.2 dst=10.0.0.1 "
            b"srckey=0x2a dstkey=0x0 packets=1 bytes=60 mark=0 use=2",
            47,
            0,
        ),
        # Zones stand between the tuple and the counters.
        (
            b"ipv4     2 udp      17 29 src=10.0.0.1 dst=10.0.0.2 sport=1 dport=7 zone-orig=3 "
            b"packets=1 bytes=60 src=10.0.0.2 dst=10.0.0.1 sport=7 dport=1 zone-reply=4 "
            b"packets=1 bytes=60 mark=0 use=2",
            17,
            7,
        ),
        (
            b"ipv4     2 unknown  255 599 src=10.0.0.1 dst=10.0.0.2 packets=1 bytes=60 "
            b"src=10.0.0.2 dst=10.0.0.1 packets=1 bytes=60 mark=0 use=2",
            255,
            0,
        ),
    ],
    ids=["offload", "hw-offload", "dccp", "gre", "zones", "unknown"],
)
def test_every_shape_of_line_is_read(line: bytes, l4: int, dport: int) -> None:
    assert sums(line) == {(*KEY[:2], l4, dport): [1, 1, 60, 1, 60]}


HEAD = b"ipv4     2 tcp      6 431999 ESTABLISHED "


@pytest.mark.parametrize(
    ("head", "state"),
    [
        (HEAD, (4, 6, "ESTABLISHED")),
        (b"ipv4     2 tcp      6 SYN_SENT ", (4, 6, "SYN_SENT")),
        (b"ipv4     2 tcp      6 119 SYN_SENT2 ", (4, 6, "SYN_SENT2")),
        (b"ipv4     2 sctp     132 8 HEARTBEAT_ACKED ", (4, 132, "HEARTBEAT_ACKED")),
        (b"ipv4     2 dccp     33 8 CLOSEREQ ", (4, 33, "CLOSEREQ")),
        # Not the state of that protocol, or of a kernel to come.
        (b"ipv4     2 dccp     33 8 ESTABLISHED ", (4, 33, "unknown")),
        (b"ipv4     2 tcp      6 8 ESTABLISHEDX ", (4, 6, "unknown")),
        (b"ipv4     2 tcp      6 8 ESTABLISH ", (4, 6, "unknown")),
        (b"ipv4     2 tcp      6 8 NEW_AND_MUCH_LONGER_THAN_ANY ", (4, 6, "unknown")),
        # Offloaded, an unnamed protocol, and protocols without states.
        (b"ipv4     2 tcp      6 ", None),
        (b"ipv4     2 unknown  33 599 ", None),
        (b"ipv4     2 gre      47 28 timeout=30, stream_timeout=180 ", None),
        (b"ipv4     2 udp      17 28 ESTABLISHED ", None),
    ],
)
def test_the_state_stands_before_the_original_tuple(
    head: bytes, state: tuple[int, int, str] | None
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
    assert count(line).flags == {(4, 6, flag): 1 for flag in counted}


def test_what_is_malformed_has_neither_state_nor_flags() -> None:
    tally = count(TCP.replace(b"dport=443", b"dport=x"))
    assert (tally.malformed, tally.states, tally.flags) == (1, {}, {})


def test_the_last_line_needs_no_newline() -> None:
    assert count(TCP.rstrip()) == count(TCP)


def test_empty_lines_are_no_entries() -> None:
    assert count(b"\n\n" + TCP + b"\n") == count(TCP)


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
    ],
    ids=lambda line: repr(line[:60]),
)
def test_what_is_no_entry_is_malformed_and_skipped(line: bytes) -> None:
    tally = count(line.rstrip(b"\n") + b"\n" + TCP)
    assert tally.malformed == 1
    assert tally.uncounted == 0
    assert {key: list(values) for key, values in tally.sums.items()} == {KEY: [1, 3, 300, 4, 4000]}


def test_counters_reach_to_64_bits_and_sums_beyond() -> None:
    most = 2**64 - 1
    line = TCP.replace(b"bytes=300", b"bytes=%d" % most)
    assert sums(line * 3)[KEY][2] == 3 * most


def test_a_line_without_end_costs_no_memory() -> None:
    counter = Counter()
    for _ in range(100):
        counter.feed(b"src=" * 10_000)
        assert len(counter._tail) <= MAX_LINE
    counter.feed(b"\n" + TCP)
    tally = counter.finish()
    assert tally.malformed == 1
    assert list(tally.sums) == [KEY]


@pytest.mark.parametrize("length", [MAX_LINE, MAX_LINE + 1])
@pytest.mark.parametrize("step", [1 << 20, 1000])
def test_the_limit_of_a_line_is_the_same_however_it_is_cut(length: int, step: int) -> None:
    line = TCP.rstrip(b"\n").ljust(length, b"x") + b"\n"
    tally = count(*(line[i : i + step] for i in range(0, len(line), step)))
    assert tally.malformed == (length > MAX_LINE)


@st.composite
def tables(draw: st.DrawFn) -> bytes:
    """Captured lines, some of them damaged."""
    lines = draw(st.lists(st.sampled_from(LINES), max_size=6))
    damaged = []
    for line in lines:
        at = draw(st.integers(0, len(line)))
        junk = draw(
            st.sampled_from([b"", b"\0", b"\t", b"\r", b" ", b"=", b"9" * 25, b" src=", b"\n"])
            | st.binary(max_size=4)
        )
        gone = draw(st.integers(0, 3))
        damaged.append(draw(st.sampled_from([line, line[:at] + junk + line[at + gone :]])))
    return b"".join(damaged)


@given(tables(), st.lists(st.integers(1, 400), max_size=20))
def test_where_blocks_are_cut_does_not_matter(table: bytes, cuts: list[int]) -> None:
    blocks = []
    rest = table
    for cut in cuts:
        blocks.append(rest[:cut])
        rest = rest[cut:]
    whole = count(table)
    assert count(*blocks, rest) == whole
    assert count(*(table[i : i + 1] for i in range(len(table)))) == whole


@given(tables())
def test_every_line_is_an_entry_or_malformed(table: bytes) -> None:
    tally = count(table)
    entries = sum(values[0] for values in tally.sums.values())
    assert entries + tally.malformed == sum(1 for line in table.split(b"\n") if line)
    assert tally.uncounted <= entries


@given(st.binary(max_size=2000))
def test_any_bytes_are_survived(junk: bytes) -> None:
    count(junk)
