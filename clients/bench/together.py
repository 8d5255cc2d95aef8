"""`swarm bench train --clients N`: several clients that train at once over the same peers, against one of them."""

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Console
from rich.table import Table

from clients.bench.fleet import Fleet
from clients.bench.learner import RANK
from clients.bench.lessons import Lesson, Lessons
from clients.bench.quota import Quotas
from clients.bench.trial import Layout, TrainTrial, shares
from swarm.bystanders import Bystanders
from swarm.checkpoint import resolve
from swarm.figures import Spread, new_table, publish

__all__ = ["Turn", "run_together", "sum_up"]

STEPS = 3  # of each client in a turn, so that its beginning and end count less


@dataclass(frozen=True, slots=True)
class Turn:
    """Seconds of the steps of one client, and of as many of each of all clients at once."""

    alone: float
    together: float


def run_together(trial: TrainTrial, notes: Console) -> None:
    """Measure and print. Raises SwarmError."""
    checkpoint = resolve(trial.model, cache=trial.cache)
    layout = Layout(trial.peers, "fp32")
    shares(checkpoint.num_blocks, trial.peers)  # before anything is started
    notes.print(f"starting {layout} and {trial.clients} clients …")
    turns = []
    with (
        Fleet(trial.model, trial.cache, checkpoint, layout, peer_threads=trial.peer_threads, client_threads=1) as fleet,
        Lessons(_lesson(trial, str(checkpoint.folder), fleet.addresses), trial.clients) as lessons,
        Quotas([*fleet.pids, *lessons.pids], trial.cores_each) if trial.cores_each else nullcontext(),
        Bystanders() as bystanders,
    ):
        for number in range(trial.rounds):
            first = number * STEPS
            turn = Turn(
                lessons.seconds(1, first=first, steps=STEPS), lessons.seconds(trial.clients, first=first, steps=STEPS)
            )
            notes.print(f"  {number + 1}: one client {turn.alone:.2f} s, {trial.clients} at once {turn.together:.2f} s")
            turns.append(turn)
    notes.print(str(bystanders))
    values, table = sum_up(trial, turns)
    publish("train-together", [table], {**values, "others": bystanders.cores}, alone=notes.quiet)


def sum_up(trial: TrainTrial, turns: Sequence[Turn]) -> tuple[dict[str, Any], Table]:
    """Tokens per second, and how many times one client's all have together, turn by turn."""
    tokens = trial.rows * trial.length * STEPS
    alone = Spread.of([tokens / turn.alone for turn in turns])
    together = Spread.of([trial.clients * tokens / turn.together for turn in turns])
    times = Spread.of([trial.clients * turn.alone / turn.together for turn in turns])
    held = f", each with {trial.cores_each:g} of a core" if trial.cores_each else ""
    title = f"LoRA r = {RANK}, {trial.rows} rows of {trial.length} tokens, fp32, {trial.peers} peers{held}"
    table = new_table(title, "", "tokens/s", "over one")
    table.add_row("one client", str(alone), "1")
    table.add_row(f"{trial.clients} clients at once", str(together), str(times))
    values = {
        "settings": {**asdict(trial), "cache": str(trial.cache)},
        "tokens_per_second": {"one": asdict(alone), "all": asdict(together)},
        "over_one": asdict(times),
    }
    return values, table


def _lesson(trial: TrainTrial, folder: str, addresses: Sequence[str]) -> Lesson:
    return Lesson(
        folder=folder,
        initial_peers=addresses,
        cache=str(trial.cache),
        threads=trial.client_threads,
        rows=trial.rows,
        length=trial.length,
    )
