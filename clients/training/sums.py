"""Gradients of adapters that hops add up over the micro-batches of one way back, and send once."""

import asyncio
from collections import Counter
from collections.abc import Mapping, Sequence

from torch import Tensor

from clients.training.chains import Leg, TrainingChains
from clients.training.hop import HopLost, TrainingHop
from swarm.training import PackedAdapter

__all__ = ["Sums"]


class Sums:
    """What a hop has added up is asked for when the last micro-batch has passed it. When it is lost before, the
    micro-batches that it had added are done again elsewhere; for that their gradients are kept here meanwhile."""

    def __init__(
        self,
        chains: TrainingChains,
        ways: Sequence[Sequence[Leg]],
        adapters: Mapping[int, PackedAdapter],
        *,
        first: int,
        tasks: asyncio.TaskGroup,
    ) -> None:
        """`ways`: the legs of each micro-batch. `tasks`: where hops are asked; when it has ended, so have they."""
        self._chains = chains
        self._adapters = adapters
        self._first = first
        self._tasks = tasks
        legs = [leg for way in ways for leg in way if first < leg.hop.hop.span.end and self._blocks(leg.hop)]
        self._part = {id(leg) for leg in legs}
        self._left = Counter(leg.hop for leg in legs)
        self._ids = {hop: hop.new_id() for hop in self._left}
        self._passed: dict[TrainingHop, list[tuple[Leg, Tensor]]] = {hop: [] for hop in self._left}
        self.found: list[dict[int, list[Tensor]]] = []

    def id_of(self, leg: Leg) -> int | None:
        """Under which its hop adds up; None where it is no part of this."""
        return self._ids[leg.hop] if id(leg) in self._part else None

    def passed(self, leg: Leg, gradient: Tensor) -> None:
        """`leg` was given `gradient` and has added what came of it."""
        if id(leg) not in self._part:
            return
        self._passed[leg.hop].append((leg, gradient))
        self._left[leg.hop] -= 1
        if not self._left[leg.hop]:
            self._tasks.create_task(self._collect(leg.hop))

    async def finish(self) -> None:
        """What was lost is done again; to be called when `tasks` has ended."""
        for passed in self._passed.values():
            for leg, gradient in passed:
                legs = await self._chains.again(leg, self._adapters, first=self._first)
                first = max(self._first, leg.hop.hop.span.start)
                _, found = await self._chains.backward(legs, gradient, self._adapters, first=first)
                self.found.append(found)

    async def _collect(self, hop: TrainingHop) -> None:
        passed = self._passed[hop]
        try:
            found = await hop.collect(self._ids[hop], len(passed), self._blocks(hop), self._adapters)
        except HopLost:
            return
        if found is not None:
            self.found.append(found)
            self._passed[hop] = []

    def _blocks(self, hop: TrainingHop) -> list[int]:
        return [block for block in hop.hop.span if block in self._adapters]
