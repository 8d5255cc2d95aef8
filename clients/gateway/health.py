"""How the gateway is: alive, ready to answer, which version."""

from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from clients.gateway.gateway import gateway_of
from swarm.version import __version__

__all__ = ["routes"]


def routes() -> list[Route]:
    return [Route("/health", health), Route("/ready", ready), Route("/version", version)]


async def health(_: Request) -> JSONResponse:
    """This process is alive; says nothing of swarms."""
    return JSONResponse({"status": "ok"})


async def ready(request: Request) -> JSONResponse:
    """Whether every model can answer now; 503 and the reasons when one can't."""
    troubles = {served.name: served.trouble() for served in gateway_of(request).models if not served.hosted}
    all_ready = not any(troubles.values())
    models = [{"id": name, "ready": trouble is None, "reason": trouble} for name, trouble in troubles.items()]
    return JSONResponse({"ready": all_ready, "models": models}, 200 if all_ready else 503)


async def version(_: Request) -> JSONResponse:
    return JSONResponse({"version": __version__})
