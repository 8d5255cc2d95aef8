"""How much of the gateway one user may have."""

from collections.abc import Callable
from dataclasses import dataclass

from clients.gateway.errors import ApiError

__all__ = ["Bucket", "Limits", "User"]

MINUTE = 60.0  # seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """None: as much as there is."""

    requests: int | None = None  # a minute
    tokens: int | None = None  # a minute, of prompts and answers
    concurrent: int | None = None  # requests at once, those that wait among them


class Bucket:
    """`per_minute` units a minute, and as many at once. What it lacks it tells in seconds."""

    def __init__(self, per_minute: float, clock: Callable[[], float]) -> None:
        self._rate = per_minute / MINUTE
        self._most = self._level = float(per_minute)
        self._clock = clock
        self._at = clock()

    def wait(self, units: float) -> float:
        """Seconds until `units` can be taken; 0 now."""
        self._fill()
        return max(0.0, (units - self._level) / self._rate)

    def take(self, units: float) -> None:
        """Also more than is there: then what follows has to wait."""
        self._fill()
        self._level -= units

    def _fill(self) -> None:
        now = self._clock()
        self._level = min(self._most, self._level + (now - self._at) * self._rate)
        self._at = now


class User:
    """Whoever holds one key; all who need none are one user together. Belongs to one event loop."""

    def __init__(self, name: str, limits: Limits, clock: Callable[[], float]) -> None:
        self.name = name
        self.limits = limits
        self.inside = 0  # requests that run or wait
        self._requests = None if limits.requests is None else Bucket(limits.requests, clock)
        self._tokens = None if limits.tokens is None else Bucket(limits.tokens, clock)

    def enter(self) -> None:
        """One more request. Raises ApiError 429 when that is too much; otherwise `leave` has to follow."""
        if self.limits.concurrent is not None and self.inside >= self.limits.concurrent:
            raise _too_many(f"{self.limits.concurrent} requests at once", 1.0)
        if self._tokens is not None and (wait := self._tokens.wait(1)):
            raise _too_many(f"{self.limits.tokens} tokens a minute", wait)
        if self._requests is not None:
            if wait := self._requests.wait(1):
                raise _too_many(f"{self.limits.requests} requests a minute", wait)
            self._requests.take(1)
        self.inside += 1

    def leave(self) -> None:
        self.inside -= 1

    def spend(self, tokens: int) -> None:
        """An answer that has begun is not cut short for its tokens; the next request waits for them."""
        if self._tokens is not None:
            self._tokens.take(tokens)


def _too_many(limit: str, wait: float) -> ApiError:
    return ApiError(429, f"This key is good for {limit}; try again later", code="rate_limit_exceeded", retry_after=wait)
