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
    good: float | None = None  # since when it does again what it failed to do

    @property
    def until(self) -> float:
        return max(self.at + self.wait, self.rests) if self.good is None else self.good

    def ends(self, most: float) -> float:
        """When its failure counts as over, at the latest `most` seconds after it."""
        return self.at + min(self.wait, most) if self.good is None else self.good


class Backoff(Generic[K]):
    """Whom to avoid, and until when. One failure costs `base` seconds, each further one in a row doubles it up to
    `ceiling`. A success ends the wait; one that lasts as long as the wait did, or `ceiling` seconds of quiet after it,
    forgives everything. So who fails again just after it came back is left alone for longer each time. Whoever fails
    while it is avoided fails no second time: many may notice one failure."""

    def __init__(self, clock: Callable[[], float], *, base: float = 2.0, ceiling: float = 120.0) -> None:
        self._clock = clock
        self._base = base
        self._ceiling = ceiling
        self._failed: dict[K, _Failures] = {}

    def fail(self, peer: K) -> None:
        now = self._clock()
        known = self._failed.get(peer, _Failures())
        if self._is_forgiven(known, now):
            known = _Failures()
        again = known.good is not None or now >= known.at + known.wait
        count = known.count + again
        wait = min(self._ceiling, self._base * 2.0 ** min(count - 1, 30)) if again else known.wait
        self._failed[peer] = replace(known, count=count, at=now, wait=wait, good=None)

    def rest(self, peer: K, seconds: float) -> None:
        """Leave a peer alone that asked for it; this counts as no failure."""
        known = self._failed.get(peer, _Failures())
        until = self._clock() + min(seconds, self._ceiling)
        self._failed[peer] = replace(known, rests=max(until, known.rests))

    def works(self, peer: K) -> None:
        """It does again what it failed to do."""
        known = self._failed.get(peer)
        if known is not None and known.good is None:
            self._failed[peer] = replace(known, rests=-math.inf, good=self._clock())

    def forgive(self, peer: K) -> None:
        self._failed.pop(peer, None)

    def failures(self, peer: K) -> int:
        """In a row, so far, and not forgiven."""
        known = self._failed.get(peer)
        return 0 if known is None or self._is_forgiven(known, self._clock()) else known.count

    def _is_forgiven(self, known: _Failures, now: float) -> bool:
        proved = known.good is not None and now >= known.good + known.wait
        return proved or now >= known.until + self._ceiling

    def avoided(self, most: float = math.inf) -> frozenset[K]:
        """The peers to leave alone now; `most`: seconds after a failure at which its wait counts as over."""
        now = self._clock()
        self._failed = {peer: f for peer, f in self._failed.items() if not self._is_forgiven(f, now)}
        return frozenset(peer for peer, f in self._failed.items() if now < f.rests or now < f.ends(most))

    def next_release(self) -> float | None:
        """Seconds until the first avoided peer may be asked again; None when nobody is avoided."""
        now = self._clock()
        waits = [failures.until - now for failures in self._failed.values() if now < failures.until]
        return min(waits, default=None)
