"""A chat with a model, whichever API asks for it: messages and tools go in, pieces of text and calls come out."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from starlette.requests import Request

from clients.completion.generation import Began, Token
from clients.completion.request import Sampling
from clients.events import Event as SwarmEvent
from clients.gateway.admission import Ticket
from clients.gateway.answer import Answer, Done, Piece, Usage
from clients.gateway.asking import ask, check_length
from clients.gateway.conversation import ToolCall, Turn, encode
from clients.gateway.dialect import Dialect
from clients.gateway.gateway import gateway_of
from clients.gateway.grammar import Grammar
from clients.gateway.served import Served
from clients.gateway.tool_calls import Arguments, Called, CallReader, Said
from clients.gateway.tools import NO_TOOLS, Tools, new_call_id

__all__ = ["CallBegan", "CallGoesOn", "Chat", "ChatAnswer", "ChatEvent", "Ended", "Text", "WholeAnswer", "chat_prompt"]

Reason = Literal["stop", "length", "tool_calls"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Chat:
    """What is asked. `form` is what the answer must look like where it is no call; `param` the field of the turns."""

    turns: tuple[Turn, ...]
    tools: Tools = NO_TOOLS
    form: Grammar | None = None
    limit: int | None = None
    sampling: Sampling | None = None
    stops: tuple[str, ...] = ()
    choices: int = 1
    logprobs: int | None = None
    template_options: Mapping[str, Any] = field(default_factory=dict)
    param: str = "messages"


@dataclass(frozen=True, slots=True)
class Text:
    """More of what a choice says; with the tokens that begin in it."""

    choice: int
    text: str
    tokens: tuple[Token, ...] = ()


@dataclass(frozen=True, slots=True)
class CallBegan:
    """A choice calls a tool. `index` counts its calls from 0."""

    choice: int
    index: int
    id: str
    name: str


@dataclass(frozen=True, slots=True)
class CallGoesOn:
    """More of the arguments of the call `index`, which is the latest one."""

    choice: int
    index: int
    text: str


@dataclass(frozen=True, slots=True)
class Ended:
    """A choice is complete. `stop`: the string that ended it, if one did."""

    choice: int
    reason: Reason
    stop: str | None = None


ChatEvent = Began | Text | CallBegan | CallGoesOn | Ended | SwarmEvent


async def chat_prompt(served: Served, dialect: Dialect, chat: Chat) -> tuple[int, ...]:
    """Its token ids. Raises ApiError 400 for what the model's template refuses."""
    check_length(served, sum(len(turn.text) for turn in chat.turns), chat.param)
    prompt = dialect.prompt(chat.turns, chat.tools)
    return await asyncio.to_thread(
        encode, served.tokenizer, prompt.turns, param=chat.param, tools=prompt.tools, options=chat.template_options
    )


class ChatAnswer:
    """An asynchronous iterator of what to send, over all choices. A call's id and name come before its arguments, and
    its arguments before the next call."""

    def __init__(self, answer: Answer, readers: Mapping[int, CallReader], call_prefix: str) -> None:
        """`readers`: for each choice, where calls may come."""
        self._answer = answer
        self._readers = readers
        self._call_prefix = call_prefix
        self._ready: deque[ChatEvent] = deque()
        self._tokens: dict[int, tuple[Token, ...]] = {}  # by choice, those whose text is held back

    @classmethod
    async def to(
        cls, request: Request, ticket: Ticket, served: Served, chat: Chat, *, call_prefix: str = "call_"
    ) -> "ChatAnswer":
        """Have `served` answer. Raises ApiError, 400 for what can't be."""
        gateway = gateway_of(request)
        dialect = gateway.dialects.of(served)
        constraint = await gateway.grammars.compile(served, dialect.grammar(chat.tools, chat.form))
        calls = bool(chat.tools.offered)
        answer = ask(
            ticket,
            served,
            await chat_prompt(served, dialect, chat),
            param=chat.param,
            limit=chat.limit,
            sampling=chat.sampling,
            stops=chat.stops,
            choices=chat.choices,
            logprobs=chat.logprobs,
            constraint=constraint,
            show_special_tokens=calls and dialect.shows_special_tokens,
        )
        readers = {choice: dialect.reader(chat.tools) for choice in range(chat.choices)} if calls else {}
        return cls(answer, readers, call_prefix)

    @property
    def usage(self) -> Usage:
        return self._answer.usage

    def __aiter__(self) -> AsyncIterator[ChatEvent]:
        return self

    async def __anext__(self) -> ChatEvent:
        """Raises SwarmError where the generation fails."""
        while not self._ready:
            match event := await anext(self._answer):
                case Piece():
                    self._push(event)
                case Done():
                    self._end(event)
                case _:
                    self._ready.append(event)
        return self._ready.popleft()

    def _push(self, piece: Piece) -> None:
        reader = self._readers.get(piece.choice)
        if reader is None:
            self._ready.append(Text(piece.choice, piece.text, piece.tokens))
            return
        self._tokens[piece.choice] = self._tokens.get(piece.choice, ()) + piece.tokens
        self._read(piece.choice, reader.feed(piece.text))

    def _end(self, done: Done) -> None:
        reader = self._readers.get(done.choice)
        reason: Reason = done.reason
        if reader is not None:
            self._read(done.choice, reader.close())
            if reader.calls and reason == "stop":
                reason = "tool_calls"
        self._ready.append(Ended(done.choice, reason, done.stop))

    def _read(self, choice: int, pieces: list[Said | Called | Arguments]) -> None:
        for piece in pieces:
            tokens = self._tokens.pop(choice, ())  # those of calls are told by nobody
            match piece:
                case Said(text):
                    self._ready.append(Text(choice, text, tokens))
                case Called(index, name):
                    self._ready.append(CallBegan(choice, index, new_call_id(self._call_prefix), name))
                case Arguments(index, text):
                    self._ready.append(CallGoesOn(choice, index, text))

    async def collect(self, choices: int = 1) -> "list[WholeAnswer]":
        """All choices, in order, when the last is complete."""
        wholes = [WholeAnswer() for _ in range(choices)]
        async for event in self:
            if isinstance(event, Text | CallBegan | CallGoesOn | Ended):
                wholes[event.choice].add(event)
        return wholes


@dataclass(slots=True)
class WholeAnswer:
    """A choice, complete."""

    texts: list[str] = field(default_factory=list)
    tokens: list[Token] = field(default_factory=list)
    calls: list[ToolCall] = field(default_factory=list)
    reason: Reason = "stop"
    stop: str | None = None

    @property
    def text(self) -> str:
        return "".join(self.texts)

    def add(self, event: Text | CallBegan | CallGoesOn | Ended) -> None:
        match event:
            case Text():
                self.texts.append(event.text)
                self.tokens += event.tokens
            case CallBegan():
                self.calls.append(ToolCall(event.id, event.name, ""))
            case CallGoesOn():
                last = self.calls[event.index]
                self.calls[event.index] = replace(last, arguments=last.arguments + event.text)
            case Ended():
                self.reason, self.stop = event.reason, event.stop
