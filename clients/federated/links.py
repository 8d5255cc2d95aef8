"""Streams between the members of a run: whichever of two could dial the other, both speak over it."""

import asyncio
from collections.abc import Callable
from contextlib import suppress

from swarm.errors import NetworkError, ProtocolError
from swarm.fields import Contact
from swarm.ids import PeerId
from swarm.outlet import Outlet
from swarm.transport import Stream, Transport
from swarm.wire import Frame, decode

__all__ = ["PROTOCOL", "Links"]

PROTOCOL = "/swarm/run/1"
WAITING_BYTES = 64 << 20  # posted to one member and not yet sent
INTRODUCTION = 10.0  # seconds in which a stranger has to say something that a member would
AGAIN = 10.0  # seconds before one who can't be reached is dialled again


class Links:
    """`hear` is told each frame with the peer that sent it and raises ProtocolError for what ends the stream;
    `greeting` makes the first frame to everyone; `changed` is told when somebody came or went."""

    def __init__(
        self,
        transport: Transport,
        most: int,
        *,
        hear: Callable[[PeerId, Frame], None],
        greeting: Callable[[], bytes],
        changed: Callable[[], None],
    ) -> None:
        self._transport = transport
        self._most = most
        self._hear, self._greeting, self._changed = hear, greeting, changed
        self._outlets: dict[PeerId, list[Outlet]] = {}
        self._strangers = 0
        self._tried: dict[PeerId, float] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def peers(self) -> frozenset[PeerId]:
        """Who can be spoken to now, and has proved to be a member."""
        return frozenset(self._outlets)

    def post(self, peer: PeerId, frame: bytes) -> None:
        if outlets := self._outlets.get(peer):
            outlets[0].post(frame)

    async def drained(self, peer: PeerId) -> bool:
        """Once all that was posted to `peer` is sent; False where it is gone."""
        outlets = self._outlets.get(peer)
        if outlets:
            await outlets[0].drained()
        return bool(outlets)

    async def start(self) -> None:
        await self._transport.serve(PROTOCOL, self._speak)

    def meet(self, contact: Contact) -> None:
        """Dial, unless they are there or were tried just now."""
        now, peer = asyncio.get_running_loop().time(), contact.peer
        known = peer == self._transport.peer_id or peer in self._outlets
        if known or len(self._tasks) >= self._most or now < self._tried.get(peer, -AGAIN) + AGAIN:
            return
        if len(self._tried) > 16 * self._most:
            self._tried.clear()
        self._tried[peer] = now
        task = asyncio.create_task(self._dial(contact), name=f"member {peer}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def close(self) -> None:
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _dial(self, contact: Contact) -> None:
        with suppress(NetworkError, ProtocolError):
            stream = await self._transport.open(contact.peer, PROTOCOL, contact.addresses)
            try:
                await self._speak(stream)
            finally:
                stream.close()

    async def _speak(self, stream: Stream) -> None:
        """All of one stream's life; who dialled makes no difference."""
        if self._strangers >= self._most or len(self._outlets.get(stream.remote, ())) >= 2:
            return
        outlet = Outlet(stream, WAITING_BYTES)
        writer = asyncio.create_task(_write(outlet, stream))
        outlet.post(self._greeting())
        try:
            self._strangers += 1
            try:
                async with asyncio.timeout(INTRODUCTION):
                    self._hear(stream.remote, decode(await stream.receive()))
            except TimeoutError:
                return
            finally:
                self._strangers -= 1
            if stream.remote not in self._outlets and len(self._outlets) >= self._most:
                return
            self._outlets.setdefault(stream.remote, []).append(outlet)
            self._changed()
            while True:
                self._hear(stream.remote, decode(await stream.receive()))
        finally:
            writer.cancel()
            self._forget(stream.remote, outlet)

    def _forget(self, peer: PeerId, outlet: Outlet) -> None:
        left = [other for other in self._outlets.get(peer, ()) if other is not outlet]
        if left:
            self._outlets[peer] = left
        else:
            self._outlets.pop(peer, None)
        self._changed()


async def _write(outlet: Outlet, stream: Stream) -> None:
    with suppress(NetworkError):
        await outlet.run()
    stream.close()
