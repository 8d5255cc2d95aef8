"""How many tokens are at a peer at once, waiting or computed: what the step of one more row would meet.

By Little's law that is how many come in a second, times how long they stay. A look at what waits would not do: sessions
that are computed together come back together, and between two batches nobody waits.
"""

import math
from collections.abc import Callable

__all__ = ["Depth"]

MEMORY = 3.0  # seconds after which what was counts for 1/e


class Depth:
    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._since = clock()  # began, or was last brought up to date
        self._age = 0.0  # seconds since it began
        self._stays = 0.0  # token-seconds, the older the less

    def left(self, tokens: int, seconds: float) -> None:
        """So many tokens were sent on, so many seconds after they came."""
        self._pass_time()
        self._stays += tokens * max(0.0, seconds)

    @property
    def tokens(self) -> float:
        """On average over the last seconds."""
        self._pass_time()
        counted = MEMORY * -math.expm1(-self._age / MEMORY)  # as much as a weight of 1 all the time would have come to
        return self._stays / max(counted, MEMORY / 10)

    def _pass_time(self) -> None:
        now = self._clock()
        passed, self._since = max(0.0, now - self._since), now
        self._age += passed
        self._stays *= math.exp(-passed / MEMORY)
