"""The engines: what turns bytes into a tally by a plan, and the choice of one."""

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
        """Sums the lines of the proc file. See procfile.Decoder."""

        def feed(self, block: bytes | memoryview) -> None: ...  # noqa: D102
        def finish(self) -> Tally: ...  # noqa: D102

    class NetlinkDecoder(Protocol):
        """Sums the messages of a ctnetlink dump. See ctnetlink.Decoder."""

        def feed(self, datagram: bytes | memoryview) -> bool: ...  # noqa: D102
        def finish(self) -> Tally: ...  # noqa: D102


class Engine(NamedTuple):
    """Decoders for one plan. All engines give the same for the same bytes."""

    name: str
    text: Callable[[], TextDecoder]
    netlink: Callable[[], NetlinkDecoder]


def make(plan: Plan) -> Engine:
    """The compiled engine where it was built, else the pure one.

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
            )
    from conntrack_textfile.kernel import ctnetlink, procfile

    return Engine("pure", partial(procfile.Decoder, plan), partial(ctnetlink.Decoder, plan))
