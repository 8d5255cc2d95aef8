"""What `swarm bench` measures, and how it is reported."""

import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.generation.streamers import BaseStreamer

from clients.events import Event, Step
from clients.local_swarm import LocalSwarm
from clients.model import SwarmModelForCausalLM
from swarm.checkpoint import resolve
from swarm.errors import UsageError
from swarm.version import __version__
from swarm.weights import quiet_library

__all__ = ["Trial", "compare"]


@dataclass(frozen=True, slots=True)
class Trial:
    """What is measured: `rounds` answers of `new_tokens` each, over `peers` with an equal part of the blocks each."""

    model: str
    cache: Path
    peers: int
    threads: int
    prompt_tokens: int
    new_tokens: int
    rounds: int


def compare(trial: Trial) -> None:
    """Measure, and print a table and one line of JSON. Raises SwarmError."""
    torch.set_num_threads(trial.threads)
    notes = Console(stderr=True, highlight=False)
    checkpoint = resolve(trial.model, cache=trial.cache)
    if trial.peers > checkpoint.num_blocks:
        raise UsageError(
            f"--peers {trial.peers}: {checkpoint.name} has only {checkpoint.num_blocks} blocks to share out"
        )
    with quiet_library():
        local = AutoModelForCausalLM.from_pretrained(checkpoint.folder, dtype=torch.float32)
    vocabulary = checkpoint.config.vocab_size
    prompt = torch.randint(3, vocabulary, (1, trial.prompt_tokens), generator=torch.manual_seed(0))
    each = -(-checkpoint.num_blocks // trial.peers)
    steps = StepLog()
    with LocalSwarm(trial.model, trial.cache, threads=trial.threads) as swarm:
        notes.print(f"starting {trial.peers} peers of {each} blocks each …")
        swarm.start_all([f"peer{index}" for index in range(trial.peers)], "--num-blocks", str(each))
        with SwarmModelForCausalLM.from_pretrained(
            str(checkpoint.folder),
            initial_peers=swarm.addresses,
            cache=trial.cache,
            observer=steps.hear,
            dtype=torch.float32,
            share_prefixes=False,  # every round computes the same prompt
        ) as remote:
            pairs = _in_turn(local, remote, prompt, trial, steps, notes)
    settings = {"peers": trial.peers, "threads": trial.threads}
    report = Report.of(pairs, steps, floor_ms=_floor_ms(local), settings=settings)
    Console(highlight=False).print(report.table())
    sys.stdout.write(json.dumps(report.as_json()) + "\n")


# --- measuring ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Run:
    """One answer: seconds to the first token, and between the following ones in all."""

    first: float
    rest: float
    tokens: tuple[int, ...]

    @property
    def rate(self) -> float:
        """Tokens per second after the first."""
        return (len(self.tokens) - 1) / self.rest


class _Times(BaseStreamer):
    """When each token came; the first entry is the prompt's."""

    def __init__(self) -> None:
        self.at: list[float] = []
        self.tokens: list[int] = []

    def put(self, value: Tensor) -> None:
        self.at.append(time.perf_counter())
        self.tokens += value.flatten().tolist()

    def end(self) -> None:
        pass


def measure(model: PreTrainedModel, prompt: Tensor, new_tokens: int) -> Run:
    """Greedy, always `new_tokens` long."""
    times = _Times()
    model.generate(  # type: ignore[operator]
        prompt,
        attention_mask=torch.ones_like(prompt),
        max_new_tokens=new_tokens,
        min_new_tokens=new_tokens,
        do_sample=False,
        streamer=times,
    )
    return Run(times.at[1] - times.at[0], times.at[-1] - times.at[1], tuple(times.tokens[prompt.shape[1] :]))


def _in_turn(
    local: PreTrainedModel, remote: PreTrainedModel, prompt: Tensor, trial: Trial, steps: "StepLog", notes: Console
) -> list[tuple[Run, Run]]:
    """Local and swarm, as often as the trial says; the first time, which warms up, does not count."""
    pairs = []
    for turn in range(trial.rounds + 1):
        pair = measure(local, prompt, trial.new_tokens), measure(remote, prompt, trial.new_tokens)
        if turn:
            pairs.append(pair)
        else:
            steps.clear()
        notes.print(f"  {turn or 'warm-up'}: {pair[0].rate:.1f} and {pair[1].rate:.1f} tokens/s")
    return pairs


class StepLog:
    """An observer that keeps the steps of single tokens."""

    def __init__(self) -> None:
        self.steps: list[Step] = []

    def hear(self, event: Event) -> None:
        if isinstance(event, Step) and event.tokens == 1:
            self.steps.append(event)

    def clear(self) -> None:
        self.steps = []


def _floor_ms(model: PreTrainedModel) -> float:
    """The least a token can take: every weight is read from memory once, at the speed that is measured here."""
    size = sum(parameter.nbytes for parameter in model.parameters())
    block = torch.ones(64 << 20)  # 256 MiB, far more than caches hold
    seconds = []
    for _ in range(5):
        started = time.perf_counter()
        block.sum()
        seconds.append(time.perf_counter() - started)
    return size / (block.nbytes / min(seconds)) * 1000


# --- reporting ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Spread:
    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        return cls(statistics.median(values), min(values), max(values))

    def __str__(self) -> str:
        return f"{self.median:.2f}  ({self.low:.2f} to {self.high:.2f})"


@dataclass(frozen=True, slots=True)
class Report:
    ratio: Spread
    local_rate: Spread
    swarm_rate: Spread
    local_first: Spread
    swarm_first: Spread
    identical: bool
    profile_ms: dict[str, float]  # medians over steps of one token
    floor_ms: float
    settings: dict[str, int]

    @classmethod
    def of(
        cls, pairs: Sequence[tuple[Run, Run]], steps: StepLog, *, floor_ms: float, settings: dict[str, int]
    ) -> "Report":
        locals_, swarms = zip(*pairs, strict=True)
        return cls(
            ratio=Spread.of([remote.rate / local.rate for local, remote in pairs]),
            local_rate=Spread.of([run.rate for run in locals_]),
            swarm_rate=Spread.of([run.rate for run in swarms]),
            local_first=Spread.of([run.first for run in locals_]),
            swarm_first=Spread.of([run.first for run in swarms]),
            identical=all(local.tokens == remote.tokens for local, remote in pairs),
            profile_ms=_profile(steps.steps, [run.rest / (len(run.tokens) - 1) for run in swarms]),
            floor_ms=floor_ms,
            settings=settings,
        )

    def table(self) -> Table:
        table = Table("", "median  (lowest to highest)", title="one stream", title_justify="left")
        table.add_row("swarm / local", str(self.ratio))
        table.add_row("local, tokens/s", str(self.local_rate))
        table.add_row("swarm, tokens/s", str(self.swarm_rate))
        table.add_row("local, s to first token", str(self.local_first))
        table.add_row("swarm, s to first token", str(self.swarm_first))
        table.add_row("tokens identical", "yes" if self.identical else "NO")
        for part, milliseconds in self.profile_ms.items():
            table.add_row(f"ms per token: {part}", f"{milliseconds:.2f}")
        table.add_row("ms per token: floor of reading all weights", f"{self.floor_ms:.2f}")
        return table

    def as_json(self) -> dict[str, object]:
        machine = {"machine": platform.machine(), "cores": os.cpu_count(), "torch": torch.__version__}
        return {"bench": "swarm", "version": __version__, **asdict(self), **machine}


def _profile(steps: Sequence[Step], token_seconds: Sequence[float]) -> dict[str, float]:
    """Where the time of one token goes: hops compute and queue, the network is the rest of a step, the client (head,
    sampling, embedding) the rest of the token."""
    if not steps:
        return {}
    compute = statistics.median(sum(c for _, c in step.trace) for step in steps)
    queue = statistics.median(sum(q for q, _ in step.trace) for step in steps)
    step_ms = statistics.median(step.seconds * 1000 for step in steps)
    token_ms = statistics.median(token_seconds) * 1000
    return {
        "whole": token_ms,
        "compute in hops": compute,
        "queue in hops": queue,
        "network": step_ms - compute - queue,
        "client": token_ms - step_ms,
    }
