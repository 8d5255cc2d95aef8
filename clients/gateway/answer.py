"""From the tokens of a generation to the text that a client is sent, choice by choice."""

from collections import deque
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Literal

from clients.chat import TextStream, Tokenizer
from clients.completion.generation import Began, Finished, Generation, Token
from clients.events import Event as SwarmEvent
from clients.gateway.stops import Stops

__all__ = ["Answer", "AnswerEvent", "Done", "Piece", "Usage", "Whole", "collect"]


@dataclass(frozen=True, slots=True)
class Piece:
    """What a choice goes on with. `tokens` are those that begin in `text` (or have no text of their own); never the one
    that ended the choice."""

    choice: int
    text: str
    tokens: tuple[Token, ...]


@dataclass(frozen=True, slots=True)
class Done:
    """A choice is complete. `stop`: the string that ended it, if one did."""

    choice: int
    reason: Literal["stop", "length"]
    stop: str | None = None


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens so far: of the prompt, those of them that peers still knew, and of all choices."""

    prompt: int
    cached: int
    completion: int

    def __add__(self, other: "Usage") -> "Usage":
        return Usage(self.prompt + other.prompt, self.cached + other.cached, self.completion + other.completion)


AnswerEvent = Began | Piece | Done | SwarmEvent


class Answer:
    """An asynchronous iterator of what to send, over the choices of one `generation`. Half a character is never shown,
    nor what may become a stop string. A choice that a stop string ends is generated no further. Whoever submitted the
    generation closes it."""

    def __init__(
        self,
        generation: Generation,
        tokenizer: Tokenizer,
        *,
        prompt_tokens: int,
        choices: int = 1,
        stop_strings: Sequence[str] = (),
        stop_tokens: frozenset[int] = frozenset(),
        show_special_tokens: bool = False,
        before: Sequence[int] = (),
    ) -> None:
        """`show_special_tokens`: for those who look for marks that the tokenizer calls special; the token that ends a
        choice is not shown all the same. `before`: the last tokens of a text that the answer goes on."""
        self._generation = generation
        self._stop_tokens = stop_tokens
        self._open = {
            choice: _Choice(
                choice,
                TextStream(tokenizer, skip_special_tokens=not show_special_tokens, before=before),
                Stops(stop_strings),
            )
            for choice in range(choices)
        }
        self._ready: deque[AnswerEvent] = deque()
        self._prompt = prompt_tokens
        self._cached = 0
        self._completion = 0

    @property
    def usage(self) -> Usage:
        return Usage(self._prompt, self._cached, self._completion)

    def __aiter__(self) -> AsyncIterator[AnswerEvent]:
        return self

    async def __anext__(self) -> AnswerEvent:
        """Raises SwarmError where the generation fails."""
        while not self._ready:
            if not self._open:
                raise StopAsyncIteration
            event = await anext(self._generation)
            match event:
                case Token():
                    self._push(event)
                case Finished():
                    self._finish(event)
                case Began():
                    self._cached = event.cached
                    self._ready.append(event)
                case _:
                    self._ready.append(event)
        return self._ready.popleft()

    def _push(self, token: Token) -> None:
        if (choice := self._open.get(token.choice)) is None:
            return
        self._completion += 1
        if token.id in self._stop_tokens:
            return
        self._show(choice.push(token))
        if choice.stops.found is not None:
            self._generation.end(token.choice)
            self._close(choice, "stop")

    def _finish(self, finished: Finished) -> None:
        if (choice := self._open.get(finished.choice)) is not None:
            self._show(choice.end())
            self._close(choice, "stop" if choice.stops.found else finished.reason)

    def _show(self, piece: Piece) -> None:
        if piece.text or piece.tokens:
            self._ready.append(piece)

    def _close(self, choice: "_Choice", reason: Literal["stop", "length"]) -> None:
        del self._open[choice.index]
        self._ready.append(Done(choice.index, reason, choice.stops.found))


class _Choice:
    """The text of one choice on its way from tokens to pieces."""

    def __init__(self, index: int, stream: TextStream, stops: Stops) -> None:
        self.index = index
        self.stops = stops
        self._stream = stream
        self._tokens: deque[tuple[int, Token]] = deque()  # not sent yet, each with where its text begins
        self._decoded = 0  # characters
        self._shown = 0

    def push(self, token: Token) -> Piece:
        self._tokens.append((self._decoded, token))
        text = self._stream.push(token.id)
        self._decoded += len(text)
        return self._piece(self.stops.push(text))

    def end(self) -> Piece:
        text = self.stops.push(self._stream.end())
        if self.stops.found is not None:
            return self._piece(text)
        piece = self._piece(text + self.stops.end())
        return Piece(self.index, piece.text, piece.tokens + tuple(token for _, token in self._tokens))

    def _piece(self, text: str) -> Piece:
        self._shown += len(text)
        tokens: list[Token] = []
        while self._tokens and self._tokens[0][0] < self._shown:
            tokens.append(self._tokens.popleft()[1])
        return Piece(self.index, text, tuple(tokens))


@dataclass(slots=True)
class Whole:
    """A choice, complete."""

    text: str = ""
    tokens: tuple[Token, ...] = ()
    reason: Literal["stop", "length"] = "stop"
    stop: str | None = None


async def collect(answer: AsyncIterator[AnswerEvent], choices: int = 1) -> list[Whole]:
    """All choices, in order, when the last is complete."""
    wholes = [Whole() for _ in range(choices)]
    texts: list[list[str]] = [[] for _ in range(choices)]
    tokens: list[list[Token]] = [[] for _ in range(choices)]
    async for event in answer:
        if isinstance(event, Piece):
            texts[event.choice].append(event.text)
            tokens[event.choice] += event.tokens
        elif isinstance(event, Done):
            wholes[event.choice].reason, wholes[event.choice].stop = event.reason, event.stop
    for whole, parts, own in zip(wholes, texts, tokens, strict=True):
        whole.text, whole.tokens = "".join(parts), tuple(own)
    return wholes
