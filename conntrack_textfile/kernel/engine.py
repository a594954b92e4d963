"""The choice of the engine: it parses the bytes of a source and sums them by a plan."""

from __future__ import annotations

import os
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from conntrack_textfile.errors import EngineError

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Protocol

    from conntrack_textfile.plan import Plan
    from conntrack_textfile.tally import Tally

    class TextDecoder(Protocol):
        """Sums the entries of the proc file. See procfile.Decoder."""

        def feed(self, block: bytes | memoryview) -> None: ...  # noqa: D102
        def finish(self) -> Tally: ...  # noqa: D102

    class NetlinkDecoder(Protocol):
        """Sums the entries of a ctnetlink dump. See ctnetlink.Decoder."""

        def feed(self, datagram: bytes | memoryview) -> bool: ...  # noqa: D102
        def finish(self) -> Tally: ...  # noqa: D102

    class Ledger(Protocol):
        """Turns observations of connections into traffic. See ledger.Ledger."""

        baseline: bool
        duplicates: bool

        def __len__(self) -> int: ...
        @property
        def statistics(self) -> dict[str, int]: ...  # noqa: D102
        def begin_dump(self) -> None: ...  # noqa: D102
        def abandon_dump(self) -> None: ...  # noqa: D102
        def end_dump(self, now: int, *, events: bool) -> None: ...  # noqa: D102
        def drain(self, descriptor: int, now: int) -> None: ...  # noqa: D102
        def remember(self, datagram: bytes | memoryview, now: int) -> bool: ...  # noqa: D102
        def traffic(self) -> Tally: ...  # noqa: D102
        def save(self) -> bytes | bytearray: ...  # noqa: D102


# CPU of the pure engine for an entry of a dump.
_PURE_MICROSECONDS = 20
_SLOW_SECONDS = 2


class Engine(NamedTuple):
    """An engine with a plan. Both engines have the same results for the same bytes."""

    name: str
    text: Callable[[], TextDecoder]
    netlink: Callable[[Ledger | None], NetlinkDecoder]  # updates the ledger
    ledger: Callable[[bytes], Ledger]  # from Ledger.save(), or b""


def slowness(engine: Engine, entries: int | None) -> str:
    """Return a warning if an engine takes seconds for that number of entries, else ""."""
    seconds = (entries or 0) * _PURE_MICROSECONDS / 1e6
    if engine.name == "compiled" or seconds < _SLOW_SECONDS:
        return ""
    return (
        f"the pure engine takes some {seconds:.0f} s of CPU for a table of {entries} entries: for "
        "the compiled one, many times as fast, install with a C compiler and the headers of Python"
    )


def make(plan: Plan) -> Engine:
    """Return the compiled engine if it was built, else the pure one.

    The environment variable CONNTRACK_TEXTFILE_ENGINE, "pure" or "compiled",
    forces one. Raises EngineError.
    """
    wanted = os.environ.get("CONNTRACK_TEXTFILE_ENGINE", "")
    if wanted not in ("", "pure", "compiled"):
        raise EngineError(f"CONNTRACK_TEXTFILE_ENGINE must be pure or compiled, not {wanted!r}")
    if wanted != "pure":
        try:
            from conntrack_textfile.kernel import _speedups
        except ImportError as error:
            if wanted:
                raise EngineError(
                    f"there is no compiled engine ({error}): install with a C compiler at hand, "
                    "or unset CONNTRACK_TEXTFILE_ENGINE"
                ) from None
        else:
            compiled = _speedups.Plan(plan)
            return Engine(
                "compiled",
                partial(_speedups.TextDecoder, compiled),
                partial(_speedups.NetlinkDecoder, compiled),
                partial(_speedups.Ledger, compiled),
            )
    from conntrack_textfile.kernel import ctnetlink, procfile
    from conntrack_textfile.kernel.ledger import Ledger as PureLedger

    return Engine(
        "pure",
        partial(procfile.Decoder, plan),
        lambda ledger: ctnetlink.Decoder(
            plan, ledger.observe if isinstance(ledger, PureLedger) else None
        ),
        partial(PureLedger, plan),
    )
