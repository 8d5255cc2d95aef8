"""Who guesses how a sequence goes on: n-grams of the sequence itself, or a small model on this machine."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.generation.candidate_generator import AssistedCandidateGenerator, CandidateGenerator

__all__ = ["LONGEST", "Draft", "Drafter", "LocalModel", "Ngrams"]

LONGEST = 32  # tokens of a draft: on the slowest chains more of them seldom pay, however good they are

Length = Callable[[str], int]  # how many tokens are wanted of a draft of this kind


@dataclass(frozen=True, slots=True)
class Draft:
    """The next tokens as a drafter guesses them. How often it is right is learnt for each `kind` of draft.

    The first `sent` of the `tokens` [n] are tried; those behind them tell what more would have been worth. `logits`
    [sent, vocabulary]: what the tried ones were sampled from, None for tokens that were not sampled.
    """

    kind: str
    tokens: Tensor
    sent: int
    logits: Tensor | None = None


class Drafter(ABC):
    @abstractmethod
    def draft(self, tokens: Tensor, length: Length) -> Draft | None:
        """Guess what follows `tokens` [1, n]; None when nothing comes to mind."""


class Ngrams(Drafter):
    """What followed the last time when the last tokens were the same. It costs nothing to speak of, and is right where
    text repeats itself: code, quotations, lists, summaries of the prompt."""

    shortest, longest = 1, 4  # tokens that have to be the same
    furthest = 16  # tokens that are compared to tell how sure a guess is

    def __init__(self) -> None:
        self._tokens: list[int] = []
        self._after: dict[tuple[int, ...], int] = {}  # where the token behind the last such n-gram stands

    def draft(self, tokens: Tensor, length: Length) -> Draft | None:
        self._read(tokens[0].tolist())
        start = self._find()
        if start is None:
            return None
        kind = f"{self._agreement(start).bit_length()} bits of agreement"
        return Draft(kind, torch.tensor(self._copy(start, LONGEST)), length(kind))

    def _read(self, tokens: list[int]) -> None:
        if tokens[: len(self._tokens)] != self._tokens:  # another text, or a chat that went back
            self._tokens, self._after = [], {}
        for token in tokens[len(self._tokens) :]:
            at = len(self._tokens)
            for n in range(self.shortest, min(self.longest, at) + 1):
                self._after[tuple(self._tokens[at - n :])] = at
            self._tokens.append(token)

    def _find(self) -> int | None:
        for n in range(min(self.longest, len(self._tokens)), self.shortest - 1, -1):
            start = self._after.get(tuple(self._tokens[-n:]))
            if start is not None:
                return start
        return None

    def _agreement(self, start: int) -> int:
        """How many tokens before `start` are those at the end."""
        end = len(self._tokens)
        most = min(start, self.furthest)
        return next((n for n in range(most) if self._tokens[start - 1 - n] != self._tokens[end - 1 - n]), most)

    def _copy(self, start: int, count: int) -> list[int]:
        """The `count` tokens from `start` on; at the end of the text the copy goes on with itself."""
        period = len(self._tokens) - start
        return [self._tokens[start + n % period] for n in range(count)]


class LocalModel(Drafter):
    """A small model on this machine, as the library has it assist one call of `generate`; but how many tokens it drafts
    is said each time."""

    def __init__(self, candidates: CandidateGenerator) -> None:
        assert isinstance(candidates, AssistedCandidateGenerator)
        # the library would stop where the model is unsure; how long a draft pays is decided elsewhere
        candidates.assistant_generation_config.assistant_confidence_threshold = 0.0
        candidates.generation_config.assistant_confidence_threshold = 0.0
        self._get_candidates: Any = candidates.get_candidates  # the library asks for a LongTensor, which no tensor is
        self._candidates = candidates

    def draft(self, tokens: Tensor, length: Length) -> Draft | None:
        wanted = length("model")
        if not wanted:
            return None
        self._candidates.num_assistant_tokens = wanted
        drafted, logits = self._get_candidates(tokens)
        new = drafted[0, tokens.shape[1] :].to("cpu")
        return Draft("model", new, len(new), None if logits is None else logits[0])
