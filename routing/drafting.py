"""How many tokens to draft before a chain is asked: from how often drafts are right, and from what a round takes.

A round is one trip around the ring with the next token and some guesses of those behind it; the guesses up to the
first wrong one count, and one token more, which the model itself gives (Leviathan et al., *Fast Inference from
Transformers via Speculative Decoding*, ICML 2023).
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Self

__all__ = ["Acceptance", "RoundTime", "draft_length", "expected_tokens"]

MEMORY = 0.97  # what a trial still counts when the next one is made: some thirty of them decide
TRUST = 9.0  # squared guesses: the prediction counts like one round whose draft was three longer than the others'
INSTANT = 1e-9  # s; no clock shows a round as shorter, and rates need more than nothing
HICCUP = 3.0  # a round that takes longer than so many predicted ones says more of its moment than of the chain


def expected_tokens(acceptance: float, length: int) -> float:
    """Tokens that a round with `length` guesses gives when each is right with probability `acceptance`."""
    if acceptance >= 1:
        return length + 1.0
    return (1 - acceptance ** (length + 1)) / (1 - acceptance)


def draft_length(acceptance: float, seconds: Callable[[int], float], limit: int) -> int:
    """The number of guesses, 0 to `limit`, that gives the most tokens per second; the fewest where several do.
    `seconds(n)`: what a round with n guesses takes."""
    return max(range(max(0, limit) + 1), key=lambda n: (expected_tokens(acceptance, n) / seconds(n), -n))


@dataclass(frozen=True, slots=True)
class Acceptance:
    """How often a guess is right, given that those before it were; half of the time as long as nobody knows."""

    right: float = 0.0
    trials: float = 0.0

    @property
    def rate(self) -> float:
        return (self.right + 1) / (self.trials + 2)

    def updated(self, right: int, *, wrong: bool) -> "Acceptance":
        """After `right` guesses that were, and then one that was `wrong` if any."""
        trials = right + wrong
        kept = MEMORY**trials
        return Acceptance(kept * self.right + right, kept * self.trials + trials)

    def aged(self) -> "Acceptance":
        """After a round without guesses: what was learnt fades, so that a drafter which was bad gets another chance."""
        return Acceptance(MEMORY * self.right, MEMORY * self.trials)


@dataclass(frozen=True, slots=True)
class RoundTime:
    """Seconds of a round as a line over the number of its guesses. It begins as the performance model predicts and goes
    over to what is measured."""

    base: float  # s that a round without guesses is predicted to take
    per_token: float  # s that each guess is predicted to add
    _weight: float = 0.0
    _length: float = 0.0  # means and products of what was measured, older rounds counting less
    _seconds: float = 0.0
    _spread: float = 0.0
    _product: float = 0.0

    def predicting(self, base: float, per_token: float) -> Self:
        """As the performance model now says, of a chain that may be another one."""
        return replace(self, base=base, per_token=per_token)

    def __call__(self, length: int) -> float:
        if not self._weight:
            return max(INSTANT, self.base + length * self.per_token)
        return max(INSTANT, self._seconds + (length - self._length) * self._slope)

    @property
    def _slope(self) -> float:
        slope = (self._product + TRUST * self.per_token) / (self._spread + TRUST)
        # a guess adds no more than a round of its own would take
        return min(max(slope, 0.0), self._seconds / (self._length + 1))

    def updated(self, length: int, seconds: float) -> "RoundTime":
        """After a round with `length` guesses that took `seconds`."""
        if self._weight:
            seconds = min(seconds, HICCUP * self(length))
        old, new = MEMORY * self._weight, MEMORY * self._weight + 1
        longer, slower = length - self._length, seconds - self._seconds
        return replace(
            self,
            _weight=new,
            _length=self._length + longer / new,
            _seconds=self._seconds + slower / new,
            _spread=MEMORY * self._spread + old / new * longer * longer,
            _product=MEMORY * self._product + old / new * longer * slower,
        )
