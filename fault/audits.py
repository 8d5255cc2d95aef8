"""What an audit tells: whether two peers computed the same, who of three did not, and who is left out from then on.

Two peers that compute the same blocks of the same input never agree to the last bit. What is compared is what the
blocks *add* to their input, as a relative L2 distance; precisions differ by what was measured (docs/security.md), a
block that is left out by an order of magnitude more.

A verdict is evidence for the one who asked, and no proof for anybody else.
"""

import math
from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import dataclass

from swarm.ids import PeerId

__all__ = ["USUAL_RATE", "Marks", "agree", "audits_to_notice", "liar_of", "tells"]

USUAL_RATE = 0.002  # of a client's steps; each audit costs two other peers a prompt's worth of computing

# How far a peer's outputs are from those in fp32, by its precision: the most that was measured over a hundred positions
# and spans of 1 to 30 blocks of SmolLM2 (fp32: ten times that). Four bits are taken to cost no more than the limit of
# `peers.precision` for the weights; with activations in eight bits, a checkpoint that once had four is 0.028 away.
_NOISE = {"fp32": 0.001, "fp16": 0.001, "bf16": 0.0075, "int8": 0.033, "int4": 0.033, "llm.int8": 0.075}
_UNKNOWN = 0.033  # of a precision that is not listed
# Unless the checkpoint had four bits before, these are as far from fp32 as if a block were left out (nf4: 0.29).
_COARSE = frozenset({"int4", "nf4"})
_ONE = 4.0  # by how much more a single position may differ
_FAILED = 4  # marks for an audit that failed without telling whose fault it was; one that passed takes one away
_ENOUGH = 3 * _FAILED


def agree(distance: float, ones: Iterable[str], others: Iterable[str], positions: int) -> bool:
    """Whether two ways through the same blocks that are `distance` apart over so many positions may both be honest,
    being computed in these precisions."""
    return distance <= (_noise(ones) + _noise(others)) * (1 + _ONE / math.sqrt(positions))


def tells(ones: Collection[str], others: Collection[str]) -> bool:
    """Whether it says anything about peers' honesty that two ways in these precisions do not agree: not where they
    round differently, and coarsely. Given room for that, who leaves out a block would only have to say that it rounds
    so."""
    return set(ones) == set(others) or _COARSE.isdisjoint([*ones, *others])


def _noise(precisions: Iterable[str]) -> float:
    return max(_NOISE.get(precision, _UNKNOWN) for precision in precisions)


@dataclass(frozen=True, slots=True)
class Bench:
    """Who agrees with whom among the one that is audited, a second and a third."""

    first_second: bool
    first_third: bool
    second_third: bool


def liar_of(bench: Bench) -> int | None:
    """Which of the three (0, 1, 2) stands alone against the two others; None when that can't be told."""
    match bench.first_second, bench.first_third, bench.second_third:
        case False, False, True:
            return 0
        case False, True, False:
            return 1
        case True, False, False:
            return 2
    return None


class Marks:
    """Against peers whose chains were wrong though nobody could tell who it was. Who is in all of those chains is soon
    known by it. Who lies in every fifth step or less is not found like this."""

    def __init__(self) -> None:
        self._marks: Counter[PeerId] = Counter()

    def failed(self, peers: Collection[PeerId]) -> PeerId | None:
        """Which of `peers` has too many now, and more than the others; None while that can't be told."""
        self._marks.update(dict.fromkeys(peers, _FAILED))
        first, *rest = sorted(peers, key=lambda peer: -self._marks[peer])
        most = self._marks[first]
        return first if most >= _ENOUGH and all(self._marks[peer] < most for peer in rest) else None

    def passed(self, peers: Collection[PeerId]) -> None:
        self._marks.subtract(peers)
        self._marks = +self._marks


def audits_to_notice(rate: float, lies: float, certainty: float = 0.99) -> float:
    """After how many steps, on average over who is asked, a peer is noticed with this `certainty` if it lies in `lies`
    of its steps and a share `rate` of steps is audited: each step is noticed or not, for itself."""
    return math.log(1 - certainty) / math.log(1 - rate * lies)
