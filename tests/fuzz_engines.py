"""One invariant: both engines give the same outcome for the same bytes, and neither crashes.

With the root of the project in PYTHONPATH:

python tests/fuzz_engines.py --seconds=60            random damage to real input
python tests/fuzz_engines.py --atheris -max_total_time=60   guided by coverage
"""

from __future__ import annotations

import random
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

# What coverage finds is kept here for the next run.
CORPUS = Path(__file__).parent.parent / "build" / "corpus"
LIMITS = (0, 1, 2, 3, 5, 10, 100, 1000)
MEASURES = ("bytes", "packets", "connections")


@cache
def plans(number: int) -> tuple[Plan, _speedups.Plan]:
    """One of the fixed plans, for either engine."""
    from conntrack_textfile.kernel import _speedups

    plan = FIXED[number % len(FIXED)].plan
    return plan, _speedups.Plan(plan)


def check(blocks: list[bytes], *, netlink: bool, plan: int, limit: int, by: str) -> None:
    from conntrack_textfile.kernel import _speedups, ctnetlink, procfile

    for_pure, for_compiled = plans(plan)
    twins: tuple[tables.Decoder, tables.Decoder]
    if netlink:
        twins = _speedups.NetlinkDecoder(for_compiled), ctnetlink.Decoder(for_pure)
    else:
        twins = _speedups.TextDecoder(for_compiled), procfile.Decoder(for_pure)
    compiled, pure = (tables.outcome(twin, blocks, limit, by) for twin in twins)
    assert compiled == pure, (blocks, plan, limit, by, compiled, pure)


HEAD = 4


def one(data: bytes) -> None:
    """Bytes for the grammar, the plan, the limit and where to cut, and the input."""
    if len(data) < HEAD:
        return
    grammar, plan, limit, step, rest = *data[:HEAD], data[HEAD:]
    size = step * 4 + 4
    check(
        [rest[i : i + size] for i in range(0, len(rest), size)] + [rest],
        netlink=bool(grammar & 1),
        plan=plan % len(FIXED),
        limit=LIMITS[limit % len(LIMITS)],
        by=MEASURES[limit // len(LIMITS) % len(MEASURES)],
    )


def fill(corpus: Path) -> None:
    """What coverage starts from: some of the captures, with every plan."""
    corpus.mkdir(parents=True, exist_ok=True)
    rand = random.Random(1)
    for number in range(20 * len(FIXED)):
        for netlink, table in ((0, tables.LINES), (1, tables.MESSAGES)):
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
    print(f"{rounds} rounds without a finding, on {_speedups.__file__}")


if __name__ == "__main__":
    main(sys.argv)
