"""The invariants of DESIGN.md's wire protocol under random schedules of failures, delays and duplicates.

A session generates over three hops in virtual time while peers fail around it; every output must be what one piece
computes. Peers that fail are succeeded by fresh ones, so that no block is ever without a live peer.
"""

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from clients.client import Client
from clients.session import Session
from swarm.checkpoint import Checkpoint
from swarm.ids import PeerId, RowId, Span
from swarm.memory import MemoryNetwork
from tests.memory_swarm import MemorySwarm, Reference, feed
from tests.virtual import run_virtual

SPANS = (Span(0, 1), Span(1, 3), Span(3, 4))


# --- what may happen ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Grow:
    """Rows get that many new tokens each, in one step."""

    tokens: int


@dataclass(frozen=True)
class Fork:
    """Row i of the new rows is a part of an old one: (which, how much of it in percent)."""

    picks: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Visit:
    """Another client's session begins with a part (in percent) of the first row, and goes on in its own way."""

    share: int
    tokens: int


@dataclass(frozen=True)
class Fail:
    """A peer of a span fails some time into the next step."""

    how: str  # kill, hang, or cut (from the next peers on)
    span: int
    after: float  # virtual seconds


PATIENCE = 3600.0  # virtual seconds for all that is tried in one example

Act = Grow | Fork | Visit | Fail
steps = st.one_of(
    st.builds(Grow, st.integers(1, 20)),
    st.builds(Grow, st.just(1)),
    st.builds(Fork, st.lists(st.tuples(st.integers(0, 3), st.integers(10, 100)), min_size=1, max_size=3).map(tuple)),
    st.builds(Visit, st.integers(0, 100), st.integers(1, 20)),
    st.builds(
        Fail, st.sampled_from(("kill", "kill", "hang", "cut")), st.integers(0, 2), st.sampled_from((0, 0.02, 0.05, 0.1))
    ),
)


class Play:
    """One session, the tokens it should have, and the peers that are to fail."""

    def __init__(self, swarm: MemorySwarm, reference: Reference, seed: int) -> None:
        self.swarm = swarm
        self.reference = reference
        self.random = torch.Generator().manual_seed(seed)
        self.names: Iterator[int] = count()
        self.live: dict[int, list[str]] = {0: [], 1: [], 2: []}
        self.session: Session
        self.rows: dict[RowId, Tensor] = {}
        self.visitor: Client
        self.visits: list[Session] = []
        self.failing: list[asyncio.Task[None]] = []
        self.outbox_tokens = 4096

    async def begin(self, replicas: int) -> None:
        for index in range(len(SPANS)):
            for _ in range(replicas):
                await self.add(index)
        self.session = await self.swarm.session(await self.swarm.client(), self.reference, lease=256, patience=600.0)
        self.visitor = await self.swarm.client("visitor")
        self.rows = {self.session.new_row(): torch.empty(0, dtype=torch.int64)}
        await self.do(Grow(6))

    async def add(self, index: int) -> None:
        name = f"peer{next(self.names)}-{SPANS[index]}"
        self.live[index].append(name)
        await self.swarm.add(name, SPANS[index], outbox_tokens=self.outbox_tokens, page_size=4)

    async def do(self, act: Act) -> None:
        match act:
            case Grow():
                await self.grow(act.tokens)
            case Fork():
                await self.fork(act)
            case Visit():
                await self.visit(act)
            case Fail():
                await self.add(act.span)
                self.failing.append(asyncio.create_task(self.fail(act)))

    async def grow(self, tokens: int) -> None:
        new = {row: self.some(tokens) for row in self.rows}
        outputs = await feed(self.session, self.reference, new)
        for index, row in enumerate(new):
            self.rows[row] = torch.cat([self.rows[row], new[row]])
            expected = self.reference.outputs(self.rows[row])[-tokens:]
            got = outputs[index * tokens : (index + 1) * tokens]
            torch.testing.assert_close(got, expected, atol=1e-4, rtol=1e-4)

    async def visit(self, act: Visit) -> None:
        """Two steps of a new session that stays, while one before it leaves."""
        if len(self.visits) > 1:
            await self.visits.pop(0).close()
        session = await self.swarm.session(self.visitor, self.reference, lease=16, patience=600.0)
        self.visits.append(session)
        known = next(iter(self.rows.values()))
        tokens = torch.cat([known[: len(known) * act.share // 100], self.some(act.tokens)])
        row = session.new_row()
        outputs = await feed(session, self.reference, {row: tokens})
        torch.testing.assert_close(outputs, self.reference.outputs(tokens), atol=1e-4, rtol=1e-4)
        tokens = torch.cat([tokens, self.some(3)])
        outputs = await feed(session, self.reference, {row: tokens[-3:]})
        torch.testing.assert_close(outputs, self.reference.outputs(tokens)[-3:], atol=1e-4, rtol=1e-4)

    def some(self, tokens: int) -> Tensor:
        return torch.randint(3, 120, (tokens,), generator=self.random)

    async def fork(self, act: Fork) -> None:
        known = list(self.rows.items())
        picks = [(*known[which % len(known)], percent) for which, percent in act.picks]
        cuts = [(row, max(1, len(tokens) * percent // 100)) for row, tokens, percent in picks]
        rows = await self.session.fork(cuts)
        self.rows = {row: tokens[:at] for row, (_, tokens, _), (_, at) in zip(rows, picks, cuts, strict=True)}

    async def fail(self, act: Fail) -> None:
        """The peer that the session uses for the span, where there is one."""
        await asyncio.sleep(act.after)
        used = {leg.peer for leg in self.session.chain.legs}
        names = [name for name in self.live[act.span] if name in used] or self.live[act.span][:1]
        name = names[0]
        if act.how == "cut":
            for other in self.live[min(act.span + 1, 2)]:
                if other != name:
                    self.swarm.network.partition(PeerId(name), PeerId(other))
            return
        self.live[act.span].remove(name)
        if act.how == "kill":
            await self.swarm.kill(name)
        else:
            self.swarm.network.hang(PeerId(name))

    async def end(self) -> None:
        await asyncio.gather(*self.failing)
        await self.grow(1)
        for session in (self.session, *self.visits):
            await session.close()
        await asyncio.sleep(2.0)
        for names in self.live.values():
            for name in names:
                stats = self.swarm.members[name].engine.stats()
                assert (stats.sessions, stats.rows) == (0, 0)
                assert stats.kv_tokens_free == stats.kv_tokens, f"{name} leaked pages"


@pytest.mark.timeout(300)
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@example(  # a hop that reaches none of the next ones any more
    acts=[
        Grow(1),
        Visit(23, 13),
        Fail("cut", 0, 0.1),
        Fail("kill", 0, 0),
        Visit(56, 1),
        Visit(10, 18),
        Grow(1),
        Fail("cut", 0, 0.1),
        Grow(1),
    ],
    delay=0.0,
    duplicate=0.0,
    outbox_tokens=64,
    seed=188,
)
@given(
    acts=st.lists(steps, min_size=1, max_size=12),
    delay=st.sampled_from((0.0, 0.01, 0.05)),
    duplicate=st.sampled_from((0.0, 0.3)),
    outbox_tokens=st.sampled_from((4096, 64)),
    seed=st.integers(0, 1000),
)
def test_outputs_are_those_of_one_piece_whatever_fails(
    checkpoint: Checkpoint,
    reference: Reference,
    acts: list[Act],
    delay: float,
    duplicate: float,
    outbox_tokens: int,
    seed: int,
) -> None:
    async def main() -> None:
        network = MemoryNetwork(delay=delay, duplicate=duplicate, seed=seed)
        async with asyncio.timeout(PATIENCE), MemorySwarm(checkpoint, network) as swarm:
            play = Play(swarm, reference, seed)
            play.outbox_tokens = outbox_tokens
            await play.begin(replicas=2)
            for act in acts:
                await play.do(act)
            await play.end()

    run_virtual(main())
