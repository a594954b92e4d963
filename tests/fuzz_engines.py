"""Fuzz test: both engines have the same outcome for the same bytes, and neither crashes.

With the root of the project in PYTHONPATH:

python tests/fuzz_engines.py --seconds=60                   mutations at random
python tests/fuzz_engines.py --atheris -max_total_time=60   guided by coverage
"""

from __future__ import annotations

import contextlib
import random
import struct
import sys
import time
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from tests import tables
from tests.plans import FIXED

if TYPE_CHECKING:
    from conntrack_textfile.kernel import _speedups
    from conntrack_textfile.plan import Plan

# Inputs that reach new code are kept here for the next run.
CORPUS = Path(__file__).parent.parent / "build" / "corpus"
LIMITS = (0, 1, 2, 3, 5, 10, 100, 1000)
MEASURES = ("bytes", "packets", "connections")
# The types of the messages of a dump, with their flags, and of events.
NEW, DESTROY = (struct.pack("=HH", kind, 2) for kind in (0x100, 0x102))


@cache
def plans(number: int) -> tuple[Plan, _speedups.Plan]:
    """Return one of the fixed plans, for the pure and for the compiled engine."""
    from conntrack_textfile.kernel import _speedups

    plan = FIXED[number % len(FIXED)].plan
    return plan, _speedups.Plan(plan)


def check(blocks: list[bytes], *, netlink: bool, plan: int, limit: int, by: str) -> None:
    """Decode blocks or datagrams by both engines, and compare the outcomes."""
    from conntrack_textfile.kernel import _speedups, ctnetlink, procfile

    for_pure, for_compiled = plans(plan)
    twins: tuple[tables.Decoder, tables.Decoder]
    if netlink:
        twins = _speedups.NetlinkDecoder(for_compiled), ctnetlink.Decoder(for_pure)
    else:
        twins = _speedups.TextDecoder(for_compiled), procfile.Decoder(for_pure)
    compiled, pure = (tables.outcome(twin, blocks, limit, by) for twin in twins)
    assert compiled == pure, (blocks, plan, limit, by, compiled, pure)


def check_ledger(datagrams: list[bytes], plan: int) -> None:
    """Feed both ledgers with datagrams as a dump, as events and as a dump of the dying list."""
    from conntrack_textfile.kernel import _speedups, ctnetlink, ledger

    for_pure, for_compiled = plans(plan)
    compiled, pure = _speedups.Ledger(for_compiled), ledger.Ledger(for_pure)
    seen = []
    for each, decoder in (
        (compiled, _speedups.NetlinkDecoder(for_compiled, compiled)),
        (pure, ctnetlink.Decoder(for_pure, pure.observe)),
    ):
        each.begin_dump()
        with contextlib.suppress(OSError):
            for datagram in datagrams:
                decoder.feed(datagram)
        each.end_dump(1, events=True)
        for now, datagram in enumerate(datagrams * 2, 2):
            each.destroy(datagram.replace(NEW, DESTROY), now)
            each.remember(datagram, now)
        tally = each.traffic()
        found = [len(each), each.statistics, len(each.save()), tables.beside_groups(tally)]
        seen.append([*found, tables.sums(tally)])
    assert seen[0] == seen[1], (datagrams, plan, seen)


HEAD = 4  # bytes


def one(data: bytes) -> None:
    """Check one input: a byte each for grammar, plan, limit and size of a block, then the data."""
    if len(data) < HEAD:
        return
    grammar, plan, limit, step, rest = *data[:HEAD], data[HEAD:]
    size = step * 4 + 4
    if grammar & 2:
        check_ledger([rest[i : i + size] for i in range(0, len(rest), size)] + [rest], plan)
    check(
        [rest[i : i + size] for i in range(0, len(rest), size)] + [rest],
        netlink=bool(grammar & 1),
        plan=plan % len(FIXED),
        limit=LIMITS[limit % len(LIMITS)],
        by=MEASURES[limit // len(LIMITS) % len(MEASURES)],
    )


def fill(corpus: Path) -> None:
    """Write the initial corpus: lines and messages of the captures, with each plan."""
    corpus.mkdir(parents=True, exist_ok=True)
    rand = random.Random(1)
    for number in range(20 * len(FIXED)):
        for netlink, table in ((0, tables.LINES), (1, tables.MESSAGES), (3, tables.MESSAGES)):
            head = bytes([netlink, number % len(FIXED), rand.randrange(24), 255])
            file = corpus / f"{number}-{netlink}"
            file.write_bytes(head + b"".join(rand.choices(table, k=rand.randrange(1, 4))))


def main(argv: list[str]) -> None:
    if "--atheris" in argv:
        import atheris

        with atheris.instrument_imports(include=["conntrack_textfile"]):
            from conntrack_textfile.kernel import ctnetlink, procfile  # noqa: F401
        argv.remove("--atheris")
        fill(CORPUS)
        atheris.Setup([*argv, str(CORPUS)], one)
        atheris.Fuzz()  # which exits
    seconds = float(next(arg.partition("=")[2] for arg in argv if arg.startswith("--seconds=")))
    from conntrack_textfile.kernel import _speedups

    rand = random.Random(1)
    rounds = 0
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        plan, limit, by = rounds % len(FIXED), rand.choice(LIMITS), rand.choice(MEASURES)
        rounds += 1
        text = tables.damaged_text(rand)
        check([text], netlink=False, plan=plan, limit=limit, by=by)
        check(tables.cut(text, rand), netlink=False, plan=plan, limit=limit, by=by)
        datagrams = tables.damaged_datagrams(rand)
        check(datagrams, netlink=True, plan=plan, limit=limit, by=by)
        check_ledger(datagrams, plan)
    print(f"{rounds} rounds without a finding, on {_speedups.__file__}")


if __name__ == "__main__":
    main(sys.argv)
