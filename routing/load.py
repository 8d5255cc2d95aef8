"""What one client knows of how busy peers are: what they claim, how old that is, and what its own steps met there.

A figure grows old. The older it is, the less a peer is told from all others by it: half as much with every `HALF`
seconds. And no claim is believed against what was measured: a peer that was so many times slower than it should be by
its own figures is expected to be so again, until that is forgotten in the same way.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from statistics import fmean

from swarm.ids import PeerId
from swarm.record import PeerRecord

__all__ = ["Load", "Loads"]

HALF = 30.0  # s after which a claim counts half
SLOW_HALF = 120.0  # s after which what was measured counts half: whoever is believed too soon is visited in vain
OWN_HALF = 5.0  # s after which a session that was opened counts half: by then the peer's own figure has it
DOUBT = 2.0  # times slower than by its figures any peer may seem: predictions are no better
MOST_SLOW = 1000.0  # times
WEIGHT = 0.5  # of the latest of what was measured, each the mean of several steps
KEPT = 600.0  # s for which a peer that is in no record is remembered


@dataclass(frozen=True, slots=True)
class Load:
    """`queue`: tokens that the step of one more row will meet. `slow`: how many times longer than by its figures, that
    included, a step is expected to take."""

    queue: float
    slow: float = 1.0


@dataclass(slots=True)
class _Known:
    queue: float = 0.0
    told: float = float("-inf")  # when that was so, s
    issued: float = 0.0  # the latest record, Unix time
    slow: float = 1.0
    measured: float = float("-inf")
    opened: float = 0.0  # sessions of this client, the older the less
    counted: float = 0.0  # when that was so

    def own(self, now: float) -> float:
        return self.opened * _left(now - self.counted, OWN_HALF)

    def slowness(self, now: float) -> float:
        left = _left(now - self.measured, SLOW_HALF)
        return self.slow**left if left else 1.0


@dataclass(slots=True)
class Loads:
    """`now` is always seconds of one clock."""

    _known: dict[PeerId, _Known] = field(default_factory=dict)

    def __len__(self) -> int:
        """Peers of whom something is known."""
        return len(self._known)

    def read(self, records: Iterable[PeerRecord], taken: float, now: float) -> None:
        """All records there are, read at Unix time `taken`. A record that was read before is no news."""
        present = set()
        for record in records:
            present.add(record.peer)
            known = self._known.setdefault(record.peer, _Known())
            told = now - max(0.0, taken - record.issued)
            if record.issued > known.issued and told >= known.told:
                known.queue, known.told = record.queue, told
            known.issued = max(known.issued, record.issued)
        for peer in [p for p, known in self._known.items() if p not in present and known.told < now - KEPT]:
            del self._known[peer]

    def heard(self, peer: PeerId, queue: float, now: float) -> None:
        """What a peer has said of itself in an answer."""
        known = self._known.setdefault(peer, _Known())
        known.queue, known.told = queue, now

    def opened(self, peer: PeerId, now: float) -> None:
        """A session of this client began there."""
        known = self._known.setdefault(peer, _Known())
        known.opened, known.counted = known.own(now) + 1, now

    def measured(self, peer: PeerId, ratio: float, now: float) -> None:
        """Some steps took `ratio` times what the peer's figures say."""
        known = self._known.setdefault(peer, _Known())
        before = known.slowness(now)
        ratio = min(max(1.0, ratio / DOUBT), MOST_SLOW)
        # in logarithms, as it is forgotten; the first is believed whole
        known.slow = ratio if before == 1.0 else before ** (1 - WEIGHT) * ratio**WEIGHT
        known.measured = now

    def claimed(self, record: PeerRecord) -> float:
        """What a peer has said of itself last."""
        known = self._known.get(record.peer)
        return record.queue if known is None else known.queue

    def now(self, records: Iterable[PeerRecord], now: float) -> dict[PeerId, Load]:
        """What is to be expected of each of these peers now."""
        knowns = {record.peer: self._known.get(record.peer) or _Known(record.queue, now) for record in records}
        if not knowns:
            return {}
        usual = fmean(known.queue for known in knowns.values())
        return {
            peer: Load(
                usual + (known.queue - usual) * _left(now - known.told, HALF) + known.own(now), known.slowness(now)
            )
            for peer, known in knowns.items()
        }


def _left(age: float, half: float) -> float:
    return math.exp2(-min(max(0.0, age) / half, 1000.0))
