"""What drafts save: answers that are known beforehand are drafted as well as is wanted, and asked for again."""

import random
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from clients.bench.answers import exactly
from clients.drafts import Draft, Drafter, Length
from clients.model import SwarmModelForCausalLM
from routing.drafting import expected_tokens
from swarm.errors import SwarmError
from swarm.figures import Spread

__all__ = ["DraftReport", "Drafted", "KnownText", "ask_drafted"]

GOLDEN = (5**0.5 - 1) / 2  # steps of so much fill the unit interval evenly, however many they are


class KnownText(Drafter):
    """Always drafts `length` tokens of a text [n], each right with probability `acceptance` when those before it are.

    How many are right is drawn evenly instead of at random, so that a few dozen drafts show what thousands would.
    """

    def __init__(self, text: Tensor, acceptance: float, length: int, *, vocabulary: int, seed: int) -> None:
        self._text = text
        self._acceptance = acceptance
        self._length = length
        self._vocabulary = vocabulary
        self._drawn = random.Random(seed).random()
        self.asked: list[int] = []  # tokens that were there at each draft

    def draft(self, tokens: Tensor, length: Length) -> Draft | None:
        self.asked.append(tokens.shape[1])
        rest = self._text[tokens.shape[1] :][: self._length]
        wrong = torch.arange(len(rest)) >= self._right()
        return Draft("known", torch.where(wrong, (rest + 1) % self._vocabulary, rest), len(rest))

    def _right(self) -> int:
        """As many as there are powers of `acceptance` above what is drawn."""
        self._drawn = (self._drawn + GOLDEN) % 1
        return next((n for n in range(self._length) if self._acceptance ** (n + 1) <= self._drawn), self._length)


@dataclass(frozen=True, slots=True)
class Drafted:
    """One answer with drafts: `tokens` after the first one, in `seconds`; and how many each of the `trips` round the
    ring gave, but for the last, which the end of the answer cuts short."""

    tokens: int
    trips: int
    per_trip: float
    seconds: float


def ask_drafted(
    model: SwarmModelForCausalLM, prompt: Tensor, answer: Sequence[int], *, acceptance: float, length: int, seed: int
) -> Drafted:
    """The greedy `answer` to `prompt` [1, n], once more. Raises SwarmError when drafts change it."""
    text = torch.cat([prompt[0], torch.tensor(answer)])
    vocabulary = model.config.get_text_config().vocab_size
    drafter = KnownText(text, acceptance, length, vocabulary=vocabulary, seed=seed)
    rest = len(answer) - 1
    with model.new_cache(len(text) + length) as cache:
        model.generate(prompt, exactly(model, 1), attention_mask=torch.ones_like(prompt), past_key_values=cache)
        begun = text[None, : prompt.shape[1] + 1]
        started = time.perf_counter()
        whole = model.generate(
            begun,
            exactly(model, rest),
            attention_mask=torch.ones_like(begun),
            past_key_values=cache,
            draft=drafter,
        )
        seconds = time.perf_counter() - started
    if whole[0].tolist() != text.tolist():
        raise SwarmError("an answer with drafts is not the answer without, so nothing can be said of what they save")
    asked = drafter.asked
    return Drafted(rest, len(asked), (asked[-1] - asked[0]) / max(1, len(asked) - 1), seconds)


@dataclass(frozen=True, slots=True)
class DraftReport:
    """From round to round: tokens of a trip, these over what is expected of such drafts, and speed over without."""

    acceptance: float
    length: int
    expected: float
    per_trip: Spread
    share: Spread
    faster: Spread

    @classmethod
    def of(cls, answers: Sequence[Drafted], plain: Sequence[float], *, acceptance: float, length: int) -> "DraftReport":
        """`plain`: seconds of a token without drafts, of each round."""
        expected = expected_tokens(acceptance, length)
        trips = [answer.per_trip for answer in answers]
        return cls(
            acceptance,
            length,
            expected,
            Spread.of(trips),
            Spread.of([tokens / expected for tokens in trips]),
            Spread.of([each * answer.tokens / answer.seconds for each, answer in zip(plain, answers, strict=True)]),
        )
