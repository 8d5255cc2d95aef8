"""From logits to tokens, for all rows of a step together.

What a row draws depends on its own logits, settings and seed alone, never on who is computed beside it. Each token
takes one uniform number, which is looked up in the cumulative distribution.
"""

import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from clients.completion.request import Request
from swarm.errors import SwarmError

__all__ = ["Chooser", "Chosen", "choose", "draw"]

MORE = 16  # times as many are ranked where those were not enough
TOGETHER = (
    8  # rows that are looked up at once: large intermediate results cost more than the work (32 rows: 40 ms and 11)
)
COLDEST = 1e-5  # a temperature below it would make infinities of logits, and greedy tokens of all
RANKED = 256  # the likeliest tokens, which are nearly always enough where only the likeliest count: to sort all is slow


@dataclass(frozen=True, slots=True)
class Chosen:
    """A token; its log probability and the likeliest ones where they were asked for."""

    token: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()


class Chooser:
    """How one choice of a request picks its tokens, and what it has picked."""

    def __init__(self, request: Request, choice: int) -> None:
        self.sampling = request.sampling
        self.logprobs = request.logprobs
        seed = self.sampling.seed
        self._random = random.Random() if seed is None else random.Random(f"{seed}/{choice}")
        self._constraint = request.constraint() if request.constraint is not None else None
        self._counts: Counter[int] = Counter()
        self._seen = set(request.prompt) if self.sampling.repetition_penalty != 1 else set()

    @property
    def greedy(self) -> bool:
        return self.sampling.temperature == 0

    @property
    def alters(self) -> bool:
        """Whether it changes logits before anything is drawn."""
        s = self.sampling
        penalties = s.presence_penalty or s.frequency_penalty or s.repetition_penalty != 1
        return bool(penalties or s.logit_bias or self._constraint is not None)

    def alter(self, logits: Tensor) -> None:
        """Penalties, biases and the constraint, on `logits` [vocab] in place."""
        s = self.sampling
        if self._seen:
            ids = torch.tensor(sorted(self._seen))
            there = logits[ids]
            logits[ids] = torch.where(there < 0, there * s.repetition_penalty, there / s.repetition_penalty)
        if self._counts and (s.presence_penalty or s.frequency_penalty):
            ids = torch.tensor(list(self._counts))
            logits[ids] -= s.presence_penalty + s.frequency_penalty * torch.tensor(list(self._counts.values()))
        if s.logit_bias:
            logits[torch.tensor(list(s.logit_bias))] += torch.tensor(list(s.logit_bias.values()), dtype=logits.dtype)
        if self._constraint is not None:
            self._constraint.mask(logits)

    def uniform(self) -> float:
        """The next number in [0, 1)."""
        return self._random.random()

    def accept(self, token: int) -> None:
        """The answer goes on with `token`."""
        if self._constraint is not None:
            self._constraint.accept(token)
        self._counts[token] += 1
        if self.sampling.repetition_penalty != 1:
            self._seen.add(token)


def choose(logits: Tensor, rows: Sequence[int], choosers: Sequence[Chooser]) -> list[Chosen | SwarmError | None]:
    """The next token of each chooser, from row `rows[i]` of `logits` [n, vocab] in fp32; several may share a row. None
    where its constraint allows nothing more, an error where that failed. Choosers know what they chose."""
    failed: dict[int, SwarmError] = {}

    def guarded(i: int, step: Callable[[], None]) -> None:
        try:
            step()
        except SwarmError as error:
            failed[i] = error
        except Exception as error:  # whatever a constraint may raise; the others go on
            failed[i] = SwarmError(f"the constraint of this request failed: {type(error).__name__}: {error}")

    changed = [i for i, chooser in enumerate(choosers) if chooser.alters]
    whole = not changed and list(rows) == list(range(len(logits)))
    scores = logits if whole else logits[torch.tensor(rows)]
    for i in changed:
        guarded(i, partial(choosers[i].alter, scores[i]))
    best, tokens = scores.max(-1)
    possible = best.isfinite().tolist()
    picked = tokens.tolist()
    drawn = [i for i, chooser in enumerate(choosers) if possible[i] and not chooser.greedy]
    if drawn:
        some = scores if len(drawn) == len(scores) else scores[torch.tensor(drawn)]
        for i, token in zip(drawn, draw(some, [choosers[i] for i in drawn]), strict=True):
            picked[i] = token
    told = _told(logits, rows, choosers, picked)
    for i, chooser in enumerate(choosers):
        if possible[i] and i not in failed:
            guarded(i, partial(chooser.accept, picked[i]))
    plain = [told.get(i, Chosen(token)) if possible[i] else None for i, token in enumerate(picked)]
    return [failed.get(i, result) for i, result in enumerate(plain)]


def _told(logits: Tensor, rows: Sequence[int], choosers: Sequence[Chooser], picked: Sequence[int]) -> dict[int, Chosen]:
    """The tokens of those who want log probabilities, with them."""
    told = {}
    for i, (row, chooser) in enumerate(zip(rows, choosers, strict=True)):
        if chooser.logprobs is not None:
            logprobs = logits[row].log_softmax(-1)
            values, ids = logprobs.topk(min(chooser.logprobs, len(logprobs)))
            top = tuple(zip(ids.tolist(), values.tolist(), strict=True))
            told[i] = Chosen(picked[i], float(logprobs[picked[i]]), top)
    return told


def draw(scores: Tensor, choosers: Sequence[Chooser]) -> list[int]:
    """A token of each row of `scores` [n, vocab]: temperature, top_k, top_p and min_p as the library applies them, one
    after another."""
    settings = [chooser.sampling for chooser in choosers]
    scaled = scores / torch.tensor([max(s.temperature, COLDEST) for s in settings])[:, None]
    points = torch.tensor([chooser.uniform() for chooser in choosers], dtype=torch.float64)
    floors = torch.tensor([s.min_p for s in settings])
    ranked = [i for i, s in enumerate(settings) if s.top_k or s.top_p < 1]
    free = [i for i, s in enumerate(settings) if not (s.top_k or s.top_p < 1)]
    tokens = torch.empty(len(settings), dtype=torch.int64)
    if free:
        at = torch.tensor(free)
        tokens[at] = _look_up(scaled[at].softmax(-1), floors[at], points[at])
    if ranked:
        at = torch.tensor(ranked)
        counts = torch.tensor([settings[i].top_k for i in ranked])
        masses = torch.tensor([settings[i].top_p for i in ranked])
        tokens[at] = _ranked(scaled[at], counts, masses, floors[at], points[at])
    picked: list[int] = tokens.tolist()
    return picked


def _ranked(scaled: Tensor, counts: Tensor, masses: Tensor, floors: Tensor, points: Tensor) -> Tensor:
    """Tokens [n] among the `counts` (0: all) likeliest, and of these among those that make up `masses`."""
    vocab = scaled.shape[-1]
    most = min(vocab, max(RANKED, int(counts.max())))
    tokens = torch.empty(len(scaled), dtype=torch.int64)
    left = torch.arange(len(scaled))
    while len(left):
        part = scaled[left]
        values, ids = part.topk(most)
        limits = torch.where(counts[left] == 0, vocab, counts[left])[:, None]
        values = values.masked_fill(torch.arange(most) >= limits, -torch.inf)
        whole = torch.where(counts[left] == 0, part.logsumexp(-1), values.logsumexp(-1))
        probs = (values - whole[:, None]).exp()
        before = probs.cumsum(-1, dtype=torch.float64) - probs
        kept = before < masses[left][:, None]
        kept[:, 0] = True
        enough = (counts[left] != 0) | ~kept[:, -1] | torch.tensor(most == vocab)
        found = _look_up(probs * kept, floors[left], points[left])
        tokens[left[enough]] = ids.gather(-1, found[:, None])[:, 0][enough]
        left, most = left[~enough], min(vocab, MORE * most)
    return tokens


def _look_up(probs: Tensor, floors: Tensor, points: Tensor) -> Tensor:
    """The places [n] at which `points` fall in `probs` [n, k], which need not add up to 1; without those less likely
    than `floors` times the likeliest."""
    if bool(floors.any()):
        probs = probs.masked_fill(probs < floors[:, None] * probs.max(-1, keepdim=True).values, 0)
    if len(probs) > TOGETHER:
        parts = zip(*(torch.split(each, TOGETHER) for each in (probs, floors, points)), strict=True)
        return torch.cat([_look_up(*part) for part in parts])
    edges = probs.cumsum(-1, dtype=torch.float64)
    places = torch.searchsorted(edges, (points * edges[:, -1])[:, None], right=True)[:, 0]
    last = probs.shape[-1] - 1 - (probs > 0).flip(-1).to(torch.uint8).argmax(-1)  # a point may be rounded up to the end
    return torch.minimum(places, last)
