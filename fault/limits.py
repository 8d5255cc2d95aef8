"""How long to wait for an answer before its peer is asked, or given up: from what was measured of it.

As for round trips in RFC 6298, of what is measured a smoothed mean and deviation are kept; not of seconds, but of how
many times longer than predicted things took, so that a long prompt is given more time than one row. A peer that was
given up and turns out to live gets twice the time from then on; good behaviour takes that back.
"""

from collections import OrderedDict
from collections.abc import Hashable, Iterable
from dataclasses import dataclass
from typing import Generic, TypeVar

__all__ = ["Bounds", "TimeLimits"]

K = TypeVar("K", bound=Hashable)

MEAN_WEIGHT = 1 / 8  # of the latest in the mean, and
DEVIATION_WEIGHT = 1 / 4  # in the deviation (RFC 6298, section 2)
DEVIATIONS = 4.0  # above the mean
LEAST_MARGIN = 1.0  # times the mean: what never varied may vary now
SHORTEST = 1e-6  # s: nothing is predicted to take less
MOST_DOUBLINGS = 5
TAKEN_BACK = 64  # measurements in a row without a false alarm take one doubling back
MOST_PEERS = 4096  # that are remembered


@dataclass(frozen=True, slots=True)
class Bounds:
    """Seconds, and `unknown`: times what is predicted, for who was never measured, with a `cold_floor` of its own."""

    floor: float
    cold_floor: float
    ceiling: float
    unknown: float


@dataclass(slots=True)
class _Pace:
    """Times what was predicted."""

    mean: float = 0.0
    deviation: float = 0.0
    known: bool = False
    doublings: int = 0
    quiet: int = 0  # measurements since the last false alarm

    def add(self, ratio: float) -> None:
        if self.known:
            self.deviation += DEVIATION_WEIGHT * (abs(ratio - self.mean) - self.deviation)
            self.mean += MEAN_WEIGHT * (ratio - self.mean)
        else:
            self.mean, self.deviation, self.known = ratio, ratio / 2, True
        self.quiet += 1
        if self.quiet >= TAKEN_BACK:
            self.quiet, self.doublings = 0, max(0, self.doublings - 1)

    def most(self, unknown: float) -> float:
        """What it hardly ever takes longer than."""
        usual = self.mean + max(DEVIATIONS * self.deviation, LEAST_MARGIN * self.mean) if self.known else unknown
        return usual * 2.0**self.doublings


class TimeLimits(Generic[K]):
    """Of many peers; those that were not heard of for longest are forgotten first."""

    def __init__(self) -> None:
        self._paces: OrderedDict[K, _Pace] = OrderedDict()

    def measured(self, peer: K, seconds: float, predicted: float) -> None:
        """`peer` took part in what took `seconds` in all."""
        self._of(peer).add(max(0.0, seconds) / max(predicted, SHORTEST))

    def false_alarm(self, peer: K) -> None:
        """`peer` was given up for its silence, and lives."""
        pace = self._of(peer)
        pace.doublings, pace.quiet = min(pace.doublings + 1, MOST_DOUBLINGS), 0

    def limit(self, peers: Iterable[K], predicted: float, bounds: Bounds) -> float:
        """Seconds to wait for what is predicted to take `predicted` and needs all of `peers`. Never less than
        predicted, nor than the floor; never more than the ceiling."""
        paces = [self._paces.get(peer) or _Pace() for peer in peers] or [_Pace()]
        floor = bounds.floor if all(pace.known for pace in paces) else bounds.cold_floor
        floor *= 2.0 ** max(pace.doublings for pace in paces)
        times = max(1.0, *(pace.most(bounds.unknown) for pace in paces))
        return min(bounds.ceiling, max(floor, times * predicted))

    def _of(self, peer: K) -> _Pace:
        pace = self._paces.setdefault(peer, _Pace())
        self._paces.move_to_end(peer)
        if len(self._paces) > MOST_PEERS:
            self._paces.popitem(last=False)
        return pace
