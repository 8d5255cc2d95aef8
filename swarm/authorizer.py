"""Passes in the DHT's own calls: hivemind lets an authorizer sign requests and judge them."""

import time
from collections.abc import Callable
from typing import Any

from hivemind.utils.auth import AuthorizerBase

from swarm.door import Door
from swarm.errors import AccessError
from swarm.identity import Identity, verify
from swarm.ids import PeerId
from swarm.invites import Role

__all__ = ["Authorizer"]

_FRESH = 60.0  # seconds: what somebody has sent earlier can't be sent again by others
_CONTEXT = b"swarm/1/dht\0"


class Authorizer(AuthorizerBase):  # type: ignore[misc]  # hivemind is untyped
    """Members' requests alone are answered. Answers are not signed: what is in them are records, which are."""

    def __init__(self, door: Door, identity: Identity, clock: Callable[[], float] = time.time) -> None:
        self._door = door
        self._identity = identity
        self._clock = clock

    async def sign_request(self, request: Any, _: object) -> None:
        auth = request.auth
        auth.client_access_token.username = self._identity.peer_id
        auth.client_access_token.signature = self._door.own
        auth.time = self._clock()
        auth.signature = self._identity.sign(_CONTEXT + request.SerializeToString(deterministic=True))

    async def validate_request(self, request: Any) -> bool:
        """Raises AccessError, which is told to who asks."""
        auth = request.auth
        peer, signature = PeerId(auth.client_access_token.username), auth.signature
        self._door.admit(peer, auth.client_access_token.signature, Role.USE)
        auth.signature = b""
        if not verify(peer, _CONTEXT + request.SerializeToString(deterministic=True), signature):
            raise AccessError("a request was not signed by who is said to have sent it")
        if abs(auth.time - self._clock()) > _FRESH:
            raise AccessError(f"a request was signed more than {_FRESH:g} s ago, or a clock is wrong")
        return True

    async def sign_response(self, response: Any, request: Any) -> None:
        pass

    async def validate_response(self, response: Any, request: Any) -> bool:
        return True
