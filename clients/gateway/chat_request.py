"""The body of `/v1/chat/completions`, read whole before anything is begun."""

from dataclasses import dataclass
from typing import Any

from clients.completion.request import MOST_LOGPROBS
from clients.gateway.asking import MOST_CHOICES
from clients.gateway.chat_messages import read_messages
from clients.gateway.chatting import Chat
from clients.gateway.fields import Fields
from clients.gateway.response_format import read_response_format
from clients.gateway.sampling import read_sampling, read_stops
from clients.gateway.served import Served
from clients.gateway.tools import read_tools

__all__ = ["MOST_TOKENS", "ChatRequest", "read_chat", "wants_usage"]

MOST_TOKENS = 1 << 24  # that can be asked for; the context leaves less
MOST_OPTIONS = 16  # for a chat template
REFUSED = ("audio",)  # what changes an answer, and can't be had here


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatRequest:
    chat: Chat
    stream: bool
    usage: bool  # in a last chunk of a stream


def read_chat(fields: Fields, served: Served) -> ChatRequest:
    """Raises ApiError 400 naming the field that is not as it must be."""
    for name in REFUSED:
        if fields.has(name):
            raise fields.refusal(name, f"'{name}' is not supported here", "unsupported_parameter")
    limit = fields.whole("max_tokens", 1, MOST_TOKENS)
    chat = Chat(
        turns=read_messages(fields),
        tools=read_tools(fields),
        form=read_response_format(fields),
        limit=fields.whole("max_completion_tokens", 1, MOST_TOKENS, limit),
        sampling=read_sampling(fields, served.sampling, vocabulary=len(served.tokenizer)),
        stops=read_stops(fields),
        choices=fields.whole("n", 1, MOST_CHOICES) or 1,
        logprobs=_logprobs(fields),
        template_options=_template_options(fields),
    )
    return ChatRequest(chat=chat, stream=fields.flag("stream"), usage=wants_usage(fields))


def wants_usage(fields: Fields) -> bool:
    options = fields.nested("stream_options")
    return options is not None and options.flag("include_usage")


def _logprobs(fields: Fields) -> int | None:
    top = fields.whole("top_logprobs", 0, MOST_LOGPROBS)
    if fields.flag("logprobs"):
        return top or 0
    if top:
        raise fields.refusal("top_logprobs", "'top_logprobs' goes with 'logprobs': true")
    return None


def _template_options(fields: Fields) -> dict[str, Any]:
    """What chat templates may look at: "reasoning_effort", and an extension that other servers have, too."""
    options: dict[str, Any] = {}
    if (effort := fields.text("reasoning_effort", most=32)) is not None:
        options["reasoning_effort"] = effort
    given = fields.nested("chat_template_kwargs")
    if given is None:
        return options
    if len(given.values) > MOST_OPTIONS:
        raise fields.refusal("chat_template_kwargs", f"'{given.at}' has at most {MOST_OPTIONS} entries")
    for name, value in given.values.items():
        if not isinstance(value, str | int | float | bool | None):
            raise given.refusal(name, f"'{given.path(name)}' is a text, a number or a boolean", "invalid_type")
    return options | given.values
