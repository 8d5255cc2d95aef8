"""Steps of LoRA, timed: of one model, the same on every side that is compared."""

import warnings
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor

from clients.bench.answers import new_prompt
from swarm.rates import threads

__all__ = ["RANK", "Learner", "random_batch", "with_lora"]

RANK, TARGETS = 8, ["q_proj", "v_proj"]
LEARNING_RATE = 1e-3


@dataclass
class Learner:
    """One way to train: the same adapter, batches and optimizer as all others. `seconds`: of each step."""

    tuned: Any
    count: int  # threads
    seconds: list[float] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        generator = torch.Generator().manual_seed(1)
        self.learning = [parameter for parameter in self.tuned.parameters() if parameter.requires_grad]
        with torch.no_grad():
            for parameter in self.learning:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) / 100)
        self.optimizer = torch.optim.AdamW(self.learning, lr=LEARNING_RATE)
        self.tuned.train()

    def step(self, batch: Tensor) -> None:
        with threads(self.count):
            begun = perf_counter()
            loss = self.tuned(input_ids=batch, labels=batch).loss
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            self.seconds.append(perf_counter() - begun)
            self.losses.append(loss.item())


def with_lora(model: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT asks the library in words that are about to change
        return get_peft_model(model, LoraConfig(r=RANK, target_modules=TARGETS, task_type="CAUSAL_LM"))


def random_batch(vocabulary: int, rows: int, length: int, number: int) -> Tensor:
    """Tokens [rows, length] that follow from `number`."""
    return torch.cat([new_prompt(vocabulary, length, seed=number * 65_536 + row) for row in range(rows)])
