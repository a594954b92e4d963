from __future__ import annotations

import errno
import ipaddress
import struct
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conntrack_textfile.kernel import uapi
from conntrack_textfile.kernel.ctnetlink import Decoder, parse
from conntrack_textfile.plan import Plan
from tests import conntrack_l, tables
from tests.tables import MESSAGES, attribute, control, message, nest

if TYPE_CHECKING:
    from pathlib import Path
    from random import Random

    from conntrack_textfile.tally import Tally

BY = ("src", "dst", "l3protocol", "l4protocol", "dport")


def count(*datagrams: bytes) -> Tally:
    decoder = Decoder(Plan(labels=BY))
    for datagram in datagrams:
        decoder.feed(datagram)
    return decoder.finish()


def test_captures_sum_up_to_what_conntrack_prints(capture: Path) -> None:
    expected = conntrack_l.read((capture / "conntrack-L.txt").read_text())
    tally = count((capture / "ctnetlink.bin").read_bytes())
    assert (tally.malformed, tally.first_malformed, tally.filtered) == (0, b"", 0)
    assert (tally.entries, tally.uncounted) == (expected.entries, expected.uncounted)
    assert (tally.states, tally.flags) == (expected.states, expected.flags)
    assert tables.sums(tally) == expected.sums


def test_the_tally_does_not_depend_on_datagram_boundaries(capture: Path) -> None:
    dump = (capture / "ctnetlink.bin").read_bytes()
    whole, parts = count(dump), count(*tables.messages(dump))
    assert tables.beside_groups(whole) == tables.beside_groups(parts)
    assert tables.sums(whole) == tables.sums(parts)


SRC, DST = (
    attribute(uapi.CTA_IP_V4_SRC, b"\x0a\0\0\1"),
    attribute(uapi.CTA_IP_V4_DST, b"\x0a\0\0\2"),
)
REPLY_IP = nest(
    uapi.CTA_TUPLE_IP,
    attribute(uapi.CTA_IP_V4_SRC, b"\x0a\0\0\3"),
    attribute(uapi.CTA_IP_V4_DST, b"\xc0\0\2\1"),
)
IP = nest(uapi.CTA_TUPLE_IP, SRC, DST)
NUMBER, DPORT = attribute(uapi.CTA_PROTO_NUM, b"\6"), attribute(uapi.CTA_PROTO_DST_PORT, b"\1\xbb")
PROTO = nest(uapi.CTA_TUPLE_PROTO, NUMBER, DPORT)
TUPLE_ZONE = attribute(uapi.CTA_TUPLE_ZONE, b"\0\5")
ORIG = nest(uapi.CTA_TUPLE_ORIG, IP, PROTO, TUPLE_ZONE)
REPLY = nest(uapi.CTA_TUPLE_REPLY, REPLY_IP, PROTO, attribute(uapi.CTA_TUPLE_ZONE, b"\0\6"))
ZONE = attribute(uapi.CTA_ZONE, b"\0\7")
MARK = attribute(uapi.CTA_MARK, b"\xde\xad\xbe\xef")
STATUS = attribute(uapi.CTA_STATUS, struct.pack("!I", uapi.IPS_ASSURED))
STATE = attribute(uapi.CTA_PROTOINFO_STATE, b"\3")
INFO = nest(uapi.CTA_PROTOINFO, nest(uapi.CTA_PROTOINFO_TCP, STATE))
PACKETS = attribute(uapi.CTA_COUNTERS_PACKETS, struct.pack("!Q", 3))
BYTES = attribute(uapi.CTA_COUNTERS_BYTES, struct.pack("!Q", 300))
SENT = nest(uapi.CTA_COUNTERS_ORIG, PACKETS, BYTES)
RECEIVED = nest(uapi.CTA_COUNTERS_REPLY, PACKETS, BYTES)
PARTS = (ORIG, REPLY, ZONE, MARK, STATUS, INFO, SENT, RECEIVED)


def without(*parts: bytes) -> bytes:
    return message(2, *(part for part in PARTS if part not in parts))


def with_(old: bytes, new: bytes) -> bytes:
    """Return a message with one part replaced."""
    assert old in PARTS
    return message(2, *(new if part == old else part for part in PARTS))


def test_all_fields_of_an_entry() -> None:
    entry = parse(message(2, *PARTS))
    assert (entry.l3, entry.l4, entry.dport, entry.zone, entry.mark) == (4, 6, 443, 5, 0xDEADBEEF)
    addresses = (entry.src, entry.dst, entry.reply_src, entry.reply_dst)
    assert [str(ipaddress.ip_address(address)) for address in addresses] == [
        *("10.0.0.1", "10.0.0.2", "10.0.0.3", "192.0.2.1")
    ]
    assert entry.counters == (3, 300, 3, 300)
    assert (entry.state, entry.unreplied, entry.flag) == ("ESTABLISHED", True, "assured")


def test_optional_attributes_may_be_missing() -> None:
    entry = parse(message(2, nest(1, IP, nest(2, NUMBER)), REPLY))
    assert (entry.dport, entry.zone, entry.mark, entry.counters) == (0, 0, 0, None)
    assert (entry.state, entry.unreplied, entry.flag) == ("", False, "")
    assert parse(without(SENT)).counters == (0, 0, 3, 300)
    assert parse(without(RECEIVED)).counters == (3, 300, 0, 0)


def test_the_zone_is_that_of_the_original_direction() -> None:
    plain = nest(uapi.CTA_TUPLE_ORIG, IP, PROTO)
    assert parse(with_(ORIG, plain)).zone == 7
    # A zone of the reply direction alone does not count.
    assert parse(message(2, plain, REPLY)).zone == 0


def test_unknown_attributes_are_ignored() -> None:
    more = [attribute(kind, b"?" * kind) for kind in (7, 13, 22, 25, 99)]
    assert parse(message(2, *more, *PARTS, *more)) == parse(message(2, *PARTS))
    # Of a repeated attribute the last counts.
    assert parse(message(2, *PARTS, attribute(uapi.CTA_MARK, b"\0\0\0\1"))).mark == 1


def test_gre_has_no_port() -> None:
    gre = nest(2, attribute(uapi.CTA_PROTO_NUM, b"\x2f"), DPORT)
    assert parse(with_(ORIG, nest(1, IP, gre))).dport == 0


def test_a_state_of_a_later_kernel_is_unknown() -> None:
    later = nest(uapi.CTA_PROTOINFO, nest(1, attribute(uapi.CTA_PROTOINFO_STATE, b"\x0a")))
    assert parse(with_(INFO, later)).state == "unknown"
    assert parse(with_(INFO, nest(uapi.CTA_PROTOINFO))).state == ""


@pytest.mark.parametrize(
    ("status", "unreplied", "flag"),
    [
        (0, True, ""),
        (uapi.IPS_SEEN_REPLY, False, ""),
        (uapi.IPS_SEEN_REPLY | uapi.IPS_ASSURED, False, "assured"),
        (uapi.IPS_ASSURED | uapi.IPS_OFFLOAD, True, "offload"),
        (uapi.IPS_SEEN_REPLY | uapi.IPS_OFFLOAD | uapi.IPS_HW_OFFLOAD, False, "hw_offload"),
    ],
)
def test_flags_are_those_of_the_proc_file(status: int, unreplied: bool, flag: str) -> None:
    entry = parse(with_(STATUS, attribute(uapi.CTA_STATUS, struct.pack("!I", status))))
    assert (entry.unreplied, entry.flag) == (unreplied, flag)


SHORT = attribute(uapi.CTA_TUPLE_PROTO, NUMBER[:-4])


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "length does not add up"),
        (message(2, *PARTS)[:-1], "length does not add up"),
        (control(0x100, payload=b"\2\0"), "length does not add up"),
        (message(7, *PARTS), "its address family is 7"),
        (message(2, *PARTS, b"\3\0\1\0"), "its attributes have lengths that do not add up"),
        (message(2, *PARTS, b"\x09\0\1\0"), "its attributes have lengths that do not add up"),
        (message(2, *PARTS, b"\4"), "its attributes have lengths that do not add up"),
        (without(ORIG), "CTA_TUPLE_ORIG is missing"),
        (without(REPLY), "CTA_TUPLE_REPLY is missing"),
        (with_(REPLY, nest(2)), "CTA_TUPLE_IP is missing"),
        (with_(REPLY, nest(2, nest(1, SRC))), "addresses"),
        (with_(ORIG, nest(1, nest(1, SRC, DST))), "CTA_TUPLE_PROTO is missing"),
        (with_(ORIG, nest(1, IP, nest(2, DPORT))), "CTA_PROTO_NUM has 0 bytes, not 1"),
        (with_(ORIG, nest(1, IP, SHORT)), "do not add up"),
        (
            with_(ORIG, nest(1, IP, nest(2, NUMBER, attribute(3, b"\1")))),
            "CTA_PROTO_DST_PORT has 1",
        ),
        (with_(ORIG, nest(1, IP, PROTO, attribute(3, bytes(4)))), "CTA_TUPLE_ZONE has 4 bytes"),
        (message(10, *PARTS), "addresses"),
        (with_(ZONE, attribute(uapi.CTA_ZONE, b"\1")), "CTA_ZONE has 1 bytes, not 2"),
        (message(2, *PARTS, attribute(uapi.CTA_ID, bytes(5))), "CTA_ID has 5 bytes, not 4"),
        (
            message(2, *PARTS, nest(uapi.CTA_TIMESTAMP, attribute(1, b"\1"))),
            "CTA_TIMESTAMP_START has 1 bytes, not 8",
        ),
        (
            with_(ORIG, nest(1, IP, PROTO, attribute(99, bytes(uapi.MAX_TUPLE)))),
            "CTA_TUPLE_ORIG has more than 480 bytes",
        ),
        (with_(MARK, attribute(uapi.CTA_MARK, b"")), "CTA_MARK has 0 bytes, not 4"),
        (with_(STATUS, attribute(uapi.CTA_STATUS, bytes(8))), "CTA_STATUS has 8 bytes, not 4"),
        (with_(SENT, nest(9, PACKETS)), "CTA_COUNTERS_BYTES has 0 bytes, not 8"),
        (with_(RECEIVED, nest(10, BYTES)), "CTA_COUNTERS_PACKETS has 0 bytes, not 8"),
        (with_(INFO, nest(4, nest(1))), "CTA_PROTOINFO_STATE has 0 bytes, not 1"),
    ],
)
def test_a_malformed_message_has_a_reason(data: bytes, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        parse(data)
    good = message(2, *PARTS)
    tally = count(good, data)
    assert (tally.malformed, tally.first_malformed) == (bool(data), data)
    assert (tally.entries, tally.uncounted) == (1, 0)
    assert tables.sums(tally) == {
        ("10.0.0.1", "10.0.0.2", "ipv4", "tcp", "443"): [1, 3, 300, 3, 300]
    }


def test_counters_reach_to_64_bits_and_sums_beyond() -> None:
    most = struct.pack("!Q", 2**64 - 1)
    large = nest(uapi.CTA_COUNTERS_ORIG, PACKETS, attribute(uapi.CTA_COUNTERS_BYTES, most))
    (row,) = tables.sums(count(with_(SENT, large) * 3)).values()
    assert row[2] == 3 * (2**64 - 1)


def test_other_message_types_are_ignored() -> None:
    other = [control(0x102, payload=message(2, *PARTS)[16:]), control(1)]
    assert tables.sums(count(*other)) == {}


def test_a_dump_ends_where_the_kernel_says() -> None:
    decoder = Decoder(Plan())
    assert not decoder.feed(MESSAGES[0])
    assert not decoder.feed(control(uapi.NLMSG_ERROR, payload=bytes(4)))  # an acknowledgement
    assert not decoder.feed(b"")
    assert decoder.feed(MESSAGES[1] + control(uapi.NLMSG_DONE, payload=bytes(4)) + MESSAGES[2])
    assert decoder.finish().entries == 2


@pytest.mark.parametrize(
    ("data", "number"),
    [
        (control(uapi.NLMSG_DONE, payload=struct.pack("=i", -errno.EINVAL)), errno.EINVAL),
        (control(uapi.NLMSG_ERROR, payload=struct.pack("=i", -errno.EPERM)), errno.EPERM),
        (control(uapi.NLMSG_ERROR, payload=struct.pack("=i", -5000)), errno.EPROTO),
        (control(uapi.NLMSG_ERROR, payload=struct.pack("=i", 1)), errno.EPROTO),
        (control(uapi.NLMSG_OVERRUN), errno.EINTR),
        (control(0x100, flags=uapi.NLM_F_DUMP_INTR), errno.EINTR),
    ],
)
def test_a_dump_that_fails_is_an_error(data: bytes, number: int) -> None:
    decoder = Decoder(Plan())
    with pytest.raises(OSError) as error:  # noqa: PT011  # by its number
        decoder.feed(MESSAGES[0] + data)
    assert error.value.errno == number


@given(st.randoms(use_true_random=False))
def test_every_message_is_an_entry_or_malformed(rand: Random) -> None:
    messages = [tables.damaged_message(rand) for _ in range(5)]
    # Each alone, so that none hides where the next begins.
    tallies = []
    for data in messages:
        try:
            tallies.append(count(data))
        except OSError:  # it says that the dump failed
            continue
        kind = struct.unpack_from("=H", data, 4)[0] if len(data) >= 16 else None
        if kind == uapi.IPCTNL_MSG_CT_NEW:
            assert tallies[-1].entries + tallies[-1].malformed >= 1
    for tally in tallies:
        assert sum(row[0] for row in tables.sums(tally).values()) == tally.entries


@given(st.binary(max_size=500))
def test_any_bytes_are_accepted(junk: bytes) -> None:
    try:
        count(junk)
    except OSError:
        return
