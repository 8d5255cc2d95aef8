"""A limit to how often each remote peer is answered: who asks more often waits for the answer, and who has many that
wait is refused more of them. What this protects is the time of this process, and through it everybody else's."""

import asyncio
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from swarm.errors import Busy
from swarm.ids import PeerId

__all__ = ["Turnstile"]

KNOWN = 4096  # peers; who asked longest ago is forgotten first


@dataclass(slots=True)
class _Asker:
    """`level`: questions that may be asked at once, as of `at`; below 0 those that wait are counted."""

    level: float
    at: float
    waiting: int = 0


class Turnstile:
    """`rate` questions a second of one peer, `burst` at once, and so many `waiting` for their turn."""

    def __init__(self, rate: float, burst: float, waiting: int, clock: Callable[[], float] | None = None) -> None:
        self._rate = rate
        self._burst = burst
        self._most = waiting
        self._clock = clock or asyncio.get_running_loop().time
        self._askers: OrderedDict[PeerId, _Asker] = OrderedDict()

    async def enter(self, peer: PeerId) -> None:
        """Returns when a question of `peer` may be answered. Raises Busy when too many of its others wait."""
        now = self._clock()
        asker = self._askers.get(peer)
        if asker is None:
            asker = self._askers[peer] = _Asker(self._burst, now)
            if len(self._askers) > KNOWN:
                self._askers.popitem(last=False)
        self._askers.move_to_end(peer)
        asker.level = min(self._burst, asker.level + (now - asker.at) * self._rate)
        asker.at = now
        if asker.level < 1 and asker.waiting >= self._most:
            raise Busy(f"one peer may ask {self._rate:g} questions a second", self._most / self._rate)
        asker.level -= 1
        if asker.level < 0:
            asker.waiting += 1
            try:
                await asyncio.sleep(-asker.level / self._rate)
            finally:
                asker.waiting -= 1
