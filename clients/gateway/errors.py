"""What is told to a client of the API when a request can't be answered, in the shape that its library expects."""

import math
from collections.abc import Mapping
from typing import Any

from starlette.responses import JSONResponse

from swarm.errors import Busy, HopError, MissingBlocks, NetworkError, ProtocolError, SwarmError, UsageError

__all__ = ["ApiError", "body_of", "from_swarm", "response_to"]

ANTHROPIC_PATHS = "/v1/messages"
NETWORK_SECONDS = 5.0  # after which a swarm that could not be reached, or lacked a block, is worth another try

_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
}
_ANTHROPIC_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    405: "invalid_request_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
}


class ApiError(SwarmError):
    """A request that is answered by an error. `type` by default follows from `status`; `param` is the field that is to
    blame; `retry_after` in seconds."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        type: str | None = None,  # noqa: A002 (the API's name)
        code: str | None = None,
        param: str | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.type = type or _TYPES.get(status, "invalid_request_error" if status < 500 else "server_error")
        self.code = code
        self.param = param
        self.retry_after = retry_after

    @property
    def headers(self) -> dict[str, str]:
        """Those that go with it. Whole seconds, and one at least: clients take zero for "at once"."""
        if self.retry_after is None:
            return {}
        return {"Retry-After": str(max(1, math.ceil(self.retry_after)))}

    def body(self) -> dict[str, Any]:
        """OpenAI's error object; in the middle of a stream too."""
        return {"error": {"message": self.message, "type": self.type, "param": self.param, "code": self.code}}

    def anthropic_body(self) -> dict[str, Any]:
        """Anthropic's error object."""
        kind = _ANTHROPIC_TYPES.get(self.status, "api_error" if self.status >= 500 else "invalid_request_error")
        return {"type": "error", "error": {"type": kind, "message": self.message}}


def from_swarm(error: SwarmError) -> ApiError:
    """What to tell a client when a request ended with `error`."""
    message = str(error)
    match error:
        case ApiError():
            return error
        case UsageError():
            return ApiError(400, message)
        case Busy():
            return ApiError(503, message, type="overloaded_error", code="busy", retry_after=error.retry_after)
        case MissingBlocks():
            return ApiError(503, message, code="missing_blocks", retry_after=NETWORK_SECONDS)
        case NetworkError() | HopError() | ProtocolError():
            return ApiError(503, message, code="swarm_unavailable", retry_after=NETWORK_SECONDS)
    return ApiError(500, message)


def body_of(error: ApiError, path: str) -> Mapping[str, Any]:
    """The JSON object that clients of `path` understand."""
    return error.anthropic_body() if path.startswith(ANTHROPIC_PATHS) else error.body()


def response_to(error: ApiError, path: str, headers: Mapping[str, str] | None = None) -> JSONResponse:
    """The whole answer."""
    return JSONResponse(body_of(error, path), error.status, headers={**(headers or {}), **error.headers})
