"""`SharedModel`: one model for many users at once."""

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Self

from clients.completion.handle import Handle, hand_out
from clients.completion.lane import Lane
from clients.completion.limits import Limits
from clients.completion.request import MOST_LOGPROBS, Request
from clients.completion.rows import Job
from clients.model import SwarmModelForCausalLM
from swarm.errors import Busy, UsageError
from swarm.training import PackedAdapter

__all__ = ["SharedModel"]

ROW_TOKENS = 32  # of a prompt that take as long as one more row in all the steps of an answer


class SharedModel:
    """A `Completer` over a few lanes, each a chain and a thread of its own. An async context manager; `submit` from any
    event loop. The model stays open when this ends, and may be used beside it."""

    def __init__(
        self,
        model: SwarmModelForCausalLM,
        limits: Limits | None = None,
        *,
        adapters: Mapping[int, PackedAdapter] | None = None,
        hosted: str | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`adapters`, by block, are what every answer is computed with, or the one with the digest `hosted`, which
        peers have; several of these, each with its own, may share one model."""
        self.limits = limits or Limits()
        self._model = model
        self._lock = threading.Lock()
        self._waiting: deque[Job] = deque()
        self._closed = False
        self._lanes = [
            Lane(
                model,
                model.connection,
                self.limits,
                adapters=adapters or {},
                hosted=hosted,
                freed=self._assign,
                clock=clock,
            )
            for _ in range(self.limits.lanes)
        ]

    def submit(self, request: Request) -> Handle:
        """See `Completer`. For a coroutine on the event loop that will read the answer."""
        self._check(request)
        handle = Handle(request.choices, self.limits.unread, self._wake)
        with self._lock:
            if self._closed:
                raise UsageError("this model is closed")
            if len(self._waiting) >= self.limits.waiting:
                raise Busy(f"{len(self._waiting)} requests wait for this model already", self._retry_after())
            self._waiting.append(Job(request, handle))
        self._assign()
        return handle

    @property
    def running(self) -> int:
        """Answers that are computed now."""
        return sum(lane.load for lane in self._lanes)

    @property
    def kept_tokens(self) -> int:
        """Tokens of complete answers that peers still have, for prompts that begin alike."""
        return sum(lane.kept for lane in self._lanes)

    @property
    def waiting(self) -> int:
        """Requests for which there is no room yet."""
        return len(self._waiting)

    def close(self) -> None:
        """Ends what runs with a NetworkError, and gives back what peers hold; safe to repeat. Blocks."""
        with self._lock:
            self._closed = True
        for lane in self._lanes:
            lane.close()
        for lane in self._lanes:
            lane.join()

    async def aclose(self) -> None:
        """`close`, for event loops."""
        await asyncio.to_thread(self.close)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        await self.aclose()

    # --- inside ---

    def _assign(self) -> None:
        """Give requests that wait to lanes that have room, in order."""
        with self._lock:
            gone = [job for job in self._waiting if job.handle.closed]
            for job in gone:
                self._waiting.remove(job)
            while self._waiting:
                job = self._waiting[0]
                lanes = [lane for lane in self._lanes if lane.load + job.request.choices <= self.limits.rows]
                if not lanes:
                    break
                self._waiting.popleft()
                _best(lanes, job.request).add(job)
        if gone:
            hand_out({}, [job.handle for job in gone])

    def _retry_after(self) -> float:
        """Seconds after which there should be room: each answer that runs now makes some when it ends."""
        return 1.0 + len(self._waiting) / max(1, self.running)

    def _wake(self) -> None:
        """A reader has read, or has gone."""
        self._assign()
        for lane in self._lanes:
            lane.wake()

    def _check(self, request: Request) -> None:
        """Raises UsageError for what can never be answered."""
        longest, vocabulary = self._model.max_positions, self._model.config.get_text_config().vocab_size
        if not request.prompt:
            raise UsageError("the prompt is empty")
        if len(request.prompt) >= longest:
            raise UsageError(
                f"a prompt of {len(request.prompt)} tokens leaves no room for an answer in this model's context of "
                f"{longest}: shorten it"
            )
        if min(request.prompt) < 0 or max(request.prompt) >= vocabulary:
            raise UsageError(f"the prompt has tokens that are not among the {vocabulary} of this model")
        if request.max_new_tokens < 1:
            raise UsageError(f"an answer has at least 1 token, not {request.max_new_tokens}")
        if not 1 <= request.choices <= self.limits.rows:
            raise UsageError(f"a request may have 1 to {self.limits.rows} choices, not {request.choices}")
        if request.logprobs is not None and not 0 <= request.logprobs <= MOST_LOGPROBS:
            raise UsageError(f"log probabilities of 0 to {MOST_LOGPROBS} tokens can be told, not {request.logprobs}")
        _check_sampling(request, vocabulary)


def _best(lanes: Sequence[Lane], request: Request) -> Lane:
    """The lane in which a request costs least: what is known there need not be computed, but every row that is computed
    beside it makes steps longer."""

    def gain(lane: Lane) -> int:
        known = lane.known(request.prompt) if request.keep else 0
        return known - ROW_TOKENS * lane.load

    return max(lanes, key=gain)


def _check_sampling(request: Request, vocabulary: int) -> None:
    s = request.sampling
    rules = {
        "temperature is 0 or more": s.temperature >= 0,
        "top_p is more than 0 and at most 1": 0 < s.top_p <= 1,
        "top_k is 0 or more": s.top_k >= 0,
        "min_p is from 0 to 1": 0 <= s.min_p <= 1,
        "repetition_penalty is more than 0": s.repetition_penalty > 0,
        f"logit_bias is about tokens below {vocabulary}": all(0 <= token < vocabulary for token in s.logit_bias),
    }
    for rule, kept in rules.items():
        if not kept:
            raise UsageError(rule)
