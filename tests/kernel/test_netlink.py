from __future__ import annotations

import errno
import os
import socket
import struct
from typing import TYPE_CHECKING, cast

import pytest

from conntrack_textfile.kernel import netlink
from conntrack_textfile.kernel.ctnetlink import Decoder
from conntrack_textfile.plan import Plan
from tests.conftest import need
from tests.tables import MESSAGES, Dump

if TYPE_CHECKING:
    Answer = bytes | OSError | tuple[bytes, int, tuple[int, int]]


def datagram(answer: Answer) -> bytes:
    return bytes(netlink.datagram(cast("socket.socket", Dump(answer))))


def test_the_dump_request_zeroes_no_counters() -> None:
    length, kind, flags, sequence, port = struct.unpack_from("=IHHII", netlink.DUMP_REQUEST)
    assert length == len(netlink.DUMP_REQUEST) == 20
    assert kind == 0x101  # IPCTNL_MSG_CT_GET, and not IPCTNL_MSG_CT_GET_CTRZERO, which is 0x103
    assert flags == 0x301  # NLM_F_REQUEST | NLM_F_DUMP
    assert (sequence, port) == (1, 0)
    assert netlink.DUMP_REQUEST[16:] == bytes(4)  # both families


def test_the_kernel_answers_a_dump() -> None:
    need(root=True)
    decoder = Decoder(Plan())
    with netlink.dump() as dump:
        while not decoder.feed(netlink.datagram(dump)):
            pass
    assert decoder.finish().malformed == 0


def test_a_datagram_has_the_bytes_of_the_kernel() -> None:
    assert datagram(MESSAGES[0]) == MESSAGES[0]


def test_a_datagram_not_from_the_kernel_is_empty() -> None:
    assert datagram((MESSAGES[0], 0, (4711, 0))) == b""


def test_no_datagram_is_a_timeout() -> None:
    with pytest.raises(TimeoutError):
        datagram(BlockingIOError(errno.EAGAIN, "would block"))


def test_a_truncated_datagram_is_an_error() -> None:
    with pytest.raises(OSError, match=os.strerror(errno.EMSGSIZE)):
        datagram((MESSAGES[0], socket.MSG_TRUNC, (0, 0)))
