"""Whether other peers live: asked by opening a stream to each, which one whose process or machine is gone can't answer.

A record says for a minute after its peer's death that it is there. Who has answered before and does not twice in a row
is taken to be gone, until a record comes that was issued later, or it answers again. So is who never answered, once it
should have announced itself again: it may be out of reach from here alone, but then its records stay young.
"""

import asyncio
import time
from collections.abc import Callable, Iterable

from peers.announce import Timing
from swarm.errors import NetworkError
from swarm.ids import PeerId
from swarm.messages import PROTOCOL
from swarm.record import PeerRecord
from swarm.sealing import CLOCK_TOLERANCE
from swarm.transport import Transport

__all__ = ["Vigil"]

PATIENCE = 3.0  # s for one answer
AGAIN = 0.5  # s until who has not answered is asked once more
OVERDUE = 1.5 * Timing().period  # s: the age of a record by which a peer that lives has issued another


class Vigil:
    """One peer's. `clock`: Unix time, by which records are issued."""

    def __init__(self, transport: Transport, clock: Callable[[], float] = time.time) -> None:
        self._transport = transport
        self._clock = clock
        self._answered: set[PeerId] = set()  # those who have, since they were last taken to be gone
        self._silent: set[PeerId] = set()  # those who never have, though they were asked
        self._gone: dict[PeerId, float] = {}  # and since when

    @property
    def gone(self) -> frozenset[PeerId]:
        return frozenset(self._gone)

    @property
    def silent(self) -> frozenset[PeerId]:
        """Of whom nothing is known but what they announce: they were asked and have never answered."""
        return frozenset(self._silent)

    def doubtful(self, records: Iterable[PeerRecord]) -> list[PeerRecord]:
        """Those to ask so that more is known of them: who was never asked, and who never answered and is overdue."""
        known = self._answered | self._gone.keys()
        return [r for r in records if r.peer not in known and (r.peer not in self._silent or self._overdue(r))]

    def heed(self, records: Iterable[PeerRecord]) -> None:
        """Take note of what has been announced: peers that have announced themselves again live."""
        known = {record.peer: record for record in records}
        self._answered &= known.keys()
        self._silent &= known.keys()
        for peer, since in list(self._gone.items()):
            if peer not in known or known[peer].issued > since + CLOCK_TOLERANCE:
                del self._gone[peer]

    async def look(self, peers: Iterable[PeerRecord]) -> None:
        """Ask each of `peers`, all at once. Takes some seconds where they don't answer."""
        async with asyncio.TaskGroup() as group:
            for record in peers:
                group.create_task(self._ask(record))

    async def _ask(self, record: PeerRecord) -> None:
        peer = record.peer
        if await self._answers(record):
            self._answered.add(peer)
            self._silent.discard(peer)
            self._gone.pop(peer, None)
            return
        before = peer in self._answered
        if not before and not self._overdue(record):
            self._silent.add(peer)
            return
        await asyncio.sleep(AGAIN)
        if not await self._answers(record):
            self._answered.discard(peer)
            self._silent.discard(peer)
            self._gone[peer] = self._clock() if before else record.issued

    def _overdue(self, record: PeerRecord) -> bool:
        return self._clock() - record.issued > OVERDUE

    async def _answers(self, record: PeerRecord) -> bool:
        try:
            async with asyncio.timeout(PATIENCE):
                stream = await self._transport.open(record.peer, PROTOCOL, record.contact.addresses)
        except (NetworkError, TimeoutError):
            return False
        stream.close()
        return True
