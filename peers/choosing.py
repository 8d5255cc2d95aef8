"""Which span a peer hosts: chosen from what the directory says, and again if others chose at the same moment."""

import asyncio
import logging
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

from peers.announce import Announcer
from peers.sight import look_around
from routing.placement import Placement, place
from routing.view import View
from swarm.directory import Directory
from swarm.errors import NetworkError
from swarm.ids import Digest, PeerId, Span
from swarm.record import PeerState

__all__ = ["Chooser", "Room"]

_log = logging.getLogger(__name__)

USUAL_BLOCK_RATE = 500.0  # rows per second through one block, assumed where nobody is there to compare with


@dataclass(frozen=True, slots=True)
class Room:
    """What this peer could host: at most `capacity` blocks, or exactly the span `fixed`. `block_rate`: rows per second
    through one block, where this machine has been measured before."""

    capacity: int
    fixed: Span | None = None
    block_rate: float | None = None


class Chooser:
    def __init__(
        self,
        directory: Directory,
        peer: PeerId,
        model: Digest,
        num_blocks: int,
        room: Room,
        *,
        settle: float = 0.5,
        rounds: int = 8,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """`settle`: seconds after which at the earliest to look at what others announced; 0: nobody else is there.
        `rounds`: how often to look at most."""
        self._directory = directory
        self._peer = peer
        self._model = model
        self._num_blocks = num_blocks
        self._room = room
        self._settle = settle
        self._rounds = rounds
        self._clock = clock
        self._read_at = 0.0  # loop time

    async def first(self) -> tuple[Placement, float]:
        """A span to announce as joining, and a guess of this peer's rows per second through it."""
        view = await self._view()
        placement = self._place(view, current=None)
        return placement, self._block_rate(view) / len(placement.span)

    async def settled(self, placement: Placement, announcer: Announcer) -> Placement:
        """`placement`, which has been announced, or a better one where others chose at the same time. What is returned
        has been announced. A directory that fails meanwhile leaves the choice as it is.

        Among those that join at once, each gives way to peer ids before its own, so the n-th is settled after n looks.
        """
        if self._room.fixed is not None or not self._settle:
            return placement
        same = 0
        for _ in range(self._rounds):
            await asyncio.sleep(self._pause())
            try:
                view = await self._view()
            except NetworkError as error:
                _log.warning("can't see who else is joining, so the choice stays: %s", error)
                return placement
            again = self._place(view, current=placement.span)
            if again.span == placement.span:
                same += 1
                if same > self._joiners_before(view):
                    return placement
                continue
            _log.info("others chose blocks %s too; moving to %s: %s", placement.span, again.span, again.reason)
            placement, same = again, 0
            announcer.change(span=placement.span, reason=placement.reason)
            await announcer.announced()
        return placement

    def _pause(self) -> float:
        """Seconds until everyone who read the directory before our announcement has announced too: twice what it took
        ourselves to read and announce."""
        return max(self._settle, 2 * (asyncio.get_running_loop().time() - self._read_at))

    def _joiners_before(self, view: View) -> int:
        return sum(record.state is PeerState.JOINING and record.peer < self._peer for record in view.peers)

    def _place(self, view: View, current: Span | None) -> Placement:
        return place(
            view,
            capacity=self._room.capacity,
            block_rate=self._block_rate(view),
            peer=self._peer,
            fixed=self._room.fixed,
            current=current,
        )

    def _block_rate(self, view: View) -> float:
        return self._room.block_rate or guess_block_rate(view)

    async def _view(self) -> View:
        self._read_at = asyncio.get_running_loop().time()
        return await look_around(self._directory, self._model, self._num_blocks, self._clock)


def guess_block_rate(view: View) -> float:
    """Rows per second through one block of a peer like those that are there."""
    rates = [record.throughput * len(record.span) for record in view.peers]
    return statistics.median(rates) if rates else USUAL_BLOCK_RATE
