"""Who may ask for an answer now, who waits, and who is told to come back later."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Protocol, TypeVar

from starlette.requests import Request

from clients.completion.generation import Generation
from clients.completion.request import Request as Completion
from clients.gateway.errors import ApiError
from clients.gateway.served import Served

__all__ = ["Admission", "Ticket"]


class _Closing(Protocol):
    async def aclose(self) -> None: ...


C = TypeVar("C", bound=_Closing)


class Ticket:
    """One request that was let in. What it started ends with it."""

    def __init__(self, stack: AsyncExitStack) -> None:
        self._stack = stack
        self.prompt_tokens = 0
        self.cached_tokens = 0
        self.completion_tokens = 0

    def submit(self, served: Served, completion: Completion) -> Generation:
        """Have `served` answer: as its completer's `submit`, but counted, measured, and closed when the ticket ends.
        Raises ApiError 503 when the swarm lacks blocks of the model, else as `submit`."""
        if (trouble := served.trouble()) is not None:
            raise ApiError(503, trouble, code="missing_blocks", retry_after=5)
        return self.keep(served.completer.submit(completion))

    def keep(self, closing: C) -> C:
        """Close it when the ticket ends, however that comes about."""
        self._stack.push_async_callback(closing.aclose)
        return closing

    def count(self, *, prompt: int = 0, cached: int = 0, completion: int = 0) -> None:
        """Tokens that the request cost beyond what `submit` counts by itself."""
        self.prompt_tokens += prompt
        self.cached_tokens += cached
        self.completion_tokens += completion


class Admission:
    """`running` requests are answered at once, `queue` more may wait."""

    def __init__(self, *, running: int, queue: int) -> None:
        self._places = asyncio.Semaphore(running)
        self._queue = queue
        self.waiting = 0

    @asynccontextmanager
    async def admit(self, request: Request) -> AsyncIterator[Ticket]:
        """A place for `request`, perhaps after a wait. Raises ApiError 429 when too many wait already."""
        if self._places.locked() and self.waiting >= self._queue:
            raise ApiError(429, "Too many requests are waiting; try again later", code="queue_full", retry_after=1)
        self.waiting += 1
        try:
            await self._places.acquire()
        finally:
            self.waiting -= 1
        try:
            async with AsyncExitStack() as stack:
                yield Ticket(stack)
        finally:
            self._places.release()
