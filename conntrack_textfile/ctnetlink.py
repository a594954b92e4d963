"""The binary grammar of a ctnetlink dump.

Names and numbers are the kernel's: include/uapi/linux/netlink.h,
netfilter/nfnetlink.h and netfilter/nfnetlink_conntrack.h. A datagram holds
whole messages; a message holds a header, the header of nfnetlink, and
attributes, of which some hold attributes. What is not known is passed over; a
known attribute of the wrong size makes its entry malformed. Where an attribute
comes twice, the last one counts, as for the kernel.
"""

from __future__ import annotations

import errno
import os
import struct
from socket import AF_INET, AF_INET6

from conntrack_textfile.tally import STATES, UNKNOWN_STATE, WITH_PORTS, Gathered, Key, Tally

NLMSG_ERROR = 2
NLMSG_DONE = 3
NLMSG_OVERRUN = 4
IPCTNL_MSG_CT_NEW = 1 << 8  # NFNL_SUBSYS_CTNETLINK << 8 | 0
IPCTNL_MSG_CT_GET = 1 << 8 | 1

NLM_F_REQUEST = 0x01
NLM_F_DUMP_INTR = 0x10  # the table changed under the dump, which may miss entries
NLM_F_DUMP = 0x300

_NLA_TYPE_MASK = 0x3FFF

_CTA_TUPLE_ORIG = 1
_CTA_STATUS = 3
_CTA_PROTOINFO = 4
_CTA_COUNTERS_ORIG = 9
_CTA_COUNTERS_REPLY = 10
_CTA_TUPLE_IP = 1
_CTA_TUPLE_PROTO = 2
_CTA_IP = {AF_INET: (1, 2, 4), AF_INET6: (3, 4, 16)}  # source, destination, size
_CTA_PROTO_NUM = 1
_CTA_PROTO_DST_PORT = 3
_CTA_COUNTERS_PACKETS = 1
_CTA_COUNTERS_BYTES = 2

_CTA_PROTOINFO_OF = {6: 1, 33: 2, 132: 3}  # CTA_PROTOINFO_TCP, _DCCP, _SCTP
_CTA_PROTOINFO_STATE = 1  # in each of these

_IPS_SEEN_REPLY = 1 << 1
_IPS_ASSURED = 1 << 2
_IPS_OFFLOAD = 1 << 14
_IPS_HW_OFFLOAD = 1 << 15

_NLMSGHDR = struct.Struct("=IHHII")  # length, type, flags, sequence, port
_NFGENMSG = 4  # bytes: family, version, resource
_NLATTR = struct.Struct("=HH")  # length, type
_ERRNO = struct.Struct("=i")
_MAX_ERRNO = 4095

# Both families, and no change to the counters: IPCTNL_MSG_CT_GET_CTRZERO would
# zero them for everybody.
DUMP_REQUEST = _NLMSGHDR.pack(20, IPCTNL_MSG_CT_GET, NLM_F_REQUEST | NLM_F_DUMP, 1, 0) + bytes(4)

_Attributes = dict[int, bytes]


class Counter:
    """Counts the entries of one dump: feed() it datagrams, then finish() it."""

    def __init__(self) -> None:
        self._gathered = Gathered()

    def feed(self, datagram: bytes | memoryview) -> bool:
        """Count the entries of a datagram; whether the dump ends with it.

        Raises OSError where the kernel says that the dump failed, InterruptedError
        where it says that it is not to be relied on.
        """
        data = bytes(datagram)
        start = 0
        while start < len(data):
            size = len(data) - start
            if size >= _NLMSGHDR.size:
                length, kind, flags, _, _ = _NLMSGHDR.unpack_from(data, start)
            if size < _NLMSGHDR.size or not _NLMSGHDR.size <= length <= size:
                self._gathered.malformed += 1  # and where the next message begins is unknown
                return False
            message = data[start + _NLMSGHDR.size : start + length]
            if flags & NLM_F_DUMP_INTR or kind == NLMSG_OVERRUN:
                raise InterruptedError(errno.EINTR, os.strerror(errno.EINTR))
            if kind == IPCTNL_MSG_CT_NEW:
                try:
                    self._add(message)
                except ValueError:
                    self._gathered.malformed += 1
            elif kind in (NLMSG_DONE, NLMSG_ERROR):
                _raise_error(message)
                if kind == NLMSG_DONE:
                    return True
            start += _aligned(length)
        return False

    def finish(self) -> Tally:
        """The tally of all that was fed."""
        return self._gathered.tally()

    def _add(self, message: bytes) -> None:
        """Count one entry. Raises ValueError where it is not what the kernel sends."""
        if len(message) < _NFGENMSG:
            raise ValueError
        entry = _attributes(message[_NFGENMSG:])
        sent = _pair(entry, _CTA_COUNTERS_ORIG)
        reply = _pair(entry, _CTA_COUNTERS_REPLY)
        key = _key(message[0], _nested(entry, _CTA_TUPLE_ORIG))
        state = _state(entry, key[2])
        unreplied, flag = _flags(entry)
        sums = self._gathered.sums.setdefault(key, [0, 0, 0, 0, 0])
        for field, value in enumerate((1, *(sent or (0, 0)), *(reply or (0, 0)))):
            sums[field] += value
        if sent is None and reply is None:
            self._gathered.uncounted += 1
        l3 = 4 if message[0] == AF_INET else 6
        self._gathered.mark(l3, key[2], state, unreplied, flag)


def _raise_error(message: bytes) -> None:
    """Raise the error that a control message begins with, if it is one."""
    number = -_ERRNO.unpack_from(message)[0] if len(message) >= _ERRNO.size else 0
    if number:
        if not 0 < number <= _MAX_ERRNO:
            number = errno.EPROTO
        raise OSError(number, os.strerror(number))


def _key(family: int, original: _Attributes) -> Key:
    if family not in _CTA_IP:
        raise ValueError
    src, dst, size = _CTA_IP[family]  # type: ignore[index]  # AF_INET is an int
    addresses = _nested(original, _CTA_TUPLE_IP)
    protocol = _nested(original, _CTA_TUPLE_PROTO)
    number = _number(protocol, _CTA_PROTO_NUM, 1)
    # GRE sends the key of the tunnel in place of a port.
    port = 0
    if number in WITH_PORTS and _CTA_PROTO_DST_PORT in protocol:
        port = _number(protocol, _CTA_PROTO_DST_PORT, 2)
    return _sized(addresses, src, size), _sized(addresses, dst, size), number, port


def _pair(entry: _Attributes, kind: int) -> tuple[int, int] | None:
    """Packets and bytes, or None where the entry has no accounting."""
    if kind not in entry:
        return None
    counters = _attributes(entry[kind])
    return _number(counters, _CTA_COUNTERS_PACKETS, 8), _number(counters, _CTA_COUNTERS_BYTES, 8)


def _state(entry: _Attributes, l4: int) -> str:
    """The state of an entry, "" where it has none: the kernel sends none of what is offloaded."""
    if _CTA_PROTOINFO not in entry or l4 not in STATES:
        return ""
    info = _attributes(entry[_CTA_PROTOINFO])
    if _CTA_PROTOINFO_OF[l4] not in info:
        return ""
    number = _number(_attributes(info[_CTA_PROTOINFO_OF[l4]]), _CTA_PROTOINFO_STATE, 1)
    return STATES[l4][number] if number < len(STATES[l4]) else UNKNOWN_STATE


def _flags(entry: _Attributes) -> tuple[bool, str]:
    """Whether it is unreplied, and the other flag."""
    if _CTA_STATUS not in entry:
        return False, ""
    status = _number(entry, _CTA_STATUS, 4)
    flag = ""
    # In this order, since the proc file says no more of an entry than the first.
    if status & _IPS_HW_OFFLOAD:
        flag = "hw_offload"
    elif status & _IPS_OFFLOAD:
        flag = "offload"
    elif status & _IPS_ASSURED:
        flag = "assured"
    return not status & _IPS_SEEN_REPLY, flag


def _attributes(data: bytes) -> _Attributes:
    """Type to payload. Raises ValueError where the lengths do not add up."""
    found: _Attributes = {}
    start = 0
    while start < len(data):
        if len(data) - start < _NLATTR.size:
            raise ValueError
        length, kind = _NLATTR.unpack_from(data, start)
        if not _NLATTR.size <= length <= len(data) - start:
            raise ValueError
        found[kind & _NLA_TYPE_MASK] = data[start + _NLATTR.size : start + length]
        start += _aligned(length)
    return found


def _nested(attributes: _Attributes, kind: int) -> _Attributes:
    if kind not in attributes:
        raise ValueError
    return _attributes(attributes[kind])


def _sized(attributes: _Attributes, kind: int, size: int) -> bytes:
    value = attributes.get(kind, b"")
    if len(value) != size:
        raise ValueError
    return value


def _number(attributes: _Attributes, kind: int, size: int) -> int:
    return int.from_bytes(_sized(attributes, kind, size), "big")


def _aligned(length: int) -> int:
    return (length + 3) & ~3
