"""Keeping a session's chain whole: what a fault means, who lives, who fills the holes, who is told what.

The same procedure opens a session (a chain that is one hole), replaces dead hops, and nudges a chain that stands still.
"""

import asyncio
import random
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from types import MappingProxyType

from clients.chain import Chain, Parting, Trouble
from clients.client import Client
from clients.events import ChainChanged, Event, PeerLost, Waiting
from fault.mend import Hole, Leg, RowGoal, Wiring, segments, wire_up
from routing.chains import Hop
from swarm.errors import Busy as BusyError
from swarm.errors import MissingBlocks, NetworkError, Unreachable
from swarm.ids import PeerId, RowId, SessionId, Span, new_session_id
from swarm.messages import MAX_POSITION, Busy, Fault, FaultCode, Fork, Message, Open, Ready, Relink
from swarm.training import Missing, PackedAdapter

__all__ = ["Repair"]

PATIENT_STALLS = 20  # a hop that says it has work waiting is slow, not dead, this many times
BUSY_STEPS = 3  # a hop that has no room for a running session this often is replaced
SENDINGS = 3  # how often a hop is sent adapters that it says it lacks
LEAST_RATE = 1 << 17  # bytes/s at which adapters travel at least


class _TryAgain(NetworkError):
    """This attempt failed, the guilty are avoided now: plan anew at once."""


class Repair:
    def __init__(
        self,
        client: Client,
        chain: Chain,
        *,
        lease: int,
        patience: float,
        adapters: Mapping[int, PackedAdapter],
        hosted: str | None,
        tell: Callable[[Event], None],
    ) -> None:
        self._client = client
        self._chain = chain
        self._lease = lease
        self._patience = patience
        self._adapters = adapters
        self._hosted = hosted
        self._tell = tell
        self._wired: dict[SessionId, Wiring] = {}
        self._prev: dict[SessionId, PeerId] = {}  # whom each leg takes steps from
        self._strikes = 0
        self._still = 0.0  # s for which nothing has moved though all answer, since the last strike
        self._busy = 0
        self._last = ""  # why a peer was given up, the last time
        self._unproven = True  # no output has come since the chain was last changed
        self._stood: list[Mapping[RowId, int]] = []

    def progress(self) -> None:
        """An output came: every hop of the chain works, and all is forgiven."""
        self._strikes = self._busy = 0
        self._still = 0.0
        if self._unproven:
            self._unproven = False
            for leg in self._chain.legs:
                self._client.works(leg.peer)

    async def reserve(self, tokens: int) -> bool:
        """See `Session.reserve`."""
        before, self._lease = self._lease, tokens
        async with asyncio.TaskGroup() as group:
            asked = [group.create_task(self._lease_of(leg)) for leg in self._chain.legs]
        if all(task.result() for task in asked):
            return True
        self._lease = before
        async with asyncio.TaskGroup() as group:  # those that had room give it back
            for leg in self._chain.legs:
                group.create_task(self._lease_of(leg))
        return False

    async def _lease_of(self, leg: Leg) -> bool:
        """Tell a hop what the lease is now; whether it agrees. What else an Open says is said as it is."""
        frame = replace(self._opening(self._wired[leg.session]), sent={}).pack()
        return isinstance(await self._chain.ask(leg, frame, self._client.answer_limit(leg.hop)), Ready)

    def _opening(self, wiring: Wiring) -> Open:
        client, leg = self._client, wiring.leg
        return Open(
            session=leg.session,
            model=client.model.digest,
            hop=leg.hop.span,
            codec=client.codec,
            prev=wiring.prev,
            next=wiring.next,
            lease=self._lease,
            sent=wiring.sent,
            next_session=wiring.next_session,
            share=client.share_prefixes,
            adapters=tuple((block, self._adapters[block].key) for block in leg.hop.span if block in self._adapters),
            hosted=self._hosted,
        )

    # --- what an event means ---

    def diagnose(self, index: int, fault: Fault) -> Trouble | None:
        """Whom a fault from the hop at `index` speaks against; None when it only tells what we know."""
        leg = self._chain.legs[index]
        before = self._chain.legs[index - 1] if index else None
        said = f"peer {leg.peer} says: {fault.message}"
        if fault.code is FaultCode.UNREACHABLE and fault.peer is not None:
            self._client.unreachable.fail((leg.peer, fault.peer))
            return Trouble(said)
        if fault.code is FaultCode.GAP and fault.peer == self._client.me.peer:
            return None  # a fork said again after its row was dropped; had a step of ours been lost, nothing would move
        if fault.code is FaultCode.LINK_LOST:
            return Trouble(said)
        if fault.code in (FaultCode.GAP, FaultCode.BAD_INPUT):
            self._strikes += 1
            if before is None:
                return Trouble(said, drop=(leg.session,), ban=(leg.peer,))
            if fault.code is FaultCode.BAD_INPUT or self._strikes > 1:
                return Trouble(said, drop=(before.session,), ban=(before.peer,))
            return Trouble(said)  # the first gap: something got lost, sending again mends it
        ban = () if fault.code in (FaultCode.NO_OUTBOX, FaultCode.UNKNOWN_SESSION) else (leg.peer,)
        return Trouble(said, drop=(leg.session,), ban=ban)

    def other(self, index: int, message: Message) -> Trouble | None:
        """A hop without room mid-session is asked again, then replaced; anything else out of place is ignored."""
        leg = self._chain.legs[index]
        if not isinstance(message, Busy):
            return None
        self._busy += 1
        if self._busy >= BUSY_STEPS:
            return Trouble(f"peer {leg.peer} has no room: {message.message}", drop=(leg.session,), ban=(leg.peer,))
        return Trouble(f"peer {leg.peer} has no room: {message.message}", wait=message.retry_after)

    async def stalled(self, waited: float, patience: float, lengths: Mapping[RowId, int]) -> Trouble | None:
        """Nothing came for `waited` seconds. None: somebody is still working on it. Who does not answer is given up
        now; that nothing moves though all answer is borne for `patience` seconds."""
        legs = self._chain.legs
        living, queues = await self._chain.roll_call(legs, self._client.answer_limit)
        silent = [leg for leg in legs if leg.session not in {alive.session for alive in living}]
        if silent:
            names = ", ".join(leg.peer for leg in silent)
            drop, ban = tuple(leg.session for leg in silent), tuple(leg.peer for leg in silent)
            return Trouble(f"no answer from {names}", drop=drop, ban=ban)
        stands = [leg.rows for leg in living]
        moved, self._stood = stands != self._stood, stands
        self._still = 0.0 if moved else self._still + waited
        if moved or self._still < patience:
            return None
        still, self._still = self._still, 0.0
        self._strikes += 1
        if self._strikes == 1:
            return Trouble(f"nothing moved for {still:.1f} s; everything is sent again")
        stuck = _first_behind(living, lengths)
        if queues.get(stuck.session, 0) and self._strikes < PATIENT_STALLS:
            return None
        before = next((leg.peer for leg, after in pairwise(living) if after is stuck), None)
        if before is not None and (before, stuck.peer) not in self._client.unreachable.avoided():
            self._client.unreachable.fail((before, stuck.peer))  # it answers us, so that may be all that is wrong
            return Trouble(f"nothing gets from peer {before} to peer {stuck.peer}; we carry it")
        return Trouble(f"peer {stuck.peer} does not get on", drop=(stuck.session,), ban=(stuck.peer,))

    # --- mending ---

    async def mend(self, trouble: Trouble, goals: Mapping[RowId, RowGoal], forks: Sequence[Fork]) -> None:
        """Make the chain whole. Raises MissingBlocks or Busy when patience runs out first."""
        loop = asyncio.get_running_loop()
        started, give_up = loop.time(), loop.time() + self._patience
        had = self._chain.legs
        self._note(trouble)
        if trouble.wait:
            await asyncio.sleep(min(trouble.wait, self._patience))
        dead, busy = set(trouble.drop), False
        while True:
            try:
                await self._attempt(self._chain.legs, dead, goals, forks)
                break
            except _TryAgain as error:
                if loop.time() > give_up:
                    raise NetworkError(f"no chain of peers worked within {self._patience:g} s: {error}") from error
            except BusyError:
                busy = True
            except MissingBlocks as error:
                wait = self._client.until_change() * (1 + random.random() / 2)
                if loop.time() + wait > give_up:
                    if busy:
                        raise BusyError(f"every peer for blocks {_ranges(error.blocks)} is full", wait) from error
                    why = f"; the last failure: {self._last}" if self._last else ""
                    raise MissingBlocks(error.blocks, f"{error}{why}") from error
                self._tell(Waiting(str(error), wait))
                await self._client.change(wait)
        kept = {leg.session for leg in self._chain.legs}
        lost = tuple(leg.peer for leg in had if leg.session not in kept)
        if not had or lost:
            self._tell(ChainChanged(self._chain.hops, lost, loop.time() - started, trouble.reason))

    # --- handing over: see clients.handover ---

    def others(self, legs: Collection[Leg], away: Collection[PeerId] = ()) -> tuple[Hop, ...] | None:
        """Who would compute the blocks of `legs` in their place, in the same precisions, and not being one of them or
        of those to stay away from; None when nobody would."""
        try:
            planned = self._without(legs, away)
        except MissingBlocks:
            return None
        fresh = self._new_in(planned)
        return fresh if _as_precise(fresh, legs) else None

    def _without(self, legs: Collection[Leg], away: Collection[PeerId]) -> list[Leg]:
        """The chain with others in place of `legs`, and none of `away` among these. Raises MissingBlocks."""
        parted = {leg.session for leg in legs}
        staying = [leg for leg in self._chain.legs if leg.session not in parted]
        return self._planned(self._chain.legs, staying, avoid={leg.peer for leg in legs} | set(away))

    def _new_in(self, planned: Sequence[Leg]) -> tuple[Hop, ...]:
        known = {leg.session for leg in self._chain.legs}
        return tuple(leg.hop for leg in planned if leg.session not in known)

    async def prepare(self, parting: Parting, rows: Collection[RowId]) -> tuple[Leg, ...]:
        """The chain with others in place of those that the session parts with. Sessions are open on them that send
        nothing on of `rows`, and nobody knows of them yet. Raises MissingBlocks, Busy or NetworkError."""
        known = {leg.session for leg in self._chain.legs}
        legs = self._without(parting.legs, parting.away)
        if parting.most is not None:
            new = self._new_in(legs)
            if not _as_precise(new, parting.legs) or sum(map(parting.seconds, new)) > parting.most:
                raise NetworkError("nobody else is expected to be much faster any more")
        mute = dict.fromkeys(rows, MAX_POSITION)
        fresh = []
        for index, wiring in enumerate(wire_up(legs, self._client.me, {}, self._client.unreachable.avoided())):
            if wiring.leg.session not in known:
                last = index + 1 == len(legs) or legs[index + 1].session in known
                fresh.append(replace(wiring, sent=mute) if last else wiring)
        try:
            await self._open(fresh)
        except BaseException:
            self._chain.release(w.leg.session for w in fresh)
            raise
        self._prev |= {w.leg.session: w.prev for w in fresh}
        return tuple(legs)

    async def switch(
        self,
        legs: Sequence[Leg],
        standing: Mapping[SessionId, Mapping[RowId, int]],
        parting: Parting,
        goals: Mapping[RowId, RowGoal],
        forks: Sequence[Fork],
    ) -> None:
        """Run on `legs`, which `prepare` made, in one attempt; `standing`: the rows that its new ones have at least.
        Raises MissingBlocks, Busy or NetworkError; then the chain has to be mended."""
        loop, had = asyncio.get_running_loop(), self._chain.legs
        started = loop.time()
        await self._attempt(legs, set(), goals, forks, standing)
        kept = {leg.session for leg in self._chain.legs}
        gone = tuple(leg.peer for leg in parting.legs if leg.session not in kept)
        lost = tuple(leg.peer for leg in had if leg.session not in kept and leg.peer not in gone)
        self._tell(ChainChanged(self._chain.hops, lost, loop.time() - started, parting.reason, gone))

    def _note(self, trouble: Trouble) -> None:
        for peer in trouble.ban:
            self._last = trouble.reason
            self._client.failed(peer)
            self._tell(PeerLost(peer, trouble.reason))

    async def _attempt(
        self,
        chain: Sequence[Leg],
        dead: set[SessionId],
        goals: Mapping[RowId, RowGoal],
        forks: Sequence[Fork],
        standing: Mapping[SessionId, Mapping[RowId, int]] = MappingProxyType({}),
    ) -> None:
        living = await self._living(chain, dead, forks)
        living = [replace(leg, rows={**standing.get(leg.session, {}), **leg.rows}) for leg in living]
        legs = self._planned(chain, living)
        wirings = wire_up(legs, self._client.me, goals, self._client.unreachable.avoided())
        known = {leg.session for leg in living}
        fresh = [w for w in wirings if w.leg.session not in known]
        kept = [w for w in wirings if w.leg.session in known]
        try:
            await self._open(fresh)
            await self._introduce(kept, dead)
        except BaseException:
            self._chain.release(w.leg.session for w in fresh)
            raise
        self._chain.adopt(legs)
        self._unproven = True
        self._prev = {w.leg.session: w.prev for w in wirings}
        self._wired = {w.leg.session: w for w in wirings}
        for wiring in kept:
            relink = Relink(
                wiring.leg.session, None, True, wiring.next, wiring.resend, next_session=wiring.next_session
            )
            self._chain.post(wiring.leg, relink.pack())

    async def _living(self, chain: Sequence[Leg], dead: set[SessionId], forks: Sequence[Fork]) -> list[Leg]:
        """Who still answers, and where they stand. What cut or copied rows and may have been lost is said again."""
        hopeful = [leg for leg in chain if leg.session not in dead]
        for leg in hopeful:
            for fork in forks:
                self._chain.post(leg, replace(fork, session=leg.session, onward=False).pack())
        living, _ = await self._chain.roll_call(hopeful, self._client.answer_limit)
        for leg in hopeful:
            if leg.session not in {alive.session for alive in living}:
                dead.add(leg.session)
                self._note(Trouble(f"no answer from peer {leg.peer}", ban=(leg.peer,)))
        return living

    def _planned(self, chain: Sequence[Leg], living: Sequence[Leg], avoid: Collection[PeerId] = ()) -> list[Leg]:
        me = self._client.me.peer
        parts = segments(chain, {leg.session for leg in living})
        standing = {leg.session: leg for leg in living}
        legs: list[Leg] = []
        for part in parts or [Hole(Span(0, self._client.model.num_blocks), None, None)]:
            if isinstance(part, Leg):
                legs.append(standing[part.session])
            else:
                source, sink = part.prev or me, part.next or me
                lost = {leg.hop.precision for leg in chain if leg.session not in standing}
                hops = self._client.plan(
                    part.blocks,
                    source=source,
                    sink=sink,
                    lease=self._lease,
                    like=lost,
                    avoid=avoid,
                    hosting=self._hosted,
                )
                legs.extend(Leg(hop, new_session_id()) for hop in hops)
        return legs

    async def _open(self, wirings: Sequence[Wiring]) -> None:
        """Open sessions on new hops, all at once. Raises _TryAgain or Busy when one can't."""
        async with asyncio.TaskGroup() as group:
            answers = [group.create_task(self._open_one(wiring)) for wiring in wirings]
        problems = [problem for answer in answers if (problem := answer.result()) is not None]
        for problem in problems:
            if isinstance(problem, BusyError):
                raise problem
        if problems:
            raise problems[0]

    async def _open_one(self, wiring: Wiring) -> Exception | None:
        leg, client = wiring.leg, self._client
        try:
            answer = await self._answer(wiring)
        except Unreachable as error:
            self._note(Trouble(str(error), ban=(leg.peer,)))
            return _TryAgain(str(error))
        if isinstance(answer, Ready):
            client.opened(leg.peer)
            return None
        if isinstance(answer, Busy):
            client.backoff.rest(leg.peer, answer.retry_after)
            return BusyError(answer.message, answer.retry_after)
        if isinstance(answer, Fault) and answer.code is FaultCode.DRAINING:
            client.leaves(leg.peer)
            return _TryAgain(answer.message)
        said = answer.message if isinstance(answer, Fault) else "it lacks the adapter, however often it is sent"
        refusal = f"peer {leg.peer} refused a session: {said}"
        self._note(Trouble(refusal, ban=(leg.peer,)))
        return _TryAgain(refusal)

    async def _answer(self, wiring: Wiring) -> Message:
        """What a peer says to an Open once it has the adapters that it lacked. Raises Unreachable."""
        leg, client = wiring.leg, self._client
        stream = await client.hops.to(leg.hop.contact)
        opening = self._opening(wiring)
        own = {key: self._adapters[block] for block, key in opening.adapters}
        frames, seconds = [opening.pack()], client.open_seconds
        for _ in range(1 + SENDINGS):
            answer = await self._chain.open(leg, stream, frames, seconds)
            if not isinstance(answer, Missing):
                return answer
            lacking = [own[key] for key in answer.adapters if key in own]
            frames = [*(adapter.addressed(leg.session).pack() for adapter in lacking), opening.pack()]
            seconds = client.open_seconds + sum(map(len, frames)) / LEAST_RATE
        return answer

    async def _introduce(self, kept: Sequence[Wiring], dead: set[SessionId]) -> None:
        """Tell hops whose previous hop is new whom to listen to, and see that they have heard it before it speaks."""
        changed = [w.leg for w in kept if self._prev.get(w.leg.session) != w.prev]
        for wiring in kept:
            if wiring.leg in changed:
                self._chain.post(wiring.leg, Relink(wiring.leg.session, prev=wiring.prev).pack())
                self._prev[wiring.leg.session] = wiring.prev
        heard, _ = await self._chain.roll_call(changed, self._client.answer_limit)
        silent = {leg.session for leg in changed} - {leg.session for leg in heard}
        if silent:
            dead |= silent
            raise _TryAgain("a hop that lived a moment ago does not answer any more")


def _first_behind(legs: Sequence[Leg], lengths: Mapping[RowId, int]) -> Leg:
    """The first leg that lacks tokens; the last one when all have everything, since then its answer is missing."""
    for leg in legs:
        if any(leg.rows.get(row, 0) < length for row, length in lengths.items()):
            return leg
    return legs[-1]


def _ranges(blocks: Sequence[int]) -> str:
    return f"{min(blocks)}:{max(blocks) + 1}" if blocks else "of the model"


def _as_precise(hops: Iterable[Hop], legs: Iterable[Leg]) -> bool:
    """Whether they compute in no other precisions than those of `legs`."""
    return {hop.precision for hop in hops} <= {leg.hop.precision for leg in legs}
