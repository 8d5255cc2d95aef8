"""The adapter of a run: made by PEFT around the swarm's model."""

import warnings
from typing import Any

import torch
from peft import IA3Config, LoraConfig, PeftConfig, PrefixTuningConfig, PromptTuningConfig, get_peft_model
from torch import nn

from clients.blocks import blocks_of
from clients.finetune.settings import Settings
from clients.model import SwarmModelForCausalLM
from swarm.errors import UsageError

__all__ = ["with_adapter"]

TASK = "CAUSAL_LM"


def with_adapter(model: SwarmModelForCausalLM, settings: Settings) -> Any:
    """PEFT's model around `model`; the same for the same seed. Raises UsageError."""
    torch.manual_seed(settings.seed)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PEFT asks the library in words that are about to change
            return get_peft_model(model, _config(settings))
    except ValueError as error:
        linears = ", ".join(_linears(model))
        raise UsageError(f"{str(error).splitlines()[0]} (--targets may name: {linears})") from error


def _config(settings: Settings) -> PeftConfig:
    targets = settings.modules or None
    if settings.method == "lora":
        return LoraConfig(r=settings.rank, lora_alpha=2 * settings.rank, target_modules=targets, task_type=TASK)
    if settings.method == "ia3":
        feedforward: list[str] | None = [] if targets else None
        return IA3Config(target_modules=targets, feedforward_modules=feedforward, task_type=TASK)
    if settings.method == "prompt":
        return PromptTuningConfig(num_virtual_tokens=settings.virtual_tokens, task_type=TASK)
    return PrefixTuningConfig(num_virtual_tokens=settings.virtual_tokens, task_type=TASK)


def _linears(model: SwarmModelForCausalLM) -> list[str]:
    """The names of the linear layers in blocks."""
    first = blocks_of(model)[0]
    return [name.rpartition(".")[2] for name, module in first.named_modules() if isinstance(module, nn.Linear)]
