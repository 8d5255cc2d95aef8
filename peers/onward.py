"""The way from this peer to the next hop of some sessions: one stream, dialled when first needed."""

import asyncio
import logging
from collections.abc import Callable
from contextlib import suppress

from swarm.errors import StreamClosed, SwarmError
from swarm.messages import PROTOCOL, Contact, FaultCode
from swarm.outlet import Outlet
from swarm.transport import Stream, Transport

__all__ = ["Onward"]

logger = logging.getLogger(__name__)

DIAL_SECONDS = 5.0

Report = Callable[[FaultCode, str], None]


class Onward:
    """Frames posted before the stream stands wait for it. A stream that breaks is dialled once more, and `report` says
    LINK_LOST, since what was on it may be lost; when nobody can be dialled it says UNREACHABLE and this object ends."""

    def __init__(self, transport: Transport, contact: Contact, limit: int, report: Report) -> None:
        self.ended = False
        self._transport = transport
        self._contact = contact
        self._limit = limit
        self._report = report
        self._early: list[bytes] = []
        self._outlet: Outlet | None = None
        self._task = asyncio.create_task(self._run())

    def post(self, frame: bytes) -> None:
        if self._outlet is not None:
            self._outlet.post(frame)
        elif sum(map(len, self._early)) < self._limit:
            self._early.append(frame)

    async def close(self) -> None:
        self.ended = True
        self._task.cancel()
        with suppress(asyncio.CancelledError):
            await self._task

    async def _run(self) -> None:
        broken = False
        try:
            while True:
                stream = await self._dial()
                if broken:
                    text = f"the stream to the next hop, peer {self._contact.peer}, broke and was made anew"
                    self._report(FaultCode.LINK_LOST, text)
                await self._feed(stream)
                broken = True
        except (SwarmError, TimeoutError) as error:
            logger.info("cannot reach peer %s: %s", self._contact.peer, error)
            self.ended = True
            self._report(FaultCode.UNREACHABLE, f"peer {self._contact.peer} cannot be reached from here: {error}")

    async def _dial(self) -> Stream:
        async with asyncio.timeout(DIAL_SECONDS):
            return await self._transport.open(self._contact.peer, PROTOCOL, self._contact.addresses)

    async def _feed(self, stream: Stream) -> None:
        """Until the stream ends."""
        self._outlet = Outlet(stream, self._limit)
        for frame in self._early:
            self._outlet.post(frame)
        self._early = []
        writing = asyncio.create_task(self._outlet.run())
        try:
            while True:
                await stream.receive()  # the next hop answers the client, not us; this only notices the end
        except StreamClosed:
            pass
        finally:
            self._outlet = None
            stream.close()
            writing.cancel()
            with suppress(asyncio.CancelledError, StreamClosed):
                await writing
