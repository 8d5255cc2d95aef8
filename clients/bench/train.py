"""`swarm bench train`: steps of LoRA through a swarm on this machine against the same steps of PEFT in one process."""

from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.table import Table

from clients.bench.fleet import Fleet
from clients.bench.learner import RANK, Learner, random_batch, with_lora
from clients.bench.reference import Reference
from clients.bench.trial import Layout, TrainTrial
from swarm.bystanders import Bystanders
from swarm.checkpoint import resolve
from swarm.figures import Spread, new_table, publish
from swarm.rates import Rates, measure_rates

__all__ = ["run"]


def run(trial: TrainTrial, notes: Console) -> None:
    """Measure and print. Raises SwarmError."""
    checkpoint = resolve(trial.model, cache=trial.cache)
    notes.print("measuring this machine …")
    rates = measure_rates(trial.threads)
    reference = Reference.load(checkpoint, "fp32", trial.threads)
    layout = Layout(trial.peers, "fp32")
    notes.print(f"starting {layout} …")
    with Fleet(
        trial.model,
        trial.cache,
        checkpoint,
        layout,
        peer_threads=trial.peer_threads,
        client_threads=trial.client_threads,
    ) as fleet:
        local = Learner(with_lora(reference.model), trial.threads)
        swarm = Learner(with_lora(fleet.model), trial.client_threads)
        vocabulary = reference.model.config.get_text_config().vocab_size
        with Bystanders() as bystanders:
            for number in range(trial.rounds + 1):  # the first warms up
                batch = random_batch(vocabulary, trial.rows, trial.length, number)
                local.step(batch)
                swarm.step(batch)
                name = str(number or "warm-up")
                notes.print(f"  {name}: local {local.seconds[-1]:.2f} s, swarm {swarm.seconds[-1]:.2f} s")
        notes.print(str(bystanders))
        costs = fleet.model.training_costs()
    values, table = _sum_up(trial, reference, local, swarm, rates.at_best(measure_rates(trial.threads)), costs)
    publish("train", [table], values, alone=notes.quiet)


def _sum_up(
    trial: TrainTrial, reference: Reference, local: Learner, swarm: Learner, rates: Rates, costs: list[Any]
) -> tuple[dict[str, Any], Table]:
    tokens = trial.rows * trial.length
    ratios = Spread.of([here / there for here, there in zip(local.seconds[1:], swarm.seconds[1:], strict=True)])
    speeds = {name: Spread.of([tokens / s for s in side.seconds[1:]]) for name, side in _named(local, swarm)}
    # Forward and back, each one product with every weight: no gradient of a weight is wanted but of the adapter's.
    floor = 2 * rates.floor(0, reference.weights.operations(tokens, tokens))
    apart = max(abs(a - b) for a, b in zip(local.losses, swarm.losses, strict=True))
    table = new_table(
        f"LoRA r = {RANK}, {trial.rows} rows of {trial.length} tokens, fp32", "", "tokens/s", "over local"
    )
    table.add_row(f"local, {trial.threads} threads", str(speeds["local"]), "1")
    table.add_row(f"{trial.peers} peers of {trial.peer_threads} threads", str(speeds["swarm"]), str(ratios))
    table.add_row("floor of the sums", f"{tokens / floor:.0f}", "")
    computing = {cost.name: cost.seconds / (trial.rounds + 1) for cost in costs}
    values = {
        "settings": {**asdict(trial), "cache": str(trial.cache)},
        "rates": asdict(rates),
        "tokens_per_second": {name: asdict(speed) for name, speed in speeds.items()},
        "over_local": asdict(ratios),
        "floor_seconds": floor,
        "peers_seconds_a_step": computing,
        "losses_apart": apart,
    }
    return values, table


def _named(local: Learner, swarm: Learner) -> list[tuple[str, Learner]]:
    return [("local", local), ("swarm", swarm)]
