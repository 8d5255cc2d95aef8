"""The hops that a session runs on now: posting to them, asking them, hearing from them."""

import asyncio
import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial

from clients.hops import HopStream, Lost
from clients.sleep import overslept
from fault.mend import Leg
from routing.chains import Hop
from swarm.errors import StreamClosed, Unreachable
from swarm.ids import PeerId, SessionId
from swarm.messages import Busy, Close, Fault, FaultCode, HiddenStates, Message, Ping, Pong, Ready
from swarm.training import Missing

__all__ = ["Chain", "Parting", "Trouble"]

ASKINGS = 3  # times that a hop is waited for which speaks, but has not answered yet
MAX_EVENTS = 1024  # messages of one session that wait to be heard; more is a flood
MAX_EVENT_BYTES = 256 << 20  # of hidden states in them


@dataclass(frozen=True, slots=True)
class Trouble:
    """Something is wrong with the chain: legs to give up, peers to leave alone for a while, seconds to wait first."""

    reason: str
    drop: tuple[SessionId, ...] = ()
    ban: tuple[PeerId, ...] = ()
    wait: float = 0.0


@dataclass(frozen=True, slots=True)
class Parting:
    """Legs that the session moves off while they still serve it, and why. `away`: other peers that it does not move
    to, either. `seconds`: of a step at a hop; those in their place take `most` in all, or nothing is changed."""

    legs: tuple[Leg, ...]
    reason: str
    away: tuple[PeerId, ...] = ()
    seconds: Callable[[Hop], float] = lambda _: 0.0
    most: float | None = None


class Chain:
    def __init__(self, on_leaving: Callable[[], None]) -> None:
        """`on_leaving` is called when `leaving` has grown."""
        self.legs: tuple[Leg, ...] = ()
        self.trace: tuple[tuple[float, float], ...] = ()  # of the last step: (queue ms, compute ms) of each hop
        self.depths: tuple[int | None, ...] = ()  # tokens that were at each of these peers
        self._streams: dict[SessionId, HopStream] = {}
        self._events: asyncio.Queue[tuple[SessionId, Message | Trouble]] = asyncio.Queue(MAX_EVENTS)
        self._event_bytes = 0
        self._opening: dict[SessionId, asyncio.Future[Message]] = {}
        self._pings: dict[tuple[SessionId, int], asyncio.Future[Pong]] = {}
        self._nonces = itertools.count(1)
        self._leaving: set[SessionId] = set()
        self._on_leaving = on_leaving

    @property
    def leaving(self) -> tuple[Leg, ...]:
        """The legs whose peers have said that they leave, and serve for now."""
        return tuple(leg for leg in self.legs if leg.session in self._leaving)

    @property
    def hops(self) -> tuple[Hop, ...]:
        return tuple(leg.hop for leg in self.legs)

    def post(self, leg: Leg, frame: bytes) -> None:
        """Send without waiting; where the stream has ended, an event tells."""
        stream = self._streams.get(leg.session)
        if stream is not None:
            stream.post(frame)

    async def next_event(self) -> tuple[int, Message | Trouble]:
        """The next message from a hop of the chain, or what is wrong with one, and the hop's place in the chain."""
        while True:
            session, event = await self._events.get()
            self._event_bytes -= _size(event)
            for index, leg in enumerate(self.legs):
                if leg.session == session:
                    return index, event

    async def open(self, leg: Leg, stream: HopStream, frames: Sequence[bytes], seconds: float) -> Message:
        """Ask a peer to open a session, in the last of `frames`; returns Ready, Busy, Fault or Missing. Raises
        Unreachable when no answer comes."""
        answer: asyncio.Future[Message] = asyncio.get_running_loop().create_future()
        self._opening[leg.session] = answer
        try:
            stream.listen(leg.session, partial(self._hear, leg.session))
            self._streams[leg.session] = stream
            for frame in frames:
                stream.post(frame)
            async with asyncio.timeout(seconds):
                return await answer
        except StreamClosed as error:
            raise Unreachable(str(error)) from error
        except TimeoutError:
            raise Unreachable(f"peer {leg.peer} did not open a session within {seconds:g} s") from None
        finally:
            self._opening.pop(leg.session, None)

    async def ask(self, leg: Leg, frame: bytes, seconds: float) -> Message | None:
        """What a hop says to an Open of a session that it has: Ready, Busy or Fault; None when no answer comes."""
        stream = self._streams.get(leg.session)
        if stream is None:
            return None
        answer: asyncio.Future[Message] = asyncio.get_running_loop().create_future()
        self._opening[leg.session] = answer
        stream.post(frame)
        try:
            async with asyncio.timeout(seconds):
                return await answer
        except (TimeoutError, StreamClosed):
            return None
        finally:
            self._opening.pop(leg.session, None)

    async def roll_call(
        self, legs: Sequence[Leg], limit: Callable[[Hop], float]
    ) -> tuple[list[Leg], dict[SessionId, int]]:
        """The legs that answer within their `limit` in seconds, with where their rows stand, and the tokens that wait
        at each."""
        async with asyncio.TaskGroup() as group:
            calls = [group.create_task(self._ping(leg, limit(leg.hop))) for leg in legs]
        answers = [(leg, pong) for leg, call in zip(legs, calls, strict=True) if (pong := call.result()) is not None]
        return [replace(leg, rows=pong.rows) for leg, pong in answers], {leg.session: p.queue for leg, p in answers}

    def adopt(self, legs: Iterable[Leg]) -> None:
        """Run on `legs` from now on; sessions of all others are closed."""
        self.legs = tuple(legs)
        sessions = {leg.session for leg in self.legs}
        self.release(set(self._streams) - sessions)
        self._leaving &= sessions
        if self._leaving:
            self._on_leaving()

    def release(self, sessions: Iterable[SessionId]) -> None:
        for session in sessions:
            stream = self._streams.pop(session, None)
            if stream is not None:
                stream.forget(session)
                stream.post(Close(session).pack())

    def close(self) -> None:
        self.adopt(())

    async def _ping(self, leg: Leg, seconds: float) -> Pong | None:
        stream = self._streams.get(leg.session)
        if stream is None or stream.closed is not None:
            return None
        key = (leg.session, next(self._nonces))
        answer: asyncio.Future[Pong] = asyncio.get_running_loop().create_future()
        self._pings[key] = answer
        stream.post(Ping(*key).pack())
        try:
            for _ in range(ASKINGS):
                asked = asyncio.get_running_loop().time()
                await asyncio.wait((answer,), timeout=seconds)
                if answer.done():
                    return answer.result()
                if not (stream.heard > asked or overslept(asked, seconds)):
                    break
            stream.missed()
            return None
        except StreamClosed:
            return None
        finally:
            del self._pings[key]

    def _hear(self, session: SessionId, stream: HopStream, message: Message | Lost) -> None:
        if isinstance(message, Lost):
            self._lost(session, message)
            return
        if isinstance(message, Pong):
            ping = self._pings.get((session, message.nonce))
            if ping is not None and not ping.done():
                ping.set_result(message)
            return
        opening = self._opening.get(session)
        if isinstance(message, Fault) and message.code is FaultCode.DRAINING and self._serves(session):
            self._leaving.add(session)
            self._on_leaving()
            return
        if opening is not None and isinstance(message, Ready | Busy | Fault | Missing):
            if not opening.done():
                opening.set_result(message)
            return
        if self._events.full() or self._event_bytes + _size(message) > MAX_EVENT_BYTES:
            stream.end("it floods a session with messages that nobody asked for")
            return
        self._event_bytes += _size(message)
        self._events.put_nowait((session, message))

    def _serves(self, session: SessionId) -> bool:
        return session not in self._opening or any(leg.session == session for leg in self.legs)

    def _lost(self, session: SessionId, lost: Lost) -> None:
        self._streams.pop(session, None)
        opening = self._opening.get(session)
        if opening is not None and not opening.done():
            opening.set_exception(StreamClosed(lost.reason))
        for (pinged, _), ping in self._pings.items():
            if pinged == session and not ping.done():
                ping.set_exception(StreamClosed(lost.reason))
        trouble = Trouble(f"lost peer {lost.peer}: {lost.reason}", drop=(session,), ban=(lost.peer,))
        if not self._events.full():
            self._events.put_nowait((session, trouble))


def _size(event: Message | Trouble) -> int:
    return len(event.body) if isinstance(event, HiddenStates) else 0
