"""How far peers are from this client: measured beside everything else, so that chains go through those that are near.

Of a large swarm some peers are measured; the others count as neither near nor far.
"""

import asyncio
import random
from collections.abc import Callable, Iterable
from contextlib import suppress

from routing.perf import Link, Links
from swarm.echo import round_trip
from swarm.errors import NetworkError, WireError
from swarm.ids import PeerId
from swarm.record import PeerRecord, PeerState
from swarm.transport import Transport

__all__ = ["UNKNOWN", "Distances"]

UNKNOWN = Link(delay=0.02, bandwidth=12.5e6)  # of a pair nobody has measured: a good home line
NEAR = 0.01  # s, one way; closer than this nobody is preferred for it, what peers say of their speed is less exact
MOST = 32  # peers that are measured,
AT_ONCE = 8  # so many at a time,
FRESH = 300.0  # s until one is measured again
LOOK = 5.0  # s between looks for new ones
WAYS = 4  # to dial and to hear of somebody, at least
FIRST = 1.0  # s that planning waits for the first of them


class Distances:
    """One client's. `dice` choose among many peers, so that not all clients measure the same."""

    def __init__(self, transport: Transport, dice: random.Random, clock: Callable[[], float]) -> None:
        self._transport = transport
        self._dice = dice
        self._clock = clock
        self._delays: dict[PeerId, float] = {}
        self._tried: dict[PeerId, float] = {}  # when, the last time
        self._asked: dict[PeerId, float] = {}  # since when, without an answer so far
        self._first = asyncio.Event()  # set once all who were there at first have been tried

    def links(self) -> Links:
        """What is known of the ways between this client and peers, and so of those between peers."""
        me, now = self._transport.peer_id, self._clock()
        at_least = {peer: max(UNKNOWN.delay, (now - since) / WAYS) for peer, since in self._asked.items()}
        delays = {**at_least, **{peer: max(NEAR, delay) for peer, delay in self._delays.items()}}
        known = {(me, peer): Link(delay, UNKNOWN.bandwidth) for peer, delay in delays.items()}
        return Links(UNKNOWN, known, origin=me)

    async def settled(self) -> None:
        """Wait a moment for the first measurements."""
        with suppress(TimeoutError):
            async with asyncio.timeout(FIRST):
                await self._first.wait()

    async def keep(self, peers: Callable[[], Iterable[PeerRecord]]) -> None:
        """Measure those of `peers` that are due, until cancelled."""
        while True:
            await self.measure(peers())
            self._first.set()
            await asyncio.sleep(LOOK)

    async def measure(self, peers: Iterable[PeerRecord]) -> None:
        """Measure those that are due, and forget who is gone."""
        there = {record.peer: record for record in peers if record.state is PeerState.ONLINE}
        self._tried = {peer: at for peer, at in self._tried.items() if peer in there}
        self._delays = {peer: delay for peer, delay in self._delays.items() if peer in there}
        new = [peer for peer in there if peer not in self._tried]
        chosen = self._dice.sample(new, min(len(new), max(0, MOST - len(self._tried))))
        now = self._clock()
        due = [peer for peer, at in self._tried.items() if now - at >= FRESH]
        turns = asyncio.Semaphore(AT_ONCE)
        async with asyncio.TaskGroup() as group:
            for peer in (*chosen, *due):
                self._tried[peer] = now
                group.create_task(self._measure(there[peer], turns))

    async def _measure(self, record: PeerRecord, turns: asyncio.Semaphore) -> None:
        async with turns:
            self._asked[record.peer] = self._clock()
            try:
                seconds = await round_trip(self._transport, record.peer, record.contact.addresses)
            except (NetworkError, WireError):
                self._delays.pop(record.peer, None)
            else:
                self._delays[record.peer] = seconds / 2
            finally:
                del self._asked[record.peer]
