"""Adapters that are the same on every copy of a model, and a batch with rows of different lengths."""

import copy
from typing import Any

import torch
from peft import get_peft_model
from torch import Tensor

TOKENS = torch.arange(3, 63).view(4, 15) % 97
MASK = torch.ones_like(TOKENS)
MASK[1, 9:] = 0
MASK[2, 12:] = 0
LABELS = TOKENS.masked_fill(MASK == 0, -100)


def adapted(model: Any, config: Any) -> Any:
    """No tensor of the adapter is zero, as those of a new LoRA are, so that all have gradients."""
    tuned = get_peft_model(model, copy.deepcopy(config))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in learning(tuned).values():
            noise = torch.randn(parameter.shape, generator=generator) / 20
            parameter.copy_(noise + (config.peft_type == "IA3"))
    return tuned


def learning(tuned: Any) -> dict[str, Any]:
    return {name: parameter for name, parameter in tuned.named_parameters() if parameter.requires_grad}


def loss_of(tuned: Any) -> Tensor:
    loss: Tensor = tuned(input_ids=TOKENS, attention_mask=MASK, labels=LABELS).loss
    return loss


def gradients(tuned: Any) -> dict[str, Tensor]:
    """After one backward pass."""
    return {name: parameter.grad for name, parameter in learning(tuned).items()}


def furthest(found: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    """The largest relative L2 of a tensor."""
    assert found.keys() == expected.keys()
    return max(float((found[name] - tensor).norm() / tensor.norm()) for name, tensor in expected.items())
