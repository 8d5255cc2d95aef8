"""All ways from this peer to next hops: one for each such peer, for as long as somebody uses it."""

import asyncio
from collections.abc import Callable, Collection, Sequence
from functools import partial

from peers.onward import Onward
from swarm.ids import PeerId
from swarm.messages import FaultCode
from swarm.outlet import Allowance
from swarm.transport import Transport

__all__ = ["Ways"]

REST = 60.0  # seconds for which a way is kept that nobody uses

Report = Callable[[PeerId, FaultCode, str], None]


class Ways:
    """`used`: the peers to whom sessions go now; `addresses`: where such a one may be, as those say whose sessions they
    are. `report` is told what became of the way to a peer. `most` at once."""

    def __init__(
        self,
        transport: Transport,
        used: Callable[[], Collection[PeerId]],
        addresses: Callable[[PeerId], Sequence[str]],
        report: Report,
        *,
        waiting: Callable[[], Allowance],
        most: int,
    ) -> None:
        self._transport = transport
        self._used = used
        self._addresses = addresses
        self._report = report
        self._waiting = waiting
        self._most = most
        self._ways: dict[PeerId, Onward] = {}

    def __len__(self) -> int:
        return len(self._ways)

    def known(self, peer: PeerId) -> Onward | None:
        way = self._ways.get(peer)
        return None if way is None or way.ended else way

    def begin(self, peer: PeerId) -> Onward | None:
        """A new way, or None where there are as many as may be and all of them are used."""
        if len(self._ways) >= self._most:
            self._tidy()
        if len(self._ways) >= self._most:
            return None
        way = self._ways[peer] = Onward(
            self._transport, peer, partial(self._addresses, peer), self._waiting(), partial(self._report, peer)
        )
        self._look_later(peer, way)
        return way

    def look_again(self, peer: PeerId) -> None:
        """Somebody may know more addresses of `peer`."""
        way = self.known(peer)
        if way is not None:
            way.look_again()

    async def close(self) -> None:
        for way in list(self._ways.values()):
            await way.close()
        self._ways.clear()

    def _tidy(self) -> None:
        needed = self._used()
        for peer, way in list(self._ways.items()):
            if way.ended or peer not in needed:
                self._end(peer, way)

    def _look_later(self, peer: PeerId, way: Onward) -> None:
        asyncio.get_running_loop().call_later(REST, self._look, peer, way)

    def _look(self, peer: PeerId, way: Onward) -> None:
        """Every minute: whether it is still of use."""
        if self._ways.get(peer) is not way:
            return
        rested = asyncio.get_running_loop().time() - way.used >= REST
        if way.ended or (rested and peer not in self._used()):
            self._end(peer, way)
        else:
            self._look_later(peer, way)

    def _end(self, peer: PeerId, way: Onward) -> None:
        del self._ways[peer]
        way.end()
