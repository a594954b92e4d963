"""Both engines, for tests of modules that use one."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import pytest

from conntrack_textfile.kernel import ctnetlink, engine, procfile
from conntrack_textfile.kernel.ledger import Ledger
from tests.flows import message

if TYPE_CHECKING:
    from collections.abc import Iterable

    from conntrack_textfile.plan import Plan
    from conntrack_textfile.tally import Tally
    from tests.flows import Flow

NAMES = ("pure", "compiled")


class Feed(NamedTuple):
    """An engine that is fed with flows."""

    engine: engine.Engine

    def tally(self, flows: Iterable[Flow]) -> Tally:
        """Return the tally of a dump."""
        decoder = self.engine.netlink(None)
        for flow in flows:
            decoder.feed(message(flow))
        return decoder.finish()


def make(name: str, plan: Plan) -> Feed:
    """Return one of the engines, whatever CONNTRACK_TEXTFILE_ENGINE is."""
    if name == "pure":
        return Feed(
            engine.Engine(
                name,
                lambda: procfile.Decoder(plan),
                lambda ledger: ctnetlink.Decoder(plan, getattr(ledger, "observe", None)),
                lambda saved: Ledger(plan, saved),
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
            lambda ledger: _speedups.NetlinkDecoder(compiled, ledger),  # type: ignore[arg-type]
            lambda saved: _speedups.Ledger(compiled, saved),
        )
    )
