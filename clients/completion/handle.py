"""The two ends of a generation: a lane's thread puts events in, a task on an event loop takes them out."""

import asyncio
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Self

from clients.completion.generation import Event, Finished, Token
from swarm.errors import SwarmError

__all__ = ["Handle", "hand_out"]

CLOSE_SECONDS = 10.0  # that closing waits for a step to end; the lane lets go of the request in any case


class Handle:
    """A `Generation`. Made on the event loop that reads it."""

    def __init__(self, choices: int, unread: int, wake: Callable[[], None]) -> None:
        """`wake` is called, from any thread, when who computes should look again; `unread`: tokens that the reader may
        be behind."""
        self.loop = asyncio.get_running_loop()
        self._wake = wake
        self._unread = unread
        self._events: deque[Event] = deque()
        self._error: SwarmError | None = None
        self._ended = False
        self._more = asyncio.Event()
        self._released = asyncio.Event()
        self._left = set(range(choices))  # choices whose end the reader has not read
        self._unwanted: frozenset[int] = frozenset()
        self._sent = 0
        self._read = 0
        self._closed = False

    # --- the reader's end ---

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Event:
        while not self._closed:
            while self._events:
                event = self._events.popleft()
                if self._taken(event):
                    return event
            if not self._left:
                raise StopAsyncIteration
            if self._ended:
                if self._error is None:
                    raise StopAsyncIteration
                raise self._error
            self._more.clear()
            await self._more.wait()
        raise StopAsyncIteration

    def end(self, choice: int) -> None:
        self._left.discard(choice)
        self._unwanted |= {choice}
        self._more.set()
        self._wake()

    async def aclose(self) -> None:
        if not self._closed:
            self._closed = True
            self._more.set()
            self._wake()
        with suppress(TimeoutError):
            async with asyncio.timeout(CLOSE_SECONDS):
                await self._released.wait()

    def _taken(self, event: Event) -> bool:
        """Whether the reader wants this one."""
        if isinstance(event, Token):
            was = self.behind
            self._read += 1
            if was and not self.behind:
                self._wake()
            return event.choice not in self._unwanted
        if isinstance(event, Finished):
            self._left.discard(event.choice)
            return event.choice not in self._unwanted
        return True

    # --- the lane's end ---

    @property
    def closed(self) -> bool:
        """Nobody reads any more."""
        return self._closed

    @property
    def behind(self) -> bool:
        """The reader has more to read than it should."""
        return self._sent - self._read >= self._unread

    def wants(self, choice: int) -> bool:
        return not self._closed and choice not in self._unwanted

    def sending(self, events: Sequence[Event]) -> None:
        """They will be put in soon."""
        self._sent += sum(isinstance(event, Token) for event in events)

    def put(self, events: Iterable[Event]) -> None:
        """On the reader's loop."""
        self._events.extend(events)
        self._more.set()

    def finish(self, error: SwarmError | None) -> None:
        """On the reader's loop: nothing follows, and the lane has let go. What was said first counts."""
        self._error = self._error if self._ended else error
        self._ended = True
        self._more.set()
        self._released.set()


def hand_out(
    events: Mapping[Handle, Sequence[Event]], ended: Iterable[Handle] = (), error: SwarmError | None = None
) -> None:
    """Give `events` to their readers, and tell the `ended` that this was all. From any thread; each event loop is woken
    once."""
    loops: dict[asyncio.AbstractEventLoop, list[Callable[[], None]]] = {}
    for handle, some in events.items():
        handle.sending(some)
        loops.setdefault(handle.loop, []).append(lambda handle=handle, some=some: handle.put(some))  # type: ignore[misc]
    for handle in ended:
        loops.setdefault(handle.loop, []).append(lambda handle=handle: handle.finish(error))  # type: ignore[misc]
    for loop, calls in loops.items():
        with suppress(RuntimeError):  # that loop is closed, and its readers with it
            loop.call_soon_threadsafe(_call_all, calls)


def _call_all(calls: Sequence[Callable[[], None]]) -> None:
    for call in calls:
        call()
