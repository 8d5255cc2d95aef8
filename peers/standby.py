"""A peer that stands by: which span it has ready, when it goes to serve it, and when it may rest again.

It looks at the directory every few seconds, and whether those live whose place it would take. What it decides, and that
no two do so at once, is `routing.standby`'s and `routing.reserve`'s affair.
"""

import asyncio
import logging
import random
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass

from peers.announce import Announcer
from peers.choosing import Room, guess_block_rate
from peers.sight import look_around
from peers.stay import Pace, Stay
from peers.vigil import Vigil
from routing.placement import REPLICAS, Placement
from routing.reserve import Reserve, ReserveTimes
from routing.standby import MOST_WATCHED, beside, may_rest, prepare, rank_among_uncovering, watched
from routing.view import View
from swarm.directory import Directory
from swarm.errors import NetworkError, SwarmError
from swarm.ids import Digest, Span
from swarm.record import PeerRecord, PeerState
from swarm.transport import Transport

__all__ = ["Standby", "StandbyPace"]

MOST_SPANS = 4  # on the disk of one peer: when so many have been fetched, it keeps to those

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class StandbyPace:
    """Seconds. `look`, on average: between two looks at the swarm. `reconsider`, on average: until another span is
    thought of. `turn`: where nobody is ready for blocks that lack peers, the next that stands by thinks of them so much
    later than the one before."""

    look: float = 2.0
    reconsider: float = 1800.0
    turn: float = 120.0


class Standby:
    """Of one peer. `make_ready`: has a span's weights on the disk as they are needed, and tells how fast it is; raises
    SwarmError. `on_standby` is called with the record each time the peer begins to stand by, and for each other span.
    """

    def __init__(
        self,
        transport: Transport,
        directory: Directory,
        model: Digest,
        num_blocks: int,
        room: Room,
        make_ready: Callable[[Span], Awaitable[Pace]],
        on_standby: Callable[[PeerRecord], Awaitable[None]],
        *,
        wanted: int = REPLICAS,
        times: ReserveTimes,
        pace: StandbyPace,
        lot: random.Random | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._directory = directory
        self._peer = transport.peer_id
        self._model, self._num_blocks, self._room = model, num_blocks, room
        self._make_ready = make_ready
        self._on_standby = on_standby
        self._pace = pace
        self._lot = lot or random.Random()
        self._clock = clock
        self._reserve = Reserve(self._peer, wanted=wanted, times=times)
        self._vigil = Vigil(transport, clock)
        self._spans: set[Span] = set()  # that have been made ready
        self._reconsider_at = 0.0  # loop time
        self._uncovered: float | None = None  # since when nobody is ready for blocks that lack peers, loop time

    # --- what is ready ------------------------------------------------------------------------------------------

    async def first(self) -> tuple[Placement, Pace]:
        """The first span, ready. Raises SwarmError."""
        placement = self._prepared(await self._view(), None)
        _log.info("getting blocks %s ready, to stand by with them: %s", placement.span, placement.reason)
        pace = await self._make_ready(placement.span)
        self._spans.add(placement.span)
        self._put_off()
        return placement, pace

    def _prepared(self, view: View, current: Span | None) -> Placement:
        return prepare(
            view,
            self._peer,
            capacity=self._room.capacity,
            block_rate=self._room.block_rate or guess_block_rate(view),
            fixed=self._room.fixed,
            current=current,
        )

    def _put_off(self) -> None:
        wait = self._pace.reconsider * self._lot.uniform(0.5, 1.5)
        self._reconsider_at = self._now() + wait

    def _another(self, view: View, current: Span) -> Placement | None:
        """Another span that should be ready rather than `current`, where it is time to think of that."""
        now = self._now()
        rank = rank_among_uncovering(view, self._peer, wanted=self._reserve.wanted, without=self._vigil.gone)
        self._uncovered = None if rank is None else self._uncovered or now
        urgent = rank is not None and self._uncovered is not None and now >= self._uncovered + rank * self._pace.turn
        if now < self._reconsider_at and not urgent:
            return None
        self._put_off()
        found = self._prepared(view, current)
        full = len(self._spans) >= MOST_SPANS and found.span not in self._spans
        return None if found.span == current or full else found

    async def _change_span(self, to: Placement, announcer: Announcer) -> None:
        try:
            pace = await self._make_ready(to.span)
        except SwarmError as error:
            _log.error("blocks %s can't be made ready, so it stays with those before: %s", to.span, error)
            return
        self._spans.add(to.span)
        _log.info("ready for blocks %s now: %s", to.span, to.reason)
        announcer.change(span=to.span, reason=to.reason, throughput=pace.throughput, prefill=pace.prefill)
        await self._on_standby(announcer.record)

    # --- standing by --------------------------------------------------------------------------------------------

    async def until_called(self, announcer: Announcer, paused: Callable[[], bool]) -> Placement:
        """Stands by with the span of `announcer`'s record, or a better one, until that has to be served: and why. Who
        is paused is not called."""
        changing: asyncio.Task[None] | None = None
        self._announce(announcer, paused())
        await self._on_standby(announcer.record)
        try:
            while True:
                self._announce(announcer, paused())
                view = await self._seen(announcer)
                call = None if view is None else self._reserve.look(view, self._now(), gone=self._vigil.gone)
                if call is not None and not paused():
                    span = announcer.record.span
                    return Placement(span, call.reason, 0.0, announcer.record.throughput)
                idle = changing is None or changing.done()
                if view is not None and idle and (other := self._another(view, announcer.record.span)):
                    changing = asyncio.create_task(self._change_span(other, announcer), name="preparing")
                await self._pause()
        finally:
            if changing is not None:
                changing.cancel()
                with suppress(asyncio.CancelledError):
                    await changing

    def _announce(self, announcer: Announcer, paused: bool) -> None:
        state = PeerState.PAUSED if paused else PeerState.STANDBY
        if announcer.record.state is not state:
            announcer.change(state=state)

    async def _seen(self, announcer: Announcer) -> View | None:
        """The swarm, this peer as it is, after a look at those whose place it would take; None if it can't be seen."""
        view = await self._view_if_any(announcer)
        if view is None:
            return None
        vigil = self._vigil
        vigil.heed(view.peers)
        near = beside(view, self._peer)[:MOST_WATCHED]
        first = watched(view, self._peer, wanted=self._reserve.wanted, without=vigil.gone | vigil.silent)
        await vigil.look({record.peer: record for record in (*vigil.doubtful(near), *first)}.values())
        return view

    # --- serving ------------------------------------------------------------------------------------------------

    async def until_rested(self, announcer: Announcer, stay: Callable[[], Stay | None]) -> None:
        """Ends the stay when the swarm does without this peer, and this is the one to rest."""
        while True:
            await self._pause()
            view, here = await self._view_if_any(announcer), stay()
            if view is None or here is None or not self._reserve.rests(view, self._clock()):
                continue
            _log.info("each of blocks %s has enough other peers: standing by again", announcer.record.span)
            if await here.leave(lambda: self._is_spare(announcer), insist=False):
                return

    async def _is_spare(self, announcer: Announcer) -> bool:
        view = await self._view_if_any(announcer)
        return view is not None and may_rest(view, self._peer, wanted=self._reserve.wanted)

    # --- looking ------------------------------------------------------------------------------------------------

    def _now(self) -> float:
        return asyncio.get_running_loop().time()

    async def _pause(self) -> None:
        await asyncio.sleep(self._pace.look * self._lot.uniform(0.5, 1.5))

    async def _view_if_any(self, announcer: Announcer) -> View | None:
        """With this peer as it knows itself, however old what the directory says of it."""
        try:
            view = await self._view()
        except NetworkError as error:
            _log.info("can't see who serves: %s", error)
            return None
        return view.knowing(announcer.record)

    async def _view(self) -> View:
        return await look_around(self._directory, self._model, self._num_blocks, self._clock)
