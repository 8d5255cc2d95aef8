"""Moving a session off peers that leave, or are overloaded, while they still serve it: no step fails, and nobody counts
as failed.

    others are opened beside the chain → filled from the outboxes above them → between two steps, the chain changes over

Nobody but the client knows of those beside the chain: they send nothing on until they are part of it. What they still
lack then is sent like after a failure, so filling them before only shortens the pause.
"""

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace

from clients.chain import Chain, Parting
from clients.client import Client
from clients.repair import Repair
from fault.mend import Leg
from swarm.errors import NetworkError, SwarmError
from swarm.ids import RowId, SessionId
from swarm.messages import Fork, Relink, Resend

__all__ = ["Handover", "Standing"]

_log = logging.getLogger(__name__)

LOOK_SECONDS = 0.05  # between looks at how far those beside the chain are
STILL_SECONDS = 2.0  # without progress, after which the rest is left to the change
NEAR = 16  # tokens of a row that may be missing at the change: a step with them takes hardly longer than one with one
ROUNDS = 3  # of filling: a row grows meanwhile

Positions = Mapping[RowId, int]
Standing = Mapping[SessionId, Positions]  # how many tokens of each row each of some legs has


class Handover:
    """One session's. `lengths`: of its rows now; `send`: what is known of rows from these positions on, to a first hop;
    `change_over`: run on a chain that was prepared, with what the last argument gives once no step is under way."""

    def __init__(
        self,
        client: Client,
        chain: Chain,
        repair: Repair,
        *,
        lengths: Callable[[], Positions],
        send: Callable[[Leg, Positions], None],
        change_over: Callable[[Sequence[Leg], Parting, Callable[[], Awaitable[Standing]]], Awaitable[None]],
    ) -> None:
        self._client = client
        self._chain = chain
        self._repair = repair
        self._lengths = lengths
        self._send = send
        self._change_over = change_over
        self._forks: list[Fork] | None = None  # since others were opened; None: there are none
        self._task: asyncio.Task[None] | None = None

    def begin(self) -> None:
        """Go on until no peer of the chain leaves, beside whatever the session does."""
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._run(), name="handing over")

    def part(self, parting: Parting) -> None:
        """Try once to move off legs that may stay, beside whatever the session does; unless it is moving."""
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._run(parting), name="handing over")

    def note(self, fork: Fork) -> None:
        """The session's rows were cut or copied."""
        if self._forks is not None:
            self._forks.append(fork)

    async def close(self) -> None:
        """Leave it at that; safe to repeat."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task

    # --- inside ---

    async def _run(self, parting: Parting | None = None) -> None:
        if parting is not None:
            await self._handed_over(parting)
        while leaving := self._chain.leaving:
            ways = [leaving, *((leg,) for leg in leaving if len(leaving) > 1)]  # maybe one of them can be replaced
            for leg in leaving:
                self._client.leaves(leg.peer)
            for some in ways:
                names = " and ".join(leg.peer for leg in some)
                if await self._handed_over(Parting(some, f"peer {names} is leaving")):
                    break
            else:
                await self._client.change(self._client.until_change() * (1 + random.random() / 2))

    async def _handed_over(self, parting: Parting) -> bool:
        try:
            await self._hand_over(parting)
        except SwarmError as error:  # who is parted with still serves: nobody has to know
            _log.info("the session can't move yet though %s: %s", parting.reason, error)
            return False
        return True

    async def _hand_over(self, parting: Parting) -> None:
        rows = dict(self._lengths())
        known = {leg.session for leg in self._chain.legs}
        if not any(leg.session in known for leg in parting.legs):
            return
        self._forks = []
        legs = await self._repair.prepare(parting, rows)
        fresh = [leg for leg in legs if leg.session not in known]
        try:
            await self._fill(legs, fresh, rows)
            await self._change_over(legs, parting, lambda: self._standing(fresh))
        finally:
            self._forks = None
            used = {leg.session for leg in self._chain.legs}
            self._chain.release(leg.session for leg in fresh if leg.session not in used)

    async def _fill(self, legs: Sequence[Leg], fresh: Sequence[Leg], rows: Positions) -> None:
        """Bring `fresh` up to where the others stand, or nearly. Raises NetworkError when one is gone."""
        new = {leg.session for leg in fresh}
        feeds = [
            (above, leg)
            for above, leg in zip((None, *legs), legs, strict=False)
            if leg.session in new and (above is None or above.session not in new)
        ]
        start: Positions = dict.fromkeys(rows, 0)
        for _ in range(ROUNDS):
            goal = await self._feed(feeds, start)
            start = await self._filled(fresh, goal)
            now = self._lengths()
            if all(now[row] - at <= NEAR for row, at in start.items() if row in now):
                return

    async def _feed(self, feeds: Sequence[tuple[Leg | None, Leg]], start: Positions) -> Positions:
        """Have everybody above a new leg send it what it lacks; the positions that it will get to."""
        sources, _ = await self._chain.roll_call([a for a, _ in feeds if a is not None], self._client.answer_limit)
        lengths = self._lengths()
        stands = [lengths, *(leg.rows for leg in sources)]
        goal = {row: min(stand.get(row, 0) for stand in stands) for row in start if row in lengths}
        for above, leg in feeds:
            if above is None:
                self._send(leg, {row: start[row] for row in goal})
            else:
                resend = tuple(Resend(row, start[row], at) for row, at in goal.items())
                relink = Relink(above.session, None, False, leg.hop.contact, resend, leg.session, aside=True)
                self._chain.post(above, relink.pack())
        return goal

    async def _filled(self, fresh: Sequence[Leg], goal: Positions) -> Positions:
        """Wait until all of `fresh` have got to `goal`, or get on no more; where the last of them stands. Raises
        NetworkError."""
        loop = asyncio.get_running_loop()
        fewest, until = -1, loop.time() + STILL_SECONDS
        while True:
            standing = await self._roll_call(fresh)
            least = {row: min(leg.rows.get(row, 0) for leg in standing) for row in goal}
            missing = sum(max(0, at - leg.rows.get(row, 0)) for leg in standing for row, at in goal.items())
            if fewest < 0 or missing < fewest:
                fewest, until = missing, loop.time() + STILL_SECONDS
            if not missing or loop.time() > until:
                return least
            await asyncio.sleep(LOOK_SECONDS)

    async def _standing(self, fresh: Sequence[Leg]) -> Standing:
        """Where `fresh` stand, once they have cut and copied rows as far as they have them. Raises NetworkError."""
        lengths, result = self._lengths(), {}
        for leg in await self._roll_call(fresh):
            at = dict(leg.rows)
            for fork in self._forks or ():
                self._repeat(fork, leg, at)
            stale = tuple(row for row in at if row not in lengths)
            if stale:
                self._chain.post(leg, Fork(leg.session, (), stale, onward=False).pack())
            result[leg.session] = {row: at.get(row, 0) for row in lengths}
        return result

    def _repeat(self, fork: Fork, leg: Leg, at: dict[RowId, int]) -> None:
        """Have one leg, whose rows stand at `at`, do what others have done to theirs."""
        entries = []
        for entry in fork.forks:
            if at.get(entry.src, 0):
                entries.append(replace(entry, at=min(entry.at, at[entry.src])))
                at[entry.dst] = entries[-1].at
        drop = tuple(row for row in fork.drop if at.pop(row, None) is not None)
        if entries or drop:
            self._chain.post(leg, Fork(leg.session, tuple(entries), drop, onward=False).pack())

    async def _roll_call(self, fresh: Sequence[Leg]) -> list[Leg]:
        standing, _ = await self._chain.roll_call(fresh, self._client.answer_limit)
        if len(standing) < len(fresh):
            raise NetworkError("a peer that was to take over does not answer any more")
        return standing
