"""`/v1/models`: what is served here, and what each model's swarm can do now. Answered from memory, at once."""

from collections import Counter
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from clients.gateway.gateway import gateway_of
from clients.gateway.served import NAME_LENGTH, Served
from swarm.record import PeerState
from swarm.terminal import plain

__all__ = ["describe", "routes"]


def routes() -> list[Route]:
    return [Route("/v1/models", models), Route("/v1/models/{name:path}", model)]


async def models(request: Request) -> JSONResponse:
    return JSONResponse({"object": "list", "data": [describe(served) for served in gateway_of(request).models]})


async def model(request: Request) -> JSONResponse:
    return JSONResponse(describe(gateway_of(request).models.get(request.path_params["name"])))


def describe(served: Served) -> dict[str, Any]:
    """OpenAI's model object, and in "swarm" what is ours. There "replication" is how many peers hold the block that the
    fewest hold, and "precisions" counts the peers that compute in each."""
    view, trouble = served.view, served.trouble()
    online = [record for record in view.peers if record.state is PeerState.ONLINE]
    replication = view.replication()
    return {
        "id": served.name,
        "object": "model",
        "created": served.created,
        "owned_by": "swarm",
        "parent": None if served.adapter is None else served.base,  # as vLLM tells of adapters
        "swarm": {
            "ready": trouble is None,
            "reason": trouble,
            "blocks": view.num_blocks,
            "blocks_covered": sum(count > 0 for count in replication),
            "replication": min(replication, default=0),
            "peers": len(online),
            "context_length": served.max_positions,
            "precisions": dict(Counter(plain(record.precision, NAME_LENGTH) for record in online)),
            "aliases": list(served.aliases),
        },
    }
