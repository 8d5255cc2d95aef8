"""The network side of a serving peer: streams in, streams out, the executor between them.

It reads headers and moves bytes; it never decodes a tensor. What it knows of a session is who owns it, over which
stream, and where its next hop can be dialled.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from peers.link import ExecutorLink, ExecutorLost
from peers.onward import Onward
from peers.remote import Accepted, Limits, Remote
from peers.seldom import Seldom
from peers.ways import Ways
from swarm.errors import ProtocolError, StreamClosed
from swarm.ids import PeerId, SessionId
from swarm.messages import PROTOCOL, Busy, Close, Contact, Fault, FaultCode, Message, Open, Ready, Relink, parse
from swarm.outlet import Allowance, Outlet
from swarm.training import Adapter, Train
from swarm.transport import Stream, Transport
from swarm.wire import decode

__all__ = ["Limits", "PeerNode"]

logger = logging.getLogger(__name__)


LOOK_AGAIN = 1.0  # seconds after somebody has made up for what it cost
MOST_ADDRESSES = 8  # of a next hop that one owner names
MOST_TRIED = 64  # of all owners
ENDS = (FaultCode.UNKNOWN_SESSION, FaultCode.EXECUTOR)  # what the executor says of a session that is no more


@dataclass(slots=True)
class _Session:
    """`owner`: the stream that opened it, over which it is answered. `prev`: who comes before. `next`: where its
    outputs go, None: the owner. `aside`: who is sent them as well, to take over from the next hop. `ready`: whether the
    executor has taken it."""

    owner: Accepted
    prev: PeerId | None
    next: Contact | None
    next_session: SessionId
    aside: tuple[SessionId, Contact] | None = None
    ready: bool = False

    @property
    def contacts(self) -> tuple[Contact, ...]:
        """Who is sent what is computed here."""
        beside = None if self.aside is None else self.aside[1]
        return tuple(contact for contact in (self.next, beside) if contact is not None)


class PeerNode:
    def __init__(
        self,
        transport: Transport,
        link: ExecutorLink,
        limits: Limits | None = None,
        spent: Callable[[], float] = time.thread_time,
    ) -> None:
        """`spent`: seconds that this thread has computed."""
        self._draining = False
        self._transport = transport
        self._link = link
        self._limits = limits or Limits()
        self._spent = spent
        self._seldom = Seldom(logger, time.monotonic)
        self._waiting = Allowance(self._limits.all_waiting_bytes)
        self._remotes: dict[PeerId, Remote] = {}
        self._sessions: dict[SessionId, _Session] = {}
        self._feeding: dict[SessionId, SessionId] = {}  # a next hop's session -> ours that feeds it
        self._asides: dict[SessionId, SessionId] = {}  # the same of whoever is to take over from a next hop
        self._ways = Ways(
            transport,
            self._used,
            self._addresses,
            self._report,
            waiting=lambda: Allowance(self._limits.waiting_bytes, self._waiting),
            most=self._limits.all_next_hops,
        )
        self._accepted: set[Accepted] = set()
        self._idle = asyncio.Event()  # while no session is open
        self._idle.set()

    @property
    def sessions(self) -> int:
        return len(self._sessions)

    @property
    def next_hops(self) -> int:
        """How many peers there is a way to from here."""
        return len(self._ways)

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
        await self._ways.close()
        for accepted in list(self._accepted):
            accepted.stream.close()

    # --- what comes in ---

    async def _attend(self, stream: Stream) -> None:
        """One remote peer's stream, from its first frame to its end."""
        peer = stream.remote
        known = self._remotes.get(peer)
        if (known and len(known.heard) >= self._limits.streams) or not self._has_room():
            self._seldom.warning(
                "turned away peer %s, which has %d streams open here", peer, len(known.heard) if known else 0
            )
            if known is not None:
                known.reading.charge(self._limits.vain_seconds)
            return
        remote = known or self._remotes.setdefault(peer, Remote.under(self._limits, self._waiting))
        accepted = Accepted(stream, Outlet(stream, remote.waiting))
        self._accepted.add(accepted)
        self._hear(accepted, remote)
        self._look_later(accepted, self._limits.idle_seconds)
        writing = asyncio.create_task(accepted.write())
        try:
            while True:
                await remote.reading.take(0)
                if self._has_left(accepted):
                    return
                frame = await stream.receive()
                self._hear(accepted, remote)
                remote.largest = max(remote.largest, len(frame))
                await remote.frames.take(1)
                await remote.bytes.take(len(frame))
                began = self._spent()
                message = self._read(accepted, frame)
                await remote.reading.take(self._spent() - began)
                if message is not None:
                    await self._pass_on(accepted, *message, frame)
        except StreamClosed:
            pass  # how streams end
        except ProtocolError as error:
            self._seldom.warning("closed a stream of peer %s: %s", peer, error)
            remote.reading.charge(self._limits.error_seconds)
        finally:
            writing.cancel()
            stream.close()
            accepted.outlet.close()
            self._accepted.discard(accepted)
            await self._bid_farewell(accepted, remote)

    async def _bid_farewell(self, accepted: Accepted, remote: Remote) -> None:
        """A stream has ended: free what was opened over it."""
        for session in [s for s, known in self._sessions.items() if known.owner is accepted]:
            self._forget(session)
            with suppress(ExecutorLost):  # then nothing is left to free
                await self._link.send(accepted.peer, Close(session).pack())
        del remote.heard[accepted]
        self._leave(accepted.peer, remote)

    def _leave(self, peer: PeerId, remote: Remote) -> None:
        """Forget who has no stream here any more, once it has made up for what it cost."""
        if remote.heard or self._remotes.get(peer) is not remote:
            return
        if remote.reading.debt:
            asyncio.get_running_loop().call_later(LOOK_AGAIN + remote.reading.debt, self._leave, peer, remote)
        else:
            del self._remotes[peer]

    def _in_vain(self, peer: PeerId) -> None:
        """A peer was refused something. It has cost others time, so it has to wait before it is heard again."""
        remote = self._remotes.get(peer)
        if remote is not None:
            limits = self._limits
            remote.reading.charge(limits.vain_seconds + limits.vain_byte_seconds * remote.largest)
            remote.largest = 0

    # --- streams that nobody needs ---

    def _hear(self, accepted: Accepted, remote: Remote) -> None:
        remote.heard[accepted] = asyncio.get_running_loop().time()

    def _quiet(self, accepted: Accepted) -> float:
        """Seconds for which a stream has brought no frame."""
        return asyncio.get_running_loop().time() - self._remotes[accepted.peer].heard[accepted]

    def _needed(self) -> set[Accepted | PeerId]:
        """The streams over which a session was opened, and the peers that may feed one."""
        return {who for session in self._sessions.values() for who in (session.owner, session.prev) if who is not None}

    def _has_left(self, accepted: Accepted) -> bool:
        """Whether nobody needs what is still to be read of a stream: its sender has gone, and so end its sessions, and
        feeds those of nobody else."""
        own = accepted.peer
        return accepted.stream.gone and not any(
            known.prev == own != known.owner.peer for known in self._sessions.values()
        )

    def _look_later(self, accepted: Accepted, seconds: float) -> None:
        asyncio.get_running_loop().call_later(seconds, self._look, accepted)

    def _look(self, accepted: Accepted) -> None:
        """Whether a stream is still of use: one that is not may not stay for ever, however slowly it brings a frame."""
        if accepted not in self._accepted:
            return
        rest = self._limits.idle_seconds - self._quiet(accepted)
        if rest <= 0 and not {accepted, accepted.peer} & self._needed():
            accepted.stream.close()
        else:
            self._look_later(accepted, max(rest, self._limits.short_seconds))

    def _has_room(self) -> bool:
        """Whether one more stream may be opened; the quietest one that nobody needs gives way for it."""
        if len(self._accepted) < self._limits.all_streams:
            return True
        needed = self._needed()
        free = [one for one in self._accepted if not {one, one.peer} & needed]
        quietest = max(free, key=self._quiet, default=None)
        if quietest is None or self._quiet(quietest) < self._limits.short_seconds:
            return False
        quietest.stream.close()
        self._accepted.discard(quietest)
        return True

    # --- frames ---

    def _read(self, accepted: Accepted, frame: bytes) -> tuple[str, SessionId | None] | None:
        """What kind a frame is that goes on to the executor, and which session it opens; None where it goes nowhere."""
        header = decode(frame).header
        kind = header.get("kind")
        if kind not in (Open.kind, Train.kind, Relink.kind, Close.kind):
            session = header.get("session")
            if kind != Adapter.kind and not (isinstance(session, bytes) and session in self._sessions):
                self._in_vain(accepted.peer)
            return str(kind)[:40], None
        message = parse(frame)
        refusal = self._note(accepted, message)
        if refusal is not None:
            accepted.outlet.post(refusal.pack())
            self._in_vain(accepted.peer)
            return None
        return kind, message.session if isinstance(message, Open | Train) else None

    async def _pass_on(self, accepted: Accepted, kind: str, opens: SessionId | None, frame: bytes) -> None:
        try:
            await self._link.send(accepted.peer, frame)
        except ExecutorLost:
            if opens is not None:
                self._forget(opens)
                accepted.outlet.post(Busy(opens, 2.0, "the device process of this peer is starting").pack())

    def _note(self, accepted: Accepted, message: Message) -> Fault | Busy | None:
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
            refusal = self._too_far(accepted, message)
            if refusal is None:
                self._relink(message, known)
            return refusal
        return None

    def _open(self, accepted: Accepted, message: Open | Train, known: _Session | None) -> Fault | Busy | None:
        session, remote = message.session, self._remotes[accepted.peer]
        if known is None and self._draining:
            return Fault(session, FaultCode.DRAINING, "this peer is leaving and takes no new session")
        if known is None and remote.sessions >= self._limits.sessions:
            return Busy(session, 1.0, f"one client may have {self._limits.sessions} sessions here")
        if known is None and len(self._sessions) >= self._limits.all_sessions:
            return Busy(session, 1.0, f"all {self._limits.all_sessions} sessions of this peer are taken")
        if isinstance(message, Open) and (refusal := self._too_far(accepted, message)) is not None:
            return refusal
        if known is None:
            known = self._sessions[session] = _Session(accepted, None, None, session)
            remote.sessions += 1
        self._idle.clear()
        if isinstance(message, Open):
            known.prev = message.prev
            self._feed(session, known, message)
        return None

    def _too_far(self, accepted: Accepted, message: Open | Relink) -> Fault | None:
        """Why one owner's sessions may not go to one more peer."""
        own = (known for known in self._sessions.values() if known.owner.peer == accepted.peer)
        peers = {contact.peer for known in own for contact in known.contacts}
        if message.next is None or message.next.peer in peers or len(peers) < self._limits.next_hops:
            return None
        text = f"sessions of one client may go to {self._limits.next_hops} peers from here"
        return Fault(message.session, FaultCode.REFUSED, text)

    def _feed(self, session: SessionId, known: _Session, message: Open | Relink) -> None:
        self._feeding.pop(known.next_session, None)
        known.next, known.next_session = message.next, message.next_session or session
        self._feeding[known.next_session] = session
        if message.next is not None:
            self._ways.look_again(message.next.peer)

    def _relink(self, message: Relink, known: _Session) -> None:
        known.prev = message.prev or known.prev
        if message.aside or message.to_next:
            self._end_aside(known)
        if message.aside and message.next is not None:
            named = message.next_session or message.session
            known.aside = (named, message.next)
            self._asides[named] = message.session
            self._ways.look_again(message.next.peer)
        elif message.to_next:
            self._feed(message.session, known, message)

    def _end_aside(self, known: _Session) -> None:
        if known.aside is not None:
            self._asides.pop(known.aside[0], None)
            known.aside = None

    def _forget(self, session: SessionId) -> None:
        known = self._sessions.pop(session, None)
        if known is not None:
            self._remotes[known.owner.peer].sessions -= 1
            self._end_aside(known)
        if known is not None and self._feeding.get(known.next_session) == session:
            del self._feeding[known.next_session]
        if not self._sessions:
            self._idle.set()

    # --- what goes out ---

    def _carry(self, peer: PeerId, frame: bytes) -> None:
        """To the client that owns the session, or onward to the next hop."""
        header = decode(frame).header
        named = SessionId(header["session"])
        own = self._sessions.get(named)
        if own is not None and own.owner.peer == peer:
            own.owner.outlet.post(frame)
            if header.get("kind") in (Fault.kind, Busy.kind) and header.get("peer") in (None, peer):
                self._in_vain(peer)
            self._heed(named, own, header.get("kind"), header)
            return
        feeder = self._sessions.get(self._feeding.get(named, named))
        if feeder is not None and feeder.next is not None and feeder.next.peer == peer:
            self._send_on(self._feeding.get(named, named), feeder, feeder.next, frame)
            return
        beside = self._sessions.get(self._asides.get(named, named))
        if beside is not None and beside.aside is not None and beside.aside[1].peer == peer:
            self._send_on(self._asides.get(named, named), beside, beside.aside[1], frame)
        # else: the session was closed or relinked while the frame was computed

    def _heed(self, session: SessionId, known: _Session, kind: object, header: Mapping[str, Any]) -> None:
        """Keep up with which sessions the executor has."""
        if kind == Ready.kind:
            known.ready = True
        elif kind in (Fault.kind, Busy.kind) and not known.ready:
            self._forget(session)  # it was not opened
        elif kind == Fault.kind and header.get("code") in ENDS and header.get("peer") is None:
            self._forget(session)

    def _send_on(self, session: SessionId, known: _Session, to: Contact, frame: bytes) -> None:
        way = self._ways.known(to.peer) or self._new_way(known, to)
        if way is not None:
            way.post(frame)
            return
        text = f"peer {to.peer} is not dialled from here now: too many others are"
        known.owner.outlet.post(Fault(session, FaultCode.UNREACHABLE, text, to.peer).pack())

    def _new_way(self, known: _Session, to: Contact) -> Onward | None:
        """None where too many are dialled."""
        return self._ways.begin(to.peer) if self._remotes[known.owner.peer].dials.try_take(1) else None

    def _used(self) -> set[PeerId]:
        return {contact.peer for known in self._sessions.values() for contact in known.contacts}

    def _addresses(self, peer: PeerId) -> tuple[str, ...]:
        """Where those say that `peer` is whose sessions go there, the latest of each client: nobody can send the
        others' sessions astray."""
        said: dict[PeerId, Contact] = {}
        for known in self._sessions.values():
            for contact in known.contacts:
                if contact.peer == peer:
                    said[known.owner.peer] = contact
        every = [contact.addresses[:MOST_ADDRESSES] for contact in said.values()]
        return tuple(dict.fromkeys(address for addresses in every for address in addresses))[-MOST_TRIED:]

    def _report(self, peer: PeerId, code: FaultCode, text: str) -> None:
        """Tell the owners of all sessions that feed `peer` what became of the way there."""
        for session, known in self._sessions.items():
            if known.next is not None and known.next.peer == peer:
                known.owner.outlet.post(Fault(session, code, text, peer).pack())
