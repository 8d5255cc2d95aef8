"""One request for an answer, from being let in to its last byte: everything it starts ends with it, or when its client
goes away."""

import asyncio
from collections.abc import Awaitable, Callable

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from clients.gateway.admission import Ticket
from clients.gateway.gateway import gateway_of

__all__ = ["answering"]

Handler = Callable[[Request, Ticket], Awaitable[Response]]


def answering(handler: Handler) -> ASGIApp:
    """An endpoint for a `Route`. The handler runs once the request's body has been read and it was let in; the ticket
    lasts until the whole response is sent. When the client goes away before that, in the queue or later, the handler
    (or the body of its response) is cancelled where it waits."""
    return _Answering(handler)


class _Answering:
    """No function, because a Route would take that for a handler."""

    def __init__(self, handler: Handler) -> None:
        self._handler = handler

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        await request.body()  # from here on `receive` tells of nothing but the client's leaving
        work = asyncio.create_task(self._answer(request, send))
        left = asyncio.create_task(_left(receive))
        try:
            await asyncio.wait({work, left}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            left.cancel()
            if gone := not work.done():
                work.cancel()
            await asyncio.wait({work})
        if not gone:
            work.result()

    async def _answer(self, request: Request, send: Send) -> None:
        async with gateway_of(request).admission.admit(request) as ticket:
            response = await self._handler(request, ticket)
            try:
                await response(request.scope, _never, send)
            finally:
                if isinstance(response, StreamingResponse) and hasattr(response.body_iterator, "aclose"):
                    await response.body_iterator.aclose()


async def _left(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _never() -> Message:
    return await asyncio.Future()
