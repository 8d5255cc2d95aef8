"""Answers whose peers fail: what each remedy goes on with, over a model in this process in place of a swarm."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.generation.streamers import BaseStreamer

from clients.bench.failing import Dice, Remedy, answer

NEW = 12
LIMIT = 600.0
PROMPT = torch.tensor([[5, 6, 7]])


class Stage:
    """`prompts`: how long that of each session was; `hit`: the places that failed, each time."""

    hops = 3

    def __init__(self, model: PreTrainedModel) -> None:
        self.prompts: list[int] = []
        self.hit: list[list[int]] = []
        self._model = model

    def generate(self, prompt: Tensor, new_tokens: int, streamer: BaseStreamer) -> None:
        self.prompts.append(prompt.shape[1])
        lengths = {"max_new_tokens": new_tokens, "min_new_tokens": new_tokens}
        mask = torch.ones_like(prompt)
        self._model.generate(prompt, attention_mask=mask, do_sample=False, streamer=streamer, **lengths)  # type: ignore[operator]

    def fail(self, places: Sequence[int]) -> None:
        self.hit.append(list(places))


@pytest.fixture(scope="module")
def model(folder: Path) -> PreTrainedModel:
    loaded: PreTrainedModel = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return loaded.eval()


@pytest.fixture(scope="module")
def calm(model: PreTrainedModel) -> tuple[int, ...]:
    return answer(Stage(model), Remedy.OURS, PROMPT, NEW, Dice(0.0, "calm"), LIMIT).tokens


class Once(Dice):
    """The middle hop fails before step number `step` of all, counted from 1; never again."""

    def __init__(self, step: int) -> None:
        super().__init__(0.0, "once")
        self._left = step

    def failing(self, hops: int) -> list[int]:
        self._left -= 1
        return [1] if self._left == 0 else []


@pytest.mark.parametrize(
    ("remedy", "prompts"), [(Remedy.OURS, [3]), (Remedy.REPLAY, [3, 3 + 5]), (Remedy.RESTART, [3, 3])]
)
def test_each_remedy_ends_with_the_same_tokens(
    model: PreTrainedModel, calm: tuple[int, ...], remedy: Remedy, prompts: list[int]
) -> None:
    stage = Stage(model)
    outcome = answer(stage, remedy, PROMPT, NEW, Once(5), LIMIT)
    assert outcome.tokens == calm
    assert len(calm) == NEW
    assert (stage.prompts, stage.hit, outcome.failures) == (prompts, [[1]], 1)
    assert outcome.rate == pytest.approx(NEW / outcome.seconds)
    assert len(outcome.recoveries) == (remedy is not Remedy.RESTART)


def test_nothing_fails_after_the_last_token(model: PreTrainedModel) -> None:
    stage = Stage(model)
    assert answer(stage, Remedy.RESTART, PROMPT, NEW, Once(NEW), LIMIT).failures == 0


def test_answer_that_takes_too_long_is_given_up_with_what_it_had_at_most(model: PreTrainedModel) -> None:
    outcome = answer(Stage(model), Remedy.RESTART, PROMPT, NEW, Dice(0.5, "many"), limit=0.0)
    assert outcome.rate is None
    assert 0 < len(outcome.tokens) < NEW


def test_dice_of_one_seed_fall_alike_and_as_often_as_they_should() -> None:
    one, same, other = (Dice(0.1, seed) for seed in ("1", "1", "2"))
    drawn = [one.failing(3) for _ in range(2000)]
    assert drawn == [same.failing(3) for _ in range(2000)]
    assert drawn != [other.failing(3) for _ in range(2000)]
    assert sum(map(len, drawn)) == pytest.approx(600, rel=0.2)
