"""Both engines with what they have for a plan, for tests of what is built on them."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import pytest

from conntrack_textfile.kernel import ctnetlink, engine, ledger, procfile
from tests.flows import message

if TYPE_CHECKING:
    from collections.abc import Iterable

    from conntrack_textfile.plan import Plan
    from conntrack_textfile.tally import Tally
    from tests.flows import Flow

NAMES = ("pure", "compiled")


class Feed(NamedTuple):
    """Makes tallies of flows by one engine."""

    engine: engine.Engine

    def tally(self, flows: Iterable[Flow]) -> Tally:
        decoder = self.engine.netlink(None)
        for flow in flows:
            decoder.feed(message(flow))
        return decoder.finish()


def make(name: str, plan: Plan) -> Feed:
    """One of the engines, whatever the environment says."""
    if name == "pure":
        return Feed(
            engine.Engine(
                name,
                lambda: procfile.Decoder(plan),
                lambda book: ctnetlink.Decoder(plan, getattr(book, "observe", None)),
                lambda saved: ledger.Ledger(plan, saved),
            )
        )
    try:
        from conntrack_textfile.kernel import _speedups
    except ImportError:
        pytest.skip("needs the compiled engine")
    compiled = _speedups.Plan(plan)
    return Feed(
        engine.Engine(
            name,
            lambda: _speedups.TextDecoder(compiled),
            lambda book: _speedups.NetlinkDecoder(compiled, book),  # type: ignore[arg-type]
            lambda saved: _speedups.Ledger(compiled, saved),
        )
    )
