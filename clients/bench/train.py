"""`swarm bench train`: steps of LoRA through a swarm on this machine against the same steps of PEFT in one process."""

import warnings
from dataclasses import asdict, dataclass, field
from time import perf_counter
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from rich.console import Console
from rich.table import Table
from torch import Tensor

from clients.bench.answers import new_prompt
from clients.bench.fleet import Fleet
from clients.bench.reference import Reference
from clients.bench.trial import Layout, TrainTrial
from swarm.bystanders import Bystanders
from swarm.checkpoint import resolve
from swarm.figures import Spread, new_table, publish
from swarm.rates import Rates, measure_rates, threads

__all__ = ["run"]

RANK, TARGETS = 8, ["q_proj", "v_proj"]
LEARNING_RATE = 1e-3


@dataclass
class _Side:
    """One way to train: the same adapter, batches and optimizer as the other. `seconds`: of each round's step."""

    tuned: Any
    count: int
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
        local = _Side(_with_lora(reference.model), trial.threads)
        swarm = _Side(_with_lora(fleet.model), trial.client_threads)
        with Bystanders() as bystanders:
            for number in range(trial.rounds + 1):  # the first warms up
                batch = _batch(trial, reference, number)
                local.step(batch)
                swarm.step(batch)
                name = str(number or "warm-up")
                notes.print(f"  {name}: local {local.seconds[-1]:.2f} s, swarm {swarm.seconds[-1]:.2f} s")
        notes.print(str(bystanders))
        costs = fleet.model.training_costs()
    values, table = _sum_up(trial, reference, local, swarm, rates.at_best(measure_rates(trial.threads)), costs)
    publish("train", [table], values, alone=notes.quiet)


def _with_lora(model: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT asks the library in words that are about to change
        return get_peft_model(model, LoraConfig(r=RANK, target_modules=TARGETS, task_type="CAUSAL_LM"))


def _batch(trial: TrainTrial, reference: Reference, number: int) -> Tensor:
    vocabulary = reference.model.config.get_text_config().vocab_size
    return torch.cat([new_prompt(vocabulary, trial.length, seed=number * 65_536 + row) for row in range(trial.rows)])


def _sum_up(
    trial: TrainTrial, reference: Reference, local: _Side, swarm: _Side, rates: Rates, costs: list[Any]
) -> tuple[dict[str, Any], Table]:
    tokens = trial.rows * trial.length
    ratios = Spread.of([here / there for here, there in zip(local.seconds[1:], swarm.seconds[1:], strict=True)])
    speeds = {name: Spread.of([tokens / s for s in side.seconds[1:]]) for name, side in _named(local, swarm)}
    # Forward and back, each one product with every weight: no gradient of a weight is wanted but of the adapter's.
    floor = 2 * reference.weights.operations(tokens, tokens) / rates.flops
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


def _named(local: _Side, swarm: _Side) -> list[tuple[str, _Side]]:
    return [("local", local), ("swarm", swarm)]
