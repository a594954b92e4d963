"""Run the compiled engine while its allocations fail: a child of tests/kernel/test_speedups.py.

With tests/failing_malloc.c in LD_PRELOAD. What fails is called again, as the program does
with the next event or the next dump: at the end all results equal those of a run with memory.
"""

from __future__ import annotations

import contextlib
import ctypes
import re
import socket
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from conntrack_textfile.kernel import _speedups
from conntrack_textfile.plan import Plan
from tests.flows import DESTROY, Flow, message
from tests.tables import beside_groups, sums

if TYPE_CHECKING:
    from collections.abc import Callable

_Result = TypeVar("_Result")

COUNT = 600  # more than twice the rows that a table has at first
DRAINED = 100  # together: what a socket holds
PLAN = Plan(labels=("src", "dport"))
FLOWS = [
    Flow(f"10.0.{n >> 8}.{n & 255}", "192.0.2.1", sport=n, counters=(n, 2 * n, 3 * n, 4 * n))
    for n in range(COUNT)
]
EVENTS = [
    flow._replace(sport=flow.sport + n % 2, counters=(n, 2 * n, 3 * n + 1, 4 * n))
    for n, flow in enumerate(FLOWS)
]
MESSAGES = [message(flow) for flow in FLOWS]
DESTROYED = [message(flow, DESTROY) for flow in EVENTS]
# Translated entries: of many egress addresses, then of many destinations of one.
LINES = [
    f"ipv4 2 udp 17 9 src=10.0.0.1 dst={there} sport={n} dport=53 "
    f"src={there} dst={egress} sport=53 dport={n} zone={n % 3} use=1\n".encode()
    for n in range(2 * COUNT)
    for there, egress in [
        (f"192.0.{n >> 8}.{n & 255}", f"198.51.{n >> 8}.{n & 255}" if n < COUNT else "203.0.113.1")
    ]
]


def again(call: Callable[[], _Result]) -> _Result:
    """Call until there is memory."""
    while True:
        with contextlib.suppress(MemoryError):
            return call()


def dump(ledger: _speedups.Ledger) -> list[object]:
    ledger.begin_dump()
    try:
        decoder = _speedups.NetlinkDecoder(COMPILED, ledger)
        for datagram in MESSAGES:
            decoder.feed(datagram)
        tally = decoder.finish()
        found: list[object] = [beside_groups(tally), sums(tally)]
        ledger.end_dump(10, events=True)
    except MemoryError:
        ledger.abandon_dump()
        raise
    return found


def table() -> list[object]:
    decoder = _speedups.TextDecoder(COMPILED)
    try:
        for line in LINES:
            decoder.feed(line)
        tally = decoder.finish()
    except MemoryError:
        # The program discards it. Fed again, it must not write out of bounds.
        with contextlib.suppress(MemoryError):
            for line in LINES[::-1] * 2:
                decoder.feed(line)
        raise
    assert tally.nat is not None
    translations = tally.nat
    return [again(lambda: translations.nat(5, 3)), again(lambda: translations.nat(0, 1))]


def outcome() -> list[object]:
    ledger = again(lambda: _speedups.Ledger(COMPILED))
    found: list[object] = [again(lambda: dump(ledger))]
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        for first in range(0, COUNT, DRAINED):
            for event in DESTROYED[first : first + DRAINED]:
                theirs.send(event)
            again(lambda: ledger.drain(ours.fileno(), 20))
    tally = again(ledger.traffic)
    found += [again(lambda: beside_groups(tally)), sums(tally), len(ledger), ledger.statistics]
    again(lambda: ledger.destroy(b"", 30))
    saved = bytes(again(ledger.save))
    loaded = again(lambda: _speedups.Ledger(COMPILED, saved))
    found += [len(loaded), len(saved)]
    return [*found, again(table)]


COMPILED = _speedups.Plan(PLAN)


def main() -> None:
    failing = ctypes.CDLL(None)
    code = re.findall(
        r"^([0-9a-f]+)-([0-9a-f]+) .*_speedups", Path("/proc/self/maps").read_text(), re.MULTILINE
    )
    start, end = (ctypes.c_size_t.in_dll(failing, f"failing_{which}") for which in ("start", "end"))
    start.value, end.value = int(code[0][0], 16), int(code[-1][1], 16)
    after, count, failed = (
        ctypes.c_long.in_dll(failing, name) for name in ("failing_after", "failing_count", "failed")
    )
    expected = outcome()
    for in_a_row in (1, 3):
        calls = 0
        while True:
            after.value, count.value, failed.value = calls, in_a_row, 0
            found = outcome()
            after.value = -1
            assert found == expected, (calls, in_a_row)
            if not failed.value:
                break
            calls += 1
        print(calls)


if __name__ == "__main__":
    main()
