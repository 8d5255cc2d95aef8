"""Responses that are kept for a while, so that a next one can go on from them: in memory, and no more than fit."""

import json
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from clients.gateway.conversation import Turn
from clients.gateway.errors import ApiError

__all__ = ["KEPT_SECONDS", "Kept", "ResponseStore"]

KEPT_SECONDS = 6 * 3600.0
MOST_KEPT = 4096
MOST_BYTES = 64 << 20  # of all of them


@dataclass(frozen=True, slots=True)
class Kept:
    """`turns`: the chat up to and with this response, without instructions. `body`: its JSON."""

    owner: str  # name of the user whose it is
    turns: tuple[Turn, ...]
    body: Mapping[str, Any]
    at: float  # seconds, by the store's clock
    size: int  # bytes, roughly


class ResponseStore:
    """The oldest give way to new ones."""

    def __init__(
        self, *, most: int = MOST_KEPT, most_bytes: int = MOST_BYTES, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._most = most
        self._most_bytes = most_bytes
        self._clock = clock
        self._kept: OrderedDict[str, Kept] = OrderedDict()
        self._bytes = 0

    def put(self, owner: str, turns: tuple[Turn, ...], body: Mapping[str, Any]) -> None:
        size = len(json.dumps(body)) + sum(len(turn.text) + sum(len(c.arguments) for c in turn.calls) for turn in turns)
        self._kept[body["id"]] = Kept(owner, turns, body, self._clock(), size)
        self._bytes += size
        while len(self._kept) > self._most or self._bytes > self._most_bytes:
            self._forget(next(iter(self._kept)))

    def get(self, owner: str, id_: str, *, param: str | None = None) -> Kept:
        """Raises ApiError for one that is not there, or another's: 400 where the field `param` names it, else 404."""
        kept = self._kept.get(id_)
        if kept is not None and self._clock() - kept.at > KEPT_SECONDS:
            self._forget(id_)
            kept = None
        if kept is None or kept.owner != owner:
            hours = round(KEPT_SECONDS / 3600)
            message = f"No response '{id_[:80]}' is kept here: they are for {hours} hours at most, and as long as there"
            status, code = (400, "previous_response_not_found") if param else (404, "not_found")
            advice = " is room; send the whole conversation as 'input' instead" if param else " is room"
            raise ApiError(status, message + advice, type="invalid_request_error", code=code, param=param)
        return kept

    def remove(self, owner: str, id_: str) -> None:
        """Raises ApiError as `get`."""
        self.get(owner, id_)
        self._forget(id_)

    def _forget(self, id_: str) -> None:
        self._bytes -= self._kept.pop(id_).size
