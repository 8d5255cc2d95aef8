"""How far other peers are from this one: measured beside everything else, again and again."""

import asyncio
import random
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress

from swarm.echo import round_trip
from swarm.errors import NetworkError, WireError
from swarm.ids import PeerId
from swarm.record import PeerRecord, PeerState
from swarm.transport import Transport

__all__ = ["Distances"]

MOST = 32  # peers that are measured,
AT_ONCE = 8  # so many at a time,
FRESH = 300.0  # s until one is measured again
LOOK = 5.0  # s between looks for new ones
FIRST = 1.0  # s to wait for the first of them
WAYS = 4  # to dial somebody and to hear from there, at least


class Distances:
    """From one peer, or client, to those of a swarm, or to some where they are many. `dice` choose among these, so that
    not everybody measures the same."""

    def __init__(self, transport: Transport, dice: random.Random) -> None:
        self._transport = transport
        self._dice = dice
        self._clock = asyncio.get_running_loop().time
        self._delays: dict[PeerId, float] = {}
        self._tried: dict[PeerId, float] = {}  # when, the last time
        self._asked: dict[PeerId, float] = {}  # since when, without an answer so far
        self._first = asyncio.Event()  # set once all who were there at first have been tried

    @property
    def delays(self) -> Mapping[PeerId, float]:
        """Seconds one way."""
        return self._delays

    @property
    def silences(self) -> Mapping[PeerId, float]:
        """Seconds one way that it must be at least to those who have not answered yet."""
        now = self._clock()
        return {peer: (now - since) / WAYS for peer, since in self._asked.items()}

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
        there.pop(self._transport.peer_id, None)
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
