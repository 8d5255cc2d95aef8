"""A completer whose model is noise: nothing but the constraint of a request makes sense of what it answers."""

import asyncio

import torch
from torch import Tensor

from clients.completion.generation import Began, Event, Finished, Token
from clients.completion.request import Constraint, Request

__all__ = ["DrawnCompleter", "draw"]


def draw(constraint: Constraint | None, vocab: int, generator: torch.Generator) -> int:
    """The next token of an answer: any that may come."""
    logits: Tensor = torch.randn(vocab, generator=generator)
    if constraint is not None:
        constraint.mask(logits)
    token = int(torch.multinomial(logits.softmax(-1), 1, generator=generator))
    if constraint is not None:
        constraint.accept(token)
    return token


class Drawn:
    """One answer to one request, for each of its choices; a Generation."""

    def __init__(self, request: Request, vocab: int) -> None:
        self._request = request
        self._vocab = vocab
        self._ended: set[int] = set()
        self._events = self._draw()

    def __aiter__(self) -> "Drawn":
        return self

    async def __anext__(self) -> Event:
        return await anext(self._events)

    def end(self, choice: int) -> None:
        self._ended.add(choice)

    async def aclose(self) -> None:
        await self._events.aclose()

    async def _draw(self):  # type: ignore[no-untyped-def]  # an async generator of events
        yield Began(cached=len(self._request.prompt) // 2)
        generator = torch.Generator().manual_seed(self._request.sampling.seed or 0)
        for choice in range(self._request.choices):
            constraint = self._request.constraint() if self._request.constraint else None
            for left in reversed(range(self._request.max_new_tokens)):
                token = draw(constraint, self._vocab, generator)
                yield Token(choice, token)
                if choice in self._ended:
                    break
                await asyncio.sleep(0)
                if token in self._request.stop_tokens or left == 0:
                    yield Finished(choice, "stop" if token in self._request.stop_tokens else "length")
                    break


class DrawnCompleter:
    """Of a model with `vocab` tokens; what it was asked is in `requests`."""

    def __init__(self, vocab: int) -> None:
        self._vocab = vocab
        self.requests: list[Request] = []

    def submit(self, request: Request) -> Drawn:
        self.requests.append(request)
        return Drawn(request, self._vocab)
