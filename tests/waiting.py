"""Waiting for a condition, as long as a busy machine may take."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

SECONDS = 60.0


def until(probe: Callable[[], Any], seconds: float = SECONDS) -> Any:
    """Return the first true result of a probe.

    An AssertionError or OSError of the probe means: not yet. Raises AssertionError
    when the time is up.
    """
    end = time.monotonic() + seconds
    while True:
        why: Exception | None = None
        try:
            if found := probe():
                return found
        except (AssertionError, OSError) as error:
            why = error
        if time.monotonic() > end:
            raise AssertionError(f"not within {seconds} s: {why or 'never true'}") from why
        time.sleep(0.02)
