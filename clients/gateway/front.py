"""What every request passes first and last: who may come in, what went wrong, one line in the log."""

import asyncio
import logging
import secrets
import time
from dataclasses import dataclass

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from clients.gateway.errors import ApiError, response_to
from clients.gateway.gateway import Gateway

__all__ = ["Front"]

_log = logging.getLogger(__name__)

API = "/v1"  # what needs a key, where there are keys
QUIET = frozenset({"/health", "/ready", "/metrics", "/swarm.json"})  # machines and pages ask for these all day
SHOWN = 200  # characters of a path
LEAVING_SECONDS = 5.0  # in which a gateway is started again
CLIENT_LEFT = 499  # in the log and in metrics only: nobody is there to be told


@dataclass(slots=True)
class _Exchange:
    """One request and what became of it."""

    id: str
    status: int | None = None


class Front:
    """An ASGI middleware. It leaves the user in `scope["user"]` and the request's id in `scope["id"]`."""

    def __init__(self, app: ASGIApp, gateway: Gateway, paths: frozenset[str]) -> None:
        """`paths`: those of routes, by which requests are counted."""
        self._app = app
        self._gateway = gateway
        self._paths = paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        begun = time.monotonic()
        exchange = _Exchange(secrets.token_hex(8))
        scope["id"] = exchange.id

        async def noted(message: Message) -> None:
            if message["type"] == "http.response.start":
                exchange.status = message["status"]
                message = {**message, "headers": [*message["headers"], (b"x-request-id", exchange.id.encode())]}
            await send(message)

        try:
            await self._pass(scope, receive, noted)
        except asyncio.CancelledError:  # the server ends, and this task with it
            if exchange.status is None:
                leaving = ApiError(503, "The gateway is shutting down; try again", retry_after=LEAVING_SECONDS)
                await response_to(leaving, scope["path"])(scope, receive, noted)
        except Exception as error:
            await self._broken(error, exchange, scope, receive, noted)
        finally:
            self._note(exchange, scope, time.monotonic() - begun)

    async def _pass(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = Headers(scope=scope)
        try:
            self._gateway.policy.check(headers)
            if scope["path"].startswith(API) and scope["method"] != "OPTIONS":
                scope["user"] = self._gateway.keys.user(headers)
        except ApiError as error:
            await response_to(error, scope["path"])(scope, receive, send)
        else:
            await self._app(scope, receive, send)

    async def _broken(self, error: Exception, exchange: _Exchange, scope: Scope, receive: Receive, send: Send) -> None:
        """A fault of ours: the client gets a number, and whoever runs the gateway finds it in the log. An answer that
        has begun is cut off, which its client notices."""
        _log.error("request %s failed: %s %s", exchange.id, scope["method"], scope["path"][:SHOWN], exc_info=error)
        if exchange.status is None:
            told = ApiError(500, f"The gateway failed; its log tells why under {exchange.id}", code="internal_error")
            await response_to(told, scope["path"])(scope, receive, send)

    def _note(self, exchange: _Exchange, scope: Scope, seconds: float) -> None:
        path, status = scope["path"], exchange.status or CLIENT_LEFT
        self._gateway.metrics.http(path if path in self._paths else "other", status)
        fields = {
            "method": scope["method"],
            "path": path[:SHOWN],
            "status": status,
            "ms": round(seconds * 1000, 1),
            "key": scope["user"].name if "user" in scope and self._gateway.keys.needed else None,
            "id": exchange.id,
        }
        level = logging.DEBUG if path in QUIET else logging.INFO
        told = {name: value for name, value in fields.items() if value is not None}
        _log.log(level, "request", extra={"fields": told})
