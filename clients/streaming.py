"""From `generate` in a thread to tokens on an event loop, bounded and stoppable."""

import asyncio
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import CancelledError
from typing import Any

import torch
from torch import Tensor
from transformers import StoppingCriteria, StoppingCriteriaList
from transformers.generation.streamers import BaseStreamer

from swarm.errors import UsageError

__all__ = ["TokenStream"]

AHEAD = 64  # tokens that may wait for their reader before the generation waits

Generate = Callable[[BaseStreamer, StoppingCriteriaList], Any]


class TokenStream:
    """Begins to generate at once, in a thread of its own; belongs to the running event loop."""

    def __init__(
        self, generate: Generate, *, interrupt: Callable[[], None], stopping_criteria: Iterable[StoppingCriteria] = ()
    ) -> None:
        """`interrupt` makes `generate` raise CancelledError also in the middle of a step."""
        self._loop = asyncio.get_running_loop()
        self._tokens: asyncio.Queue[int | None] = asyncio.Queue()  # bounded by `_room`
        self._room = threading.Semaphore(AHEAD)
        self._stopped = threading.Event()
        self._done = asyncio.Event()
        self._error: BaseException | None = None
        self._generate = generate
        self._interrupt = interrupt
        self._criteria = StoppingCriteriaList([*stopping_criteria, _Stop(self._stopped)])
        self._thread = threading.Thread(target=self._run, name="swarm stream", daemon=True)
        self._thread.start()

    async def next(self) -> int | None:
        """The next token; None at the end. Raises what `generate` raised."""
        token = await self._tokens.get()
        if token is not None:
            self._room.release()
        elif self._error is not None:
            raise self._error
        return token

    async def stop(self) -> None:
        """End the generation now and wait until it has ended; if that wait is cancelled, it ends all the same."""
        if not self._done.is_set():
            self._stopped.set()
            self._room.release()
            self._interrupt()
            await self._done.wait()

    # --- in the thread ---

    def _run(self) -> None:
        try:
            self._generate(_Bridge(self._put), self._criteria)
        except CancelledError as error:
            self._error = None if self._stopped.is_set() else error
        except Exception as error:  # it is raised where the tokens are read
            self._error = error
        self._tell(self._finish)

    def _finish(self) -> None:
        self._done.set()
        self._tokens.put_nowait(None)

    def _put(self, token: int) -> None:
        if not self._stopped.is_set():
            self._room.acquire()
            self._tell(self._tokens.put_nowait, token)

    def _tell(self, callback: Callable[..., None], *args: object) -> None:
        try:
            self._loop.call_soon_threadsafe(callback, *args)
        except RuntimeError:  # the loop is closed, so nobody reads any more
            self._stopped.set()


class _Bridge(BaseStreamer):
    def __init__(self, put: Callable[[int], None]) -> None:
        self._put = put
        self._prompt_seen = False

    def put(self, value: Tensor) -> None:
        if value.dim() == 2 and value.shape[0] != 1:
            raise UsageError(f"a stream gives the tokens of one sequence, not of {value.shape[0]}")
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
