"""How tokens are drawn: as often as the library would draw them, and the same for the same seed."""

from collections import Counter
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from clients.completion.choosing import Chooser, Chosen, choose
from clients.completion.request import Request, Sampling

VOCAB = 600  # more than are ranked at first
DRAWS = 4000


def logits(seed: int, *, spread: float = 2.0, vocab: int = VOCAB) -> Tensor:
    return spread * torch.randn(1, vocab, generator=torch.Generator().manual_seed(seed))


def chooser(sampling: Sampling, *, prompt: tuple[int, ...] = (1, 2, 3), choice: int = 0, **more: Any) -> Chooser:
    return Chooser(Request(prompt=prompt, max_new_tokens=1, sampling=sampling, **more), choice)


def token(result: Any) -> int:
    assert isinstance(result, Chosen)
    return result.token


def by_library(scores: Tensor, sampling: Sampling) -> Tensor:
    """Probabilities [vocab], by the library's own warpers."""
    warpers = LogitsProcessorList([TemperatureLogitsWarper(sampling.temperature)])
    if sampling.top_k:
        warpers.append(TopKLogitsWarper(sampling.top_k))
    if sampling.top_p < 1:
        warpers.append(TopPLogitsWarper(sampling.top_p))
    if sampling.min_p:
        warpers.append(MinPLogitsWarper(sampling.min_p))
    result: Tensor = warpers(torch.tensor([[1]]), scores.clone())[0].softmax(-1)
    return result


SETTINGS: Mapping[str, tuple[Sampling, float]] = {  # and how far apart the logits are
    "plain": (Sampling(), 2.0),
    "hot": (Sampling(temperature=2.5), 2.0),
    "cold": (Sampling(temperature=0.4), 2.0),
    "top_k": (Sampling(top_k=20), 2.0),
    "top_p": (Sampling(top_p=0.7), 2.0),
    "top_p, flat": (Sampling(top_p=0.9), 0.01),  # nearly all tokens are kept, so that not all are ranked at first
    "min_p": (Sampling(min_p=0.1), 2.0),
    "all": (Sampling(temperature=1.4, top_k=50, top_p=0.8, min_p=0.05), 2.0),
    "top_k of all": (Sampling(top_k=10_000, top_p=0.95), 2.0),
    "nearly greedy": (Sampling(temperature=1e-5, top_p=0.9), 2.0),
    "one": (Sampling(top_k=1), 2.0),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_tokens_are_drawn_as_often_as_the_library_would(name: str) -> None:
    sampling, spread = SETTINGS[name]
    scores = logits(1, spread=spread)
    expected = by_library(scores, sampling)
    drawer = [chooser(Sampling(**{**_fields(sampling), "seed": seed})) for seed in range(DRAWS)]
    found = Counter(token(result) for result in choose(scores, [0] * DRAWS, drawer))
    assert all(expected[drawn] > 0 for drawn in found), "nothing that the library rules out"
    likely = expected > 8 / DRAWS
    counts = torch.tensor([found[index] for index in range(VOCAB)], dtype=torch.float64)
    groups = torch.cat([counts[likely], counts[~likely].sum()[None]])
    means = DRAWS * torch.cat([expected[likely], expected[~likely].sum()[None]]).double()
    used = means > 0
    chi_square = float(((groups - means)[used] ** 2 / means[used]).sum())
    freedom = max(1, int(used.sum()) - 1)
    assert chi_square < freedom + 5 * (2 * freedom) ** 0.5 + 8


def _fields(sampling: Sampling) -> dict[str, Any]:
    return {name: getattr(sampling, name) for name in sampling.__dataclass_fields__}


def test_row_draws_the_same_whoever_is_beside_it() -> None:
    mixed = [sampling for sampling, _ in SETTINGS.values()]
    scores = torch.cat([logits(seed, spread=spread) for seed, (_, spread) in enumerate(SETTINGS.values())])
    for number, sampling in enumerate(mixed):
        seeded = Sampling(**{**_fields(sampling), "seed": 5})
        (alone,) = choose(scores[number : number + 1], [0], [chooser(seeded)])
        everybody = [chooser(other) for other in mixed]
        everybody[number] = chooser(seeded)
        assert choose(scores, range(len(mixed)), everybody)[number] == alone


def test_seeds_and_choices_draw_differently_and_each_the_same_twice() -> None:
    scores = logits(3, spread=0.1)

    def tokens(seed: int, choice: int) -> list[int]:
        one = chooser(Sampling(seed=seed), choice=choice)
        return [token(choose(scores, [0], [one])[0]) for _ in range(8)]

    drawn = {(seed, choice): tuple(tokens(seed, choice)) for seed in range(3) for choice in range(3)}
    assert len(set(drawn.values())) == 9
    assert tuple(tokens(2, 1)) == drawn[2, 1]


def test_without_a_seed_answers_differ() -> None:
    scores = logits(3, spread=0.1).expand(2, -1).contiguous()
    one, other = chooser(Sampling()), chooser(Sampling())
    drawn = [[token(result) for result in choose(scores, [0, 1], [one, other])] for _ in range(12)]
    assert any(first != second for first, second in drawn)


def test_repetition_penalty_is_the_library_s() -> None:
    scores = logits(4)
    prompt = (*scores[0].topk(3).indices.tolist(), 7, 8)
    expected = RepetitionPenaltyLogitsProcessor(1.7)(torch.tensor([prompt]), scores.clone())[0]
    row = scores[0].clone()
    chooser(Sampling(repetition_penalty=1.7), prompt=prompt).alter(row)
    assert torch.equal(row, expected)


def test_presence_and_frequency_count_the_answer_alone() -> None:
    scores = torch.zeros(1, VOCAB)
    scores[0, 9] = 1.0
    one = chooser(Sampling(temperature=0.0, presence_penalty=0.25, frequency_penalty=0.5), prompt=(9, 9))
    assert [token(choose(scores, [0], [one])[0]) for _ in range(2)] == [9, 9]
    row = scores[0].clone()
    one.alter(row)
    assert float(row[9]) == 1.0 - 0.25 - 2 * 0.5
    assert float(row.abs().sum()) == 0.25


def test_bias_bans_and_forces() -> None:
    scores = logits(5)
    best, second = scores[0].topk(2).indices.tolist()
    banned = chooser(Sampling(temperature=0.0, logit_bias={best: -100.0}))
    forced = chooser(Sampling(logit_bias={11: 100.0}))
    plain = chooser(Sampling(temperature=0.0))
    before = scores.clone()
    assert [token(each) for each in choose(scores, [0, 0, 0], [banned, forced, plain])] == [second, 11, best]
    assert torch.equal(scores, before)


def test_coldest_temperatures_are_greedy() -> None:
    scores = torch.cat([logits(seed) for seed in range(2)])
    frozen = [chooser(Sampling(temperature=1e-42)), chooser(Sampling(temperature=1e-300, top_p=0.5))]
    assert [token(each) for each in choose(scores, [0, 1], frozen)] == scores.argmax(-1).tolist()


def test_greedy_rows_among_sampled_ones_take_the_likeliest() -> None:
    scores = torch.cat([logits(seed) for seed in range(4)])
    kinds = [Sampling(temperature=0.0), Sampling(), Sampling(temperature=0.0), Sampling(top_p=0.5)]
    found = choose(scores, range(4), [chooser(kind) for kind in kinds])
    assert [token(found[row]) for row in (0, 2)] == scores[[0, 2]].argmax(-1).tolist()


def test_what_nothing_allows_is_no_token_and_what_one_token_is_allowed_takes_it() -> None:
    class Only:
        def __init__(self, *allowed: int) -> None:
            self.allowed = list(allowed)

        def mask(self, scores: Tensor) -> None:
            kept = scores[self.allowed].clone()
            scores.fill_(-torch.inf)
            scores[self.allowed] = kept

        def accept(self, picked: int) -> None:
            assert picked in self.allowed

    scores = logits(6)
    nothing = chooser(Sampling(), constraint=Only)
    one = chooser(Sampling(temperature=3.0, top_p=0.9), constraint=lambda: Only(17))
    two = chooser(Sampling(), constraint=lambda: Only(17, 400))
    results = choose(scores, [0, 0, 0], [nothing, one, two])
    assert results[0] is None
    assert token(results[1]) == 17
    assert token(results[2]) in (17, 400)


def test_a_draw_at_the_very_end_is_a_token_that_can_be() -> None:
    class Last(Chooser):
        def uniform(self) -> float:
            return 1.0 - 2**-53

    scores = torch.full((1, VOCAB), -torch.inf)
    scores[0, :3] = torch.tensor([0.0, 1.0, 0.5])
    for sampling in (Sampling(), Sampling(top_p=0.99), Sampling(top_k=2)):
        last = Last(Request(prompt=(1,), max_new_tokens=1, sampling=sampling), 0)
        assert token(choose(scores, [0], [last])[0]) in (0, 1, 2)
