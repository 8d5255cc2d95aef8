"""`/v1/embeddings` is refused in a sentence: a model that generates has no embedding of a text that is right."""

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from clients.gateway.errors import ApiError

__all__ = ["routes"]


def routes() -> list[Route]:
    return [Route("/v1/embeddings", embeddings, methods=["POST"])]


async def embeddings(_: Request) -> Response:
    raise ApiError(
        404,
        "There are no embeddings here: the models of this gateway generate text, and none says how its hidden states "
        "become the embedding of one; ask a model that was trained for it",
        type="invalid_request_error",
        code="embeddings_not_served",
    )
