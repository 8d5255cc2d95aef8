"""Several answers as one: the choices of all of them, numbered through."""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from dataclasses import replace

from clients.gateway.answer import Answer, AnswerEvent, Done, Piece

__all__ = ["together"]


async def together(answers: Sequence[Answer], choices: int) -> AsyncGenerator[AnswerEvent, None]:
    """What comes of `answers`, of so many `choices` each, in the order in which it comes. The first that fails fails
    all."""
    coming = {asyncio.ensure_future(anext(answer)): index for index, answer in enumerate(answers)}
    try:
        while coming:
            done, _ = await asyncio.wait(coming, return_when=asyncio.FIRST_COMPLETED)
            for future in done:
                index = coming.pop(future)
                try:
                    event = future.result()
                except StopAsyncIteration:
                    continue
                coming[asyncio.ensure_future(anext(answers[index]))] = index
                yield _numbered(event, index * choices)
    finally:
        for future in coming:
            future.cancel()
        if coming:
            await asyncio.wait(coming)


def _numbered(event: AnswerEvent, first: int) -> AnswerEvent:
    return replace(event, choice=first + event.choice) if isinstance(event, Piece | Done) else event
