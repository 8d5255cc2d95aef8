"""One stream to each hop, shared by all sessions of this client: posting frames, and handing what comes to its session.

Frames are posted without waiting, so a hop that hangs can never hang the session that talks to it.
"""

import asyncio
from collections.abc import Callable, Sequence
from contextlib import suppress
from weakref import WeakValueDictionary

from swarm.errors import StreamClosed, Unreachable, WireError
from swarm.ids import PeerId, SessionId
from swarm.messages import PROTOCOL, Contact, Message, parse
from swarm.outlet import Outlet
from swarm.transport import Stream, Transport

__all__ = ["HopStream", "Hops", "Lost"]


WAITING_BYTES = 1 << 30  # posted and not yet sent: the steps in flight of all sessions


class Lost:
    """In place of a message: the stream to `peer` ended, or it spoke nonsense (`reason` says which)."""

    def __init__(self, peer: PeerId, reason: str) -> None:
        self.peer = peer
        self.reason = reason


Listener = Callable[["HopStream", "Message | Lost"], None]


class HopStream:
    """A stream to one peer. `closed` tells why it ended, None while it lives."""

    def __init__(self, stream: Stream, on_alive: Callable[[PeerId], None]) -> None:
        """`on_alive` is called when the peer says something after an answer of it was `missed`."""
        self.peer = stream.remote
        self.closed: str | None = None
        self.heard = asyncio.get_running_loop().time()  # something, the last time
        self._on_alive = on_alive
        self._silent = False
        self._stream = stream
        self._listeners: dict[SessionId, Listener] = {}
        self._outlet = Outlet(stream, WAITING_BYTES)
        self._tasks = [asyncio.create_task(self._write()), asyncio.create_task(self._read())]

    def post(self, frame: bytes) -> None:
        """Send `frame` after everything posted before; a stream that has ended swallows it (listeners were told)."""
        if self.closed is None:
            self._outlet.post(frame)

    def listen(self, session: SessionId, listener: Listener) -> None:
        """Hand `listener` what comes for `session`. Raises StreamClosed when the stream has ended already."""
        if self.closed is not None:
            raise StreamClosed(f"the stream to peer {self.peer} has ended: {self.closed}")
        self._listeners[session] = listener

    def forget(self, session: SessionId) -> None:
        self._listeners.pop(session, None)

    def end(self, reason: str) -> None:
        """Close the stream and tell every session; safe to repeat."""
        if self.closed is not None:
            return
        self.closed = reason
        self._stream.close()
        for task in self._tasks:
            if task is not asyncio.current_task():
                task.cancel()
        listeners, self._listeners = list(self._listeners.values()), {}
        for listener in listeners:
            listener(self, Lost(self.peer, reason))

    def missed(self) -> None:
        """An answer has not come in time."""
        self._silent = True

    async def flush(self, seconds: float) -> None:
        """Give the writer a moment to send what was posted, for a polite goodbye."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._outlet.drained()

    async def _write(self) -> None:
        try:
            await self._outlet.run()
        except StreamClosed as error:
            self.end(str(error))

    async def _read(self) -> None:
        try:
            while True:
                message = parse(await self._stream.receive())
                self.heard = asyncio.get_running_loop().time()
                if self._silent:
                    self._silent = False
                    self._on_alive(self.peer)
                listener = self._listeners.get(message.session)
                if listener is not None:  # else: an answer to a session that was closed meanwhile
                    listener(self, message)
        except StreamClosed as error:
            self.end(str(error))
        except WireError as error:
            self.end(f"it sent what the protocol does not allow: {error}")


class Hops:
    """The streams of one client, opened when first needed and opened anew after they ended."""

    def __init__(self, transport: Transport, dial_seconds: float, on_alive: Callable[[PeerId], None]) -> None:
        """`on_alive`: see HopStream."""
        self._transport = transport
        self._on_alive = on_alive
        self._dial_seconds = dial_seconds
        self._streams: dict[PeerId, HopStream] = {}
        self._dialling: WeakValueDictionary[PeerId, asyncio.Lock] = WeakValueDictionary()  # for as long as it is used

    async def to(self, contact: Contact) -> HopStream:
        """The stream to a peer. Raises Unreachable."""
        lock = self._dialling.setdefault(contact.peer, asyncio.Lock())
        async with lock:
            known = self._streams.get(contact.peer)
            if known is not None and known.closed is None:
                return known
            stream = await self._dial(contact.peer, contact.addresses)
            living = {peer: other for peer, other in self._streams.items() if other.closed is None}
            self._streams = {**living, contact.peer: stream}
            return stream

    async def _dial(self, peer: PeerId, addresses: Sequence[str]) -> HopStream:
        try:
            async with asyncio.timeout(self._dial_seconds):
                return HopStream(await self._transport.open(peer, PROTOCOL, addresses), self._on_alive)
        except TimeoutError:
            raise Unreachable(f"peer {peer} did not answer within {self._dial_seconds:g} s") from None

    async def close(self) -> None:
        async with asyncio.TaskGroup() as group:
            for stream in self._streams.values():
                if stream.closed is None:
                    group.create_task(stream.flush(1.0))
        for stream in self._streams.values():
            stream.end("this client has left")
