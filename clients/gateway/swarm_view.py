"""The swarm as the gateway sees it: `/swarm.json`, and `/swarm/events` for a page that stays open.

Both are open to whoever reaches the gateway, keys or not: they tell which peers, by the names they chose, hold which
blocks and how busy they are, as `swarm status` tells anyone who joins. They tell no addresses, no whole ids and
nothing of the gateway's users; and a page must be able to say what is missing before it has a key.

`/swarm.json` is `{"time": s, "models": [model…]}`, the models being those that this gateway serves. A model has

- "id": as requests name it; "model": as its peers do; "digest"; "num_blocks"
- "missing" and "weakest": spans [start, end) of blocks that no online peer holds, and of those that are slowest
- "replication": online peers on each block; "throughput": tokens a second that all streams together get
- "peers", by first block: "peer_id" (its end), "public_name", "state", "blocks" [start, end), "throughput" and
  "prefill" (tokens a second through its span), "cache_left" and "queue" (tokens), "precision", "version", "reason"
  (why these blocks), "announced" (when it last said so, s)

All times are Unix times. Names and reasons were chosen by strangers: made plain here, to be escaped where shown.
"""

import asyncio
import time
from collections.abc import AsyncGenerator
from contextlib import suppress
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from clients.drawing import model_as_json
from clients.gateway.errors import ApiError
from clients.gateway.gateway import Gateway, gateway_of
from clients.gateway.page import HEADERS
from clients.gateway.served import NAME_LENGTH, Models, Served
from clients.gateway.sse import data, stream
from routing.blockmap import block_map
from swarm.terminal import plain

__all__ = ["Watching", "picture", "routes"]

MOST_WATCHERS = 256
LOOK_EVERY = 1.0  # seconds between two looks at views, which cost nothing: they are in memory
TEXT_LENGTH = 200  # characters of a reason


def picture(models: Models, now: float) -> dict[str, Any]:
    """One entry for each model that peers compute, under all `names` that it goes by here with its adapters."""
    return {"time": now, "models": [_model(served, models) for served in models if served.adapter is None]}


def _model(served: Served, models: Models) -> dict[str, Any]:
    view = served.view
    found = model_as_json(block_map(view))
    peers = [_public(peer, view.taken) for peer in found.pop("peers")]
    names = [one.name for one in models if one.base == served.name]
    return {"id": served.name, "names": names, **found, "model": plain(found["model"], TEXT_LENGTH), "peers": peers}


def _public(peer: dict[str, Any], taken: float) -> dict[str, Any]:
    return {
        **{key: value for key, value in peer.items() if key not in {"addresses", "age"}},
        "peer_id": peer["peer_id"][-8:],
        "public_name": plain(peer["public_name"], NAME_LENGTH),
        "precision": plain(peer["precision"], NAME_LENGTH),
        "version": plain(peer["version"], NAME_LENGTH),
        "reason": plain(peer["reason"], TEXT_LENGTH),
        "announced": round(taken - peer["age"], 3),
    }


class Watching:
    """Pages that watch, at most `most`; each is sent the whole picture whenever it has changed."""

    def __init__(self, most: int = MOST_WATCHERS) -> None:
        self._most = most
        self._watchers = 0

    async def events(self, request: Request) -> Response:
        if self._watchers >= self._most:
            raise ApiError(503, "Too many pages watch the swarm; look at /swarm.json", retry_after=30)
        gateway = gateway_of(request)
        response = await stream(self._lines(gateway), failed=lambda error: data(error.body()))
        response.headers.update(HEADERS)
        return response

    async def _lines(self, gateway: Gateway) -> AsyncGenerator[bytes, None]:
        self._watchers += 1
        try:
            shown: list[Any] | None = None
            while not gateway.leaving.is_set():
                now = picture(gateway.models, time.time())
                if now["models"] != shown:
                    shown = now["models"]
                    yield data(now)
                with suppress(TimeoutError):
                    async with asyncio.timeout(LOOK_EVERY):
                        await gateway.leaving.wait()
        finally:
            self._watchers -= 1


async def twin(request: Request) -> Response:
    found = picture(gateway_of(request).models, time.time())
    return JSONResponse(found, headers={**HEADERS, "Cache-Control": "no-store"})


def routes() -> list[Route]:
    return [Route("/swarm.json", twin), Route("/swarm/events", Watching().events)]
