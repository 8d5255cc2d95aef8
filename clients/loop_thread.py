"""An event loop in a thread of its own, for work that ordinary, blocking code hands to it."""

import asyncio
import threading
from collections.abc import Coroutine
from concurrent.futures import Future
from contextlib import suppress
from typing import Any, TypeVar

from swarm.errors import NetworkError
from swarm.event_loop import new_event_loop

__all__ = ["CLOSE_SECONDS", "LoopThread", "Submitted"]

T = TypeVar("T")
CLOSE_SECONDS = 10.0


class Submitted:
    """Work of one owner on a loop; safe to use from many threads. After `end` every call raises NetworkError."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._lock = threading.Lock()
        self._ended = False
        self._under_way: set[Future[Any]] = set()

    def call(self, work: Coroutine[Any, Any, T]) -> T:
        """Run `work` on the loop and wait for it; an interrupt of the caller cancels it."""
        future = self.submit(work)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def submit(self, work: Coroutine[Any, Any, T]) -> "Future[T]":
        """Run `work` on the loop without waiting."""
        if self._ended:
            work.close()
            raise NetworkError("this connection to the swarm is closed")
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        self._under_way.add(future)
        future.add_done_callback(self._under_way.discard)
        return future

    def end(self, last: Coroutine[Any, Any, None]) -> bool:
        """Cancel what is under way, of which whoever waits for it is told, then do `last`, for some seconds at most.
        False when that was done before."""
        with self._lock:
            if self._ended:
                last.close()
                return False
            self._ended = True
        for future in list(self._under_way):
            future.cancel()
        leaving = asyncio.run_coroutine_threadsafe(last, self._loop)
        with suppress(TimeoutError):  # a daemon that hangs dies with this process
            leaving.result(CLOSE_SECONDS)
        return True


class LoopThread:
    """Runs from the beginning until `close`."""

    def __init__(self, name: str) -> None:
        self.loop = new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, name=name, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End the loop; what is left on it is cancelled. Once only."""
        leaving = asyncio.run_coroutine_threadsafe(_cancel_all(), self.loop)
        with suppress(TimeoutError):
            leaving.result(CLOSE_SECONDS)
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(CLOSE_SECONDS)
        self.loop.close()


async def _cancel_all() -> None:
    left = asyncio.all_tasks() - {asyncio.current_task()}  # hivemind leaves timers behind
    for task in left:
        task.cancel()
    await asyncio.gather(*left, return_exceptions=True)
