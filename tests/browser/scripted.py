"""A completer that plays scripts, so that a test decides what a model says and when, and what the swarm does."""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from transformers import PreTrainedTokenizerFast

from clients.completion.generation import Began, Event, Finished, Token
from clients.completion.request import Request
from clients.events import ChainChanged, PeerLost, Step
from clients.events import Event as SwarmEvent
from routing.chains import Hop
from swarm.ids import PeerId, Span
from swarm.messages import Contact
from tests.clients.gateway.bytes_tokenizer import END

__all__ = ["HOLD", "Script", "ScriptedCompleter", "chain", "lost", "step"]

HOLD = None  # in a script: go on when the test says so
Script = Sequence[str | SwarmEvent | Exception | None]


@dataclass
class Playing:
    """One script being played to one request; a Generation."""

    request: Request
    script: Script
    tokenizer: PreTrainedTokenizerFast
    go_on: asyncio.Event = field(default_factory=asyncio.Event)
    closed: bool = False

    def __post_init__(self) -> None:
        self._events = self._play()

    def __aiter__(self) -> "Playing":
        return self

    async def __anext__(self) -> Event:
        event: Event = await anext(self._events)
        return event

    def end(self, choice: int) -> None:
        pass

    async def aclose(self) -> None:
        self.closed = True
        await self._events.aclose()

    async def _play(self):  # type: ignore[no-untyped-def]  # an async generator of events
        yield Began(cached=0)
        for part in self.script:
            if part is HOLD:
                await self.go_on.wait()
                self.go_on.clear()
            elif isinstance(part, Exception):
                raise part
            elif isinstance(part, str):
                for token in self.tokenizer.encode(part):
                    yield Token(0, token)
            else:
                yield part
            await asyncio.sleep(0)
        yield Token(0, END)
        yield Finished(0, "stop")


class ScriptedCompleter:
    """Plays `script` to every request, or the one that is written for its number (from 0) in `others`; one that
    begins with an error refuses the request. To be touched on the server's loop only, once it serves
    (`LiveGateway.call`)."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        self.tokenizer = tokenizer
        self.script: Script = ["Hello there."]
        self.others: Mapping[int, Script] = {}
        self.asks = 0
        self.played: list[Playing] = []

    def submit(self, request: Request) -> Playing:
        script = self.others.get(self.asks, self.script)
        self.asks += 1
        if isinstance(script[0], Exception):
            raise script[0]
        self.played.append(Playing(request, script, self.tokenizer))
        return self.played[-1]

    def go_on(self) -> None:
        """The last script goes on after its HOLD."""
        self.played[-1].go_on.set()

    def asked(self, number: int = -1) -> str:
        """The prompt of a request."""
        text: str = self.tokenizer.decode(self.played[number].request.prompt)
        return text


def chain(*hops: tuple[str, int, int], lost: Sequence[str] = (), seconds: float = 0.05) -> ChainChanged:
    """Of hops (name, start, end)."""
    made = tuple(_hop(name, Span(start, end)) for name, start, end in hops)
    return ChainChanged(made, tuple(PeerId(f"id-of-{name}") for name in lost), seconds, "the test says so")


def _hop(name: str, span: Span) -> Hop:
    return Hop(Contact(PeerId(f"id-of-{name}"), (f"/memory/{name}",)), span, 0.01, name=name)


def lost(name: str) -> PeerLost:
    return PeerLost(PeerId(f"id-of-{name}"), "the test says so")


def step(*milliseconds: float) -> Step:
    """One step, computing so long at each hop."""
    return Step(sum(milliseconds) / 1000, 1, tuple((0.0, ms) for ms in milliseconds))
