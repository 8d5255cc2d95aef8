"""Peers (or links between two of them) that failed are left alone for a while, longer each time, and forgiven."""

import math
from collections.abc import Callable, Hashable
from dataclasses import dataclass, replace
from typing import Generic, TypeVar

__all__ = ["Backoff"]

K = TypeVar("K", bound=Hashable)


@dataclass(frozen=True, slots=True)
class _Failures:
    count: int = 0
    at: float = -math.inf  # when the last one was
    wait: float = 0.0  # that it costs
    rests: float = -math.inf  # until when it wants to be left alone

    @property
    def until(self) -> float:
        return max(self.at + self.wait, self.rests)


class Backoff(Generic[K]):
    """Whom to avoid, and until when. One failure costs `base` seconds, each further one in a row doubles it up to
    `ceiling`; a success, or `ceiling` seconds of quiet after the time has passed, forgives everything. Whoever fails
    while it is avoided fails no second time: many may notice one failure."""

    def __init__(self, clock: Callable[[], float], *, base: float = 2.0, ceiling: float = 120.0) -> None:
        self._clock = clock
        self._base = base
        self._ceiling = ceiling
        self._failed: dict[K, _Failures] = {}

    def fail(self, peer: K) -> None:
        now = self._clock()
        known = self._failed.get(peer, _Failures())
        if now >= known.until + self._ceiling:
            known = _Failures()
        again = now >= known.at + known.wait
        count = known.count + again
        wait = min(self._ceiling, self._base * 2.0 ** min(count - 1, 30)) if again else known.wait
        self._failed[peer] = replace(known, count=count, at=now, wait=wait)

    def rest(self, peer: K, seconds: float) -> None:
        """Leave a peer alone that asked for it; this counts as no failure."""
        known = self._failed.get(peer, _Failures())
        until = self._clock() + min(seconds, self._ceiling)
        self._failed[peer] = replace(known, rests=max(until, known.rests))

    def forgive(self, peer: K) -> None:
        self._failed.pop(peer, None)

    def failures(self, peer: K) -> int:
        """In a row, so far."""
        known = self._failed.get(peer)
        return known.count if known else 0

    def avoided(self, most: float = math.inf) -> frozenset[K]:
        """The peers to leave alone now; `most`: seconds after a failure at which its wait counts as over."""
        now = self._clock()
        self._failed = {peer: f for peer, f in self._failed.items() if now < f.until + self._ceiling}
        return frozenset(peer for peer, f in self._failed.items() if now < f.rests or now < f.at + min(f.wait, most))

    def next_release(self) -> float | None:
        """Seconds until the first avoided peer may be asked again; None when nobody is avoided."""
        now = self._clock()
        waits = [failures.until - now for failures in self._failed.values() if now < failures.until]
        return min(waits, default=None)
