"""How far it is from a serving peer to those that may come after it in a chain: measured, and told in its record.

Clients measure their own ways; those between peers they can only guess unless peers tell.
"""

import asyncio
import logging
import random
import time
from collections.abc import Callable
from typing import Protocol

from peers.sight import look_around
from swarm.directory import Directory
from swarm.distances import Distances
from swarm.errors import NetworkError
from swarm.ids import PeerId
from swarm.record import MOST_NEAR, PeerRecord
from swarm.transport import Transport

__all__ = ["INTERVAL", "Nearby"]

INTERVAL = 60.0  # s between two looks on average; each is between half of it and three halves
FIRST = 2.0  # s to the first one, on average
SAME = 0.2  # of a delay: by less than that it has not changed

_log = logging.getLogger(__name__)


class Telling(Protocol):
    """Whose record tells: a `peers.lifecycle.Lifecycle`."""

    @property
    def record(self) -> PeerRecord | None: ...

    def tell_near(self, near: tuple[tuple[PeerId, float], ...]) -> None: ...


class Nearby:
    """Of one peer. `lot`: whence the waits come, and the choice where others are many."""

    def __init__(
        self,
        life: Telling,
        transport: Transport,
        directory: Directory,
        *,
        lot: random.Random | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._life = life
        self._directory = directory
        self._lot = lot or random.Random()
        self._clock = clock
        self._distances = Distances(transport, self._lot)

    async def run(self) -> None:
        """Until cancelled."""
        wait = FIRST
        while True:
            await asyncio.sleep(wait * self._lot.uniform(0.5, 1.5))
            own = self._life.record
            wait = FIRST if own is None else INTERVAL
            if own is not None and len(own.span) < own.num_blocks:
                await self._look(own)

    async def _look(self, own: PeerRecord) -> None:
        try:
            view = await look_around(self._directory, own.model, own.num_blocks, self._clock)
        except NetworkError as error:
            _log.info("the directory does not say who else serves, so no distances are measured now: %s", error)
            return
        end = own.span.end
        await self._distances.measure(r for r in view.peers if r.span.start <= end < r.span.end)
        nearest = sorted(self._distances.delays.items(), key=lambda entry: entry[1])[:MOST_NEAR]
        if _differ(dict(nearest), dict(own.near)):
            self._life.tell_near(tuple(nearest))


def _differ(now: dict[PeerId, float], told: dict[PeerId, float]) -> bool:
    return now.keys() != told.keys() or any(abs(now[peer] - told[peer]) > SAME * told[peer] for peer in now)
