"""`/v1/chat/completions`."""

from collections.abc import AsyncGenerator, Iterator, Sequence
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from clients.completion.generation import Began, Token
from clients.gateway.admission import Ticket
from clients.gateway.answering import answering
from clients.gateway.chat_request import ChatRequest, read_chat
from clients.gateway.chatting import CallBegan, CallGoesOn, ChatAnswer, Ended, Text, WholeAnswer
from clients.gateway.conversation import ToolCall
from clients.gateway.fields import read_body
from clients.gateway.gateway import gateway_of
from clients.gateway.sse import DONE, SwarmComments, data, stream
from clients.gateway.stamp import Stamp, usage_body
from clients.gateway.token_texts import LEAST_LOGPROB, TokenTexts

__all__ = ["routes"]

CHUNK = "chat.completion.chunk"


def routes() -> list[Route]:
    return [Route("/v1/chat/completions", answering(create), methods=["POST"])]


async def create(request: Request, ticket: Ticket) -> Response:
    fields = await read_body(request)
    served = gateway_of(request).models.get(fields.need_text("model"))
    asked = read_chat(fields, served)
    answer = await ChatAnswer.to(request, ticket, served, asked.chat)
    reply = _Reply(asked, Stamp.new("chatcmpl", served), TokenTexts(served.tokenizer))
    if asked.stream:
        return await stream(reply.lines(answer), failed=lambda error: data(error.body()))
    wholes = await answer.collect(asked.chat.choices)
    choices = [reply.choice(index, whole) for index, whole in enumerate(wholes)]
    return JSONResponse(reply.stamp.body("chat.completion", choices=choices, usage=usage_body(answer.usage)))


class _Reply:
    """The JSON of one answer."""

    def __init__(self, asked: ChatRequest, stamp: Stamp, texts: TokenTexts) -> None:
        self.stamp = stamp
        self._asked = asked
        self._texts = texts

    def choice(self, index: int, whole: WholeAnswer) -> dict[str, Any]:
        message: dict[str, Any] = {"role": "assistant", "content": whole.text, "refusal": None}
        if whole.calls:
            message |= {"content": whole.text or None, "tool_calls": list(map(_call, whole.calls))}
        logprobs = self._logprobs(whole.tokens)
        return {"index": index, "message": message, "logprobs": logprobs, "finish_reason": whole.reason}

    async def lines(self, answer: ChatAnswer) -> AsyncGenerator[bytes, None]:
        comments = SwarmComments()
        begun: set[int] = set()
        async for event in answer:
            if isinstance(event, Text | CallBegan | CallGoesOn | Ended):
                for line in self._of_choice(event, begun):
                    yield line
            elif not isinstance(event, Began) and (line := comments.of(event)):
                yield line
        if self._asked.usage:
            yield data(self.stamp.body(CHUNK, choices=[], usage=usage_body(answer.usage)))
        yield DONE

    def _of_choice(self, event: Text | CallBegan | CallGoesOn | Ended, begun: set[int]) -> Iterator[bytes]:
        if event.choice not in begun:
            begun.add(event.choice)
            yield self._chunk(event.choice, {"role": "assistant", "content": ""})
        match event:
            case Text():
                yield self._chunk(event.choice, {"content": event.text}, tokens=event.tokens)
            case CallBegan():
                call = _call(ToolCall(event.id, event.name, ""))
                yield self._chunk(event.choice, {"tool_calls": [{"index": event.index, **call}]})
            case CallGoesOn():
                more = {"index": event.index, "function": {"arguments": event.text}}
                yield self._chunk(event.choice, {"tool_calls": [more]})
            case Ended():
                yield self._chunk(event.choice, {}, reason=event.reason)

    def _chunk(
        self, index: int, delta: dict[str, Any], *, tokens: Sequence[Token] = (), reason: str | None = None
    ) -> bytes:
        logprobs = self._logprobs(tokens) if tokens else None
        choice = {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": reason}
        usage = {"usage": None} if self._asked.usage else {}
        return data(self.stamp.body(CHUNK, choices=[choice], **usage))

    def _logprobs(self, tokens: Sequence[Token]) -> dict[str, Any] | None:
        if self._asked.chat.logprobs is None:
            return None
        content = [
            self._scored(token.id, token.logprob)
            | {"top_logprobs": [self._scored(id_, logprob) for id_, logprob in token.top]}
            for token in tokens
        ]
        return {"content": content, "refusal": None}

    def _scored(self, token: int, logprob: float | None) -> dict[str, Any]:
        known = LEAST_LOGPROB if logprob is None else max(logprob, LEAST_LOGPROB)
        return {"token": self._texts.text(token), "logprob": known, "bytes": list(self._texts.of(token))}


def _call(call: ToolCall) -> dict[str, Any]:
    return {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
