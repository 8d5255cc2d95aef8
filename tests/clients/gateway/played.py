"""A completer without a model: each request is answered with a given text, token by token, as long as its gate is
open. For tests of what is around a completer; those of answers themselves use a model."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field

from clients.completion.generation import Began, Event, Finished, Token
from clients.completion.request import Request

__all__ = ["Played", "PlayedCompleter"]


@dataclass
class Played:
    """One answer to one request, for each of its choices; a Generation. `before` comes before the tokens; `error`
    instead of the end."""

    request: Request
    tokens: Sequence[int]
    gate: asyncio.Event
    before: Sequence[Event] = ()
    error: Exception | None = None
    ended: set[int] = field(default_factory=set)
    closed: bool = False

    def __post_init__(self) -> None:
        self._events = self._play()

    def __aiter__(self) -> "Played":
        return self

    async def __anext__(self) -> Event:
        while True:
            event = await anext(self._events)
            if not (isinstance(event, Token | Finished) and event.choice in self.ended):
                return event

    def end(self, choice: int) -> None:
        self.ended.add(choice)

    async def aclose(self) -> None:
        self.closed = True
        await self._events.aclose()

    async def _play(self):  # type: ignore[no-untyped-def]  # an async generator of events
        yield Began(cached=0)
        for event in self.before:
            yield event
        await self.gate.wait()
        given = self.tokens[: self.request.max_new_tokens]
        for id_ in given:
            for choice in range(self.request.choices):
                top = () if self.request.logprobs is None else ((id_, -0.5),) * min(1, self.request.logprobs)
                yield Token(choice, id_, None if self.request.logprobs is None else -0.5, top)
            await asyncio.sleep(0)
        if self.error is not None:
            raise self.error
        stopped = len(given) > 0 and given[-1] in self.request.stop_tokens
        for choice in range(self.request.choices):
            yield Finished(choice, "stop" if stopped else "length")


class PlayedCompleter:
    """Answers with `tokens`; what it was asked is in `answers`. Shut the gate to keep requests running; open and shut
    it on the server's loop (`LiveGateway.call`)."""

    def __init__(self, tokens: Sequence[int]) -> None:
        self.tokens = tokens
        self.before: Sequence[Event] = ()
        self.error: Exception | None = None
        self.refusal: Exception | None = None  # raised by `submit`
        self.answers: list[Played] = []
        self.gate = asyncio.Event()
        self.gate.set()

    def submit(self, request: Request) -> Played:
        if self.refusal is not None:
            raise self.refusal
        played = Played(request, self.tokens, self.gate, self.before, self.error)
        self.answers.append(played)
        return played
