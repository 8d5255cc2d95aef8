"""The messages of `/v1/chat/completions`, read into turns."""

from clients.gateway.conversation import Role, ToolCall, Turn, read_content
from clients.gateway.fields import Fields

__all__ = ["read_messages"]

MOST_MESSAGES = 4096
MOST_CALLS = 128  # in one message
MOST_NAME = 256  # characters of a name or an id

_ROLES: dict[str, Role] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "assistant": "assistant",
    "tool": "tool",
}


def read_messages(fields: Fields) -> tuple[Turn, ...]:
    fields.need("messages")
    messages = fields.objects("messages", most=MOST_MESSAGES)
    if not messages:
        raise fields.refusal("messages", "'messages' is empty: there is nothing to answer")
    return tuple(map(_turn, messages))


def _turn(message: Fields) -> Turn:
    message.need("role")
    role = _ROLES[message.one_of("role", tuple(_ROLES), "user")]
    calls = tuple(map(_call, message.objects("tool_calls", most=MOST_CALLS))) if role == "assistant" else ()
    if not calls:
        message.need("content")
    return Turn(
        role=role,
        text=read_content(message),
        calls=calls,
        call_id=message.need_text("tool_call_id", most=MOST_NAME) if role == "tool" else None,
        name=message.text("name", most=MOST_NAME),
    )


def _call(call: Fields) -> ToolCall:
    function = Fields(call.need("function"), call.path("function"))
    return ToolCall(
        id=call.need_text("id", most=MOST_NAME),
        name=function.need_text("name", most=MOST_NAME),
        arguments=function.text("arguments") or "",
    )
