"""One member of a run: what it knows of the others, and how a round ends with the same adapter for all.

A round has three exchanges. Members *claim* their changes, and fetch each other's; when all are there or time is up
they *tally* whose they have, and fetch what they lack; changes that more than half of the tallies name count. Everybody
computes the next state, and says its digest: where that differs, the majority's is fetched.
"""

import asyncio
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

from torch import Tensor

from clients.federated.blobs import Blobs
from clients.federated.frames import (
    Claim,
    Signed,
    claims_in,
    content,
    digest_of,
    framed,
    opened,
    sealed,
    sender,
    signed_in,
)
from clients.federated.gathering import gather
from clients.federated.links import Links
from clients.federated.rules import Change
from clients.federated.standing import Standing, read_delta
from clients.federated.terms import MAX_MEMBERS, Terms
from clients.federated.votes import Stand, Votes
from swarm import fields
from swarm.codecs import raw_bytes
from swarm.directory import Directory
from swarm.errors import SwarmError, WireError
from swarm.fields import Contact, contact_or_none, pack_contact
from swarm.identity import Identity
from swarm.ids import PeerId
from swarm.transport import Transport
from swarm.wire import Frame

__all__ = ["Member", "Outcome"]

MEETING = 5.0  # seconds between looks for members who are known and not there
Entry = tuple[PeerId, bytes]


@dataclass(frozen=True, slots=True)
class Outcome:
    """Of one round. `losses`: of the members that took part. `left_out`: who did not, and why. `done`: whether this
    member ended the round itself; where not, `settle` brings what the others made of it."""

    done: bool
    losses: Mapping[PeerId, float] = field(default_factory=dict)
    left_out: Mapping[PeerId, str] = field(default_factory=dict)


@dataclass(slots=True)
class _Round:
    """`claims`: the first of each member. `changes`: of claims whose bytes are here and right."""

    claims: dict[PeerId, Claim] = field(default_factory=dict)
    changes: dict[Entry, Change] = field(default_factory=dict)
    refused: dict[PeerId, str] = field(default_factory=dict)
    tallies: dict[PeerId, frozenset[Entry]] = field(default_factory=dict)


class Member:
    """Made and used on one event loop, as a context manager. `standing`: where this member begins. `contacts`: some
    who may be there already; each tells of more. `directory`: where to look for others besides. `signed`: what
    `vouchers` gave when it stopped. `patience`: seconds to wait for enough others."""

    def __init__(
        self,
        transport: Transport,
        identity: Identity,
        terms: Terms,
        standing: Standing,
        *,
        contacts: Sequence[Contact] = (),
        directory: Directory | None = None,
        signed: Sequence[Signed] = (),
        patience: float = 600.0,
    ) -> None:
        self.terms, self.standing = terms, standing
        self._transport, self._identity = transport, identity
        self._directory = directory
        self._patience = patience
        self._digest = b""
        self._addresses: tuple[str, ...] = ()
        self._known = {contact.peer: contact for contact in contacts}
        self._votes = Votes(terms, signed)
        self._rounds: dict[int, _Round] = {}
        self._together: frozenset[PeerId] = frozenset()  # who took part in the round before
        self._late: set[PeerId] = set()
        self._news = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        greeting, changed = self._status, self._on_change
        self._links = Links(transport, MAX_MEMBERS, hear=self._hear, greeting=greeting, changed=changed)
        self._blobs = Blobs(self._links, self._say)
        self._adopt(standing)

    async def __aenter__(self) -> Self:
        self._addresses = await self._transport.addresses()
        await self._links.start()
        self._spawn(self._meet())
        if self._directory is not None:
            self._spawn(gather(self._directory, self.terms, self._contact, self._learn_of, lambda: not self.peers))
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._blobs.close()
        await self._links.close()

    @property
    def peers(self) -> frozenset[PeerId]:
        """The others that can be spoken to."""
        return self._links.peers & self._votes.stands.keys()

    @property
    def vouchers(self) -> list[Signed]:
        """Signatures of members who stood where this one does."""
        return self._votes.signed(self._stand)

    # --- for whoever trains ---

    async def settle(self) -> Standing:
        """The state that most members have, from which the next round begins. Raises SwarmError where too few come."""
        self._post(self._status())
        await self._until(lambda: len(self.peers) + 1 >= self.terms.min_members, self._patience)
        if len(self.peers) + 1 < self.terms.min_members:
            raise SwarmError(
                f"{len(self.peers) + 1} of at least {self.terms.min_members} members came within {self._patience:g} s; "
                "what was learned is kept, and the same command goes on from there"
            )
        await self._until(self._heard_from_all, 2 * self.terms.settle)
        while (winner := self._votes.winner(self._stand, self.peers)) != self._stand:
            sources = [peer for peer in sorted(self.peers) if self._votes.stands[peer] == winner]
            data = await self._blobs.fetch(winner[1], Standing.nbytes(self.terms), sources)
            if data is None or not self._took(data, winner):
                for peer in sources:
                    self._votes.stands.pop(peer, None)  # until it says something new
        return self.standing

    async def share(self, delta: Tensor, tokens: int, loss: float) -> Outcome:
        """Bring what this member learned, [size] fp32, into the round. Raises SwarmError where too few others do."""
        claim = self._claimed(delta, tokens, loss)
        here = self._round(claim.round)
        await self._until(lambda: self._complete(here) or self._is_behind(), self.terms.wait)
        await self._until(lambda: self._enough(here) or self._is_behind(), self._patience)
        if self._is_behind():
            return Outcome(False, left_out={self._identity.peer_id: "the others were faster"})
        if not self._enough(here):
            raise SwarmError(
                f"fewer than {self.terms.min_members} members brought a change within {self._patience:g} s"
            )
        self._late = {peer for peer in self._present() if peer not in here.claims}
        chosen = await self._decided(here)
        return self._ended(here, chosen)

    async def farewell(self) -> None:
        """Stay for those who still need what this member has, for some seconds at most."""

        def served() -> bool:
            return not self._blobs.busy and self.peers & self._together <= self._present()

        await self._until(served, 2 * self.terms.settle)

    # --- a round ---

    def _claimed(self, delta: Tensor, tokens: int, loss: float) -> Claim:
        data = raw_bytes(delta)
        self._blobs.kept[content(data)] = data
        said = {"kind": "claim", "round": self.standing.round, "base": self._digest, "delta": content(data)}
        signed = sealed(self._identity, self.terms.key, **said, tokens=tokens, loss=loss)
        claim = Claim.parse(signed, opened(signed, self.terms.key), self.terms.most_tokens)
        here = self._round(claim.round)
        here.claims[claim.member] = claim
        here.changes[claim.entry] = Change(delta, tokens)
        self._post(framed(signed))
        return claim

    async def _decided(self, here: _Round) -> list[Claim]:
        """The claims that count, in an order that all share."""
        have = [c for c in here.claims.values() if c.entry in here.changes and c.base == self._digest]
        packed = [claim.signed.pack() for claim in have]
        self._post(self._say(kind="tally", round=self.standing.round, base=self._digest, claims=packed))
        here.tallies[self._identity.peer_id] = frozenset(claim.entry for claim in have)
        voters = {claim.member for claim in have} - {self._identity.peer_id}
        await self._until(lambda: (voters & self.peers) <= here.tallies.keys(), self.terms.settle)
        votes = Counter(entry for tally in here.tallies.values() for entry in tally)
        chosen = [entry for entry, count in votes.items() if 2 * count > len(here.tallies)]
        await self._until(lambda: all(e in here.changes or e[0] in here.refused for e in chosen), self.terms.settle)
        claims = (here.claims[peer] for peer, _ in sorted(chosen) if peer in here.claims)
        return [claim for claim in claims if claim.entry in here.changes and claim.base == self._digest]

    def _ended(self, here: _Round, chosen: list[Claim]) -> Outcome:
        if not chosen:
            return Outcome(False)
        changes = [here.changes[claim.entry] for claim in chosen]
        losses = {claim.member: claim.loss for claim in chosen}
        left_out = {peer: here.refused.get(peer, "too late") for peer in {*here.claims, *self._late} - losses.keys()}
        self._together = frozenset(losses) - {self._identity.peer_id}
        self._adopt(self.standing.after(self.terms, changes))
        self._post(self._status())
        return Outcome(True, losses, left_out)

    def _round(self, number: int) -> _Round:
        return self._rounds.setdefault(number, _Round())

    def _adopt(self, standing: Standing) -> None:
        """What others may still need of the round before is kept."""
        before = self._digest
        data = standing.pack()
        self.standing, self._digest = standing, content(data)
        self._votes.adopt(self._identity, self._stand)
        self._rounds = {number: r for number, r in self._rounds.items() if 0 <= number - standing.round + 1 <= 2}
        deltas = {claim.delta for r in self._rounds.values() for claim in r.claims.values()}
        self._blobs.retain({before} | deltas)
        self._blobs.kept[self._digest] = data

    @property
    def _stand(self) -> Stand:
        return self.standing.round, self._digest

    def _took(self, data: bytes, winner: Stand) -> bool:
        try:
            standing = Standing.parse(self.terms, data)
        except WireError:
            return False
        if standing.round != winner[0]:
            return False
        self._adopt(standing)
        self._post(self._status())
        return True

    # --- what is to be waited for ---

    def _present(self) -> set[PeerId]:
        """Who trains from the same state."""
        return {peer for peer in self.peers if self._votes.stands[peer] == self._stand}

    def _complete(self, here: _Round) -> bool:
        waited = (self._present() - self._late) | (here.claims.keys() & self.peers)
        settled = {c.member for c in here.claims.values() if c.entry in here.changes} | here.refused.keys()
        return self._enough(here) and waited <= settled

    def _enough(self, here: _Round) -> bool:
        return len(here.changes) >= self.terms.min_members

    def _heard_from_all(self) -> bool:
        return all(self._votes.stands[peer][0] >= self.standing.round for peer in self._together & self.peers)

    def _is_behind(self) -> bool:
        return self._votes.is_behind(self._stand, self.peers)

    async def _until(self, true: Callable[[], bool], seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                while not true():
                    self._news.clear()
                    await self._news.wait()
        except TimeoutError:
            return

    def _on_change(self) -> None:
        self._blobs.lost()
        self._votes.retain(self._links.peers | self._known.keys())
        self._news.set()

    # --- what others say ---

    def _hear(self, peer: PeerId, frame: Frame) -> None:
        """Raises WireError, which ends the stream."""
        signed = sender(frame)
        if signed.by != peer:
            raise WireError(f"a frame signed by {signed.by} came from {peer}")
        said = opened(signed, self.terms.key)
        match said.get("kind"):
            case "status":
                self._on_status(peer, said)
            case "claim":
                self._on_claim(Claim.parse(signed, said, self.terms.most_tokens), [peer])
            case "tally":
                self._on_tally(peer, said)
            case "want":
                self._blobs.wanted(peer, said)
            case "piece":
                self._blobs.arrived(peer, said, frame.body)
        self._news.set()

    def _on_status(self, peer: PeerId, said: Mapping[str, Any]) -> None:
        number = fields.whole(said.get("round"), 0, self.terms.rounds, "a round")
        signed = signed_in(said.get("signed"), MAX_MEMBERS)
        self._votes.heard(peer, (number, digest_of(said.get("state"))), signed, self._stand)
        for entry in fields.entries(said.get("contacts"), "contacts", MAX_MEMBERS):
            contact = contact_or_none(entry)
            if contact is not None and (contact.peer == peer or contact.peer not in self._known):
                self._learn_of(contact)

    def _on_claim(self, claim: Claim, sources: list[PeerId]) -> None:
        if not 0 <= claim.round - self.standing.round <= 1:
            return
        here = self._round(claim.round)
        known = here.claims.setdefault(claim.member, claim)
        self._late.discard(claim.member)
        if known.entry != claim.entry:
            return  # it said two things; what a majority has heard first counts, if anything
        if claim.entry not in here.changes and claim.member not in here.refused and len(here.claims) <= MAX_MEMBERS:
            self._spawn(self._take(here, claim, sources))

    def _on_tally(self, peer: PeerId, said: Mapping[str, Any]) -> None:
        number = fields.whole(said.get("round"), 0, self.terms.rounds, "a round")
        if not 0 <= number - self.standing.round <= 1:
            return
        claims = claims_in(said, self.terms.key, self.terms.most_tokens, MAX_MEMBERS)
        self._round(number).tallies[peer] = frozenset(claim.entry for claim in claims)
        for claim in claims:
            if claim.round == number:
                self._on_claim(claim, [claim.member, peer])

    async def _take(self, here: _Round, claim: Claim, sources: list[PeerId]) -> None:
        data = await self._blobs.fetch(claim.delta, self.terms.delta_bytes, sources)
        if data is None:
            return  # who has it may still say so in a tally
        try:
            if claim.base != self._digest and claim.round == self.standing.round:
                raise WireError("it began from another state")
            change = Change(read_delta(self.terms, data), claim.tokens)
            if not math.isfinite(claim.loss):
                raise WireError("its loss is no number")
            here.changes[claim.entry] = change
        except WireError as error:
            here.refused[claim.member] = str(error)
        self._news.set()

    # --- saying ---

    def _say(self, *, body: bytes | memoryview = b"", **said: Any) -> bytes:
        return framed(sealed(self._identity, self.terms.key, **said), body)

    def _status(self) -> bytes:
        near = [self._known[peer] for peer in sorted(self.peers & self._known.keys())]
        contacts = [pack_contact(contact) for contact in (self._contact, *near)][:MAX_MEMBERS]
        number, state = self._stand
        signed = [each.pack() for each in self.vouchers]
        return self._say(kind="status", round=number, state=state, contacts=contacts, signed=signed)

    def _post(self, frame: bytes) -> None:
        for peer in self._links.peers:
            self._links.post(peer, frame)

    @property
    def _contact(self) -> Contact:
        return Contact(self._identity.peer_id, self._addresses)

    def _learn_of(self, contact: Contact) -> None:
        """Where there is no more room, whoever was known longest and is not there is forgotten."""
        if contact.peer not in self._known and len(self._known) >= 4 * MAX_MEMBERS:
            gone = next(peer for peer in self._known if peer not in self._links.peers)
            del self._known[gone]
        self._known[contact.peer] = contact
        self._links.meet(contact)

    async def _meet(self) -> None:
        while True:
            for contact in list(self._known.values()):
                self._links.meet(contact)
            await asyncio.sleep(MEETING)

    def _spawn(self, work: Any) -> None:
        task: asyncio.Task[None] = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
