"""The network side of a serving peer: streams in, streams out, the executor between them.

It reads headers and moves bytes; it never decodes a tensor. What it knows of a session is who owns it, over which
stream, and where its next hop can be dialled.
"""

import asyncio
import logging
from contextlib import suppress
from dataclasses import dataclass
from functools import partial

from peers.link import ExecutorLink, ExecutorLost
from peers.onward import Onward
from peers.rate import Bucket
from swarm.errors import ProtocolError, StreamClosed
from swarm.ids import PeerId, SessionId
from swarm.messages import PROTOCOL, Busy, Close, Contact, Fault, FaultCode, Message, Open, Relink, parse
from swarm.outlet import Outlet
from swarm.training import Train
from swarm.transport import Stream, Transport
from swarm.wire import decode

__all__ = ["Limits", "PeerNode"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Limits:
    """What one remote peer may use. Rates slow a peer down, counts turn it away."""

    streams: int = 8
    sessions: int = 256
    frames_per_second: float = 5_000.0
    bytes_per_second: float = 256e6
    waiting_bytes: int = 256 << 20  # answers a slow reader may leave lying here
    all_streams: int = 4096


@dataclass(slots=True)
class _Session:
    """`owner`: the stream that opened it, over which it is answered. `next`: where its outputs go, None: the owner.
    `aside`: who is sent them as well, to take over from the next hop."""

    owner: "_Accepted"
    next: Contact | None
    next_session: SessionId
    aside: tuple[SessionId, Contact] | None = None


@dataclass(frozen=True, eq=False, slots=True)
class _Accepted:
    """A stream that a remote peer has opened here."""

    stream: Stream
    outlet: Outlet

    @property
    def peer(self) -> PeerId:
        return self.stream.remote


@dataclass(slots=True)
class _Remote:
    """Everything one remote peer holds here."""

    frames: Bucket
    bytes: Bucket
    streams: int = 0


class PeerNode:
    def __init__(self, transport: Transport, link: ExecutorLink, limits: Limits | None = None) -> None:
        self._draining = False
        self._transport = transport
        self._link = link
        self._limits = limits or Limits()
        self._remotes: dict[PeerId, _Remote] = {}
        self._sessions: dict[SessionId, _Session] = {}
        self._feeding: dict[SessionId, SessionId] = {}  # a next hop's session -> ours that feeds it
        self._asides: dict[SessionId, SessionId] = {}  # the same of whoever is to take over from a next hop
        self._onward: dict[PeerId, Onward] = {}
        self._accepted: set[_Accepted] = set()
        self._idle = asyncio.Event()  # while no session is open
        self._idle.set()

    @property
    def sessions(self) -> int:
        return len(self._sessions)

    async def start(self) -> None:
        """Accept streams from now on."""
        await self._transport.serve(PROTOCOL, self._attend)

    async def run(self) -> None:
        """Carry what the executor sends until it is lost; then every session is told, and ExecutorLost is raised.
        Call it again when the link has been restarted."""
        try:
            while True:
                self._carry(*await self._link.receive())
        except ExecutorLost:
            for session, known in list(self._sessions.items()):
                text = "the device process of this peer failed; its sessions are gone"
                known.owner.outlet.post(Fault(session, FaultCode.EXECUTOR, text).pack())
                self._forget(session)
            raise

    async def drain(self, limit: float) -> int:
        """Take no new session from now on, tell those that are open to move on, and serve them until the last has gone
        or `limit` seconds have passed; returns how many are left. `resume` ends it, for who only moves or pauses."""
        self._draining = True
        for session, known in self._sessions.items():
            known.owner.outlet.post(Fault(session, FaultCode.DRAINING, "this peer is leaving").pack())
        with suppress(TimeoutError):
            async with asyncio.timeout(limit):
                await self._idle.wait()
        return self.sessions

    def resume(self) -> None:
        """Take new sessions again."""
        self._draining = False

    async def close(self) -> None:
        """Close every stream, in and out."""
        for onward in list(self._onward.values()):
            await onward.close()
        for accepted in list(self._accepted):
            accepted.stream.close()

    # --- what comes in ---

    async def _attend(self, stream: Stream) -> None:
        """One remote peer's stream, from its first frame to its end."""
        peer = stream.remote
        remote = self._remotes.get(peer) or self._welcome(peer)
        if remote.streams >= self._limits.streams or len(self._accepted) >= self._limits.all_streams:
            logger.warning("turned away peer %s, which has %d streams open here", peer, remote.streams)
            return
        remote.streams += 1
        accepted = _Accepted(stream, Outlet(stream, self._limits.waiting_bytes))
        self._accepted.add(accepted)
        writing = asyncio.create_task(_write(accepted))
        try:
            while True:
                frame = await stream.receive()
                await remote.frames.take(1)
                await remote.bytes.take(len(frame))
                await self._admit(accepted, frame)
        except StreamClosed:
            pass  # how streams end
        except ProtocolError as error:
            logger.warning("closed a stream of peer %s: %s", peer, error)
        finally:
            writing.cancel()
            stream.close()
            self._accepted.discard(accepted)
            remote.streams -= 1
            await self._bid_farewell(accepted, remote)

    def _welcome(self, peer: PeerId) -> _Remote:
        clock, limits = asyncio.get_running_loop().time, self._limits
        remote = self._remotes[peer] = _Remote(
            Bucket(limits.frames_per_second, limits.frames_per_second, clock),
            Bucket(limits.bytes_per_second, limits.bytes_per_second, clock),
        )
        return remote

    async def _bid_farewell(self, accepted: _Accepted, remote: _Remote) -> None:
        """A stream has ended: free what was opened over it."""
        for session in [s for s, known in self._sessions.items() if known.owner is accepted]:
            self._forget(session)
            with suppress(ExecutorLost):  # then nothing is left to free
                await self._link.send(accepted.peer, Close(session).pack())
        if not remote.streams:
            self._remotes.pop(accepted.peer, None)

    async def _admit(self, accepted: _Accepted, frame: bytes) -> None:
        kind = decode(frame).header.get("kind")
        if kind in (Open.kind, Train.kind, Relink.kind, Close.kind):
            message = parse(frame)
            refusal = self._note(accepted, message)
            if refusal is not None:
                accepted.outlet.post(refusal.pack())
                return
        try:
            await self._link.send(accepted.peer, frame)
        except ExecutorLost:
            if kind in (Open.kind, Train.kind):
                self._forget(message.session)
                text = "the device process of this peer is starting"
                accepted.outlet.post(Busy(message.session, 2.0, text).pack())

    def _note(self, accepted: _Accepted, message: Message) -> Fault | Busy | None:
        """Keep up with who owns a session and where it sends; or why a session can't be."""
        known = self._sessions.get(message.session)
        if known is not None and known.owner is not accepted:
            if isinstance(message, Open | Train):
                return Fault(message.session, FaultCode.REFUSED, "this session is open over another stream")
            return None  # the executor ignores what comes from strangers
        if isinstance(message, Open | Train):
            return self._open(accepted, message, known)
        if isinstance(message, Close):
            self._forget(message.session)
        elif isinstance(message, Relink) and known is not None:
            self._relink(message, known)
        return None

    def _open(self, accepted: _Accepted, message: Open | Train, known: _Session | None) -> Fault | Busy | None:
        session = message.session
        if known is None and self._draining:
            return Fault(session, FaultCode.DRAINING, "this peer is leaving and takes no new session")
        mine = sum(other.owner.peer == accepted.peer for other in self._sessions.values())
        if known is None and mine >= self._limits.sessions:
            return Busy(session, 1.0, f"one client may have {self._limits.sessions} sessions here")
        self._sessions[session] = known = known or _Session(accepted, None, session)
        self._idle.clear()
        if isinstance(message, Open):
            self._feed(session, known, message)
        return None

    def _feed(self, session: SessionId, known: _Session, message: Open | Relink) -> None:
        self._feeding.pop(known.next_session, None)
        known.next, known.next_session = message.next, message.next_session or session
        self._feeding[known.next_session] = session

    def _relink(self, message: Relink, known: _Session) -> None:
        if message.aside or message.to_next:
            self._end_aside(known)
        if message.aside and message.next is not None:
            named = message.next_session or message.session
            known.aside = (named, message.next)
            self._asides[named] = message.session
        elif message.to_next:
            self._feed(message.session, known, message)

    def _end_aside(self, known: _Session) -> None:
        if known.aside is not None:
            self._asides.pop(known.aside[0], None)
            known.aside = None

    def _forget(self, session: SessionId) -> None:
        known = self._sessions.pop(session, None)
        if known is not None:
            self._end_aside(known)
        if known is not None and self._feeding.get(known.next_session) == session:
            del self._feeding[known.next_session]
        if not self._sessions:
            self._idle.set()

    # --- what goes out ---

    def _carry(self, peer: PeerId, frame: bytes) -> None:
        """To the client that owns the session, or onward to the next hop."""
        named = SessionId(decode(frame).header["session"])
        own = self._sessions.get(named)
        if own is not None and own.owner.peer == peer:
            own.owner.outlet.post(frame)
            return
        feeder = self._sessions.get(self._feeding.get(named, named))
        if feeder is not None and feeder.next is not None and feeder.next.peer == peer:
            self._to(feeder.next).post(frame)
            return
        beside = self._sessions.get(self._asides.get(named, named))
        if beside is not None and beside.aside is not None and beside.aside[1].peer == peer:
            self._to(beside.aside[1]).post(frame)
        # else: the session was closed or relinked while the frame was computed

    def _to(self, contact: Contact) -> Onward:
        onward = self._onward.get(contact.peer)
        if onward is None or onward.ended:
            onward = self._onward[contact.peer] = Onward(
                self._transport, contact, self._limits.waiting_bytes, partial(self._report, contact.peer)
            )
        return onward

    def _report(self, peer: PeerId, code: FaultCode, text: str) -> None:
        """Tell the owners of all sessions that feed `peer` what became of the way there."""
        for session, known in self._sessions.items():
            if known.next is not None and known.next.peer == peer:
                known.owner.outlet.post(Fault(session, code, text, peer).pack())


async def _write(accepted: _Accepted) -> None:
    with suppress(StreamClosed):  # the reader of the same stream sees it too, and cleans up
        await accepted.outlet.run()
