"""From `generate` in a thread to an asynchronous iterator of tokens, bounded and stoppable."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterable
from concurrent.futures import CancelledError
from typing import Any

import torch
from torch import Tensor
from transformers import StoppingCriteria, StoppingCriteriaList
from transformers.generation.streamers import BaseStreamer

__all__ = ["TokenStream"]

AHEAD = 64  # tokens that may wait for their reader before the generation waits

Generate = Callable[[BaseStreamer, StoppingCriteriaList], Any]


class TokenStream:
    """Begins to generate at once, in a thread of its own; belongs to the running event loop."""

    def __init__(self, generate: Generate, stopping_criteria: Iterable[StoppingCriteria] = ()) -> None:
        self._loop = asyncio.get_running_loop()
        self._tokens: asyncio.Queue[int | None] = asyncio.Queue()  # bounded by `_room`
        self._room = threading.Semaphore(AHEAD)
        self._stopped = threading.Event()
        self._done = asyncio.Event()
        self._error: BaseException | None = None
        self._generate = generate
        self._criteria = StoppingCriteriaList([*stopping_criteria, _Stop(self._stopped)])
        self._thread = threading.Thread(target=self._run, name="swarm stream", daemon=True)
        self._thread.start()

    async def __aiter__(self) -> AsyncIterator[int]:
        while (token := await self._tokens.get()) is not None:
            self._room.release()
            yield token
        if self._error is not None:
            raise self._error

    async def stop(self, interrupt: Callable[[], None]) -> None:
        """End the generation, by `interrupt` when it is in the middle of a step, and wait until it has ended."""
        if not self._done.is_set():
            self._stopped.set()
            self._room.release()
            interrupt()
            await self._done.wait()

    # --- in the thread ---

    def _run(self) -> None:
        try:
            self._generate(_Bridge(self._put), self._criteria)
        except CancelledError as error:
            self._error = None if self._stopped.is_set() else error
        except Exception as error:  # it is raised where the tokens are read
            self._error = error
        self._loop.call_soon_threadsafe(self._finish)

    def _finish(self) -> None:
        self._done.set()
        self._tokens.put_nowait(None)

    def _put(self, token: int) -> None:
        if not self._stopped.is_set():
            self._room.acquire()
            self._loop.call_soon_threadsafe(self._tokens.put_nowait, token)


class _Bridge(BaseStreamer):
    def __init__(self, put: Callable[[int], None]) -> None:
        self._put = put
        self._prompt_seen = False

    def put(self, value: Tensor) -> None:
        if self._prompt_seen:
            for token in value.flatten().tolist():
                self._put(token)
        self._prompt_seen = True

    def end(self) -> None:
        pass


class _Stop(StoppingCriteria):
    def __init__(self, stopped: threading.Event) -> None:
        self._stopped = stopped

    def __call__(self, input_ids: Tensor, scores: Tensor, **_: Any) -> Tensor:
        return torch.full((input_ids.shape[0],), self._stopped.is_set())
