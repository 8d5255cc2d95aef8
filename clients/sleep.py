"""Whether it was this process that stood still: stopped, starved, or on a machine that slept."""

import asyncio

__all__ = ["overslept"]

GRACE = 1.0  # s by which a busy machine is late


def overslept(began: float, seconds: float) -> bool:
    """Whether a wait of `seconds` that began at loop time `began` ends far too late. What came meanwhile has not been
    looked at yet, so that silence says nothing of others."""
    return asyncio.get_running_loop().time() > began + seconds + GRACE
