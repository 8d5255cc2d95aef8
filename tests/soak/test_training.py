"""A hundred steps through real peers, one of which is killed now and then: the loss curve of one process."""

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PrefixTuningConfig, PromptTuningConfig
from transformers import PreTrainedModel

from clients.model import SwarmModelForCausalLM
from swarm.checkpoint import Checkpoint
from tests.clients.training.adapted import adapted, learning
from tests.real.conftest import MIDDLE, SPANS
from tests.real.herd import Herd
from tests.real.prompts import Text

STEPS = 100
KILL_EVERY = 12  # steps, which is some ten seconds
CONFIGS = {
    "lora": LoraConfig(r=8, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"),
    "prompt": PromptTuningConfig(num_virtual_tokens=8, task_type="CAUSAL_LM"),
    "prefix": PrefixTuningConfig(num_virtual_tokens=8, task_type="CAUSAL_LM"),
}


@pytest.fixture(scope="module")
def herd(checkpoint: Checkpoint, cache: Path) -> Iterator[Herd]:
    with Herd(checkpoint, cache) as herd:
        herd.ensure(dict.fromkeys(SPANS, 1))
        yield herd


class Curve:
    """One way to train."""

    def __init__(self, tuned: Any) -> None:
        self.losses: list[float] = []
        self._tuned = tuned
        self._optimizer = torch.optim.AdamW(learning(tuned).values(), lr=1e-3)

    def step(self, batch: dict[str, Any]) -> None:
        labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
        loss = self._tuned(**batch, labels=labels).loss
        self._optimizer.zero_grad()
        loss.backward()
        self._optimizer.step()
        self.losses.append(loss.item())


@pytest.mark.soak
@pytest.mark.parametrize("kind", CONFIGS)
def test_loss_curve_is_that_of_one_process_though_peers_are_killed(
    kind: str, herd: Herd, local: PreTrainedModel, text: Text, figures: list[str]
) -> None:
    herd.ensure({**dict.fromkeys(SPANS, 1), MIDDLE: 2})
    here = Curve(adapted(copy.deepcopy(local), CONFIGS[kind]))
    killed = 0
    with SwarmModelForCausalLM.from_pretrained(
        herd.checkpoint.folder, initial_peers=herd.addresses, cache=herd.cache, patience=120.0
    ) as model:
        there = Curve(adapted(model, CONFIGS[kind]))
        for number in range(STEPS):
            batch = text.batch((24, 9, 17, 12), start=40 * (number % 8))
            if kind == "lora" and number % KILL_EVERY == KILL_EVERY - 1 and len(herd.of(MIDDLE)) > 1:
                herd.kill(herd.of(MIDDLE)[0])
                herd.start(MIDDLE)
                killed += 1
            here.step(batch)
            there.step(batch)
    apart = max(abs(a - b) for a, b in zip(here.losses, there.losses, strict=True))
    figures.append(f"{kind}: {STEPS} steps, {killed} peers killed, losses at most {apart:.1e} apart")
    assert apart < 1e-3
    assert there.losses[-1] < there.losses[0]
