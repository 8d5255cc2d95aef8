"""Clients that generate without pause, whatever becomes of the peers, and what came of every answer."""

import itertools
import random
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import torch
from transformers import LogitsProcessorList

from clients.model import SwarmModelForCausalLM
from swarm.errors import SwarmError
from tests.real.watching import AtToken

__all__ = ["Answer", "Crowd", "Question"]


@dataclass(frozen=True, slots=True)
class Question:
    prompt: tuple[int, ...]
    expected: tuple[int, ...]  # the tokens of one process with the whole model


@dataclass(frozen=True, slots=True)
class Answer:
    """`times`: when its tokens came; `error` of one that failed; `same`: its tokens are the expected ones."""

    since: float
    until: float
    times: tuple[float, ...]
    same: bool
    error: str | None

    @property
    def longest(self) -> tuple[float, float]:
        """When the longest wait for a token began and ended."""
        times = (self.since, *self.times, self.until)
        return max(itertools.pairwise(times), key=lambda gap: gap[1] - gap[0])


class Crowd:
    """A context manager; leaving it waits for the answers under way."""

    def __init__(
        self,
        model: SwarmModelForCausalLM,
        questions: Sequence[Question],
        *,
        clients: int,
        draw: random.Random,
        log: Callable[[str], None],
    ) -> None:
        self.answers: list[Answer] = []
        self._model = model
        self._questions = questions
        self._log = log
        self._enough = threading.Event()
        self._pool = ThreadPoolExecutor(clients)
        dice = [random.Random(draw.random()) for _ in range(clients)]
        self._clients: list[Future[None]] = [self._pool.submit(self._go_on, one) for one in dice]

    def rate(self, since: float, until: float) -> float:
        """Tokens per second between two moments, both in the past of every answer under way."""
        return sum(since <= at < until for answer in self.answers for at in answer.times) / (until - since)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._enough.set()
        self._pool.shutdown()
        for client in self._clients:
            client.result()

    def _go_on(self, dice: random.Random) -> None:
        while not self._enough.is_set():
            answer = self._ask(dice.choice(self._questions))
            self.answers.append(answer)
            if answer.error or not answer.same:
                self._log(f"an answer after {answer.until - answer.since:.1f} s: {answer.error or 'other tokens'}")

    def _ask(self, question: Question) -> Answer:
        since, seen, new, error = time.monotonic(), AtToken(), (), None
        prompt = torch.tensor([question.prompt])
        try:
            output = self._model.generate(
                prompt,
                attention_mask=torch.ones_like(prompt),
                do_sample=False,
                max_new_tokens=len(question.expected),
                min_new_tokens=len(question.expected),
                logits_processor=LogitsProcessorList([seen]),
            )
            new = tuple(output[0, prompt.shape[1] :].tolist())
        except SwarmError as failure:
            error = f"{type(failure).__name__}: {failure}"
        same = error is not None or new == question.expected
        return Answer(since, time.monotonic(), tuple(seen.times), same, error)
