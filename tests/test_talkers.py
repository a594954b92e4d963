"""The largest groups by each measure, in both engines."""

from __future__ import annotations

import pytest

from conntrack_textfile import talkers
from conntrack_textfile.plan import Plan
from tests import engines, flows


@pytest.mark.parametrize("engine", engines.NAMES)
def test_talkers_are_the_largest_by_each_measure_live_or_not(engine: str) -> None:
    feed = engines.make(engine, Plan(labels=("src",)))
    live = [flows.Flow(f"10.0.0.{n}", counters=(1, 10 * n, 1, 1)) for n in range(1, 9)]
    traffic = [
        flows.Flow("10.0.1.1", counters=(1, 1 << 30, 0, 0)),  # ended
        flows.Flow("10.0.0.1", counters=(999, 2, 9, 2)),
        *[flows.Flow("10.0.0.2", counters=(1, 2, 1, 2))] * 7,
        flows.Flow("10.0.0.3", counters=(2, 20, 1, 2)),
    ]
    found = talkers.largest(feed.tally(live), feed.tally(traffic), 1)
    assert found == [
        (("10.0.0.1",), (1, 1, 10, 1, 1), (1, 999, 2, 9, 2)),
        (("10.0.0.2",), (1, 1, 20, 1, 1), (7, 7, 14, 7, 14)),
        (("10.0.0.8",), (1, 1, 80, 1, 1), (0, 0, 0, 0, 0)),
        (("10.0.1.1",), (0, 0, 0, 0, 0), (1, 1, 1 << 30, 0, 0)),
    ]
    (largest,) = talkers.largest(feed.tally(live[:1]), None, 5)
    assert largest == (("10.0.0.1",), (1, 1, 10, 1, 1), (0, 0, 0, 0, 0))
