"""A hundred steps of training tiny models of several families over engines in memory: the loss curve of one process."""

from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PrefixTuningConfig, PromptTuningConfig
from transformers import AutoModelForCausalLM

from clients.model import SwarmModelForCausalLM
from tests.clients.test_engines import Swarm
from tests.clients.training.adapted import adapted, learning, loss_of
from tests.models import tiny_model

pytestmark = pytest.mark.soak

STEPS = 100
FAMILIES = ("llama", "qwen3", "gemma3_text", "mixtral")
CONFIGS = {
    "lora": LoraConfig(r=8, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"),
    "prompt": PromptTuningConfig(num_virtual_tokens=5, task_type="CAUSAL_LM"),
    "prefix": PrefixTuningConfig(num_virtual_tokens=5, task_type="CAUSAL_LM"),
}


def curve(tuned: object) -> list[float]:
    optimizer = torch.optim.AdamW(learning(tuned).values(), lr=1e-3)
    losses = []
    for _ in range(STEPS):
        loss = loss_of(tuned)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", CONFIGS)
def test_losses_are_those_of_one_process(family: str, kind: str, tmp_path: Path, figures: list[str]) -> None:
    folder = tiny_model(family, tmp_path / family)
    swarm = Swarm(folder, tmp_path, (1, 3))
    try:
        with SwarmModelForCausalLM.from_pretrained(folder, cache=tmp_path, connection=swarm.connection) as model:
            there = curve(adapted(model, CONFIGS[kind]))
    finally:
        swarm.connection.close()
    here = curve(adapted(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval(), CONFIGS[kind]))
    apart = max(abs(a - b) for a, b in zip(here, there, strict=True))
    figures.append(f"tiny {family}, {kind}: {STEPS} steps, {here[0]:.3f} to {here[-1]:.3f}, {apart:.1e} apart at most")
    assert apart < 1e-3
    assert there[-1] < there[0]
