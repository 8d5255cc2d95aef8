"""Waiting for what another process does."""

import time
from collections.abc import Callable

__all__ = ["wait_for"]

LIMIT = 60.0  # seconds
PAUSE = 0.1


def wait_for(condition: Callable[[], bool], limit: float = LIMIT) -> None:
    """Until `condition` holds. Fails after `limit` seconds."""
    deadline = time.monotonic() + limit
    while not condition():
        assert time.monotonic() < deadline, f"it did not come true within {limit:.0f} s"
        time.sleep(PAUSE)
