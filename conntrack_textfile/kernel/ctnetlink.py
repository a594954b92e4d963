"""The binary grammar of a ctnetlink dump.

A datagram holds whole messages; a message holds a header, the header of
nfnetlink, and attributes, some of them nested. Unknown attributes are ignored; a
known attribute of the wrong size makes its entry malformed. If an attribute is
repeated, the last one counts, as in nla_parse() of the kernel. Names and numbers
are in uapi.py. ctnetlink.pxi is the same in C.
"""

from __future__ import annotations

import errno
import os
import struct
from socket import AF_INET, AF_INET6
from typing import TYPE_CHECKING

from conntrack_textfile.kernel import uapi
from conntrack_textfile.kernel.grouping import Entry, Grouping
from conntrack_textfile.kernel.uapi import STATES, UNKNOWN_STATE
from conntrack_textfile.protocols import WITH_PORTS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from conntrack_textfile.plan import Plan
    from conntrack_textfile.tally import Tally

    Observe = Callable[[bytes, Entry, bytes], None]  # message, entry, key of the group

_NLMSGHDR = struct.Struct("=IHHII")
_LENGTH = struct.Struct("=I")
_NLATTR = struct.Struct("=HH")
_ERRNO = struct.Struct("=i")

# Source, destination and size of an address, by family.
_CTA_IP = {
    int(AF_INET): (uapi.CTA_IP_V4_SRC, uapi.CTA_IP_V4_DST, 4),
    int(AF_INET6): (uapi.CTA_IP_V6_SRC, uapi.CTA_IP_V6_DST, 16),
}

# The attribute in place of ports.
_IDS = {uapi.IPPROTO_ICMP: "CTA_PROTO_ICMP_ID", uapi.IPPROTO_ICMPV6: "CTA_PROTO_ICMPV6_ID"}

_Attributes = dict[int, bytes]


class Decoder:
    """Sum the entries of one dump: feed() datagrams, then finish()."""

    def __init__(self, plan: Plan, observe: Observe | None = None) -> None:
        self._grouping = Grouping(plan)
        self._observe = observe

    def feed(self, datagram: bytes | memoryview) -> bool:
        """Add the entries of a datagram. Return whether it ends the dump.

        Raises OSError if the dump failed, InterruptedError if it is inconsistent
        (NLM_F_DUMP_INTR, NLMSG_OVERRUN).
        """
        data = bytes(datagram)
        start = 0
        while start < len(data):
            length = _message_length(data, start)
            if length is None:  # the start of the next message is unknown, too
                self._grouping.add_malformed(data[start:])
                return False
            _, kind, flags, _, _ = _NLMSGHDR.unpack_from(data, start)
            message = data[start : start + length]
            if flags & uapi.NLM_F_DUMP_INTR or kind == uapi.NLMSG_OVERRUN:
                raise InterruptedError(errno.EINTR, os.strerror(errno.EINTR))
            if kind == uapi.IPCTNL_MSG_CT_NEW:
                self._add(message)
            elif kind in (uapi.NLMSG_DONE, uapi.NLMSG_ERROR):
                _raise_error(message[uapi.NLMSG_HDRLEN :])
                if kind == uapi.NLMSG_DONE:
                    return True
            start += _aligned(length)
        return False

    def _add(self, message: bytes) -> None:
        try:
            entry = parse(message)
        except ValueError:
            self._grouping.add_malformed(message)
            return
        group = self._grouping.add(entry)
        if self._observe is not None and group is not None:
            self._observe(message, entry, group)

    def finish(self) -> Tally:
        """Return the tally."""
        return self._grouping.tally()


def parse(message: bytes) -> Entry:
    """Parse one message with its header. Raises ValueError if the kernel would not send it."""
    length = _message_length(message)
    if length is None or length < uapi.NLMSG_HDRLEN + uapi.NFGENMSG_SIZE:
        raise ValueError("a message whose length does not add up")
    family = message[uapi.NLMSG_HDRLEN]
    if family not in _CTA_IP:
        raise ValueError(f"its address family is {family}")
    entry = _attributes(message[uapi.NLMSG_HDRLEN + uapi.NFGENMSG_SIZE : length])
    original = _nested(entry, "CTA_TUPLE_ORIG")
    reply = _nested(entry, "CTA_TUPLE_REPLY")
    src, dst = _addresses(original, family)
    reply_src, reply_dst = _addresses(reply, family)
    protocol = _nested(original, "CTA_TUPLE_PROTO")
    l4 = _number(protocol, "CTA_PROTO_NUM", 1)
    sport, dport = _ports(protocol, l4)
    reply_sport, reply_dport = _ports(_nested(reply, "CTA_TUPLE_PROTO"), l4)
    if l4 in uapi.ID_OF:  # an echo reply has the id of its request
        reply_sport, reply_dport = reply_dport, reply_sport
    zone = _optional(entry, "CTA_ZONE", 2)
    if uapi.CTA_TIMESTAMP in entry:
        _optional(_attributes(entry[uapi.CTA_TIMESTAMP]), "CTA_TIMESTAMP_START", 8)
    _optional(entry, "CTA_ID", 4)
    if len(entry[uapi.CTA_TUPLE_ORIG]) > uapi.MAX_TUPLE:
        raise ValueError(f"CTA_TUPLE_ORIG has more than {uapi.MAX_TUPLE} bytes")
    sent = _pair(entry, "CTA_COUNTERS_ORIG")
    received = _pair(entry, "CTA_COUNTERS_REPLY")
    unreplied, flag = _flags(entry)
    return Entry(
        l3=4 if family == AF_INET else 6,
        l4=l4,
        src=src,
        dst=dst,
        dport=dport,
        reply_src=reply_src,
        reply_dst=reply_dst,
        zone=_zone(original, zone),
        mark=_optional(entry, "CTA_MARK", 4),
        counters=(*(sent or (0, 0)), *(received or (0, 0))) if sent or received else None,
        state=_state(entry, l4),
        unreplied=unreplied,
        flag=flag,
        sport=sport,
        reply_sport=reply_sport,
        reply_dport=reply_dport,
        reply_zone=_zone(reply, zone),
    )


def identity_parts(message: bytes) -> list[bytes]:
    """Return what identifies a connection: the payloads of four attributes, b"" for none.

    The original tuple, the zone, CTA_ID (a hash of 32 bits, not unique over time)
    and, where nf_conntrack_timestamp is on, the start of the connection. message: one
    that parse() accepts.
    """
    (length,) = _LENGTH.unpack_from(message)
    entry = _attributes(message[uapi.NLMSG_HDRLEN + uapi.NFGENMSG_SIZE : length])
    times = _attributes(entry.get(uapi.CTA_TIMESTAMP, b""))
    return [
        entry[uapi.CTA_TUPLE_ORIG],
        entry.get(uapi.CTA_ZONE, b""),
        entry.get(uapi.CTA_ID, b""),
        times.get(uapi.CTA_TIMESTAMP_START, b""),
    ]


def messages(datagram: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield type and bytes of each message of a datagram, up to one that is cut off."""
    start = 0
    while (length := _message_length(datagram, start)) is not None:
        _, kind, _, _, _ = _NLMSGHDR.unpack_from(datagram, start)
        yield kind, datagram[start : start + length]
        start += _aligned(length)


def _message_length(data: bytes, start: int = 0) -> int | None:
    """Return the length in the header, or None if it cannot be right."""
    left = len(data) - start
    if left < uapi.NLMSG_HDRLEN:
        return None
    length: int = _NLMSGHDR.unpack_from(data, start)[0]
    return length if uapi.NLMSG_HDRLEN <= length <= left else None


def _raise_error(payload: bytes) -> None:
    """Raise OSError if a control message has an error number."""
    number = -_ERRNO.unpack_from(payload)[0] if len(payload) >= _ERRNO.size else 0
    if number:
        if not 0 < number <= uapi.MAX_ERRNO:
            number = errno.EPROTO
        raise OSError(number, os.strerror(number))


def _addresses(tuple_: _Attributes, family: int) -> tuple[bytes, bytes]:
    src, dst, size = _CTA_IP[family]
    found = _nested(tuple_, "CTA_TUPLE_IP")
    addresses = found.get(src, b""), found.get(dst, b"")
    if len(addresses[0]) != size or len(addresses[1]) != size:
        raise ValueError(f"CTA_TUPLE_IP has no two addresses of {size} bytes")
    return addresses


def _ports(protocol: _Attributes, l4: int) -> tuple[int, int]:
    """Return the source and destination ports; of ICMP its id and 0."""
    if l4 in WITH_PORTS:
        return (
            _optional(protocol, "CTA_PROTO_SRC_PORT", 2),
            _optional(protocol, "CTA_PROTO_DST_PORT", 2),
        )
    # GRE sends its keys in the attributes of ports.
    return _optional(protocol, _IDS[l4], 2) if l4 in _IDS else 0, 0


def _zone(tuple_: _Attributes, both: int) -> int:
    """Return the zone of one direction. both: CTA_ZONE, the zone of both directions, else 0."""
    return _number(tuple_, "CTA_TUPLE_ZONE", 2) if uapi.CTA_TUPLE_ZONE in tuple_ else both


def _pair(entry: _Attributes, name: str) -> tuple[int, int] | None:
    """Return packets and bytes, or None if the entry has no accounting."""
    if getattr(uapi, name) not in entry:
        return None
    counters = _nested(entry, name)
    return _number(counters, "CTA_COUNTERS_PACKETS", 8), _number(counters, "CTA_COUNTERS_BYTES", 8)


def _state(entry: _Attributes, l4: int) -> str:
    """Return the state of an entry; "" if it has none, as an offloaded one."""
    if uapi.CTA_PROTOINFO not in entry or l4 not in STATES:
        return ""
    info = _nested(entry, "CTA_PROTOINFO")
    if uapi.PROTOINFO_OF[l4] not in info:
        return ""
    state = _attributes(info[uapi.PROTOINFO_OF[l4]])
    number = _number(state, "CTA_PROTOINFO_STATE", 1)
    return STATES[l4][number] if number < len(STATES[l4]) else UNKNOWN_STATE


def _flags(entry: _Attributes) -> tuple[bool, str]:
    """Return whether the entry is unreplied, and its other flag."""
    if uapi.CTA_STATUS not in entry:
        return False, ""
    status = _number(entry, "CTA_STATUS", 4)
    flag = ""
    # In this order: the proc file has only the first of these flags.
    if status & uapi.IPS_HW_OFFLOAD:
        flag = "hw_offload"
    elif status & uapi.IPS_OFFLOAD:
        flag = "offload"
    elif status & uapi.IPS_ASSURED:
        flag = "assured"
    return not status & uapi.IPS_SEEN_REPLY, flag


def _attributes(data: bytes) -> _Attributes:
    """Return the payloads by type. Raises ValueError if the lengths do not add up."""
    found: _Attributes = {}
    start = 0
    while start < len(data):
        length, kind = (0, 0)
        if len(data) - start >= uapi.NLA_HDRLEN:
            length, kind = _NLATTR.unpack_from(data, start)
        if not uapi.NLA_HDRLEN <= length <= len(data) - start:
            raise ValueError("its attributes have lengths that do not add up")
        found[kind & uapi.NLA_TYPE_MASK] = data[start + uapi.NLA_HDRLEN : start + length]
        start += _aligned(length)
    return found


def _nested(attributes: _Attributes, name: str) -> _Attributes:
    """Return the attributes within an attribute. name: in uapi. Raises ValueError without it."""
    if getattr(uapi, name) not in attributes:
        raise ValueError(f"{name} is missing")
    return _attributes(attributes[getattr(uapi, name)])


def _number(attributes: _Attributes, name: str, size: int) -> int:
    """Return a number in network byte order. Raises ValueError if it has not size bytes."""
    value = attributes.get(getattr(uapi, name), b"")
    if len(value) != size:
        raise ValueError(f"{name} has {len(value)} bytes, not {size}")
    return int.from_bytes(value, "big")


def _optional(attributes: _Attributes, name: str, size: int) -> int:
    """Return a number as _number(), 0 if the attribute is missing."""
    return _number(attributes, name, size) if getattr(uapi, name) in attributes else 0


def _aligned(length: int) -> int:
    return (length + 3) & ~3
