"""What one fine-tuning run is, from its options."""

from dataclasses import asdict, dataclass
from math import inf
from pathlib import Path
from typing import Any

from swarm.errors import UsageError

__all__ = ["METHODS", "WITH_VIRTUAL_TOKENS", "Settings"]

METHODS = ("lora", "ia3", "prompt", "prefix")
WITH_VIRTUAL_TOKENS = ("prompt", "prefix")


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """`targets`: the linear layers that LoRA and IA3 change; by default PEFT's choice for the family. `length`: the
    most tokens of a row. `held_out`: the share of rows to evaluate on. `patience`: evaluations without a better one,
    after which a run ends early; 0 never ends early. Raises UsageError."""

    model: str
    data: str
    output: Path
    method: str = "lora"
    rank: int = 8
    virtual_tokens: int = 16
    targets: tuple[str, ...] = ()
    learning_rate: float = 2e-4
    batch: int = 8
    steps: int = 100
    length: int = 512
    truncate: bool = False
    held_out: float = 0.1
    evaluate_every: int = 25
    save_every: int = 25
    patience: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise UsageError(f"--method is one of {', '.join(METHODS)}, not '{self.method}'")
        if not 0 <= self.held_out < 1:
            raise UsageError(f"--held-out is a share of the rows from 0 to below 1, not {self.held_out:g}")
        if not 0 < self.learning_rate < inf:
            raise UsageError(f"--learning-rate is above zero, not {self.learning_rate:g}")

    def identity(self) -> dict[str, Any]:
        """What two runs must have in common for one to go on where the other stopped."""
        loose = {"output", "steps", "evaluate_every", "save_every", "patience"}
        return {key: value for key, value in asdict(self).items() if key not in loose}
