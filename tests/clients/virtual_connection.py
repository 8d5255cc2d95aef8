"""A connection in virtual time for ordinary, blocking code: the clock runs only while a step is under way."""

import asyncio
from collections.abc import Callable, Coroutine, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

from clients.client import Client
from clients.events import Observer, both
from clients.history import Embed
from clients.session import Session
from clients.training.chains import TrainingChains
from routing.hosting import Hosted
from swarm.errors import NetworkError
from swarm.training import PackedAdapter
from tests.memory_swarm import MemorySwarm
from tests.virtual import VirtualLoop

T = TypeVar("T")


class VirtualConnection:
    """`submit` runs the whole swarm until the work is done, and then it stands still."""

    def __init__(self, swarm: MemorySwarm, enter: Callable[[MemorySwarm], Coroutine[Any, Any, Client]]) -> None:
        """`enter` adds the peers and makes the client."""
        self.swarm = swarm
        self.sessions: list[Session] = []
        self._loop = VirtualLoop()
        self._thread = ThreadPoolExecutor(1, "virtual swarm")
        self._acting: list[asyncio.Task[None]] = []
        self._client = self.run(enter(swarm))
        self._closed = False
        self._training: TrainingChains | None = None

    def time(self) -> float:
        """Virtual seconds."""
        return self._loop.time()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return self._thread.submit(self._run, work).result()

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        result = self._loop.run_until_complete(work)
        if self._loop.failures:
            raise self._loop.failures[0]
        return result

    def submit(self, work: Coroutine[Any, Any, T]) -> "Future[T]":
        if self._closed:
            work.close()
            raise NetworkError("this connection is closed")
        return self._thread.submit(self._run, work)

    async def session(
        self,
        *,
        embed: Embed,
        lease_tokens: int,
        observer: Observer | None = None,
        adapters: Mapping[int, PackedAdapter] | None = None,
        hosted: str | None = None,
    ) -> Session:
        tell = both(self.swarm.hear, observer)
        session = Session(
            self._client,
            embed=embed,
            lease=lease_tokens,
            patience=5.0,
            observer=tell,
            adapters=adapters,
            hosted=hosted,
        )
        await session.open()
        self.sessions.append(session)
        return session

    async def hosted(self, name: str) -> Hosted:
        return await self._client.hosted(name)

    async def training(self) -> TrainingChains:
        if self._training is None:
            self._training = TrainingChains(self._client, patience=5.0)
        return self._training

    def later(self, seconds: float, action: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Does something to the swarm so many virtual seconds from now."""

        async def act() -> None:
            await asyncio.sleep(seconds)
            await action()

        self._acting.append(self._loop.create_task(act()))

    async def rest(self) -> None:
        """Let everything under way arrive."""
        await asyncio.sleep(1.0)

    def close(self) -> None:
        self._closed = True
        self.run(self._end())
        self._thread.shutdown()
        self._loop.close()

    async def _end(self) -> None:
        await self.swarm.__aexit__()
        left = asyncio.all_tasks() - {asyncio.current_task()}
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)
