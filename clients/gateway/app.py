"""The application: every module's routes, and what they have in common."""

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import BaseRoute, Route

from clients.gateway import (
    chat,
    completions,
    embeddings,
    health,
    messages,
    metrics,
    models_api,
    page,
    responses,
    swarm_view,
)
from clients.gateway.errors import ApiError, from_swarm, response_to
from clients.gateway.front import Front
from clients.gateway.gateway import Gateway
from swarm.errors import SwarmError

__all__ = ["build"]

# each gives its routes
MODULES = (page, swarm_view, health, metrics, models_api, chat, completions, responses, messages, embeddings)


def build(gateway: Gateway) -> Starlette:
    """Everything under one roof; `gateway` is in its state."""
    routes: list[BaseRoute] = [route for module in MODULES for route in module.routes()]
    paths = frozenset(route.path for route in routes if isinstance(route, Route) and not route.param_convertors)
    app = Starlette(
        routes=routes,
        middleware=[Middleware(Front, gateway=gateway, paths=paths), *_cors(gateway.policy.origins)],
        exception_handlers={HTTPException: _refused, SwarmError: _failed},  # type: ignore[dict-item]
    )
    app.state.gateway = gateway
    return app


def _cors(origins: tuple[str, ...]) -> list[Middleware]:
    if not origins:
        return []
    shown = ("retry-after", "x-request-id")
    return [
        Middleware(
            CORSMiddleware,
            allow_origins=origins,
            allow_methods=("GET", "POST"),
            allow_headers=("*",),
            expose_headers=shown,
        )
    ]


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
