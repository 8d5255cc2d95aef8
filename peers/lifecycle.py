"""A serving peer's life on the network, from a choice of blocks to its goodbye.

    choose a span → announce JOINING → settle → [ start the executor → a stay there → the next span ]… → OFFLINE

One identity, one record, one announcer all along; a stay (`peers.stay`) at each span. `move` is how a peer that serves
is sent to another span. Cancelling `run` is how it is asked to leave: it drains. It announces that, refuses new
sessions, tells those it has to move on, serves them until the last has done so or some seconds have passed, and then
says goodbye. Cancelling it again cuts that short.

A peer that stands by (`peers.standby`) has its span ready instead, announces STANDBY, and stays there only when it is
needed, as often as it is.
"""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field, replace

from peers.announce import Announcer, Load, Timing
from peers.choosing import Chooser, Room
from peers.node import Limits, PeerNode
from peers.restarts import RestartPolicy
from peers.standby import Standby, StandbyPace
from peers.stay import Executor, Pace, Stay
from routing.placement import Placement
from routing.reserve import ReserveTimes
from swarm.directory import Directory
from swarm.entrance import is_loopback, is_relayed
from swarm.errors import SwarmError
from swarm.ids import Digest, PeerId, Span
from swarm.messages import Contact
from swarm.record import PeerRecord, PeerState
from swarm.transport import Transport
from swarm.version import __version__

__all__ = ["Lifecycle", "Offer", "Patience", "Served"]

MOST_ADDRESSES = 8  # in a record

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Offer:
    """What this peer brings to the swarm."""

    model: Digest
    model_name: str
    num_blocks: int  # of the whole model
    room: Room
    precision: str
    public_name: str = ""
    trains: bool = True
    stays: bool = False  # at the span that it takes first; one whose user fixed it does in any case
    stands_by: int | None = None  # serves only blocks that have fewer peers than this


@dataclass(frozen=True, slots=True)
class Served:
    """What is served when a peer comes online. `record`: what it announces now, at any later moment."""

    placement: Placement
    addresses: tuple[str, ...]
    executor: Executor
    record: Callable[[], PeerRecord]


@dataclass(frozen=True, slots=True)
class Patience:
    """Seconds. `settle`: see Chooser. `drain`: for sessions that are open when the peer leaves to move on."""

    settle: float = 0.5
    drain: float = 30.0
    addresses: float = 10.0  # between looks at where others reach us
    timing: Timing = field(default_factory=Timing)
    restarts: RestartPolicy = field(default_factory=RestartPolicy)
    standby: StandbyPace = field(default_factory=StandbyPace)
    reserve: ReserveTimes = field(default_factory=ReserveTimes)


@dataclass(frozen=True, slots=True, eq=False)
class _Move:
    """On its way `to` another span. `arrived`: whether it is served there."""

    to: Placement
    arrived: asyncio.Future[bool]

    def answer(self, arrived: bool) -> None:
        if not self.arrived.done():
            self.arrived.set_result(arrived)


class Lifecycle:
    """One life. `start_executor` is given the span to load; `on_ready` is called each time the peer serves another, and
    `on_standby` with the record, each time it stands by."""

    def __init__(
        self,
        transport: Transport,
        directory: Directory,
        offer: Offer,
        start_executor: Callable[[Span], Awaitable[Executor]],
        on_ready: Callable[[Served], None],
        on_standby: Callable[[PeerRecord], Awaitable[None]] | None = None,
        *,
        limits: Limits | None = None,
        patience: Patience = Patience(),
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._transport = transport
        self._directory = directory
        self._offer = offer
        self._start_executor = start_executor
        self._on_ready = on_ready
        self._on_standby = on_standby or _nothing
        self._limits = limits
        self._patience = patience
        self._clock = clock
        self._announcer: Announcer | None = None
        self._executor: Executor | None = None
        self._stay: Stay | None = None
        self._move: _Move | None = None
        self._pauses: set[str] = set()  # why it pauses

    # --- from outside -------------------------------------------------------------------------------------------

    def pause(self, reason: str) -> None:
        """Give the device back as soon as others have taken over: no new sessions, and those that are open move on, or
        end here if nobody else can go on with them. It is remembered while nothing is served yet."""
        if reason in self._pauses:
            return
        self._pauses.add(reason)
        _log.info("paused: %s", reason)
        if self._stay is not None:
            self._stay.heed_pauses()

    def resume(self, reason: str) -> None:
        """`reason` is one no more; without any other one sessions are taken again."""
        if reason not in self._pauses:
            return
        self._pauses.remove(reason)
        _log.info("no longer paused: %s", reason)
        if self._stay is not None:
            self._stay.heed_pauses()

    @property
    def paused(self) -> bool:
        return bool(self._pauses)

    @property
    def record(self) -> PeerRecord | None:
        """What is announced of this peer; None before it has chosen."""
        return None if self._announcer is None else self._announcer.record

    def tell_near(self, near: tuple[tuple[PeerId, float], ...]) -> None:
        """Have others know how far it is to these, where anything is announced of this peer."""
        if self._announcer is not None:
            self._announcer.change(near=near)

    async def move(self, to: Placement, still: Callable[[], Awaitable[bool]], *, insist: bool = False) -> bool:
        """Leave for another span, as `Stay.leave` says, and serve it; returns whether this peer now does.

        One that can't be loaded is given up for the one before. Nothing is done while no span is served, or while
        another move is under way.
        """
        if self._stay is None or self._move is not None:
            return False
        move = self._move = _Move(to, asyncio.get_running_loop().create_future())
        try:
            return await self._stay.leave(still, insist=insist) and await move.arrived
        finally:
            self._move = None

    # --- the whole of it ----------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Serves until it is cancelled. Raises SwarmError when it can't begin or can't go on."""
        if self._offer.stands_by is not None:
            await self._stand_by(self._offer.stands_by)
            return
        chooser = self._chooser()
        placement, guess = await chooser.first()
        _log.info("taking blocks %s: %s", placement.span, placement.reason)
        announcer = self._announcer = await self._announced(placement, Pace(guess, guess), PeerState.JOINING)
        async with _announcing(announcer), _beside(self._follow_addresses(announcer), "addresses"):
            try:
                placement = await chooser.settled(placement, announcer)
                await self._live(announcer, placement)
            finally:
                if self._move is not None:
                    self._move.answer(False)

    async def _stand_by(self, wanted: int) -> None:
        """Ready for a span, and at times a stay there."""
        standby = self._standby(wanted)
        placement, pace = await standby.first()
        announcer = self._announcer = await self._announced(placement, pace, PeerState.STANDBY)
        async with _announcing(announcer), _beside(self._follow_addresses(announcer), "addresses"):
            while True:
                placement = await standby.until_called(announcer, lambda: self.paused)
                _log.info("needed: %s", placement.reason)
                announcer.change(state=PeerState.JOINING, reason=placement.reason)
                executor = await self._start_executor(placement.span)
                async with _beside(standby.until_rested(announcer, lambda: self._stay), "resting"):
                    await self._stay_at(placement, executor, announcer)
                announcer.change(reason="its blocks have enough other peers")

    def _standby(self, wanted: int) -> Standby:
        offer = self._offer
        return Standby(
            self._transport,
            self._directory,
            offer.model,
            offer.num_blocks,
            offer.room,
            self._made_ready,
            self._on_standby,
            wanted=wanted,
            times=self._patience.reserve,
            pace=self._patience.standby,
            clock=self._clock,
        )

    async def _made_ready(self, span: Span) -> Pace:
        """Its weights are on the disk, packed, and have been measured once it has been loaded."""
        executor = await self._start_executor(span)
        try:
            return executor.pace
        finally:
            await executor.close()

    async def _live(self, announcer: Announcer, placement: Placement) -> None:
        """One stay after another."""
        before: Placement | None = None  # where we could go back to
        while True:
            try:
                executor = await self._start_executor(placement.span)
            except SwarmError as error:
                if before is None:
                    raise
                _log.error("blocks %s can't be served, so back to %s: %s", placement.span, before.span, error)
                reason = f"blocks {placement.span} could not be served"
                placement, before = replace(before, reason=reason), None
                announcer.change(span=placement.span, reason=reason)
                continue
            pace = executor.pace
            await self._stay_at(placement, executor, announcer)
            before, placement = placement, self._move.to if self._move is not None else placement
            self._announce_move(announcer, before, placement, pace)

    def _announce_move(self, announcer: Announcer, before: Placement, to: Placement, pace: Pace) -> None:
        """`pace`: through the blocks before; that through the next is guessed by it until it is measured."""
        _log.info("moving from blocks %s to %s: %s", before.span, to.span, to.reason)
        share = len(before.span) / len(to.span)
        announcer.change(
            state=PeerState.JOINING,
            span=to.span,
            reason=to.reason,
            throughput=pace.throughput * share,
            prefill=pace.prefill * share,
        )

    async def _stay_at(self, placement: Placement, executor: Executor, announcer: Announcer) -> None:
        """Until it is left for the span that `move` names."""

        def begun() -> None:
            addresses = announcer.record.contact.addresses
            self._on_ready(Served(placement, addresses, executor, lambda: announcer.record))
            if self._move is not None:
                self._move.answer(self._move.to.span == placement.span)

        self._executor = executor
        try:
            self._stay = Stay(
                PeerNode(self._transport, executor.link, self._limits),
                executor,
                announcer,
                drain=self._patience.drain,
                restarts=self._patience.restarts,
                paused=lambda: self.paused,
                contact=self._contact,
            )
            await self._stay.run(begun)
        finally:
            self._stay = self._executor = None
            await executor.close()

    # --- before serving -----------------------------------------------------------------------------------------

    def _chooser(self) -> Chooser:
        offer = self._offer
        return Chooser(
            self._directory,
            self._transport.peer_id,
            offer.model,
            offer.num_blocks,
            offer.room,
            settle=self._patience.settle,
            clock=self._clock,
        )

    async def _announced(self, placement: Placement, pace: Pace, state: PeerState) -> Announcer:
        """Announces that we are joining, or standing by; `pace` may be a guess until it is measured."""
        offer = self._offer
        record = PeerRecord(
            contact=await self._contact(),
            model=offer.model,
            model_name=offer.model_name,
            num_blocks=offer.num_blocks,
            span=placement.span,
            state=state,
            throughput=pace.throughput,
            prefill=pace.prefill,
            cache_left=0,
            precision=offer.precision,
            version=__version__,
            public_name=offer.public_name,
            reason=placement.reason,
            queue=0,
            issued=0.0,
            expires=0.0,
            trains=offer.trains,
            fixed=offer.stays or offer.stands_by is not None or offer.room.fixed is not None,
        )
        announcer = Announcer(self._directory, record, self._load, timing=self._patience.timing, clock=self._clock)
        await announcer.announce()
        return announcer

    async def _contact(self) -> Contact:
        """Where we are, those addresses first that are worth trying from elsewhere; a record has room for so many."""
        addresses = sorted(await self._transport.addresses(), key=lambda one: (is_loopback(one), not is_relayed([one])))
        return Contact(self._transport.peer_id, tuple(addresses[:MOST_ADDRESSES]))

    def _load(self) -> Load:
        return Load(cache_left=0, queue=0) if self._executor is None else self._executor.load()

    async def _follow_addresses(self, announcer: Announcer) -> None:
        """Announces other addresses when they change: a relay has left, the machine is in another network."""
        while True:
            await asyncio.sleep(self._patience.addresses)
            with suppress(SwarmError):  # who does not answer now may do so next time
                contact = await self._contact()
                if contact != announcer.record.contact:
                    _log.info("others reach this peer at other addresses now: %s", ", ".join(contact.addresses))
                    announcer.change(contact=contact)


async def _nothing(record: PeerRecord) -> None:
    pass


@asynccontextmanager
async def _announcing(announcer: Announcer) -> AsyncIterator[None]:
    """Announces as long as the block runs, and says goodbye after it."""
    try:
        async with _beside(announcer.run(), "announcing"):
            yield
    finally:
        await announcer.withdraw()


@asynccontextmanager
async def _beside(work: Coroutine[None, None, None], name: str) -> AsyncIterator[None]:
    """Goes on as long as the block runs."""
    task = asyncio.create_task(work, name=name)
    try:
        yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
