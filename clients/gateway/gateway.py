"""What all requests to a gateway share."""

import asyncio
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from starlette.requests import HTTPConnection

from clients.gateway.dialect import Dialects
from clients.gateway.grammar import Grammars
from clients.gateway.keys import Keys
from clients.gateway.policy import Policy
from clients.gateway.response_store import ResponseStore
from clients.gateway.served import Models

if TYPE_CHECKING:  # these look at a gateway themselves
    from clients.gateway.admission import Admission
    from clients.gateway.metrics import Metrics

__all__ = ["Gateway", "gateway_of"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Gateway:
    """In `app.state.gateway`."""

    models: Models
    keys: Keys
    admission: "Admission"
    metrics: "Metrics"
    policy: Policy = field(default_factory=Policy)
    dialects: Dialects = field(default_factory=Dialects)
    grammars: Grammars = field(default_factory=Grammars)
    responses: ResponseStore = field(default_factory=ResponseStore)
    started: float = field(default_factory=time.time)  # Unix time
    leaving: asyncio.Event = field(default_factory=asyncio.Event)  # what has no end of its own ends now


def gateway_of(request: HTTPConnection) -> Gateway:
    gateway: Gateway = request.app.state.gateway
    return gateway
