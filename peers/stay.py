"""One stay of a serving peer at a span: from an executor that has been started to the moment when nobody needs it here.

    accept streams → ONLINE, or PAUSED → … → DRAINING → left

The executor may fail and is started again, the peer being JOINING meanwhile; what else fails ends the stay. There are
two ways to leave. Cancelled, it drains and says so, whatever comes of it: the peer ends. Asked by `leave`, because the
peer is needed elsewhere, it drains too, and stays after all where that would harm anybody.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from math import inf
from typing import Protocol

from peers.announce import Announcer, Load
from peers.executor_settings import Streaming
from peers.link import ExecutorLink, ExecutorLost
from peers.node import PeerNode
from peers.restarts import RestartPolicy, Restarts
from swarm.errors import SwarmError
from swarm.messages import Contact
from swarm.record import PeerState

__all__ = ["Executor", "Pace", "Stay"]

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Pace:
    """Measured through the whole span: decode rows per second, prompt tokens per second."""

    throughput: float
    prefill: float


class Executor(Protocol):
    """What a stay needs of an executor."""

    @property
    def link(self) -> ExecutorLink: ...

    @property
    def pace(self) -> Pace: ...

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


@dataclass(frozen=True, slots=True, eq=False)
class _Departure:
    """See `Stay.leave`. `done`: whether it has been left."""

    still: Callable[[], Awaitable[bool]]
    insist: bool
    done: asyncio.Future[bool]

    def answer(self, left: bool) -> None:
        if not self.done.done():
            self.done.set_result(left)


class Stay:
    """`drain`: seconds that sessions which are open have to move on. `paused`: whether new ones are taken, asked again
    after `heed_pauses`. `contact`: where the peer is."""

    def __init__(
        self,
        node: PeerNode,
        executor: Executor,
        announcer: Announcer,
        *,
        drain: float,
        restarts: RestartPolicy,
        paused: Callable[[], bool],
        contact: Callable[[], Awaitable[Contact]],
    ) -> None:
        self._node = node
        self._executor = executor
        self._announcer = announcer
        self._drain_limit = drain
        self._restarts = restarts
        self._paused = paused
        self._contact = contact
        self._serving = False  # streams are accepted, and the executor computes
        self._leaving = False
        self._asked: asyncio.Future[_Departure] = asyncio.get_running_loop().create_future()
        self._pausing: asyncio.Task[int] | None = None

    async def run(self, begun: Callable[[], None]) -> None:
        """Serves until somebody who called `leave` may have it, or until it is cancelled. `begun` is called once all
        know that it serves. Raises SwarmError when it can't go on."""
        keeping = asyncio.create_task(self._keep_serving(), name="serving")
        try:
            await self._node.start()
            await self._come_online()
            begun()
            await self._until_left(keeping)
        except asyncio.CancelledError:
            await self._say_goodbye(keeping)
            raise
        finally:
            if self._asked.done():
                self._asked.result().answer(False)
            for task in (keeping, self._pausing):
                if task is not None:
                    task.cancel()
            with suppress(asyncio.CancelledError, SwarmError):  # what it raised by itself has been raised above
                await keeping
            await self._node.close()

    # --- serving ------------------------------------------------------------------------------------------------

    @property
    def _state(self) -> PeerState:
        if not self._serving:
            return PeerState.JOINING
        if self._leaving:
            return PeerState.DRAINING
        return PeerState.PAUSED if self._paused() else PeerState.ONLINE

    def heed_pauses(self) -> None:
        """Whether it is paused has changed. Who leaves serves nobody new in any case."""
        if self._announcer.record.state is not self._state:
            self._announcer.change(state=self._state)
        if self._leaving:
            return
        if self._pausing is not None:
            self._pausing.cancel()
            self._pausing = None
        if self._paused():
            self._pausing = asyncio.create_task(self._node.drain(inf), name="pausing")
        else:
            self._node.resume()

    async def _come_online(self) -> None:
        """Announces what was measured; soon again if the directory does not take it now."""
        pace = self._executor.pace
        contact = await self._contact()
        self._serving = True
        self._announcer.change(
            state=self._state,
            contact=contact,
            throughput=pace.throughput,
            prefill=pace.prefill,
            adapters=self._executor.adapters,
        )
        self.heed_pauses()
        await self._announcer.announced()

    async def _keep_serving(self) -> None:
        """Starts the executor again each time it is lost. Raises SwarmError when that happens too often."""
        restarts = Restarts(self._restarts)
        while True:
            try:
                await self._node.run()
            except ExecutorLost as lost:
                self._serving = False
                self._announcer.change(state=self._state)
                await self._revive(restarts, lost)
                await self._come_online()
                _log.info("%s again", self._state)

    async def _revive(self, restarts: Restarts, lost: ExecutorLost) -> None:
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
                await self._executor.restart()
            except ExecutorLost as again:
                lost = again
            else:
                _log.info("the device process is back")
                return

    # --- leaving ------------------------------------------------------------------------------------------------

    async def leave(self, still: Callable[[], Awaitable[bool]], *, insist: bool) -> bool:
        """Drain, and end this stay if nobody is harmed by that; returns whether it has ended.

        `still`: whether to leave at all, asked when it has been announced that this peer drains, and again when it has:
        of two who leave the same blocks each then knows of the other. `insist`: even if sessions are left behind, which
        their clients go on with elsewhere as after a failure. One at a time.
        """
        departure = _Departure(still, insist, asyncio.get_running_loop().create_future())
        if self._asked.done():
            return False
        self._asked.set_result(departure)
        return await departure.done

    async def _until_left(self, keeping: asyncio.Task[None]) -> None:
        while True:
            await asyncio.wait((keeping, self._asked), return_when=asyncio.FIRST_COMPLETED)
            if keeping.done():
                await keeping
            departure = self._asked.result()
            left = await self._emptied(departure, keeping)
            if not left:
                self._asked = asyncio.get_running_loop().create_future()
            departure.answer(left)
            if left:
                return

    async def _emptied(self, departure: _Departure, keeping: asyncio.Task[None]) -> bool:
        """Whether nothing keeps this peer here; else it serves again."""
        self._leaving = True
        self._announcer.change(state=self._state)
        if await self._announcer.announced() and await departure.still():
            await self._drain(keeping)
            if keeping.done():
                await keeping
            remain = self._node.sessions
            if remain and not departure.insist:
                _log.info("%d sessions found nobody else to go on with, so this peer stays where it is", remain)
            elif not self._paused() and await departure.still():
                return True
        self._leaving = False
        self.heed_pauses()
        return False

    async def _say_goodbye(self, keeping: asyncio.Task[None]) -> None:
        """Turn new sessions away, say so to all, and serve those that are open until they have moved, for some time."""
        self._leaving = True
        self._announcer.change(state=PeerState.DRAINING)
        if self._node.sessions:
            _log.info("to leave at once, stop it again")
        await self._drain(keeping)

    async def _drain(self, keeping: asyncio.Task[None]) -> None:
        began, limit = self._node.sessions, self._drain_limit
        if began:
            _log.info(
                "draining: no new sessions, and up to %.0f s for %d that are open to move to other peers", limit, began
            )
        draining = asyncio.create_task(self._node.drain(limit), name="draining")
        try:
            await asyncio.wait((draining, keeping), return_when=asyncio.FIRST_COMPLETED)
        finally:
            draining.cancel()
        if began:
            _log.info("drained: %d sessions of %d have moved or ended", began - self._node.sessions, began)
