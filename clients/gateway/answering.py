"""One request for an answer, from being let in to its last byte: everything it starts ends with it, or when its client
goes away."""

import asyncio
from collections.abc import Awaitable, Callable

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response, StreamingResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from clients.gateway.admission import Entry, Ticket
from clients.gateway.errors import ApiError
from clients.gateway.gateway import Gateway, gateway_of
from clients.gateway.policy import Policy

__all__ = ["answering"]

Handler = Callable[[Request, Ticket], Awaitable[Response]]


def answering(handler: Handler) -> ASGIApp:
    """An endpoint for a `Route`. The handler runs once the request's body has been read and its turn has come; the
    ticket lasts until the whole response is sent. When the client goes away before that, in the queue or later, the
    handler (or the body of its response) is cancelled where it waits."""
    return _Answering(handler)


class _Answering:
    """No function, because a Route would take that for a handler."""

    def __init__(self, handler: Handler) -> None:
        self._handler = handler

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        gateway = gateway_of(request)
        user = scope["user"] if "user" in scope else gateway.keys.user(request.headers)
        with gateway.admission.enter(user) as entry:  # before the body, so that only so many are kept
            try:
                body = await _read(request, gateway.policy)
            except ClientDisconnect:
                return
            request = Request(scope, _Replay(body))
            await _while_there(receive, self._answer(gateway, entry, request, _paced(send, gateway.policy)))

    async def _answer(self, gateway: Gateway, entry: Entry, request: Request, send: Send) -> None:
        async with gateway.admission.turn(entry) as ticket:
            response = await self._handler(request, ticket)
            try:
                await response(request.scope, request.receive, send)
            finally:
                if isinstance(response, StreamingResponse) and hasattr(response.body_iterator, "aclose"):
                    await response.body_iterator.aclose()


async def _read(request: Request, policy: Policy) -> bytes:
    """The whole body. Raises ApiError 413 and 408 for one that is too long or too slow."""
    too_long = ApiError(413, f"A request may have {policy.body_bytes} bytes at most", code="request_too_large")
    announced = request.headers.get("content-length", "")
    if announced.isdecimal() and int(announced) > policy.body_bytes:
        raise too_long
    body = bytearray()
    try:
        async with asyncio.timeout(policy.body_seconds):
            async for piece in request.stream():
                body += piece
                if len(body) > policy.body_bytes:
                    raise too_long
    except TimeoutError:
        raise ApiError(408, f"The request did not arrive within {policy.body_seconds:g} s") from None
    return bytes(body)


class _Replay:
    """An ASGI `receive` for a body that was read already, and a client that stays."""

    def __init__(self, body: bytes) -> None:
        self._body: bytes | None = body

    async def __call__(self) -> Message:
        if self._body is None:
            return await asyncio.Future()
        body, self._body = self._body, None
        return {"type": "http.request", "body": body, "more_body": False}


async def _while_there(receive: Receive, work: Awaitable[None]) -> None:
    """Do `work`; cancel it when the client goes away. It has ended when this returns."""
    working = asyncio.ensure_future(work)
    leaving = asyncio.create_task(_left(receive))
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        leaving.cancel()
        if gone := not working.done():
            working.cancel()
        await asyncio.wait({working})
    if not (gone or working.cancelled()):
        working.result()


async def _left(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _paced(send: Send, policy: Policy) -> Send:
    """A client that does not take what it asked for counts as gone."""

    async def paced(message: Message) -> None:
        try:
            async with asyncio.timeout(policy.send_seconds):
                await send(message)
        except TimeoutError:
            raise asyncio.CancelledError(f"nothing was taken for {policy.send_seconds:g} s") from None

    return paced
