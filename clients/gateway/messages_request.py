"""The body of Anthropic's `/v1/messages`, read into a chat."""

import json
from dataclasses import replace

from clients.gateway.chat_messages import MOST_MESSAGES, MOST_NAME
from clients.gateway.chat_request import MOST_TOKENS
from clients.gateway.chatting import Chat
from clients.gateway.conversation import Role, ToolCall, Turn, read_content
from clients.gateway.fields import Fields, describe
from clients.gateway.grammar import Grammar
from clients.gateway.response_format import read_schema_format
from clients.gateway.sampling import read_sampling, read_stops
from clients.gateway.served import Served
from clients.gateway.tools import MOST_TOOLS, Choice, Tool, Tools, choose, read_function

__all__ = ["read_counted", "read_messages_request"]

_ROLES: dict[str, Role] = {"user": "user", "assistant": "assistant", "system": "system"}
_MODES = {"auto": "auto", "any": "required", "tool": "required", "none": "none"}
_THOUGHTS = ("thinking", "redacted_thinking")  # of an earlier answer, which a template would leave out


def read_messages_request(fields: Fields, served: Served) -> Chat:
    """Raises ApiError 400 naming the field that is not as it must be."""
    fields.need("max_tokens")
    return replace(
        read_counted(fields),
        form=_form(fields),
        limit=fields.whole("max_tokens", 1, MOST_TOKENS),
        sampling=read_sampling(fields, served.sampling, vocabulary=len(served.tokenizer)),
        stops=read_stops(fields, "stop_sequences"),
    )


def read_counted(fields: Fields) -> Chat:
    """What of it goes into the prompt."""
    return Chat(turns=(*_system(fields), *_turns(fields)), tools=_tools(fields))


def _system(fields: Fields) -> list[Turn]:
    text = read_content(fields, "system")
    return [Turn("system", text)] if text else []


def _turns(fields: Fields) -> list[Turn]:
    fields.need("messages")
    messages = fields.objects("messages", most=MOST_MESSAGES)
    turns: list[Turn] = []
    for message in messages:
        for turn in _blocks(message):
            _add(turns, turn)
    if not turns:
        raise fields.refusal("messages", "'messages' is empty: there is nothing to answer")
    if turns[-1].role == "assistant":
        said = "the last of 'messages' is the assistant's: an answer that is begun can't be gone on with here"
        raise fields.refusal("messages", said, "unsupported_value")
    return turns


def _add(turns: list[Turn], turn: Turn) -> None:
    """Neighbours of one role are one turn, as long as nobody calls in between."""
    last = turns[-1] if turns else None
    if last is None or last.role != turn.role or turn.role == "tool":
        turns.append(turn)
    else:
        text = "\n".join(filter(None, (last.text, turn.text)))
        turns[-1] = replace(last, text=text, calls=last.calls + turn.calls)


def _blocks(message: Fields) -> list[Turn]:
    """A turn for each block."""
    message.need("role")
    role = _ROLES[message.one_of("role", tuple(_ROLES), "user")]
    content = message.need("content")
    if isinstance(content, str):
        return [Turn(role, content)]
    if not isinstance(content, list):
        said = f"'{message.path('content')}' is a string or a list of blocks, not {describe(content)}"
        raise message.refusal("content", said, "invalid_type")
    blocks = message.objects("content", most=MOST_MESSAGES)
    return [turn for block in blocks if (turn := _block(block, role)) is not None]


def _block(block: Fields, role: Role) -> Turn | None:
    match block.need_text("type"), role:
        case "text", _:
            return Turn(role, block.need_text("text"))
        case "tool_use", "assistant":
            return Turn(role, calls=(_call(block),))
        case "tool_result", "user":
            return _result(block)
        case kind, "assistant" if kind in _THOUGHTS:
            return None
        case kind, _:
            message = f"'{block.path('type')}' is {kind[:40]!r}, but this model reads text alone"
            raise block.refusal("type", message, "unsupported_content")


def _call(block: Fields) -> ToolCall:
    arguments = json.dumps(Fields(block.need("input"), block.path("input")).values, ensure_ascii=False)
    return ToolCall(block.need_text("id", most=MOST_NAME), block.need_text("name", most=MOST_NAME), arguments)


def _result(block: Fields) -> Turn:
    text = read_content(block)
    said = f"Error: {text}" if block.flag("is_error") else text
    return Turn("tool", said, call_id=block.need_text("tool_use_id", most=MOST_NAME))


def _tools(fields: Fields) -> Tools:
    tools = [_tool(entry) for entry in fields.objects("tools", most=MOST_TOOLS)]
    asked = fields.nested("tool_choice")
    if asked is None:
        return choose(tools, Choice(), fields, parallel=True)
    kind = asked.one_of("type", tuple(_MODES), "auto")
    names = (asked.need_text("name", most=MOST_NAME),) if kind == "tool" else None
    parallel = not asked.flag("disable_parallel_tool_use")
    return choose(tools, Choice(_MODES[kind], names), fields, parallel=parallel)


def _tool(entry: Fields) -> Tool:
    if (kind := entry.text("type", "custom", most=MOST_NAME)) != "custom":
        message = f"'{entry.path('type')}' is '{kind}', but only tools with an 'input_schema' can be called here"
        raise entry.refusal("type", message, "unsupported_value")
    return read_function(entry, schema="input_schema")


def _form(fields: Fields) -> Grammar | None:
    asked = fields.nested("output_config")
    form = asked.nested("format") if asked is not None else fields.nested("output_format")
    if form is None:
        return None
    form.one_of("type", ("json_schema",), "json_schema")
    return read_schema_format(form)
