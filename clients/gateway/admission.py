"""Who may ask for an answer now, who waits, and who is told to come back later."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from typing import Protocol, TypeVar

from clients.completion.generation import Generation
from clients.completion.request import Request
from clients.gateway.allowance import User
from clients.gateway.errors import NETWORK_SECONDS, ApiError
from clients.gateway.measured import Measured
from clients.gateway.metrics import Metrics
from clients.gateway.served import Served

__all__ = ["Admission", "Entry", "Ticket"]

QUEUE_SECONDS = 120.0  # that a request waits at most; clients give up after a few minutes
LONGEST_RETRY = 30.0  # seconds that anyone is told to stay away
MEMORY = 0.9  # weight of what is known of how long answers take, against the latest one


class _Closing(Protocol):
    async def aclose(self) -> None: ...


C = TypeVar("C", bound=_Closing)


class Ticket:
    """One request whose turn has come. What it started ends with it."""

    def __init__(self, stack: AsyncExitStack, entry: "Entry", metrics: Metrics, clock: Callable[[], float]) -> None:
        self.user = entry.user
        self._entered = entry.at
        self._stack = stack
        self._metrics = metrics
        self._clock = clock

    def submit(self, served: Served, request: Request) -> Generation:
        """Have `served` answer: as its completer's `submit`, but counted, measured, and closed when the ticket ends.
        Raises ApiError 503 when the swarm lacks blocks of the model, else as `submit`."""
        if (trouble := served.trouble()) is not None:
            raise ApiError(503, trouble, code="missing_blocks", retry_after=NETWORK_SECONDS)
        generation = Measured(
            served.completer.submit(request),
            request,
            metrics=self._metrics.of(served.label),
            user=self.user,
            entered=self._entered,
            clock=self._clock,
        )
        return self.keep(generation)

    def keep(self, closing: C) -> C:
        """Close it when the ticket ends, however that comes about."""
        self._stack.push_async_callback(closing.aclose)
        return closing


class Entry:
    """A request that is inside: it waits, then runs."""

    def __init__(self, user: User, at: float) -> None:
        self.user = user
        self.at = at
        self.begun: float | None = None


class Admission:
    """`running` requests are answered at once, `queue` more may wait. Belongs to one event loop."""

    def __init__(
        self,
        *,
        running: int,
        queue: int,
        metrics: Metrics,
        clock: Callable[[], float],
        queue_seconds: float = QUEUE_SECONDS,
    ) -> None:
        self._seconds = queue_seconds
        self._places = asyncio.Semaphore(running)
        self._running = running
        self._queue = queue
        self._metrics = metrics
        self._clock = clock
        self._inside = self._waiting = 0
        self._usual = 1.0  # s, how long an answer takes

    @property
    def waiting(self) -> int:
        """Requests that wait for their turn, or have not been read yet."""
        return self._waiting

    @property
    def running(self) -> int:
        return self._inside - self._waiting

    @contextmanager
    def enter(self, user: User) -> Iterator[Entry]:
        """Be inside, at the end of the queue. Raises ApiError 429 for one too many: of this user, or of all."""
        if self._inside >= self._running + self._queue:
            seconds = min(LONGEST_RETRY, self._usual * (1 + self._queue / self._running))
            message = f"{self._queue} requests wait for their turn already; try again later"
            raise ApiError(429, message, code="queue_full", retry_after=seconds)
        user.enter()
        self._inside += 1
        self._count_waiting(1)
        entry = Entry(user, self._clock())
        try:
            yield entry
        finally:
            user.leave()
            self._inside -= 1
            if entry.begun is None:
                self._count_waiting(-1)

    @asynccontextmanager
    async def turn(self, entry: Entry) -> AsyncIterator[Ticket]:
        """Wait for a place and hold it. Raises ApiError 429 when none comes free in time."""
        try:
            async with asyncio.timeout(self._seconds):
                await self._places.acquire()
        except TimeoutError:
            message = f"Nothing came free within {self._seconds:.0f} s; try again later"
            raise ApiError(429, message, code="queue_timeout", retry_after=self._usual) from None
        entry.begun = self._clock()
        self._count_waiting(-1)
        self._metrics.queue.observe(entry.begun - entry.at)
        try:
            async with AsyncExitStack() as stack:
                yield Ticket(stack, entry, self._metrics, self._clock)
        finally:
            self._places.release()
            self._usual = MEMORY * self._usual + (1 - MEMORY) * (self._clock() - entry.begun)

    def _count_waiting(self, change: int) -> None:
        self._waiting += change
        self._metrics.waiting.set(self._waiting)
