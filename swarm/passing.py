"""Waiting in a world where machines are put to sleep."""

import asyncio
import time
from collections.abc import Callable

__all__ = ["pass_time"]

LOOK_SECONDS = 5.0  # between looks at the clock: so much later does who slept notice it
LEAST = 1e-3  # s; differences of clocks are never quite nothing, and a loop does not wait for less than it can tell


async def pass_time(
    seconds: float, *, woken: asyncio.Event | None = None, clock: Callable[[], float] = time.time
) -> None:
    """Return after `seconds`, of which those count that the machine sleeps, or when `woken` is set. A loop's own clock
    stands still during sleep on most systems, so that what was due long ago would be done late by all that was left."""
    loop = asyncio.get_running_loop()
    began, began_at = loop.time(), clock()
    while True:
        left = seconds - max(loop.time() - began, clock() - began_at)
        if left < LEAST or (woken is not None and woken.is_set()):
            return
        wait = min(left, LOOK_SECONDS)
        if woken is None:
            await asyncio.sleep(wait)
        else:
            try:
                async with asyncio.timeout(wait):
                    await woken.wait()
            except TimeoutError:
                pass
