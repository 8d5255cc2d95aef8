"""Anthropic's `/v1/messages`, which agents speak, and `/v1/messages/count_tokens`."""

import json
import secrets
from collections.abc import AsyncGenerator, Iterator
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from clients.completion.generation import Began
from clients.gateway.admission import Ticket
from clients.gateway.answer import Usage
from clients.gateway.answering import answering
from clients.gateway.chatting import CallBegan, CallGoesOn, ChatAnswer, Ended, Text, WholeAnswer, chat_prompt
from clients.gateway.conversation import ToolCall
from clients.gateway.fields import read_body
from clients.gateway.gateway import gateway_of
from clients.gateway.messages_request import read_counted, read_messages_request
from clients.gateway.sse import SwarmComments, event, stream

__all__ = ["routes"]

CALL_PREFIX = "toolu_"


def routes() -> list[Route]:
    return [
        Route("/v1/messages", answering(create), methods=["POST"]),
        Route("/v1/messages/count_tokens", answering(count), methods=["POST"]),
    ]


async def create(request: Request, ticket: Ticket) -> Response:
    fields = await read_body(request)
    served = gateway_of(request).models.get(fields.need_text("model"))
    chat = read_messages_request(fields, served)
    streamed = fields.flag("stream")
    answer = await ChatAnswer.to(request, ticket, served, chat, call_prefix=CALL_PREFIX)
    reply = _Reply(served.name)
    if streamed:
        return await stream(reply.lines(answer), failed=lambda error: event("error", error.anthropic_body()))
    (whole,) = await answer.collect()
    return JSONResponse(reply.whole(whole, answer.usage))


async def count(request: Request, ticket: Ticket) -> Response:
    fields = await read_body(request)
    gateway = gateway_of(request)
    served = gateway.models.get(fields.need_text("model"))
    prompt = await chat_prompt(served, gateway.dialects.of(served), read_counted(fields))
    return JSONResponse({"input_tokens": len(prompt)})


class _Reply:
    """The JSON of one answer, whole or as events."""

    def __init__(self, model: str) -> None:
        self._model = model
        self._id = f"msg_{secrets.token_hex(12)}"
        self._block = -1  # the latest one
        self._open: str | None = None  # its type, while it is not complete

    def whole(self, answer: WholeAnswer, usage: Usage) -> dict[str, Any]:
        blocks: list[dict[str, Any]] = [{"type": "text", "text": answer.text}] if answer.text else []
        blocks += [_tool_use(call) for call in answer.calls]
        return self._message(blocks, usage) | _end(Ended(0, answer.reason, answer.stop))

    def _message(self, blocks: list[dict[str, Any]], usage: Usage) -> dict[str, Any]:
        return {
            "id": self._id,
            "type": "message",
            "role": "assistant",
            "model": self._model,
            "content": blocks,
            "stop_reason": None,
            "stop_sequence": None,
            "usage": _usage(usage),
        }

    async def lines(self, answer: ChatAnswer) -> AsyncGenerator[bytes, None]:
        comments = SwarmComments()
        begun = False
        async for happened in answer:
            if isinstance(happened, Text | CallBegan | CallGoesOn | Ended):
                if not begun:
                    begun = True
                    yield _event("message_start", message=self._message([], answer.usage))
                    yield _event("ping")
                for line in self._goes_on(happened, answer):
                    yield line
            elif not isinstance(happened, Began) and (line := comments.of(happened)):
                yield line

    def _goes_on(self, happened: Text | CallBegan | CallGoesOn | Ended, answer: ChatAnswer) -> Iterator[bytes]:
        match happened:
            case Text():
                if happened.text:
                    yield from self._begin("text", text="") if self._open != "text" else ()
                    yield self._delta("text_delta", text=happened.text)
            case CallBegan():
                yield from self._begin("tool_use", id=happened.id, name=happened.name, input={})
            case CallGoesOn():
                yield self._delta("input_json_delta", partial_json=happened.text)
            case Ended():
                yield from self._end()
                yield _event("message_delta", delta=_end(happened), usage=_usage(answer.usage))
                yield _event("message_stop")

    def _begin(self, kind: str, **block: Any) -> Iterator[bytes]:
        yield from self._end()
        self._open = kind
        self._block += 1
        yield _event("content_block_start", index=self._block, content_block={"type": kind, **block})

    def _delta(self, kind: str, **delta: str) -> bytes:
        return _event("content_block_delta", index=self._block, delta={"type": kind, **delta})

    def _end(self) -> Iterator[bytes]:
        if self._open is not None:
            self._open = None
            yield _event("content_block_stop", index=self._block)


def _event(kind: str, **more: Any) -> bytes:
    return event(kind, {"type": kind, **more})


def _end(ended: Ended) -> dict[str, str | None]:
    if ended.stop is not None:
        return {"stop_reason": "stop_sequence", "stop_sequence": ended.stop}
    reasons = {"stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use"}
    return {"stop_reason": reasons[ended.reason], "stop_sequence": None}


def _usage(usage: Usage) -> dict[str, int]:
    """What peers still knew of a prompt is not part of its tokens, as Anthropic counts."""
    return {
        "input_tokens": usage.prompt - usage.cached,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": usage.cached,
        "output_tokens": usage.completion,
    }


def _tool_use(call: ToolCall) -> dict[str, Any]:
    """Arguments that are no object, which only a model without a grammar can write, are told as they are."""
    try:
        given = json.loads(call.arguments)
    except ValueError:
        given = None
    if not isinstance(given, dict):
        given = {"INVALID_JSON": call.arguments}
    return {"type": "tool_use", "id": call.id, "name": call.name, "input": given}
