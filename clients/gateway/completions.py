"""`/v1/completions`: text that goes on from a text."""

import asyncio
import codecs
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import aclosing
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from clients.chat import Tokenizer
from clients.completion.generation import Began, Token
from clients.gateway.admission import Ticket
from clients.gateway.answer import Answer, Done, Piece, Usage, Whole, collect
from clients.gateway.answering import answering
from clients.gateway.asking import ask, check_length
from clients.gateway.completion_request import CompletionRequest, Prompt, read_completion
from clients.gateway.fields import read_body, refusal
from clients.gateway.gateway import gateway_of
from clients.gateway.sse import DONE, SwarmComments, data, stream
from clients.gateway.stamp import Stamp, usage_body
from clients.gateway.together import together
from clients.gateway.token_texts import LEAST_LOGPROB, TokenTexts

__all__ = ["routes"]

KIND = "text_completion"


def routes() -> list[Route]:
    return [Route("/v1/completions", answering(create), methods=["POST"])]


async def create(request: Request, ticket: Ticket) -> Response:
    fields = await read_body(request)
    served = gateway_of(request).models.get(fields.need_text("model"))
    asked = read_completion(fields, served)
    check_length(served, sum(len(prompt) for prompt in asked.prompts), "prompt")
    prompts = await asyncio.to_thread(_encode, served.tokenizer, asked.prompts)
    answers = [
        ask(
            ticket,
            served,
            prompt,
            param="prompt",
            limit=asked.limit,
            sampling=asked.sampling,
            stops=asked.stops,
            choices=asked.choices,
            logprobs=asked.logprobs,
            goes_on=True,
        )
        for prompt in prompts
    ]
    echoes = [_text(served.tokenizer, prompt) if asked.echo else "" for prompt in asked.prompts]
    reply = _Reply(asked, Stamp.new("cmpl", served), TokenTexts(served.tokenizer), echoes)
    if asked.stream:
        return await stream(reply.lines(answers), failed=lambda error: data(error.body()))
    wholes = await collect(together(answers, asked.choices), len(answers) * asked.choices)
    choices = [reply.choice(index, whole) for index, whole in enumerate(wholes)]
    return JSONResponse(reply.stamp.body(KIND, choices=choices, usage=_usage(answers)))


def _encode(tokenizer: Tokenizer, prompts: Sequence[Prompt]) -> list[tuple[int, ...]]:
    encoded = [tuple(tokenizer(prompt)["input_ids"]) if isinstance(prompt, str) else prompt for prompt in prompts]
    if not all(encoded):
        raise refusal("'prompt' is empty: there is nothing to go on from", "prompt")
    return encoded


def _text(tokenizer: Tokenizer, prompt: Prompt) -> str:
    return prompt if isinstance(prompt, str) else str(tokenizer.decode(prompt))


def _usage(answers: Sequence[Answer]) -> dict[str, Any]:
    return usage_body(sum((answer.usage for answer in answers), Usage(0, 0, 0)))


class _Reply:
    """The JSON of the answers to all prompts of a request."""

    def __init__(self, asked: CompletionRequest, stamp: Stamp, texts: TokenTexts, echoes: Sequence[str]) -> None:
        self.stamp = stamp
        self._asked = asked
        self._echoes = echoes
        count = len(echoes) * asked.choices
        self._scores = None if asked.logprobs is None else [_Scores(texts) for _ in range(count)]

    def choice(self, index: int, whole: Whole) -> dict[str, Any]:
        return self._choice(index, self._echo(index) + whole.text, whole.tokens, whole.reason)

    async def lines(self, answers: Sequence[Answer]) -> AsyncGenerator[bytes, None]:
        comments = SwarmComments()
        begun: set[int] = set()
        async with aclosing(together(answers, self._asked.choices)) as events:
            async for event in events:
                if isinstance(event, Piece | Done):
                    for line in self._of_choice(event, begun):
                        yield line
                elif not isinstance(event, Began) and (line := comments.of(event)):
                    yield line
        if self._asked.usage:
            yield data(self.stamp.body(KIND, choices=[], usage=_usage(answers)))
        yield DONE

    def _of_choice(self, event: Piece | Done, begun: set[int]) -> Iterator[bytes]:
        if event.choice not in begun and (echo := self._echo(event.choice)):
            yield self._chunk(event.choice, echo)
        begun.add(event.choice)
        if isinstance(event, Piece):
            yield self._chunk(event.choice, event.text, event.tokens)
        else:
            yield self._chunk(event.choice, "", reason=event.reason)

    def _echo(self, index: int) -> str:
        return self._echoes[index // self._asked.choices]

    def _chunk(self, index: int, text: str, tokens: Sequence[Token] = (), reason: str | None = None) -> bytes:
        usage = {"usage": None} if self._asked.usage else {}
        return data(self.stamp.body(KIND, choices=[self._choice(index, text, tokens, reason)], **usage))

    def _choice(self, index: int, text: str, tokens: Sequence[Token], reason: str | None) -> dict[str, Any]:
        logprobs = None if self._scores is None else self._scores[index].of(tokens)
        return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": reason}


class _Scores:
    """The log probabilities of one choice, in the older of OpenAI's two shapes."""

    def __init__(self, texts: TokenTexts) -> None:
        self._texts = texts
        self._decoder = codecs.getincrementaldecoder("utf-8")("ignore")
        self._offset = 0  # characters of the text before the next token

    def of(self, tokens: Sequence[Token]) -> dict[str, Any]:
        """Those of the choice's next `tokens`."""
        offsets: list[int] = []
        for token in tokens:
            offsets.append(self._offset)
            self._offset += len(self._decoder.decode(self._texts.of(token.id)))
        return {
            "tokens": [self._texts.text(token.id) for token in tokens],
            "token_logprobs": [_finite(token.logprob) for token in tokens],
            "top_logprobs": [{self._texts.text(id_): _finite(value) for id_, value in token.top} for token in tokens],
            "text_offset": offsets,
        }


def _finite(logprob: float | None) -> float:
    return LEAST_LOGPROB if logprob is None else max(logprob, LEAST_LOGPROB)
