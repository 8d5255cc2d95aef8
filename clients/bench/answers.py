"""Answers, timed: of one model to one prompt, or to several at once as an application's threads would ask."""

import asyncio
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel
from transformers.generation.streamers import BaseStreamer

from clients.completion.generation import Token
from clients.completion.request import Request, Sampling
from clients.completion.shared import SharedModel

__all__ = ["Answer", "ask", "ask_at_once", "ask_shared", "decode_rate", "exactly", "new_prompt", "whole_rate"]

FIRST_ORDINARY = 3  # token ids below are often special ones


@dataclass(frozen=True, slots=True)
class Answer:
    """`begun`: when it was asked for; `at`: when each of `tokens` came. Seconds on one clock."""

    begun: float
    at: tuple[float, ...]
    tokens: tuple[int, ...]

    @property
    def first(self) -> float:
        """Seconds to the first token."""
        return self.at[0] - self.begun


def decode_rate(answers: Sequence[Answer]) -> float:
    """Tokens per second of all together, from the earliest first token to the end; the first tokens don't count."""
    tokens = sum(len(answer.tokens) - 1 for answer in answers)
    return tokens / (max(a.at[-1] for a in answers) - min(a.at[0] for a in answers))


def whole_rate(answers: Sequence[Answer]) -> float:
    """New tokens per second of all together, prompts included in the time."""
    tokens = sum(len(answer.tokens) for answer in answers)
    return tokens / (max(a.at[-1] for a in answers) - min(a.begun for a in answers))


def new_prompt(vocabulary: int, length: int, seed: int) -> Tensor:
    """Random tokens [1, length]."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(min(FIRST_ORDINARY, vocabulary - 1), vocabulary, (1, length), generator=generator)


def ask(model: PreTrainedModel, prompt: Tensor, new_tokens: int) -> Answer:
    """The greedy answer to `prompt` [1, n], always `new_tokens` long."""
    return _ask(model, prompt, new_tokens, threading.Event())


def ask_at_once(model: PreTrainedModel, prompts: Sequence[Tensor], new_tokens: int) -> list[Answer]:
    """As `ask`, for each of `prompts` in a thread of its own."""
    if len(prompts) == 1:
        return [ask(model, prompts[0], new_tokens)]
    stop = threading.Event()
    with ThreadPoolExecutor(len(prompts), "asks") as pool:
        try:
            return list(pool.map(lambda prompt: _ask(model, prompt, new_tokens, stop), prompts))
        except BaseException:  # interrupts, too: leaving waits for the threads
            stop.set()
            raise


def ask_shared(shared: SharedModel, prompts: Sequence[Tensor], new_tokens: int) -> list[Answer]:
    """As `ask_at_once`, but all on shared chains, as a gateway has them."""

    async def read(prompt: Tensor) -> Answer:
        begun, at, tokens = time.perf_counter(), [], []
        request = Request(
            prompt=tuple(prompt[0].tolist()),
            max_new_tokens=new_tokens,
            sampling=Sampling(temperature=0.0),
            keep=False,
        )
        async for event in shared.submit(request):
            if isinstance(event, Token):
                at.append(time.perf_counter())
                tokens.append(event.id)
        return Answer(begun, tuple(at), tuple(tokens))

    async def read_all() -> list[Answer]:
        return await asyncio.gather(*map(read, prompts))

    return asyncio.run(read_all())


def exactly(model: PreTrainedModel, new_tokens: int) -> GenerationConfig:
    """Settings of greedy answers of just so many tokens: no token ends them early, and none is left out for that."""
    no_token = model.config.get_text_config().vocab_size
    return GenerationConfig(  # type: ignore[no-untyped-call]
        max_new_tokens=new_tokens, do_sample=False, eos_token_id=no_token
    )


class _Interrupted(Exception):
    pass


class _Times(BaseStreamer):
    """When each token came; the first entry is the prompt's."""

    def __init__(self, stop: threading.Event) -> None:
        self.at: list[float] = []
        self.tokens: list[int] = []
        self._stop = stop

    def put(self, value: Tensor) -> None:
        self.at.append(time.perf_counter())
        self.tokens += value.flatten().tolist()
        if self._stop.is_set():
            raise _Interrupted

    def end(self) -> None:
        pass


def _ask(model: PreTrainedModel, prompt: Tensor, new_tokens: int, stop: threading.Event) -> Answer:
    times = _Times(stop)
    settings = exactly(model, new_tokens)
    begun = time.perf_counter()
    model.generate(prompt, settings, attention_mask=torch.ones_like(prompt), streamer=times)  # type: ignore[operator]
    return Answer(begun, tuple(times.at[1:]), tuple(times.tokens[prompt.shape[1] :]))
