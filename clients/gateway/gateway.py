"""What all requests to a gateway share."""

from dataclasses import dataclass

from starlette.requests import HTTPConnection

from clients.gateway.admission import Admission
from clients.gateway.served import Models

__all__ = ["Gateway", "gateway_of"]


@dataclass(frozen=True, slots=True)
class Gateway:
    """In `app.state.gateway`."""

    models: Models
    admission: Admission
    started: float  # Unix time


def gateway_of(request: HTTPConnection) -> Gateway:
    gateway: Gateway = request.app.state.gateway
    return gateway
