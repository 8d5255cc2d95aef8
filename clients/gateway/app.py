"""The application: every module's routes, and what they have in common."""

import logging
import secrets

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import BaseRoute

from clients.gateway import chat, embeddings, health, models_api
from clients.gateway.errors import ApiError, from_swarm, response_to
from clients.gateway.gateway import Gateway
from swarm.errors import SwarmError

__all__ = ["build"]

_log = logging.getLogger(__name__)

MODULES = (health, models_api, chat, embeddings)  # each gives its routes; a line a module


def build(gateway: Gateway) -> Starlette:
    """Everything under one roof; `gateway` is in its state."""
    routes: list[BaseRoute] = [route for module in MODULES for route in module.routes()]
    app = Starlette(
        routes=routes,
        exception_handlers={HTTPException: _refused, SwarmError: _failed, Exception: _broken},  # type: ignore[dict-item]
    )
    app.state.gateway = gateway
    return app


async def _refused(request: Request, error: HTTPException) -> Response:
    """404, 405 and the like: an object for programs, a line for people."""
    path = request.url.path
    if not path.startswith("/v1"):
        return PlainTextResponse(f"{error.detail}\n", error.status_code, headers=error.headers)
    said = {404: f"There is nothing at {path}", 405: f"{request.method} is not what {path} takes"}
    told = ApiError(error.status_code, said.get(error.status_code, error.detail), type="invalid_request_error")
    return response_to(told, path, error.headers)


async def _failed(request: Request, error: SwarmError) -> Response:
    return response_to(from_swarm(error), request.url.path)


async def _broken(request: Request, error: Exception) -> Response:
    """A fault of ours: the client gets a number, whoever runs the gateway finds it in the log."""
    number = secrets.token_hex(6)
    _log.error("error %s: %s %s failed", number, request.method, request.url.path, exc_info=error)
    told = ApiError(500, f"The gateway failed; its log tells why under {number}", code="internal_error")
    return response_to(told, request.url.path)
