"""Where a run stands, in one file of its output folder: written whole or not at all."""

import io
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from swarm.atomic import write_file
from swarm.errors import UsageError

__all__ = ["Progress", "load", "save"]

NAME = "run.pt"
ADAPTER = "adapter_config.json"  # of PEFT


@dataclass(slots=True)
class Progress:
    """`losses`: of every step so far. `evaluations`: (step, loss on held-out rows)."""

    step: int = 0
    losses: list[float] = field(default_factory=list)
    evaluations: list[tuple[int, float]] = field(default_factory=list)


def save(
    folder: Path, identity: Mapping[str, Any], progress: Progress, tuned: Any, optimizer: torch.optim.Optimizer
) -> None:
    """`identity`: what two runs must have in common for one to go on where the other stopped."""
    state = {
        "identity": _plain(identity),
        "step": progress.step,
        "losses": progress.losses,
        "evaluations": [list(entry) for entry in progress.evaluations],
        "adapter": {name: p.detach() for name, p in tuned.named_parameters() if p.requires_grad},
        "optimizer": optimizer.state_dict(),
        "random": torch.get_rng_state(),
    }
    buffer = io.BytesIO()
    torch.save(state, buffer)
    write_file(folder / NAME, buffer.getvalue())


def load(folder: Path, identity: Mapping[str, Any], tuned: Any, optimizer: torch.optim.Optimizer) -> Progress:
    """Puts everything back to where the run stopped; a new beginning where none has. Raises UsageError."""
    path = folder / NAME
    if not path.exists():
        if (folder / ADAPTER).exists():
            raise UsageError(f"{folder} holds an adapter that this run has not made: give another --output")
        return Progress()
    try:
        state = torch.load(path, weights_only=True)
        theirs = state["identity"]
    except Exception as error:  # a file that is no checkpoint fails in many ways
        raise UsageError(f"{path} can't be read, so the run can't go on: remove it to begin again ({error})") from error
    mine = _plain(identity)
    differing = sorted(key for key in mine if theirs.get(key) != mine[key])
    if differing:
        raise UsageError(
            f"{folder} holds another run: {', '.join(_told(key, theirs, mine) for key in differing)}. "
            "Give the same options to go on with it, or another --output"
        )
    with torch.no_grad():
        for name, parameter in tuned.named_parameters():
            if parameter.requires_grad:
                parameter.copy_(state["adapter"][name])
    optimizer.load_state_dict(state["optimizer"])
    torch.set_rng_state(state["random"])
    evaluations = [(int(step), float(loss)) for step, loss in state["evaluations"]]
    return Progress(state["step"], state["losses"], evaluations)


def _plain(identity: Mapping[str, Any]) -> dict[str, Any]:
    return {key: list(value) if isinstance(value, tuple) else value for key, value in identity.items()}


def _told(key: str, theirs: dict[str, Any], mine: dict[str, Any]) -> str:
    return f"{key.replace('_', ' ')} {theirs.get(key)} there and {mine[key]} here"
