"""A client's standing in a swarm: the peers it sees, how it reaches them, whom it avoids, what it expects of them."""

import asyncio
import random
import time
from collections.abc import Collection, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Self

from clients.hops import Hops
from fault.backoff import Backoff
from fault.ghosts import Ghosts
from fault.limits import Bounds, TimeLimits
from routing.chains import PIECE, Hop, piece_tokens, plan_chain, step_seconds
from routing.distances import known_links
from routing.hosting import Hosted, find_hosted
from routing.load import Load, Loads
from routing.perf import Costs, Pace, time_limit
from routing.view import View
from swarm.codecs import body_size
from swarm.directory import Directory
from swarm.distances import Distances
from swarm.errors import MissingBlocks, NetworkError
from swarm.ids import Digest, PeerId, Span
from swarm.messages import Contact
from swarm.record import PeerRecord, PeerState
from swarm.transport import Transport

__all__ = ["Client", "Model"]

FRAME_BYTES = 2 << 20  # of hidden states in one frame
VIEW_SECONDS = 5.0  # age at which the view is read again


@dataclass(frozen=True, slots=True)
class Model:
    """What has to be known of a model to route through it."""

    name: str
    digest: Digest
    num_blocks: int
    hidden_size: int


class Client:
    """Shared by all sessions of one model; made and used on one event loop. `async with` keeps the view fresh."""

    dial_seconds = 5.0
    open_seconds = 10.0  # a session opens in one round trip; the rest is for a peer busy with a long batch
    hopeful_seconds = 5.0  # after a failure at which a peer is asked again if nobody else has its blocks
    leaving_seconds = 30.0  # for which a peer that leaves is not asked again; by then its record says so
    stall_floor = 1.5  # s for which nothing moves, before something is done about it though all answer
    stall_factor = 4.0
    # for the outputs of a step, after which its hops are asked; a question costs little
    step_bounds = Bounds(floor=0.4, cold_floor=1.5, ceiling=300.0, unknown=4.0)
    # for the answer to a question, after which a hop counts as dead; that costs much where it was only slow
    answer_bounds = Bounds(floor=1.5, cold_floor=3.0, ceiling=30.0, unknown=12.0)

    def __init__(
        self,
        transport: Transport,
        directory: Directory,
        model: Model,
        *,
        codec: str = "fp32",
        share_prefixes: bool = True,
        precisions: Collection[str] = (),
        dice: random.Random | None = None,
        measures: bool = False,
    ) -> None:
        """`share_prefixes`: peers may compute equal beginnings of this client's and of others' rows just once.
        `precisions`: of the peers that count; empty for all. `dice`: decide where figures do not. `measures`: how far
        peers are; else all count as equally far."""
        self.model = model
        self.codec = codec
        self.share_prefixes = share_prefixes
        self.precisions = frozenset(precisions)
        self.transport = transport
        self.hops = Hops(transport, self.dial_seconds, self._alive_after_all)
        clock = asyncio.get_running_loop().time
        self.backoff: Backoff[PeerId] = Backoff(clock)
        self.limits: TimeLimits[PeerId] = TimeLimits()
        self._ghosts = Ghosts(time.time)
        self._blind: str | None = None  # why the directory could not be read, the last time
        self.unreachable: Backoff[tuple[PeerId, PeerId]] = Backoff(clock, base=60.0, ceiling=600.0)
        self.excluded: dict[PeerId, str] = {}  # peers that audits found out, and why
        self.me = Contact(transport.peer_id)
        self.view = View.of((), model=model.digest, num_blocks=model.num_blocks, now=time.time())
        self._directory = directory
        self.loads = Loads()
        self.dice = dice or random.Random()
        self._clock = clock
        self._salt = self.dice.randbytes(8)
        self._distances = Distances(transport, self.dice)
        self._measures = measures
        self._tasks: list[asyncio.Task[None]] = []
        self._reading: asyncio.Task[View] | None = None

    async def __aenter__(self) -> Self:
        await self.refresh()
        self._tasks.append(asyncio.create_task(self._watch()))
        if self._measures:
            self._tasks.append(asyncio.create_task(self._distances.keep(lambda: self.view.peers)))
            try:
                await self._distances.settled()
            except BaseException:
                await self.__aexit__()
                raise
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in (*self._tasks, *([self._reading] if self._reading else [])):
            task.cancel()
            with suppress(asyncio.CancelledError, NetworkError):
                await task
        await self.hops.close()

    @property
    def hidden_size(self) -> int:
        return self.model.hidden_size

    # --- the view ---

    async def refresh(self) -> View:
        """Read the directory now; all who ask meanwhile share one reading, which none of them cancels. Raises
        NetworkError."""
        if self._reading is None or self._reading.done():
            self._reading = asyncio.create_task(self._read())
            self._reading.add_done_callback(_heard)
        return await asyncio.shield(self._reading)

    async def _read(self) -> View:
        records = await self._directory.read(self.model.digest)
        self.view, self._blind = self._seen(records), None
        return self.view

    def _seen(self, records: Iterable[PeerRecord]) -> View:
        records = self._ghosts.last_words(records)
        if self.precisions:
            records = [record for record in records if record.precision in self.precisions]
        view = View.of(records, model=self.model.digest, num_blocks=self.model.num_blocks, now=time.time())
        self.loads.read(view.peers, view.taken, self._clock())
        before = {record.peer for record in self.view.peers if record.state is PeerState.ONLINE}
        known = before | self._ghosts.among(view.peers)
        for record in view.peers:
            if record.state is PeerState.ONLINE and record.peer not in known:
                self.backoff.forgive(record.peer)  # whatever failed, it has begun anew since
        return view

    def opened(self, peer: PeerId) -> None:
        """A session has begun there."""
        self.loads.opened(peer, self._clock())

    def measured(self, hop: Hop, seconds: float, tokens: int) -> float:
        """A step of `tokens` tokens took so long at a hop; other sessions of this client should know. How many times
        longer that is than if the peer were idle; 1 where that can't be told."""
        record = self.view.get(hop.peer)
        if record is None:
            return 1.0
        costs, blocks = Costs(), len(hop.span)
        claimed = Pace.of(record, costs, Load(self.loads.claimed(record))).step(blocks, tokens)
        self.loads.measured(hop.peer, seconds / claimed, self._clock())
        return seconds / Pace.of(record, costs, Load(0)).step(blocks, tokens)

    async def hosted(self, name: str) -> Hosted:
        """The adapter that peers host under `name` now. Raises UsageError, MissingBlocks or NetworkError."""
        return find_hosted(await self.refresh(), name)

    async def change(self, seconds: float) -> None:
        """Wait until the view has been read again or avoided peers may be asked again, at most `seconds`."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                try:
                    await self.refresh()
                except NetworkError as error:  # the swarm is out of reach for now; who waits has a limit
                    self._blind = str(error)
                await asyncio.sleep(seconds)

    def failed(self, peer: PeerId) -> None:
        """Leave `peer` alone for a while, and then until it announces itself anew, unless nobody else is there."""
        self.backoff.fail(peer)
        self._ghosts.fail(peer)

    def works(self, peer: PeerId) -> None:
        self.backoff.works(peer)
        self._ghosts.alive(peer)

    def _alive_after_all(self, peer: PeerId) -> None:
        """It was given up because it said nothing, and now it has: it was slow, and is given more time from now on."""
        self.limits.false_alarm(peer)
        self._ghosts.alive(peer)

    def leaves(self, peer: PeerId) -> None:
        """A peer says that it leaves, which is no failure."""
        self.backoff.rest(peer, self.leaving_seconds)

    def until_change(self) -> float:
        """Seconds after which planning again may find what it does not find now."""
        release = self.backoff.next_release()
        return min(1.0, release) if release is not None else 1.0

    async def _watch(self) -> None:
        async for records in self._directory.watch(self.model.digest, VIEW_SECONDS):
            self.view = self._seen(records)

    def exclude(self, peer: PeerId, reason: str) -> None:
        """Ask `peer` no more, as long as this client lives."""
        self.excluded[peer] = reason

    # --- planning ---

    def plan(
        self,
        blocks: Span,
        *,
        source: PeerId,
        sink: PeerId,
        lease: int = 0,
        like: Collection[str] = (),
        avoid: Collection[PeerId] = (),
        hosting: str | None = None,
    ) -> tuple[Hop, ...]:
        """Hops for `blocks` between two places of a chain, with room for `lease` tokens if any has, in a precision of
        `like` if there are, and none of `avoid` beside those that failed lately, or have not announced themselves
        since if others are there; all host the adapter whose digest is
        `hosting`, if there is one. Raises MissingBlocks."""
        only = f" in {' or '.join(sorted(self.precisions))}" if self.precisions else ""
        if not self.view.peers and self._blind is not None:
            raise MissingBlocks(tuple(blocks), f"peers can't be looked up: {self._blind}")
        if not self.view.peers:
            raise MissingBlocks(
                tuple(blocks),
                f"no peer of this swarm serves {self.model.name} ({self.model.digest[:12]}){only}; "
                f"start one with: swarm-serve {self.model.name} --initial-peers …",
            )
        far = self._distances
        plan = partial(
            plan_chain,
            self.view,
            blocks,
            links=known_links(self.me.peer, far.delays, far.silences, self.view.peers),
            source=source,
            sink=sink,
            tokens=lease,
            token_bytes=self.token_bytes,
            salt=self._salt,
            loads=self.loads.now(self.view.peers, self._clock()),
            dice=self.dice,
            like=like,
            hosting=hosting,
        )
        never = self.excluded.keys() | frozenset(avoid)
        try:
            for ghosts in (self._ghosts.among(self.view.peers), frozenset()):
                with suppress(MissingBlocks):
                    return plan(avoid=self.backoff.avoided() | never | ghosts).hops
            # they may have come back, and somebody waits for them
            chain = plan(avoid=self.backoff.avoided(self.hopeful_seconds) | never)
        except MissingBlocks as error:
            if not only:
                raise
            raise MissingBlocks(error.blocks, f"{error} (this client takes only peers that compute{only})") from error
        return chain.hops

    @property
    def token_bytes(self) -> int:
        return body_size(self.codec, 1, self.hidden_size)

    def step_seconds(self, hops: Sequence[Hop], *, tokens: int, rows: int) -> float:
        """Seconds that a step of `tokens` tokens is predicted to take on its way down."""
        return step_seconds(hops, tokens=tokens, rows=rows, token_bytes=self.token_bytes)

    def piece_tokens(self, hops: Sequence[Hop], *, tokens: int) -> int:
        """How many tokens of a long step to send in one frame."""
        most = min(Costs().batch_tokens, max(PIECE, FRAME_BYTES // self.token_bytes))
        return piece_tokens(hops, tokens=tokens, token_bytes=self.token_bytes, most=most)

    def time_limit(self, hops: Sequence[Hop], *, tokens: int, rows: int) -> float:
        """Seconds without any output after which a step of `tokens` tokens deserves a question."""
        predicted = self.step_seconds(hops, tokens=tokens, rows=rows)
        return self.limits.limit((hop.peer for hop in hops), predicted, self.step_bounds)

    def stuck_after(self, hops: Sequence[Hop], *, tokens: int, rows: int) -> float:
        """Seconds for which a step may stand still although all hops answer."""
        predicted = self.step_seconds(hops, tokens=tokens, rows=rows)
        return time_limit(predicted, floor=self.stall_floor, factor=self.stall_factor)

    def answer_limit(self, hop: Hop) -> float:
        """Seconds within which a hop that lives answers a question, if not before then at the end of a batch."""
        return self.limits.limit((hop.peer,), hop.step(Costs().batch_tokens - 1), self.answer_bounds)

    def took(self, hops: Sequence[Hop], seconds: float, *, tokens: int, rows: int) -> None:
        """A step in which nothing went wrong came through `hops`."""
        predicted = self.step_seconds(hops, tokens=tokens, rows=rows)
        for hop in hops:
            self.limits.measured(hop.peer, seconds, predicted)


def _heard(task: "asyncio.Task[View]") -> None:
    """Those who waited for a reading may be gone when it fails; then nobody needs to know."""
    if not task.cancelled():
        task.exception()
