"""The body of `/v1/responses`, read into a chat."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from clients.gateway.chat_messages import MOST_MESSAGES, MOST_NAME
from clients.gateway.chat_request import MOST_TOKENS
from clients.gateway.chatting import Chat
from clients.gateway.conversation import Role, ToolCall, Turn, read_content
from clients.gateway.fields import Fields, describe
from clients.gateway.grammar import Grammar
from clients.gateway.response_format import any_object, read_schema_format
from clients.gateway.sampling import read_sampling
from clients.gateway.served import Served
from clients.gateway.tools import MOST_TOOLS, Choice, Tool, Tools, choose, read_function

__all__ = ["ResponsesRequest", "read_responses"]

REFUSED = ("background", "conversation", "prompt", "top_logprobs", "max_tool_calls")
_ROLES: dict[str, Role] = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
_TOLD: dict[str, Any] = {  # fields that a response tells as they came, and what they are where they did not
    "instructions": None,
    "metadata": {},
    "parallel_tool_calls": True,
    "previous_response_id": None,
    "reasoning": {"effort": None, "summary": None},
    "text": {"format": {"type": "text"}},
    "tool_choice": "auto",
    "tools": [],
    "truncation": "disabled",
    "user": None,
}


@dataclass(frozen=True, slots=True)
class ResponsesRequest:
    """`chat` has the instructions first, if any, then the turns of what it goes on from, then `said`, its own."""

    chat: Chat
    earlier: tuple[Turn, ...]
    said: tuple[Turn, ...]
    store: bool
    stream: bool
    told: Mapping[str, Any]  # in the response


def read_responses(fields: Fields, served: Served, earlier: tuple[Turn, ...]) -> ResponsesRequest:
    """`earlier`: the turns of the previous response. Raises ApiError 400 naming the field that is not as it must be."""
    for name in REFUSED:
        if fields.get(name):
            raise fields.refusal(name, f"'{name}' is not supported here", "unsupported_parameter")
    said = _input(fields)
    instructions = fields.text("instructions")
    sampling = read_sampling(fields, served.sampling, vocabulary=len(served.tokenizer))
    chat = Chat(
        turns=(*([Turn("system", instructions)] if instructions else []), *earlier, *said),
        tools=_tools(fields),
        form=_form(fields),
        limit=fields.whole("max_output_tokens", 1, MOST_TOKENS),
        sampling=sampling,
        template_options=_effort(fields),
        param="input",
    )
    told = {name: fields.get(name) if fields.has(name) else default for name, default in _TOLD.items()} | {
        "max_output_tokens": chat.limit,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "store": fields.flag("store", True),
    }
    return ResponsesRequest(chat, earlier, said, fields.flag("store", True), fields.flag("stream"), told)


def _effort(fields: Fields) -> dict[str, Any]:
    reasoning = fields.nested("reasoning")
    effort = None if reasoning is None else reasoning.text("effort", most=32)
    return {} if effort is None else {"reasoning_effort": effort}


def _input(fields: Fields) -> tuple[Turn, ...]:
    value = fields.need("input")
    if isinstance(value, str):
        return (Turn("user", value),)
    if not isinstance(value, list):
        raise fields.refusal("input", f"'input' is a string or a list, not {describe(value)}", "invalid_type")
    turns: list[Turn] = []
    for item in fields.objects("input", most=MOST_MESSAGES):
        if (turn := _turn(item)) is not None:
            _add(turns, turn)
    if not turns:
        raise fields.refusal("input", "'input' is empty: there is nothing to answer")
    return tuple(turns)


def _add(turns: list[Turn], turn: Turn) -> None:
    """Calls belong to the turn in which they were made."""
    if turn.calls and turns and turns[-1].role == "assistant":
        turns[-1] = replace(turns[-1], calls=turns[-1].calls + turn.calls)
    else:
        turns.append(turn)


def _turn(item: Fields) -> Turn | None:
    match item.text("type", "message", most=MOST_NAME):
        case "message":
            item.need("role")
            item.need("content")
            return Turn(_ROLES[item.one_of("role", tuple(_ROLES), "user")], read_content(item))
        case "function_call":
            name = item.need_text("name", most=MOST_NAME)
            return Turn("assistant", calls=(ToolCall(_call_id(item), name, item.need_text("arguments")),))
        case "function_call_output":
            item.need("output")
            return Turn("tool", read_content(item, "output"), call_id=_call_id(item))
        case "reasoning":
            return None  # a template would leave it out
        case kind:
            message = f"'{item.path('type')}' is '{kind}', which this model can't read"
            raise item.refusal("type", message, "unsupported_value")


def _call_id(item: Fields) -> str:
    return item.need_text("call_id", most=MOST_NAME)


def _form(fields: Fields) -> Grammar | None:
    text = fields.nested("text")
    form = None if text is None else text.nested("format")
    if form is None:
        return None
    match form.one_of("type", ("text", "json_object", "json_schema"), "text"):
        case "json_schema":
            return read_schema_format(form)
        case "json_object":
            return any_object(form.path("type"))
    return None


def _tools(fields: Fields) -> Tools:
    tools = [_tool(entry) for entry in fields.objects("tools", most=MOST_TOOLS)]
    return choose(tools, _choice(fields), fields, parallel=fields.flag("parallel_tool_calls", True))


def _tool(entry: Fields) -> Tool:
    _check_function(entry)
    return read_function(entry)


def _check_function(entry: Fields) -> None:
    if (kind := entry.need_text("type")) != "function":
        message = f"'{entry.path('type')}' is '{kind[:40]}', but only functions can be called here"
        raise entry.refusal("type", message, "unsupported_value")


def _choice(fields: Fields) -> Choice:
    value = fields.get("tool_choice")
    if value is None or isinstance(value, str):
        return Choice(fields.one_of("tool_choice", ("auto", "none", "required"), "auto"))
    asked = Fields(value, "tool_choice")
    if asked.text("type", most=MOST_NAME) == "allowed_tools":
        names = _names(asked.objects("tools", most=MOST_TOOLS))
        return Choice(asked.one_of("mode", ("auto", "required"), "auto"), names)
    return Choice("required", _names([asked]))


def _names(entries: Sequence[Fields]) -> tuple[str, ...]:
    for entry in entries:
        _check_function(entry)
    return tuple(entry.need_text("name", most=MOST_NAME) for entry in entries)
