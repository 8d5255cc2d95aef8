"""A chat as all APIs mean it, and its way to the tokens of a prompt: through the model's own chat template."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from inspect import signature
from typing import Any, Literal

from jinja2 import TemplateError

from clients.chat import Tokenizer
from clients.gateway.fields import Fields, describe, refusal

__all__ = ["Role", "ToolCall", "Turn", "encode", "ends_of_turns", "read_content"]

Role = Literal["system", "user", "assistant", "tool"]
TEXT_PARTS = ("text", "input_text", "output_text")  # as chat completions, and as responses call them


@dataclass(frozen=True, slots=True)
class ToolCall:
    """The model asked for a tool. `arguments`: JSON text, as the model wrote it."""

    id: str
    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class Turn:
    """One message. A developer is a "system"; "tool" is the result of the call `call_id`."""

    role: Role
    text: str = ""
    calls: tuple[ToolCall, ...] = ()
    call_id: str | None = None
    name: str | None = None  # of who speaks, or of the tool


def read_content(fields: Fields, name: str = "content") -> str:
    """The text of a message: a string, or a list of parts of text; absent reads as empty. All but text is refused."""
    value = fields.get(name)
    if value is None or isinstance(value, str):
        return fields.text(name) or ""
    if not isinstance(value, list):
        message = f"'{fields.path(name)}' is a string or a list of parts, not {describe(value)}"
        raise fields.refusal(name, message, "invalid_type")
    return "\n".join(_part(part) for part in fields.objects(name))


def _part(part: Fields) -> str:
    kind = part.need_text("type")
    if kind == "refusal":
        return part.need_text("refusal")
    if kind not in TEXT_PARTS:
        message = f"'{part.path('type')}' is {kind[:40]!r}, but this model reads text alone"
        raise part.refusal("type", message, "unsupported_content")
    return part.need_text("text")


def encode(
    tokenizer: Tokenizer,
    turns: Sequence[Turn],
    *,
    param: str = "messages",
    tools: Sequence[Mapping[str, Any]] | None = None,
    options: Mapping[str, Any] | None = None,
) -> tuple[int, ...]:
    """Token ids of the prompt up to where the answer begins. `tools` (as chat completions describe them) and `options`
    go to the template. Raises ApiError 400, naming `param`, when the model has no template or its template refuses the
    chat. Takes milliseconds for a long chat: run it in a thread."""
    if not tokenizer.chat_template:
        message = "this model has no chat template, so it can't chat; use /v1/completions with a prompt"
        raise refusal(message, param, "no_chat_template")
    _check(tokenizer, options or {})
    merged = _merge_systems(turns)
    try:
        return _render(tokenizer, merged, tools, options)
    except TemplateError as error:
        folded = _fold_system(merged)
        if folded is not None:
            try:
                return _render(tokenizer, folded, tools, options)
            except TemplateError:
                pass  # the first complaint is about what the client sent
        raise refusal(f"this model's chat template refuses the chat: {error}", param, "invalid_chat") from error


def ends_of_turns(tokenizer: Tokenizer) -> frozenset[int]:
    """The token that the chat template puts behind what the assistant says, if one token alone does that: some models
    name it nowhere else as an end. Takes a moment."""
    if not tokenizer.chat_template:
        return frozenset()
    said = "What the assistant says"
    chat = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": said}]
    try:
        text: str = tokenizer.apply_chat_template(chat, tokenize=False)
    except TemplateError:  # it will tell those who chat
        return frozenset()
    behind = text.rpartition(said)[2].lstrip()
    first = tokenizer.encode(behind, add_special_tokens=False)[:1]
    return frozenset(token for token in first if token in tokenizer.all_special_ids)


def _check(tokenizer: Tokenizer, options: Mapping[str, Any]) -> None:
    """They are variables of the template, never arguments of the library."""
    taken = {"messages", *signature(tokenizer.apply_chat_template).parameters} & options.keys()
    for name in taken:
        path = f"chat_template_kwargs.{name}"
        raise refusal(f"'{path}' is not for a request to choose", path)


def _render(
    tokenizer: Tokenizer,
    turns: Sequence[Turn],
    tools: Sequence[Mapping[str, Any]] | None,
    options: Mapping[str, Any] | None,
) -> tuple[int, ...]:
    encoded = tokenizer.apply_chat_template(
        [_message(turn) for turn in turns],
        tools=list(tools) if tools else None,
        add_generation_prompt=True,
        return_dict=True,
        **(options or {}),
    )
    return tuple(encoded["input_ids"])


def _message(turn: Turn) -> dict[str, Any]:
    """As the library's templates expect it: arguments of calls are objects."""
    message: dict[str, Any] = {"role": turn.role, "content": turn.text}
    if turn.name is not None:
        message["name"] = turn.name
    if turn.call_id is not None:
        message["tool_call_id"] = turn.call_id
    if turn.calls:
        message["tool_calls"] = [
            {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": _parsed(call.arguments)}}
            for call in turn.calls
        ]
    return message


def _parsed(arguments: str) -> Any:
    try:
        return json.loads(arguments)
    except ValueError:
        return arguments


def _merge_systems(turns: Sequence[Turn]) -> list[Turn]:
    """Those at the begin become one, since templates look at the first message alone."""
    count = next((at for at, turn in enumerate(turns) if turn.role != "system"), len(turns))
    if count < 2:
        return list(turns)
    return [replace(turns[0], text="\n\n".join(turn.text for turn in turns[:count])), *turns[count:]]


def _fold_system(turns: Sequence[Turn]) -> list[Turn] | None:
    """For templates that know no system: its text goes before that of the first user."""
    if len(turns) < 2 or turns[0].role != "system" or turns[1].role != "user":
        return None
    first = replace(turns[1], text=f"{turns[0].text}\n\n{turns[1].text}")
    return [first, *turns[2:]]
