"""What was said in a chat, and how answers are chosen: values, and a file to keep them in."""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Self

from swarm import atomic
from swarm.errors import UsageError

__all__ = ["Choosing", "Conversation", "Message", "load", "save"]

MOST_BYTES = 16 << 20  # of a file with a chat
ROLES = ("system", "user", "assistant")


@dataclass(frozen=True, slots=True)
class Message:
    """`role`: system, user or assistant."""

    role: str
    content: str


@dataclass(frozen=True, slots=True)
class Conversation:
    """Questions and answers in turn, the first a question; `system`: what the model is told before them."""

    system: str = ""
    turns: tuple[Message, ...] = ()

    @property
    def messages(self) -> tuple[Message, ...]:
        return (*([Message("system", self.system)] if self.system else []), *self.turns)

    def asked(self, text: str) -> Self:
        return replace(self, turns=(*self.turns, Message("user", text)))

    def answered(self, text: str) -> Self:
        return replace(self, turns=(*self.turns, Message("assistant", text)))

    def undone(self) -> tuple[Self, str]:
        """Without the last question and what followed it, and that question. Raises UsageError when there is none."""
        last = max((at for at, turn in enumerate(self.turns) if turn.role == "user"), default=None)
        if last is None:
            raise UsageError("nothing was asked yet")
        return replace(self, turns=self.turns[:last]), self.turns[last].content


@dataclass(frozen=True, slots=True)
class Choosing:
    """How answers are chosen. `temperature` 0: always the likeliest token."""

    temperature: float = 0.7
    top_p: float = 0.95
    max_new_tokens: int = 1024
    seed: int | None = None

    def __post_init__(self) -> None:
        if not (math.isfinite(self.temperature) and 0 <= self.temperature <= 5):
            raise UsageError(f"temperature is a number from 0 to 5, not {self.temperature:g}")
        if not 0 < self.top_p <= 1:
            raise UsageError(f"top_p is a number above 0 and at most 1, not {self.top_p:g}")
        if self.max_new_tokens < 1:
            raise UsageError(f"max_new_tokens is 1 or more, not {self.max_new_tokens}")

    def with_value(self, name: str, text: str) -> Self:
        """One of them as it was typed. Raises UsageError."""
        name = name.replace("-", "_")
        if name not in (field.name for field in fields(self)):
            raise UsageError(f"there is no '{name}' to set, but {', '.join(field.name for field in fields(self))}")
        kind = int if name in ("max_new_tokens", "seed") else float
        if name == "seed" and text == "none":
            return replace(self, seed=None)
        try:
            value: Any = kind(text)
        except ValueError:
            raise UsageError(f"{name} is a {'whole ' * (kind is int)}number, not '{text}'") from None
        return replace(self, **{name: value})

    def __str__(self) -> str:
        return ", ".join(f"{name} {'none' if value is None else value}" for name, value in asdict(self).items())


def save(path: Path, model: str, conversation: Conversation) -> None:
    """The messages as an application of the OpenAI API would send them. Raises UsageError."""
    messages = [asdict(message) for message in conversation.messages]
    data = json.dumps({"model": model, "messages": messages}, ensure_ascii=False, indent=1)
    try:
        atomic.write_file(path, data.encode())
    except OSError as error:
        raise UsageError(f"the chat can't be written to {path}: {error.strerror}") from error


def load(path: Path) -> Conversation:
    """What `save` has written, or any JSON object with `messages` of text. Raises UsageError."""
    try:
        with path.open("rb") as file:
            data = file.read(MOST_BYTES + 1)
        found = json.loads(data) if len(data) <= MOST_BYTES else None
    except OSError as error:
        raise UsageError(f"{path} can't be read: {error.strerror}") from error
    except (ValueError, RecursionError):
        found = None
    messages = found.get("messages") if isinstance(found, dict) else None
    if not isinstance(messages, list):
        raise UsageError(f"{path} holds no chat: it is no JSON object with messages")
    parsed = [_message(message, path) for message in messages]
    system = "\n\n".join(message.content for message in parsed if message.role == "system")
    return Conversation(system, tuple(message for message in parsed if message.role != "system"))


def _message(value: object, path: Path) -> Message:
    if isinstance(value, Mapping):
        role, content = value.get("role"), value.get("content")
        if role in ROLES and isinstance(content, str):
            return Message(str(role), content)
    raise UsageError(f"{path} holds a message that is none: each has a role ({', '.join(ROLES)}) and a text as content")
