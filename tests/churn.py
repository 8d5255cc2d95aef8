"""Peers that live some minutes at most, and sessions that go on over them, in memory and in virtual time.

What a peer has announced stays for a while when it is gone without a word, as in a directory.
"""

import asyncio
import random
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import count

import torch

from clients.client import Client
from swarm.errors import SwarmError
from swarm.ids import PeerId, Span
from swarm.record import PeerRecord, PeerState
from tests.memory_swarm import MemorySwarm, Reference, feed

__all__ = ["Churn"]

SPANS = (Span(0, 2), Span(2, 4), Span(1, 3), Span(0, 3), Span(3, 4))
STARTING = (1.0, 10.0)  # virtual seconds, as all others: until somebody new serves
RECORDED = 60.0  # a record outlives its peer by so much at most
DRAIN = 30.0
PATIENCE = 30.0
THINKING = (0.0, 1.0)  # between two steps
WAYS = ("killed", "told", "cut")


@dataclass
class Churn:
    """`homes`: peers at a time, each block several times. `lives`: from so many seconds to so many. `ended` counts how
    they did."""

    swarm: MemorySwarm
    reference: Reference
    seed: int
    homes: int = 10
    lives: tuple[float, float] = (30.0, 120.0)
    ended: Counter[str] = field(default_factory=Counter)
    served: int = 0
    failed: list[str] = field(default_factory=list)
    names: Iterator[int] = field(default_factory=count)

    async def run(self, seconds: float, sessions: int) -> None:
        """So many sessions at a time, of two clients, one after another."""
        self.dice = random.Random(self.seed)
        begin = [await self._add(SPANS[number % len(SPANS)]) for number in range(self.homes)]
        clients = [await self.swarm.client(f"client{number}") for number in range(2)]
        self.until = asyncio.get_running_loop().time() + seconds
        async with asyncio.TaskGroup() as group:
            for number, name in enumerate(begin):
                group.create_task(self._live(name, SPANS[number % len(SPANS)]))
            for number in range(sessions):
                group.create_task(self._use(clients[number % 2], random.Random(self.dice.random())))
        await asyncio.sleep(5.0)  # goodbyes arrive

    def held(self) -> Counter[str]:
        """Whatever those who are left hold for anybody."""
        held: Counter[str] = Counter()
        for member in self.swarm.members.values():
            stats = member.engine.stats()
            held["sessions"] += stats.sessions + member.node.sessions
            held["rows"] += stats.rows
            held["pages"] += stats.kv_tokens - stats.kv_tokens_free
            held["queue"] += stats.queue_tokens + stats.queue_bytes
        return +held

    # --- peers ---

    async def _add(self, span: Span, name: str | None = None) -> str:
        name = name or f"peer{next(self.names)}"
        await self.swarm.add(name, span, page_size=4)
        return name

    async def _live(self, name: str, span: Span) -> None:
        dice = random.Random(self.dice.random())
        async with asyncio.TaskGroup() as leaving:
            while await self._lives(dice):
                how = dice.choice(WAYS)
                self.ended[how] += 1
                if how == "killed":
                    await self.swarm.kill(name)
                    if dice.random() < 0.5:  # and comes back
                        await asyncio.sleep(dice.uniform(*STARTING))
                        await self._add(span, name)
                        continue
                    leaving.create_task(self._forget(name))
                else:
                    leaving.create_task(self._leave(name) if how == "told" else self._fade(name))
                await asyncio.sleep(dice.uniform(*STARTING))
                name = await self._add(span)

    async def _lives(self, dice: random.Random) -> bool:
        seconds, now = dice.uniform(*self.lives), asyncio.get_running_loop().time()
        await asyncio.sleep(min(seconds, self.until - now))
        return now + seconds < self.until

    async def _leave(self, name: str) -> None:
        self._announce(name, PeerState.DRAINING)
        await self.swarm.members[name].node.drain(DRAIN)
        await self.swarm.leave(name)
        self._announce(name, None)

    async def _fade(self, name: str) -> None:
        self.swarm.network.hang(PeerId(name))
        await asyncio.sleep(20.0)
        await self.swarm.kill(name)
        await self._forget(name)

    async def _forget(self, name: str) -> None:
        await asyncio.sleep(RECORDED)
        self._announce(name, None)

    def _announce(self, name: str, state: PeerState | None) -> None:
        for key in [key for key in self.swarm.shelf if key[1] == name]:
            record = self.swarm.shelf[key]
            assert isinstance(record, PeerRecord)
            if state is None:
                del self.swarm.shelf[key]
            else:
                self.swarm.shelf[key] = replace(record, state=state, issued=time.time())

    # --- sessions ---

    async def _use(self, client: Client, dice: random.Random) -> None:
        loop = asyncio.get_running_loop()
        while loop.time() < self.until:
            try:
                await self._session(client, dice)
                self.served += 1
            except SwarmError as error:
                self.failed.append(f"{loop.time():.1f} s: {type(error).__name__}: {error}")

    async def _session(self, client: Client, dice: random.Random) -> None:
        tokens = torch.tensor([dice.randrange(3, 120) for _ in range(dice.randrange(1, 80))])
        more = dice.randrange(40)
        session = await self.swarm.session(client, self.reference, lease=len(tokens) + more, patience=PATIENCE)
        try:
            row = session.new_row()
            outputs = [await feed(session, self.reference, {row: tokens})]
            for _ in range(more):
                await asyncio.sleep(dice.uniform(*THINKING))
                token = torch.tensor([dice.randrange(3, 120)])
                tokens = torch.cat([tokens, token])
                outputs.append(await feed(session, self.reference, {row: token}))
            torch.testing.assert_close(torch.cat(outputs), self.reference.outputs(tokens), atol=1e-4, rtol=1e-4)
        finally:
            await session.close()
