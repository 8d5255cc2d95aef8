"""Many users at once on a small swarm in memory: prompts of all lengths, some of which begin alike, and short answers.

There is not room for all of them, so some wait; peers come to no harm by it, and everybody gets what they would get
alone.
"""

import asyncio
import random
from dataclasses import dataclass

import torch
from torch import Tensor

from clients.client import Client
from peers.limits import EngineLimits
from swarm.ids import Span
from tests.memory_swarm import MemorySwarm, Reference, feed

__all__ = ["Load"]

SPANS = (Span(0, 2), Span(2, 4))
PATIENCE = 1e6  # virtual seconds: nobody gives up
LIMITS = EngineLimits(batch_tokens=64, prompt_tokens=32, retry_seconds=0.1)


@dataclass
class Load:
    """`room` tokens of KV and of outbox on each of two peers."""

    swarm: MemorySwarm
    reference: Reference
    room: int
    seed: int
    served: int = 0

    async def begin(self) -> None:
        self._random = random.Random(self.seed)
        self._beginnings = [self._text(length) for length in (20, 35, 50)]
        for index, span in enumerate(SPANS):
            await self.swarm.add(
                f"peer{index}", span, kv_tokens=self.room, outbox_tokens=self.room, limits=LIMITS, page_size=4
            )
        self._clients = [await self.swarm.client(f"client{index}") for index in range(4)]

    async def run(self, users: int, turns: int) -> None:
        """Every user has `turns` sessions, one after another."""
        async with asyncio.TaskGroup() as group:
            for user in range(users):
                group.create_task(self._user(self._clients[user % len(self._clients)], turns))
        await asyncio.sleep(2.0)  # goodbyes arrive

    def held(self) -> list[int]:
        """Whatever peers hold for anybody: all zeros when nobody is there."""
        counts = []
        for member in self.swarm.members.values():
            stats = member.engine.stats()
            counts += [stats.sessions, stats.rows, stats.queue_tokens, stats.queue_bytes, member.node.sessions]
            counts += [stats.kv_tokens - stats.kv_tokens_free, self.room - stats.outbox_tokens_free]
        return counts

    async def _user(self, client: Client, turns: int) -> None:
        for _ in range(turns):
            await self._session(client)
            self.served += 1

    async def _session(self, client: Client) -> None:
        begins = self._random.choice([*self._beginnings, self._text(0)])
        tokens = torch.cat([begins, self._text(self._random.choice((1, 3, 10, 60)))])
        answer = self._random.randrange(8)
        session = await self.swarm.session(client, self.reference, lease=len(tokens) + answer, patience=PATIENCE)
        try:
            row = session.new_row()
            outputs = [await feed(session, self.reference, {row: tokens})]
            for token in self._text(answer):
                tokens = torch.cat([tokens, token[None]])
                outputs.append(await feed(session, self.reference, {row: token[None]}))
            torch.testing.assert_close(torch.cat(outputs), self.reference.outputs(tokens), atol=1e-4, rtol=1e-4)
        finally:
            await session.close()

    def _text(self, length: int) -> Tensor:
        return torch.tensor([self._random.randrange(3, 120) for _ in range(length)], dtype=torch.int64)
