"""Speculative decoding: guesses travel with the next token, and the peers' answer says how many of them were right.

The library's assisted decoding does the rest: it compares or samples so that nothing about the output changes, and cuts
the cache back, which peers are told with the next step. What is decided here is how many guesses to send.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.generation.candidate_generator import CandidateGenerator

from clients.drafts import LONGEST, Draft, Drafter, Ngrams
from routing.drafting import Acceptance, RoundTime, draft_length
from swarm.errors import UsageError

__all__ = ["Assistant", "Drafts", "Speculation"]

Drafts = str | PreTrainedModel | Drafter  # what a user may say

BLIND = 4  # guesses that go with the first step of a chat, when nothing is known of its chain yet


@dataclass(frozen=True, slots=True)
class Tally:
    """What became of drafts: `rounds` with or without guesses, guesses that were sent, and those that were right."""

    rounds: int = 0
    sent: int = 0
    right: int = 0

    def __str__(self) -> str:
        if not self.rounds:
            return "none were needed"
        trips = f"{1 + self.right / self.rounds:.2f} tokens a trip"
        return f"{self.right} of {self.sent} guesses were right, {trips}"


class Speculation:
    """A drafter and what was learnt of it; a chat keeps it from call to call. `clock` gives seconds."""

    def __init__(self, drafter: Drafter | PreTrainedModel, *, clock: Callable[[], float] = time.perf_counter) -> None:
        self.drafter = drafter
        self.clock = clock
        self.tally = Tally()
        self._acceptance: dict[str, Acceptance] = {}
        self._time: RoundTime | None = None

    @classmethod
    def of(cls, drafts: Drafts, kept: "Speculation | None") -> "Speculation":
        """For what a user says: the one that was `kept` where it fits, else a new one. Raises UsageError."""
        if kept is not None and _same(drafts, kept.drafter):
            return kept
        if isinstance(drafts, Drafter | PreTrainedModel):
            return cls(drafts)
        if drafts == "ngram":
            return cls(Ngrams())
        raise UsageError(f"draft is 'ngram', a model, a Drafter or None, not {drafts!r}")

    def expect(self, base: float, per_token: float) -> None:
        """What the performance model predicts: a round without guesses, and each guess, in seconds."""
        known = self._time or RoundTime(base, per_token)
        self._time = known.predicting(base, per_token)

    def length(self, kind: str, room: int) -> int:
        """How many guesses of this kind to send, `room` at most."""
        room = min(room, LONGEST)
        if self._time is None:
            return min(room, BLIND)
        return draft_length(self._acceptance.get(kind, Acceptance()).rate, self._time, room)

    def learn(self, draft: Draft | None, actual: Tensor, seconds: float | None) -> None:
        """What came of a draft: the `actual` tokens [n], and how long the round took, where that is known."""
        sent, right = 0, 0
        if draft is None:
            self._acceptance = {kind: known.aged() for kind, known in self._acceptance.items()}
        else:
            sent, right = draft.sent, _agreeing(draft.tokens, actual)
            known = self._acceptance.get(draft.kind, Acceptance())
            wrong = right < min(len(draft.tokens), len(actual))
            self._acceptance[draft.kind] = known.updated(right, wrong=wrong)
        self.tally = Tally(self.tally.rounds + 1, self.tally.sent + sent, self.tally.right + min(right, sent))
        if seconds is not None and self._time is not None:
            self._time = self._time.updated(sent, seconds)


class Candidates(CandidateGenerator):
    """Drafts for one call of `generate`."""

    def __init__(
        self,
        speculation: Speculation,
        drafter: Drafter,
        predicted: Callable[[int], float | None],
        *,
        max_length: int,
        end_tokens: Tensor | None,
    ) -> None:
        """`predicted(n)`: seconds of a step with n tokens, None while there is no chain. Ends at `max_length` tokens or
        one of the `end_tokens`."""
        self._speculation = speculation
        self._drafter = drafter
        self._predicted = predicted
        self._max_length = max_length
        self._end_tokens = end_tokens
        self._draft: Draft | None = None
        self._known = 0  # tokens before the round
        self._started = 0.0
        self._warm = False  # the first round brings the prompt, so that its time says nothing of later ones

    def get_candidates(self, input_ids: Tensor, **_: object) -> tuple[Tensor, Tensor | None]:  # type: ignore[override]
        """`input_ids` [1, n] with the guesses behind it, and what they were sampled from: [1, guesses, vocabulary]."""
        self._started = self._speculation.clock()
        self._known = input_ids.shape[1]
        one, more = self._predicted(1), self._predicted(1 + LONGEST)
        if one is not None and more is not None:
            self._speculation.expect(one, (more - one) / LONGEST)
        self._draft = self._guess(input_ids)
        if self._draft is None or not self._draft.sent:
            return input_ids, None
        guesses, logits = self._draft.tokens[: self._draft.sent], self._draft.logits
        candidates = torch.cat([input_ids, guesses[None].to(input_ids.device)], dim=1)
        return candidates, None if logits is None else logits[None]

    def update_candidate_strategy(self, input_ids: Tensor, scores: Tensor, num_matches: int) -> None:
        """The round is over, `input_ids` [1, n] hold what it gave."""
        seconds = self._speculation.clock() - self._started
        actual = input_ids[0, self._known :].to("cpu")
        self._speculation.learn(self._draft, actual, seconds if self._warm else None)
        self._warm = True

    def _guess(self, input_ids: Tensor) -> Draft | None:
        room = self._max_length - self._known - 1  # one more comes from the model itself
        if not self._known or room <= 0:
            return None
        draft = self._drafter.draft(input_ids, lambda kind: self._speculation.length(kind, room))
        if draft is None or draft.logits is not None or self._end_tokens is None:
            return draft
        ends = torch.isin(draft.tokens, self._end_tokens.to("cpu")).nonzero()
        before = int(ends[0]) if len(ends) else len(draft.tokens)
        return Draft(draft.kind, draft.tokens[:before], min(draft.sent, before))


@dataclass(frozen=True, slots=True)
class Assistant:
    """Takes the place of the library's `assistant_model`: a speculation, for a model of this `config`."""

    speculation: Speculation
    config: PreTrainedConfig

    def __post_init__(self) -> None:
        drafter = self.speculation.drafter
        if isinstance(drafter, Drafter):
            return
        theirs, ours = (config.get_text_config().vocab_size for config in (drafter.config, self.config))
        if theirs != ours:
            raise UsageError(
                f"the drafting model has a vocabulary of {theirs} tokens and this model one of {ours}: draft with a "
                "model of the same tokenizer, or hand it in as assistant_model together with both tokenizers"
            )


def _same(drafts: Drafts, drafter: Drafter | PreTrainedModel) -> bool:
    return drafts is drafter or (drafts == "ngram" and isinstance(drafter, Ngrams))


def _agreeing(guesses: Tensor, actual: Tensor) -> int:
    both = min(len(guesses), len(actual))
    different = (guesses[:both] != actual[:both]).nonzero()
    return int(different[0]) if len(different) else both
