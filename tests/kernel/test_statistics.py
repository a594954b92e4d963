from __future__ import annotations

import struct
from typing import TYPE_CHECKING

import pytest

from conntrack_textfile.kernel import netlink, statistics, uapi
from tests.tables import Dump, attribute, control

if TYPE_CHECKING:
    from collections.abc import Callable

KIND = uapi.IPCTNL_MSG_CT_GET_STATS_CPU
DONE = control(uapi.NLMSG_DONE, 2, bytes(4))


def cpu(**numbers: int) -> bytes:
    """The message of one CPU."""
    events = [
        attribute(uapi.CTA_STATS[name], struct.pack("!I", value)) for name, value in numbers.items()
    ]
    return control(KIND, 2, bytes(4) + b"".join(events) + attribute(99, b"x"))


@pytest.fixture
def answer(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    def set_(*answers: bytes | OSError) -> None:
        monkeypatch.setattr(netlink, "dump", lambda *_: Dump(*answers))

    return set_


def test_cpus_are_summed(answer: Callable[..., None]) -> None:
    answer(cpu(found=1, drop=2) + cpu(found=3), cpu(drop=4, insert_failed=5), DONE)
    assert statistics.read() == {"found": 4, "drop": 6, "insert_failed": 5}


def test_the_wrap_of_a_cpu_keeps_the_sum_rising(answer: Callable[..., None]) -> None:
    most = 2**32 - 1
    answer(cpu(found=most) + cpu(found=3_000_000_000), DONE)
    before = statistics.read()["found"]
    answer(cpu(found=4) + cpu(found=3_000_000_000), DONE)  # 5 more
    assert statistics.read()["found"] == before + 5


@pytest.mark.parametrize(
    "answers",
    [
        [PermissionError(1, "no")],
        [control(uapi.NLMSG_ERROR, 0, struct.pack("=i", -1))],
        [control(KIND, 2, bytes(4) + b"\xff\xff\2\0")],
        [DONE],
    ],
)
def test_an_error_is_an_empty_result(
    answer: Callable[..., None], answers: list[bytes | OSError]
) -> None:
    answer(*answers)
    assert statistics.read() == {}
