"""Serving peers that move while others generate: real lives and engines in virtual time, and nobody notices."""

import asyncio
import random
from collections import Counter
from contextlib import suppress

import torch
from torch import Tensor

from clients.session import Session
from peers.announce import Load
from peers.choosing import Room
from peers.engine import Engine
from peers.lifecycle import Lifecycle, Offer, Served
from peers.link import InlineLink
from peers.reconsidering import Reconsidering
from peers.span import BlockSpan
from peers.stay import Pace
from routing.placement import Placement
from swarm.checkpoint import Checkpoint
from swarm.ids import PeerId, Span
from swarm.memory import MemoryDirectory, MemoryNetwork
from tests.clients.test_handover import changes, failures
from tests.clients.test_session import same
from tests.memory_swarm import MemorySwarm, Reference, feed
from tests.virtual import run_virtual

FIRST, SECOND = Span(0, 2), Span(2, 4)
MINUTE, HOUR = 60.0, 3600.0
SESSIONS = 6
BETWEEN = 10.0  # s from one token to the next
KV_TOKENS = 4096


class EngineExecutor:
    """An engine in this process, as a life sees it."""

    streaming = None
    adapters = ()
    kv_tokens = KV_TOKENS
    pace = Pace(throughput=50.0, prefill=1000.0)

    def __init__(self, checkpoint: Checkpoint, blocks: Span) -> None:
        def engine() -> Engine:
            span = BlockSpan.load(
                checkpoint,
                blocks,
                dtype=torch.float32,
                device=torch.device("cpu"),
                kv_tokens=KV_TOKENS,
                page_size=16,
            )
            return Engine(
                span,
                model=checkpoint.digest,
                max_positions=checkpoint.max_positions,
                outbox_tokens=KV_TOKENS,
                clock=asyncio.get_running_loop().time,
            )

        self.link = InlineLink(engine, step_seconds=0.001, expire_seconds=MINUTE)

    def load(self) -> Load:
        return Load(cache_left=KV_TOKENS, queue=0)

    async def restart(self) -> None:
        await self.link.restart()

    async def close(self) -> None:
        await self.link.close()


class Resident:
    """A peer of a memory swarm with a life of its own: it has room for half of the model."""

    def __init__(self, swarm: MemorySwarm, name: str) -> None:
        checkpoint, directory = swarm.checkpoint, MemoryDirectory(swarm.shelf)
        self.served: list[Span] = []
        self._serves = asyncio.Event()

        async def start(span: Span) -> EngineExecutor:
            await asyncio.sleep(5.0)
            return EngineExecutor(checkpoint, span)

        def on_ready(served: Served) -> None:
            self.served.append(served.placement.span)
            self._serves.set()

        offer = Offer(checkpoint.digest, checkpoint.name, checkpoint.num_blocks, Room(2), "fp32")
        self._life = Lifecycle(swarm.network.transport(PeerId(name)), directory, offer, start, on_ready)
        self._thoughts = Reconsidering(self._life, directory, interval=MINUTE, lot=random.Random(name))
        self._tasks = [asyncio.create_task(self._life.run(), name=name)]

    @property
    def at(self) -> Span:
        return self.served[-1]

    async def take(self, span: Span) -> None:
        async def yes() -> bool:
            return True

        await self._serves.wait()
        if self.at != span:
            assert await self._life.move(Placement(span, "the test says so", 0.0, 0.0), yes)
        self.served = [span]

    def reconsider(self) -> None:
        self._tasks.append(asyncio.create_task(self._thoughts.run()))

    async def leave(self) -> None:
        for task in reversed(self._tasks):
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task


async def generate(session: Session, reference: Reference, tokens: Tensor) -> bool:
    """Whether all outputs are what one piece computes, a token now and then."""
    row, expected = session.new_row(), reference.outputs(tokens)
    good = same(await feed(session, reference, {row: tokens[:5]}), expected[:5])
    for at in range(5, len(tokens)):
        await asyncio.sleep(BETWEEN)
        good &= same(await feed(session, reference, {row: tokens[at : at + 1]}), expected[at : at + 1])
    return good


def test_peers_that_all_hold_one_half_spread_out_under_sessions_that_hear_nothing_of_it(
    checkpoint: Checkpoint, reference: Reference
) -> None:
    async def play(swarm: MemorySwarm) -> None:
        residents = [Resident(swarm, f"resident{number}") for number in range(6)]
        for resident in residents:
            await resident.take(FIRST)
        await swarm.add("other", SECOND)
        clients = [await swarm.client(f"client{n}", dice=random.Random(n)) for n in range(SESSIONS)]
        sessions = [await swarm.session(client, reference, lease=96) for client in clients]
        tokens = [torch.randint(0, 100, (70,), generator=torch.Generator().manual_seed(n)) for n in range(SESSIONS)]
        for resident in residents:
            resident.reconsider()
        running = [asyncio.create_task(generate(s, reference, t)) for s, t in zip(sessions, tokens, strict=True)]
        await asyncio.sleep(10 * MINUTE)
        assert Counter(resident.at for resident in residents) == {FIRST: 4, SECOND: 2}
        assert all(await asyncio.gather(*running))
        assert failures(swarm) == []
        assert any(change.left for change in changes(swarm)), "those who moved had sessions"
        for session in sessions:
            await session.close()
        moves = sum(len(resident.served) - 1 for resident in residents)
        assert moves == 2
        await asyncio.sleep(HOUR)
        assert sum(len(resident.served) - 1 for resident in residents) == moves
        for resident in residents:
            await resident.leave()

    async def main() -> None:
        async with asyncio.timeout(3 * HOUR), MemorySwarm(checkpoint, MemoryNetwork(delay=0.01)) as swarm:
            await play(swarm)

    run_virtual(main())
