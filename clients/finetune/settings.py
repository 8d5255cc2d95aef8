"""What one fine-tuning run is, from its options."""

from dataclasses import asdict, dataclass
from math import inf
from pathlib import Path
from typing import Annotated, Any

import typer

from clients.options import ModelName
from swarm.errors import UsageError

__all__ = ["METHODS", "WITH_VIRTUAL_TOKENS", "Settings"]

METHODS = ("lora", "ia3", "prompt", "prefix")
WITH_VIRTUAL_TOKENS = ("prompt", "prefix")


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Fields are options of `swarm finetune`. Raises UsageError."""

    model: ModelName
    data: Annotated[str, typer.Option(help="Texts to learn from: a .jsonl or .txt file, or a dataset of the hub.")]
    output: Annotated[Path, typer.Option(help="The folder for the adapter; a run that stopped there goes on.")]
    method: Annotated[str, typer.Option(help=f"What is trained: {', '.join(METHODS)}.")] = "lora"
    rank: Annotated[int, typer.Option(min=1, help="Of LoRA's matrices.")] = 8
    virtual_tokens: Annotated[int, typer.Option(min=1, help="Length of a trained prompt or prefix.")] = 16
    targets: Annotated[
        str, typer.Option(help="Linear layers to adapt, such as q_proj,v_proj; by default the usual ones.")
    ] = ""
    learning_rate: Annotated[float, typer.Option(help="At its highest.")] = 2e-4
    batch: Annotated[int, typer.Option(min=1, help="Rows of a step.")] = 8
    steps: Annotated[int, typer.Option(min=1, help="Steps in all.")] = 100
    max_length: Annotated[int, typer.Option(min=2, help="Tokens of a row at most.")] = 512
    truncate: Annotated[bool, typer.Option("--truncate", help="Cut rows that are longer.")] = False
    held_out: Annotated[float, typer.Option(help="Share of the rows to evaluate on.")] = 0.1
    evaluate_every: Annotated[int, typer.Option(min=1, help="Steps between evaluations.")] = 25
    save_every: Annotated[int, typer.Option(min=1, help="Steps between checkpoints.")] = 25
    stop_after: Annotated[
        int, typer.Option(min=0, help="End after so many evaluations without a better one; 0: never.")
    ] = 0
    seed: Annotated[int, typer.Option(help="Makes a run repeatable.")] = 0

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise UsageError(f"--method is one of {', '.join(METHODS)}, not '{self.method}'")
        if not 0 <= self.held_out < 1:
            raise UsageError(f"--held-out is a share of the rows from 0 to below 1, not {self.held_out:g}")
        if not 0 < self.learning_rate < inf:
            raise UsageError(f"--learning-rate is above zero, not {self.learning_rate:g}")

    @property
    def modules(self) -> list[str]:
        """The linear layers that LoRA and IA3 change; none for PEFT's choice."""
        return self.targets.replace(",", " ").split()

    def identity(self) -> dict[str, Any]:
        """What two runs must have in common for one to go on where the other stopped."""
        loose = {"output", "steps", "evaluate_every", "save_every", "stop_after"}
        return {key: value for key, value in asdict(self).items() if key not in loose}
