"""`swarm bench train --bandwidth-mbit`: steps of LoRA over slow lines, with and without compression, in turn."""

from contextlib import ExitStack
from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.table import Table
from torch import Tensor
from transformers import AutoTokenizer

from clients.bench.far import FarAway, Line, free_ports
from clients.bench.fleet import Fleet
from clients.bench.learner import RANK, Learner, with_lora
from clients.bench.trial import FarTrainTrial, Layout, shares
from clients.model import SwarmModelForCausalLM
from swarm.bystanders import Bystanders
from swarm.checkpoint import Checkpoint, resolve
from swarm.errors import SwarmError
from swarm.figures import Spread, new_table, publish
from swarm.quality import prose

__all__ = ["run"]

PLAIN = "none"


def run(trial: FarTrainTrial, notes: Console) -> None:
    """Measure and print. Raises SwarmError."""
    checkpoint = resolve(trial.model, cache=trial.cache)
    shares(checkpoint.num_blocks, trial.peers)  # before anything is started
    with FarAway(free_ports(trial.peers), Line(trial.delay, trial.bandwidth)) as far:
        notes.print(f"starting {trial.peers} peers behind lines …")
        with ExitStack() as stack:
            fleet = stack.enter_context(
                Fleet(
                    trial.model,
                    trial.cache,
                    checkpoint,
                    Layout(trial.peers, "fp32"),
                    peer_threads=trial.peer_threads,
                    client_threads=trial.client_threads,
                    options=far.peer_options,
                )
            )
            names = dict.fromkeys((PLAIN, *trial.compress))
            models = [stack.enter_context(_client(trial, checkpoint, fleet, name)) for name in names]
            tuned = zip(names, map(with_lora, models), strict=True)
            sides = {name: Learner(own, trial.client_threads) for name, own in tuned}
            bystanders = stack.enter_context(Bystanders())
            _measure(trial, sides, _batches(trial, checkpoint), notes)
        notes.print(str(bystanders))
    tokens = sum(trial.rows * trial.length for side in sides.values() for _ in side.seconds)
    if far.said.get("bytes", 0) < tokens * checkpoint.hidden_size * 4:  # forward and back, int8 at least
        raise SwarmError("most of what was sent found a way around the lines, so nothing can be said of them")
    values, table = _sum_up(trial, sides)
    publish("train", [table], {**values, "lines": far.said}, alone=notes.quiet)


def _client(trial: FarTrainTrial, checkpoint: Checkpoint, fleet: Fleet, compress: str) -> Any:
    return SwarmModelForCausalLM.from_pretrained(
        str(checkpoint.folder), initial_peers=fleet.addresses, cache=trial.cache, compress=compress
    )


def _batches(trial: FarTrainTrial, checkpoint: Checkpoint) -> list[Tensor]:
    """Of each round: rows of a text that is read over and over."""
    tokens: Tensor = AutoTokenizer.from_pretrained(checkpoint.folder)(prose(), return_tensors="pt").input_ids[0]
    rows = tokens[: len(tokens) // trial.length * trial.length].view(-1, trial.length)
    if not len(rows):
        raise SwarmError(f"--length: the text for this has {len(tokens)} tokens")
    picked = [[(number * trial.rows + row) % len(rows) for row in range(trial.rows)] for number in range(trial.steps)]
    return [rows[batch] for batch in picked]


def _measure(trial: FarTrainTrial, sides: dict[str, Learner], batches: list[Tensor], notes: Console) -> None:
    for number, batch in enumerate(batches):
        for side in sides.values():
            side.step(batch)
        said = ", ".join(f"{name} {side.seconds[-1]:.2f} s, loss {side.losses[-1]:.3f}" for name, side in sides.items())
        notes.print(f"  {number + 1}: {said}")


def _sum_up(trial: FarTrainTrial, sides: dict[str, Learner]) -> tuple[dict[str, Any], Table]:
    """The first step of each, in which adapters' sessions open and lines are measured, does not count."""
    tokens, plain = trial.rows * trial.length, sides[PLAIN]
    speeds = {name: Spread.of([tokens / s for s in side.seconds[1:]]) for name, side in sides.items()}
    ratios = {
        name: Spread.of([a / b for a, b in zip(plain.seconds[1:], side.seconds[1:], strict=True)])
        for name, side in sides.items()
    }
    last = {name: sum(side.losses[-trial.last :]) / trial.last for name, side in sides.items()}
    apart = {name: abs(loss / last[PLAIN] - 1) for name, loss in last.items()}
    table = new_table(
        f"LoRA r = {RANK}, {trial.rows} rows of {trial.length} tokens, fp32, {trial.peers} peers, "
        f"{trial.bandwidth * 8 / 1e6:g} Mbit/s each way",
        "compress",
        "tokens/s",
        "over none",
        f"loss of the last {trial.last} steps",
        "apart",
    )
    for name in sides:
        table.add_row(name, str(speeds[name]), str(ratios[name]), f"{last[name]:.4f}", f"{apart[name]:.2%}")
    values = {
        "settings": {**asdict(trial), "cache": str(trial.cache)},
        "tokens_per_second": {name: asdict(speed) for name, speed in speeds.items()},
        "over_none": {name: asdict(ratio) for name, ratio in ratios.items()},
        "last_losses": last,
        "losses_apart": apart,
        "losses": {name: side.losses for name, side in sides.items()},
    }
    return values, table
