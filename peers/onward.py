"""The way from this peer to the next hop of some sessions: one stream, dialled when first needed."""

import asyncio
import logging
from collections.abc import Callable, Sequence
from contextlib import suppress

from swarm.errors import StreamClosed, SwarmError
from swarm.ids import PeerId
from swarm.messages import PROTOCOL, FaultCode
from swarm.outlet import Allowance, Outlet
from swarm.transport import Stream, Transport

__all__ = ["Onward"]

logger = logging.getLogger(__name__)

DIAL_SECONDS = 5.0

Report = Callable[[FaultCode, str], None]


class Onward:
    """Frames posted before the stream stands wait for it. A stream that breaks is dialled once more, and `report` says
    LINK_LOST, since what was on it may be lost; when nobody can be dialled it says UNREACHABLE and this object ends.

    `addresses`: where those whose sessions go this way say that the peer is. Any of them may be wrong, so all are
    tried; who knows others while a dial is under way has it begin again, with `look_again`."""

    def __init__(
        self,
        transport: Transport,
        peer: PeerId,
        addresses: Callable[[], Sequence[str]],
        allowance: Allowance,
        report: Report,
    ) -> None:
        self.ended = False
        self.used = asyncio.get_running_loop().time()  # when something was posted last
        self._transport = transport
        self._peer = peer
        self._addresses = addresses
        self._allowance = allowance
        self._report = report
        self._early: list[bytes] = []
        self._tried: frozenset[str] | None = None  # by the dial that is under way
        self._news = asyncio.Event()
        self._outlet: Outlet | None = None
        self._task = asyncio.create_task(self._run())

    def post(self, frame: bytes) -> None:
        self.used = asyncio.get_running_loop().time()
        if self._outlet is not None:
            self._outlet.post(frame)
        elif not self.ended and not self._allowance.exceeded:
            self._early.append(frame)
            self._allowance.add(len(frame))

    def look_again(self) -> None:
        """`addresses` may have changed."""
        if self._tried is not None and not self._tried.issuperset(self._addresses()):
            self._news.set()

    def end(self) -> None:
        """Nobody goes this way any more."""
        self.ended = True
        self._task.cancel()

    async def close(self) -> None:
        self.end()
        with suppress(asyncio.CancelledError):
            await self._task

    async def _run(self) -> None:
        broken = False
        try:
            while True:
                stream = await self._dial()
                if broken:
                    text = f"the stream to the next hop, peer {self._peer}, broke and was made anew"
                    self._report(FaultCode.LINK_LOST, text)
                await self._feed(stream)
                broken = True
        except (SwarmError, TimeoutError) as error:
            logger.info("cannot reach peer %s: %s", self._peer, error)
            self.ended = True
            self._report(FaultCode.UNREACHABLE, f"peer {self._peer} cannot be reached from here: {error}")
        finally:
            self.ended = True
            self._forget_early()

    async def _dial(self) -> Stream:
        while True:
            self._news.clear()
            addresses = self._addresses()
            self._tried = frozenset(addresses)
            dial = asyncio.create_task(self._transport.open(self._peer, PROTOCOL, addresses))
            news = asyncio.create_task(self._news.wait())
            taken = False
            try:
                await asyncio.wait((dial, news), timeout=DIAL_SECONDS, return_when=asyncio.FIRST_COMPLETED)
                if dial.done() and (dial.exception() is None or not news.done()):
                    taken = True
                    return dial.result()
                if not news.done():
                    raise TimeoutError(f"nobody answered within {DIAL_SECONDS:g} s")
            finally:
                self._tried = None
                news.cancel()
                if not taken:
                    dial.cancel()
                    dial.add_done_callback(_hang_up)

    async def _feed(self, stream: Stream) -> None:
        """Until the stream ends."""
        outlet = self._outlet = Outlet(stream, self._allowance)
        early = self._forget_early()
        for frame in early:
            outlet.post(frame)
        writing = asyncio.create_task(outlet.run())
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
            outlet.close()

    def _forget_early(self) -> list[bytes]:
        early, self._early = self._early, []
        self._allowance.add(-sum(map(len, early)))
        return early


def _hang_up(dial: "asyncio.Task[Stream]") -> None:
    """Nobody waits for it any more."""
    if not dial.cancelled() and dial.exception() is None:
        dial.result().close()
