"""Token buckets: a peer that sends faster than it may is simply read more slowly."""

import asyncio
from collections.abc import Callable

__all__ = ["Bucket"]

MOST_SECONDS = 10.0  # that anybody is made to wait


class Bucket:
    """`rate` units a second, `burst` units at once. `take` waits for what is not there; nothing is refused."""

    def __init__(self, rate: float, burst: float, clock: Callable[[], float]) -> None:
        self._rate = rate
        self._burst = burst
        self._clock = clock
        self._level = burst
        self._at = clock()

    async def take(self, units: float) -> None:
        self._fill()
        self._level -= units
        if self._level < 0:
            await asyncio.sleep(-self._level / self._rate)

    def charge(self, units: float) -> None:
        """Takes without waiting: whoever takes next waits for it."""
        self._fill()
        self._level = max(self._level - units, -MOST_SECONDS * self._rate)

    @property
    def debt(self) -> float:
        """Seconds until what was taken beyond what was there has been made up for."""
        self._fill()
        return max(0.0, -self._level / self._rate)

    def try_take(self, units: float) -> bool:
        """False, and nothing taken, where it is not there now."""
        self._fill()
        if self._level < units:
            return False
        self._level -= units
        return True

    def _fill(self) -> None:
        now = self._clock()
        self._level = min(self._burst, self._level + (now - self._at) * self._rate)
        self._at = now
