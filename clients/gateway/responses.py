"""`/v1/responses`: OpenAI's API for answers that may be kept and gone on from."""

import secrets
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from clients.completion.generation import Began
from clients.gateway.admission import Ticket
from clients.gateway.answer import Usage
from clients.gateway.answering import answering
from clients.gateway.chatting import CallBegan, CallGoesOn, ChatAnswer, Ended, Text
from clients.gateway.errors import ApiError
from clients.gateway.fields import read_body
from clients.gateway.gateway import gateway_of
from clients.gateway.response_store import ResponseStore
from clients.gateway.responses_output import Event, Output
from clients.gateway.responses_request import ResponsesRequest, read_responses
from clients.gateway.served import Served
from clients.gateway.sse import SwarmComments, event, stream

__all__ = ["routes"]

PREVIOUS = "previous_response_id"


def routes() -> list[Route]:
    return [
        Route("/v1/responses", answering(create), methods=["POST"]),
        Route("/v1/responses/{id}", retrieve, methods=["GET"]),
        Route("/v1/responses/{id}", delete, methods=["DELETE"]),
    ]


async def create(request: Request, ticket: Ticket) -> Response:
    fields = await read_body(request)
    gateway = gateway_of(request)
    served = gateway.models.get(fields.need_text("model"))
    previous = fields.text(PREVIOUS)
    kept = gateway.responses.get(ticket.user.name, previous, param=PREVIOUS) if previous else None
    asked = read_responses(fields, served, kept.turns if kept else ())
    answer = await ChatAnswer.to(request, ticket, served, asked.chat)
    reply = _Reply(served, asked, answer, gateway.responses, ticket.user.name)
    if asked.stream:
        return await stream(reply.lines(), failed=reply.failed)
    async for _ in reply.events():
        pass
    return JSONResponse(reply.body())


async def retrieve(request: Request) -> Response:
    if request.query_params.get("stream", "false") == "true":
        raise ApiError(400, "a response that is kept can't be streamed again", param="stream")
    kept = gateway_of(request).responses.get(_user(request), request.path_params["id"])
    return JSONResponse(kept.body)


async def delete(request: Request) -> Response:
    id_ = request.path_params["id"]
    gateway_of(request).responses.remove(_user(request), id_)
    return JSONResponse({"id": id_, "object": "response.deleted", "deleted": True})


def _user(request: Request) -> str:
    user = request.scope.get("user") or gateway_of(request).keys.user(request.headers)
    return str(user.name)


class _Reply:
    """One response, on its way to be complete."""

    def __init__(
        self, served: Served, asked: ResponsesRequest, answer: ChatAnswer, store: ResponseStore, owner: str
    ) -> None:
        self._asked = asked
        self._answer = answer
        self._store = store
        self._owner = owner
        self._id = f"resp_{secrets.token_hex(16)}"
        self._created = int(time.time())
        self._model = served.name
        self._output = Output()
        self._status = "in_progress"
        self._sent = 0  # events

    def body(self) -> dict[str, Any]:
        ended = self._status != "in_progress"
        incomplete = {"reason": "max_output_tokens"} if self._status == "incomplete" else None
        return {
            "id": self._id,
            "object": "response",
            "created_at": self._created,
            "completed_at": int(time.time()) if ended else None,
            "status": self._status,
            "background": False,
            "error": None,
            "incomplete_details": incomplete,
            "model": self._model,
            "output": self._output.items if ended else [],
            "usage": _usage(self._answer.usage) if ended else None,
            **self._asked.told,
        }

    async def events(self) -> AsyncGenerator[Event | bytes, None]:
        """What to tell in a stream: events, and comments between them."""
        comments = SwarmComments()
        begun = False
        async for happened in self._answer:
            if isinstance(happened, Text | CallBegan | CallGoesOn | Ended):
                if not begun:
                    begun = True
                    yield {"type": "response.created", "response": self.body()}
                    yield {"type": "response.in_progress", "response": self.body()}
                for told in self._output.take(happened):
                    yield told
                if isinstance(happened, Ended):
                    yield self._end(happened)
            elif not isinstance(happened, Began) and (line := comments.of(happened)):
                yield line

    def _end(self, ended: Ended) -> Event:
        self._status = "incomplete" if ended.reason == "length" else "completed"
        if self._asked.store:
            turns = (*self._asked.earlier, *self._asked.said, self._output.turn)
            self._store.put(self._owner, turns, self.body())
        return {"type": f"response.{self._status}", "response": self.body()}

    async def lines(self) -> AsyncGenerator[bytes, None]:
        async with aclosing(self.events()) as events:
            async for told in events:
                yield told if isinstance(told, bytes) else self._line(told)

    def _line(self, told: Event) -> bytes:
        line = event(told["type"], {**told, "sequence_number": self._sent})
        self._sent += 1
        return line

    def failed(self, error: ApiError) -> bytes:
        """As OpenAI's servers tell it, and with the object that its clients raise an error for."""
        about = {"code": error.code, "message": error.message, "param": error.param}
        return self._line({"type": "error", **about, **error.body()})


def _usage(usage: Usage) -> dict[str, Any]:
    return {
        "input_tokens": usage.prompt,
        "input_tokens_details": {"cached_tokens": usage.cached, "cache_write_tokens": 0},
        "output_tokens": usage.completion,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": usage.prompt + usage.completion,
    }
