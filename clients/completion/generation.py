"""What comes of a request, as it comes."""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Literal, Protocol

from clients.completion.request import Request
from clients.events import Event as SwarmEvent

__all__ = ["Began", "Completer", "Event", "Finished", "Generation", "Token"]


@dataclass(frozen=True, slots=True)
class Began:
    """The request's turn has come. `cached`: tokens of its prompt that peers still knew."""

    cached: int


@dataclass(frozen=True, slots=True)
class Token:
    """The next token of a choice. Log probabilities are natural and those of the model, before anything that sampling
    changes; `top` has the likeliest tokens first."""

    choice: int
    id: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, slots=True)
class Finished:
    """A choice is complete: "stop" after a stop token or the end of its constraint, "length" at the limit."""

    choice: int
    reason: Literal["stop", "length"]


Event = Began | Token | Finished | SwarmEvent  # a swarm's event tells of the chain that computes this request


class Generation(Protocol):
    """An asynchronous iterator of events, ended by the last `Finished` or by a SwarmError. Belongs to the event loop on
    which it was submitted. A reader that falls behind makes its own request wait, nobody else's."""

    def __aiter__(self) -> AsyncIterator[Event]: ...
    async def __anext__(self) -> Event: ...

    def end(self, choice: int) -> None:
        """No more of this choice is wanted: neither tokens nor a `Finished` of it come any more."""

    async def aclose(self) -> None:
        """Stop within one step and let go of what peers hold for it, unless it may stay (`Request.keep`); safe to
        repeat."""


class Completer(Protocol):
    """One model that answers many requests at once."""

    def submit(self, request: Request) -> Generation:
        """Take a request on. Raises UsageError for one that can never be answered, such as a prompt longer than the
        context, and Busy when no more can wait."""
        ...
