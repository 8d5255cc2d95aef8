"""Clients spread over equal peers, and long sessions move off one that has become much slower than others."""

import asyncio
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from typing import Any

import torch

from clients.client import Client
from clients.events import ChainChanged, PeerLost, Waiting
from clients.overload import STEPS
from clients.session import Session
from swarm.checkpoint import Checkpoint
from swarm.ids import PeerId, Span
from tests.memory_swarm import MemorySwarm, Reference, feed, in_swarm, same

WHOLE = Span(0, 4)
PASS, TOKEN = 0.4, 0.04  # seconds: as slow as peers may be, so that a minute has few steps
ANNOUNCED = 20.0  # s, as peers do
MINUTES_10 = 600.0


class Users:
    """Clients who each generate in one session after another."""

    def __init__(self, swarm: MemorySwarm, reference: Reference) -> None:
        self.swarm = swarm
        self.reference = reference
        self.sessions: list[Session] = []
        self.steps = 0
        self.wrong = 0

    async def client(self, number: int) -> Client:
        return await self.swarm.client(f"client{number}", dice=random.Random(number))

    async def generate(self, client: Client, seconds: float) -> None:
        """One session, for so long; what comes out is compared with what one piece computes."""
        session = await self.swarm.session(client, self.reference, lease=512)
        self.sessions.append(session)
        try:
            await self._decode(session, asyncio.get_running_loop().time() + seconds)
        finally:
            self.sessions.remove(session)
            await session.close()

    async def _decode(self, session: Session, until: float) -> None:
        tokens = torch.randint(0, 100, (1000,), generator=torch.Generator().manual_seed(len(self.sessions)))
        row, outputs = session.new_row(), list[torch.Tensor]()
        while asyncio.get_running_loop().time() < until and len(outputs) < len(tokens):
            at = len(outputs)
            outputs.append(await feed(session, self.reference, {row: tokens[at : at + 1]}))
            self.steps += 1
        expected = self.reference.outputs(tokens[: len(outputs)])
        self.wrong += not same(torch.cat(outputs), expected)

    def shares(self) -> Counter[str]:
        """Sessions on each peer."""
        return Counter(str(hop.peer) for session in self.sessions for hop in session.chain.hops)


@asynccontextmanager
async def announcing(swarm: MemorySwarm, liar: str = "") -> Any:
    """Peers tell how busy they are as often as real ones do; `liar` says that it is idle."""

    async def announce() -> None:
        while True:
            await asyncio.sleep(ANNOUNCED)
            for name, member in swarm.members.items():
                key = (swarm.checkpoint.digest, PeerId(name))
                queue = 0 if name == liar else member.engine.stats().depth_tokens
                swarm.shelf[key] = replace(swarm.shelf[key], queue=queue, issued=time.time())

    task = asyncio.create_task(announce())
    try:
        yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


def moves(swarm: MemorySwarm) -> list[ChainChanged]:
    return [event for event in swarm.events if isinstance(event, ChainChanged) and event.left]


def failures(swarm: MemorySwarm) -> list[object]:
    return [e for e in swarm.events if isinstance(e, PeerLost | Waiting) or (isinstance(e, ChainChanged) and e.lost)]


def with_users(
    checkpoint: Checkpoint, reference: Reference, play: Callable[[MemorySwarm, Users], Awaitable[None]], liar: str = ""
) -> None:
    async def main(swarm: MemorySwarm) -> None:
        users = Users(swarm, reference)
        async with announcing(swarm, liar):
            await play(swarm, users)
        assert users.wrong == 0
        assert failures(swarm) == []

    in_swarm(checkpoint, main, delay=0.01)


async def add_equals(swarm: MemorySwarm, *names: str, times: float = 1.0) -> None:
    for name in names:
        await swarm.add(name, WHOLE, step_seconds=times * PASS, token_seconds=times * TOKEN, kv_tokens=1 << 14)


def test_of_four_equal_peers_the_busiest_has_hardly_more_than_its_share(
    checkpoint: Checkpoint, reference: Reference
) -> None:
    async def play(swarm: MemorySwarm, users: Users) -> None:
        await add_equals(swarm, "a", "b", "c", "d")
        clients = [await users.client(number) for number in range(32)]
        async with asyncio.TaskGroup() as group:
            for number, client in enumerate(clients):
                group.create_task(users.generate(client, 13.0 - number / 4))
                await asyncio.sleep(0.25)
            await asyncio.sleep(1.0)
            shares = users.shares()
        assert shares.total() == 32
        assert max(shares.values()) <= 1.5 * 8

    with_users(checkpoint, reference, play)


def test_a_peer_that_joins_has_its_share_within_a_minute(checkpoint: Checkpoint, reference: Reference) -> None:
    async def play(swarm: MemorySwarm, users: Users) -> None:
        await add_equals(swarm, "a", "b", "c", "d", times=4.0)
        clients = [await users.client(number) for number in range(20)]
        seen: Counter[str] = Counter()
        async with asyncio.TaskGroup() as group:
            for number in range(160):
                if number == 60:  # after 30 seconds
                    await add_equals(swarm, "new", times=4.0)
                group.create_task(users.generate(clients[number % 20], 20.0))
                await asyncio.sleep(0.5)
                if number >= 140:
                    seen += users.shares()
        assert seen["new"] >= seen.total() / 5 / 2

    with_users(checkpoint, reference, play)


def test_long_sessions_leave_a_peer_that_becomes_ten_times_slower(checkpoint: Checkpoint, reference: Reference) -> None:
    async def play(swarm: MemorySwarm, users: Users) -> None:
        await add_equals(swarm, "a", "b", times=0.15)
        clients = [await users.client(number) for number in range(3)]
        async with asyncio.TaskGroup() as group:
            for client in clients:
                group.create_task(users.generate(client, 42.0))
                await asyncio.sleep(0.5)
            assert users.shares()["a"] > 0
            swarm.members["a"].toil.times *= 10.0
            before = swarm.members["a"].engine.stats().rows_done
            on_it = users.shares()["a"]
            await asyncio.sleep(36.0)
            assert users.shares() == {"b": 3}
            assert (swarm.members["a"].engine.stats().rows_done - before) / on_it <= 5 * STEPS
        assert [change.left for change in moves(swarm)] == [(PeerId("a"),)] * on_it

    with_users(checkpoint, reference, play)


def test_peers_that_are_all_slower_than_they_say_are_not_tried_again_and_again(
    checkpoint: Checkpoint, reference: Reference
) -> None:
    async def play(swarm: MemorySwarm, users: Users) -> None:
        for name in ("a", "b", "c"):
            await swarm.add(name, WHOLE, step_seconds=1.0, token_seconds=0.002, kv_tokens=1 << 14)
            swarm.announce(name, WHOLE, pace=(10.0, 5000.0))  # ten times as fast as it is
        clients = [await users.client(number) for number in range(2)]
        async with asyncio.TaskGroup() as group:
            for client in clients:
                group.create_task(users.generate(client, MINUTES_10))
        assert 0 < len(moves(swarm)) <= 2 * 2, "each session looks at each of the others at most once"

    with_users(checkpoint, reference, play)


def test_a_peer_that_always_says_it_is_idle_and_fast_is_found_out_by_the_time_its_steps_take(
    checkpoint: Checkpoint, reference: Reference
) -> None:
    async def play(swarm: MemorySwarm, users: Users) -> None:
        await swarm.add("liar", WHOLE, step_seconds=1.2)  # in a turn that it does not tell of: 0.02 s, says its record
        await add_equals(swarm, "good", times=0.5)
        clients = [await users.client(number) for number in range(2)]
        async with asyncio.TaskGroup() as group:
            for client in clients:
                group.create_task(users.generate(client, 60.0))
            await asyncio.sleep(5.0)
            assert users.shares() == {"liar": 2}
            await asyncio.sleep(50.0)
            assert users.shares() == {"good": 2}
            for client in clients:
                group.create_task(users.generate(client, 5.0))
            await asyncio.sleep(3.0)
            assert users.shares() == {"good": 4}

    with_users(checkpoint, reference, play, liar="liar")
