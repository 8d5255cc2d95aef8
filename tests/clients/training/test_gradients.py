"""Gradients through a swarm are those of the same model in one process."""

import copy
from typing import Any

import pytest
import torch
from peft import IA3Config, LoraConfig, PromptTuningConfig, get_peft_model
from torch import Tensor
from transformers import PreTrainedModel

from clients.model import SwarmModelForCausalLM
from tests.clients.test_engines import Swarm

TOKENS = torch.arange(3, 63).view(4, 15) % 97
MASK = torch.ones_like(TOKENS)
MASK[1, 9:] = 0
MASK[2, 12:] = 0
LABELS = TOKENS.masked_fill(MASK == 0, -100)


def adapted(model: Any, config: Any) -> Any:
    """The adapter's first tensors are the same for every model, and none is zero."""
    tuned = get_peft_model(model, config)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in tuned.parameters():
            if parameter.requires_grad:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) / 20 + (config.peft_type == "IA3"))
    return tuned


def gradients(tuned: Any) -> tuple[float, dict[str, Tensor]]:
    loss = tuned(input_ids=TOKENS, attention_mask=MASK, labels=LABELS).loss
    loss.backward()
    return float(loss.detach()), {name: p.grad for name, p in tuned.named_parameters() if p.requires_grad}


CONFIGS = {
    "lora": LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"),
    "rslora": LoraConfig(r=4, use_rslora=True, target_modules=["o_proj", "down_proj"], task_type="CAUSAL_LM"),
    "ia3": IA3Config(
        target_modules=["k_proj", "v_proj", "down_proj"], feedforward_modules=["down_proj"], task_type="CAUSAL_LM"
    ),
    "prompt": PromptTuningConfig(num_virtual_tokens=5, task_type="CAUSAL_LM"),
}


@pytest.mark.parametrize("kind", CONFIGS)
def test_gradients_equal_local_training(kind: str, model: SwarmModelForCausalLM, local: PreTrainedModel) -> None:
    expected_loss, expected = gradients(adapted(copy.deepcopy(local), copy.deepcopy(CONFIGS[kind])))
    loss, found = gradients(adapted(model, copy.deepcopy(CONFIGS[kind])))
    assert loss == pytest.approx(expected_loss, rel=1e-5)
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        assert float((found[name] - gradient).norm() / gradient.norm()) < 1e-5, name


def test_a_hop_lost_between_forward_and_backward_leaves_gradients_the_same(
    swarm: Swarm, model: SwarmModelForCausalLM, local: PreTrainedModel
) -> None:
    _, expected = gradients(adapted(copy.deepcopy(local), copy.deepcopy(CONFIGS["lora"])))
    tuned = adapted(model, copy.deepcopy(CONFIGS["lora"]))
    loss = tuned(input_ids=TOKENS, attention_mask=MASK, labels=LABELS).loss
    swarm.connection.call(swarm.memory.kill("peer1"))
    loss.backward()
    for name, parameter in tuned.named_parameters():
        if parameter.requires_grad:
            assert float((parameter.grad - expected[name]).norm() / expected[name].norm()) < 1e-5, name
