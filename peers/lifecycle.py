"""A serving peer's life on the network, from a choice of blocks to its goodbye.

    choose a span → announce JOINING → settle → start the executor → serve, ONLINE → … → leave, OFFLINE

The executor may fail and is started again, the peer being JOINING meanwhile; everything else that fails ends this life.
Cancelling `run` is how a peer is asked to leave: it drains. It announces that, refuses new sessions, tells those it has
to move on, serves them until the last has done so or some seconds have passed, and then says goodbye. Cancelling it
again cuts that short.
"""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from math import inf
from typing import Protocol

from peers.announce import Announcer, Load, Timing
from peers.choosing import Chooser, Room
from peers.executor_settings import Streaming
from peers.link import ExecutorLink, ExecutorLost
from peers.node import Limits, PeerNode
from peers.restarts import RestartPolicy, Restarts
from routing.placement import Placement
from swarm.directory import Directory
from swarm.entrance import is_loopback, is_relayed
from swarm.errors import SwarmError
from swarm.ids import Digest, Span
from swarm.messages import Contact
from swarm.record import PeerRecord, PeerState
from swarm.transport import Transport
from swarm.version import __version__

__all__ = ["Executor", "Lifecycle", "Offer", "Pace", "Served"]

MOST_ADDRESSES = 8  # in a record

_log = logging.getLogger(__name__)


class Executor(Protocol):
    """What a life needs of an executor."""

    @property
    def link(self) -> ExecutorLink: ...

    @property
    def pace(self) -> "Pace": ...

    @property
    def kv_tokens(self) -> int:
        """What its KV cache can hold."""
        ...

    @property
    def streaming(self) -> Streaming | None:
        """What does not stay in memory between steps."""
        ...

    @property
    def adapters(self) -> tuple[tuple[str, str], ...]:
        """Those that it hosts: names and digests."""
        ...

    def load(self) -> Load: ...

    async def restart(self) -> None:
        """Raises ExecutorLost when it does not come up."""

    async def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Pace:
    """Measured through the whole span: decode rows per second, prompt tokens per second."""

    throughput: float
    prefill: float


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
    moves: float = 10.0  # between looks at where others reach us
    timing: Timing = field(default_factory=Timing)
    restarts: RestartPolicy = field(default_factory=RestartPolicy)


class Lifecycle:
    """One life. `start_executor` is given the span to load; `on_ready` is called once, when the peer serves."""

    def __init__(
        self,
        transport: Transport,
        directory: Directory,
        offer: Offer,
        start_executor: Callable[[Span], Awaitable[Executor]],
        on_ready: Callable[[Served], None],
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
        self._limits = limits
        self._patience = patience
        self._clock = clock
        self._executor: Executor | None = None
        self._serving: tuple[PeerNode, Announcer] | None = None
        self._pauses: set[str] = set()  # why it pauses
        self._draining: asyncio.Task[int] | None = None

    # --- pausing ------------------------------------------------------------------------------------------------

    def pause(self, reason: str) -> None:
        """Give the device back as soon as others have taken over: no new sessions, and those that are open move on, or
        end here if nobody else can go on with them. It is remembered while nothing is served yet."""
        if reason in self._pauses:
            return
        self._pauses.add(reason)
        _log.info("paused: %s", reason)
        self._heed_pauses()

    def resume(self, reason: str) -> None:
        """`reason` is one no more; without any other one sessions are taken again."""
        if reason not in self._pauses:
            return
        self._pauses.remove(reason)
        _log.info("no longer paused: %s", reason)
        self._heed_pauses()

    @property
    def paused(self) -> bool:
        return bool(self._pauses)

    def _heed_pauses(self) -> None:
        if self._serving is None:
            return
        node, announcer = self._serving
        if announcer.record.state in (PeerState.ONLINE, PeerState.PAUSED):
            announcer.change(state=self._state)
        if self._draining is not None:
            self._draining.cancel()
            self._draining = None
        if self.paused:
            self._draining = asyncio.create_task(node.drain(inf), name="pausing")
        else:
            node.resume()

    @property
    def _state(self) -> PeerState:
        """While all is well."""
        return PeerState.PAUSED if self.paused else PeerState.ONLINE

    # --- the whole of it ----------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Serves until it is cancelled. Raises SwarmError when it can't begin or can't go on."""
        chooser = self._chooser()
        placement, guess = await chooser.first()
        _log.info("taking blocks %s: %s", placement.span, placement.reason)
        announcer = await self._announcer(placement, guess)
        async with _announcing(announcer):
            placement = await chooser.settled(placement, announcer)
            executor = await self._start_executor(placement.span)
            self._executor = executor
            try:
                await self._serve(executor, announcer, placement)
            finally:
                self._executor = None
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

    async def _announcer(self, placement: Placement, throughput: float) -> Announcer:
        """Announces that we are joining; `throughput` is a guess until it is measured."""
        offer = self._offer
        record = PeerRecord(
            contact=await self._contact(),
            model=offer.model,
            model_name=offer.model_name,
            num_blocks=offer.num_blocks,
            span=placement.span,
            state=PeerState.JOINING,
            throughput=throughput,
            prefill=throughput,
            cache_left=0,
            precision=offer.precision,
            version=__version__,
            public_name=offer.public_name,
            reason=placement.reason,
            queue=0,
            issued=0.0,
            expires=0.0,
            trains=offer.trains,
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

    # --- serving ------------------------------------------------------------------------------------------------

    async def _serve(self, executor: Executor, announcer: Announcer, placement: Placement) -> None:
        node = PeerNode(self._transport, executor.link, self._limits)
        keeping = asyncio.create_task(self._keep_serving(node, executor, announcer), name="serving")
        moving = asyncio.create_task(self._follow_moves(announcer), name="addresses")
        try:
            await node.start()
            self._serving = node, announcer
            self._heed_pauses()
            await self._come_online(executor, announcer)
            addresses = announcer.record.contact.addresses
            self._on_ready(Served(placement, addresses, executor, lambda: announcer.record))
            await asyncio.shield(keeping)
        except asyncio.CancelledError:
            await self._leave(node, announcer, keeping)
            raise
        finally:
            self._serving = None
            if self._draining is not None:
                self._draining.cancel()
            moving.cancel()
            keeping.cancel()
            with suppress(asyncio.CancelledError, SwarmError):  # what it raised by itself has been raised above
                await keeping
            await node.close()

    async def _come_online(self, executor: Executor, announcer: Announcer) -> None:
        """Announces what was measured; soon again if the directory does not take it now."""
        announcer.change(
            state=self._state,
            contact=await self._contact(),
            throughput=executor.pace.throughput,
            prefill=executor.pace.prefill,
            adapters=executor.adapters,
        )
        await announcer.announced()

    async def _follow_moves(self, announcer: Announcer) -> None:
        """Announces other addresses when they change: a relay has left, the machine is in another network."""
        while True:
            await asyncio.sleep(self._patience.moves)
            with suppress(SwarmError):  # who does not answer now may do so next time
                contact = await self._contact()
                if contact != announcer.record.contact:
                    _log.info("others reach this peer at other addresses now: %s", ", ".join(contact.addresses))
                    announcer.change(contact=contact)

    async def _keep_serving(self, node: PeerNode, executor: Executor, announcer: Announcer) -> None:
        """Starts the executor again each time it is lost. Raises SwarmError when that happens too often."""
        restarts = Restarts(self._patience.restarts)
        while True:
            try:
                await node.run()
            except ExecutorLost as lost:
                announcer.change(state=PeerState.JOINING)
                await self._revive(executor, restarts, lost)
                await self._come_online(executor, announcer)
                _log.info("paused again" if self.paused else "online again")

    async def _revive(self, executor: Executor, restarts: Restarts, lost: ExecutorLost) -> None:
        while True:
            wait = restarts.note(asyncio.get_running_loop().time())
            if wait is None:
                policy = restarts.policy
                raise SwarmError(
                    f"the device process failed {policy.most} times within {policy.window / 60:.0f} minutes, "
                    f"so this peer gives up; the last time: {lost}"
                ) from lost
            _log.error("the device process failed, starting it again in %.1f s: %s", wait, lost)
            await asyncio.sleep(wait)
            try:
                await executor.restart()
            except ExecutorLost as again:
                lost = again
            else:
                _log.info("the device process is back")
                return

    # --- leaving ------------------------------------------------------------------------------------------------

    async def _leave(self, node: PeerNode, announcer: Announcer, keeping: asyncio.Task[None]) -> None:
        """Turn new sessions away, say so to all, and serve those that are open until they have moved, for some time."""
        announcer.change(state=PeerState.DRAINING)
        began, limit = node.sessions, self._patience.drain
        if began:
            _log.info(
                "draining: no new sessions, and up to %.0f s for %d that are open to move to other peers; "
                "to leave at once, stop it again",
                limit,
                began,
            )
        draining = asyncio.create_task(node.drain(limit), name="draining")
        try:
            await asyncio.wait((draining, keeping), return_when=asyncio.FIRST_COMPLETED)
        finally:
            draining.cancel()
        if began:
            _log.info("drained: %d sessions of %d have moved or ended", began - node.sessions, began)


@asynccontextmanager
async def _announcing(announcer: Announcer) -> AsyncIterator[None]:
    """Announces as long as the block runs, and says goodbye after it."""
    task = asyncio.create_task(announcer.run(), name="announcing")
    try:
        yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
        await announcer.withdraw()
