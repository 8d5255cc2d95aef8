"""Whether a peer that serves should be elsewhere: asked at random moments, as long as it serves.

    wait → read the directory → `routing.moves.reconsider`, in a thread → wanted twice in a row: go

Everybody decides by what was announced some seconds ago. So a move has to be wanted twice, some time apart; and once
all know that this peer leaves, the directory is read again: the move must still be right, and each block that is left
must have somebody else, who is not leaving too. A peer whose sessions find nobody to go on with stays at first. Where
blocks have no peer at all, nobody can use the model, and it looks again soon.
"""

import asyncio
import logging
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Protocol

from peers.sight import look_around
from routing.moves import reconsider
from routing.placement import Placement
from routing.view import View
from swarm.directory import Directory
from swarm.errors import NetworkError
from swarm.record import PeerRecord, PeerState

__all__ = ["INTERVAL", "Movable", "Reconsidering"]

INTERVAL = 120.0  # s between two looks on average; each is between half of it and three halves
SOON = 10.0  # s to the second look where blocks have no peer, on average
TRIES = 3  # moves in a row that do not come about; then sessions that remain are left behind
LONGEST_REST = 32  # looks that are let pass after a move that did not come about: 2 after the first, then 4, …

_log = logging.getLogger(__name__)


class Movable(Protocol):
    """What is moved: a `peers.lifecycle.Lifecycle`."""

    @property
    def record(self) -> PeerRecord | None: ...

    async def move(self, to: Placement, still: Callable[[], Awaitable[bool]], *, insist: bool = False) -> bool: ...


class Reconsidering:
    """Of one peer. `lot`: whence the waits come."""

    def __init__(
        self,
        life: Movable,
        directory: Directory,
        *,
        interval: float = INTERVAL,
        lot: random.Random | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._life = life
        self._directory = directory
        self._interval = interval
        self._lot = lot or random.Random()
        self._clock = clock
        self._wanted: Placement | None = None  # where it would have gone when it looked last
        self._failures = 0  # moves in a row that did not come about
        self._rest = 0  # looks to let pass
        self._known: tuple[tuple[object, ...], Placement] | None = None  # what was last decided, and by what
        self._overtaken = False  # the last move, by what others did meanwhile

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            urgent = self._wanted is not None and not self._wanted.before
            await asyncio.sleep((SOON if urgent else self._interval) * self._lot.uniform(0.5, 1.5))
            if self._rest:
                self._rest -= 1
            else:
                await self._look()

    async def _look(self) -> None:
        before, self._wanted = self._wanted, None
        better = await self._better()
        if better is None:
            return
        if before is not None:
            await self._go(better)
        else:
            self._wanted = better
            _log.info("blocks %s seem to be a better place: %s", better.span, better.reason)

    async def _better(self) -> Placement | None:
        """Where this peer should go; None: it may stay, or can't tell."""
        own = self._life.record
        if own is None or own.state is not PeerState.ONLINE or len(own.span) == own.num_blocks:
            return None
        view = await self._view(own)
        known = None if view is None else view.get(own.peer)
        if view is None or known is None or (known.span, known.state) != (own.span, own.state):
            return None  # too old a view to decide by
        placement = await self._placement(view, own)
        return None if placement.span == own.span else placement

    async def _placement(self, view: View, own: PeerRecord) -> Placement:
        """As `reconsider` says. That takes a while in a large swarm, so it isn't asked again while nothing changes."""
        facts = tuple((peer.peer, peer.span, peer.state, peer.throughput, peer.fixed) for peer in view.peers)
        if self._known is None or self._known[0] != facts:
            self._known = facts, await asyncio.to_thread(reconsider, view, own.peer)
        return self._known[1]

    async def _go(self, to: Placement) -> None:
        insist = to.before == 0.0 or self._failures >= TRIES
        self._overtaken = False
        if await self._life.move(to, lambda: self._may_leave(to), insist=insist):
            self._failures = 0
        elif not self._overtaken:
            self._failures += 1
            self._rest = min(2**self._failures, LONGEST_REST)

    async def _may_leave(self, to: Placement) -> bool:
        self._overtaken = not await self._is_right(to)
        return not self._overtaken

    async def _is_right(self, to: Placement) -> bool:
        """Whether the move is still planned now that this peer is known to leave: others may have gone or come, and who
        is alone with a block stays."""
        own = self._life.record
        view = None if own is None else await self._view(own)
        if own is None or view is None:
            return False
        with_us = view.knowing(replace(own, state=PeerState.ONLINE))
        right = (await self._placement(with_us, own)).span == to.span
        if not right:
            _log.info("the swarm has changed meanwhile, so this peer stays at blocks %s", own.span)
        return right

    async def _view(self, own: PeerRecord) -> View | None:
        try:
            return await look_around(self._directory, own.model, own.num_blocks, self._clock)
        except NetworkError as error:
            _log.info("the directory does not say who else serves, so this peer stays where it is: %s", error)
            return None
