"""`swarm bench failures`: one session whose peers fail now and then, beside doing without mending."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from math import inf
from types import TracebackType
from typing import Self

import psutil
import torch
from rich.console import Console
from torch import Tensor
from transformers.generation.streamers import BaseStreamer

from clients.bench.answers import exactly, new_prompt
from clients.bench.failing import Dice, Outcome, Remedy, answer
from clients.bench.failure_report import FailureReport, Round
from clients.bench.far import FarAway, Line, free_ports
from clients.bench.fleet import Fleet
from clients.bench.trial import FailuresTrial, Layout, shares
from clients.events import ChainChanged, Event
from clients.model import SwarmModelForCausalLM
from swarm.bystanders import Bystanders
from swarm.checkpoint import Checkpoint, resolve
from swarm.errors import SwarmError
from swarm.figures import publish
from swarm.ids import PeerId
from swarm.rates import threads

__all__ = ["run"]

COPIES = 2  # of each part of the blocks: one serves, one is the hot spare
WARM_UP_TOKENS = 8


def run(trial: FailuresTrial, notes: Console) -> None:
    """Measure and print. Raises SwarmError."""
    checkpoint = resolve(trial.model, cache=trial.cache)
    shares(checkpoint.num_blocks, trial.peers)  # before anything is started
    with FarAway(free_ports(COPIES * trial.peers), Line(trial.delay, trial.bandwidth)) as far:
        rounds, others = _measure(trial, checkpoint, far, notes)
    report = FailureReport(trial, rounds)
    settings = {**asdict(trial), "cache": str(trial.cache)}
    publish(
        "failures",
        list(report.tables()),
        {"settings": settings, **report.figures(), "others": others},
        alone=notes.quiet,
    )


def _measure(trial: FailuresTrial, checkpoint: Checkpoint, far: FarAway, notes: Console) -> tuple[list[Round], float]:
    """Of each round; and how many processors worked for others."""
    notes.print(f"starting {COPIES * trial.peers} peers, {COPIES} for each of {trial.peers} parts of the blocks …")
    with (
        Fleet(
            trial.model,
            trial.cache,
            checkpoint,
            Layout(trial.peers, "fp32"),
            peer_threads=trial.peer_threads,
            client_threads=trial.client_threads,
            options=far.peer_options,
            copies=COPIES,
        ) as fleet,
        Bystanders() as bystanders,
    ):
        rounds = [_round(trial, checkpoint, fleet, far, number, notes) for number in range(trial.rounds)]
    notes.print(str(bystanders))
    return rounds, bystanders.cores


def _round(
    trial: FailuresTrial, checkpoint: Checkpoint, fleet: Fleet, far: FarAway, number: int, notes: Console
) -> Round:
    prompt = new_prompt(checkpoint.config.get_text_config().vocab_size, trial.prompt_tokens, trial.seed + number)
    outcomes: Round = {}
    for probability, remedy in _cases(trial):
        dice = Dice(probability, f"{trial.seed} {number} {probability}")
        limit = trial.limit * outcomes[0.0, Remedy.OURS].seconds if outcomes else inf
        with _Field(trial, checkpoint, fleet, far) as stage:
            outcome = answer(stage, remedy, prompt, trial.new_tokens, dice, limit)
            if remedy is Remedy.OURS:
                stage.check(outcome)
        outcomes[probability, remedy] = outcome
        notes.print(f"  {number + 1}, {probability:g}, {remedy}: {_said(outcome)}")
    return outcomes


def _cases(trial: FailuresTrial) -> Iterator[tuple[float, Remedy]]:
    """The answer without failures first, where all remedies are one."""
    for probability in trial.probabilities:
        for remedy in Remedy if probability else (Remedy.OURS,):
            yield probability, remedy


def _said(outcome: Outcome) -> str:
    failed = f"{outcome.failures} failures"
    if outcome.rate is None:
        return f"given up after {outcome.seconds:.0f} s, {len(outcome.tokens)} tokens at the furthest, {failed}"
    return f"{outcome.rate:.1f} tokens/s, {failed}"


class _Field:
    """A context manager: a client of its own, which bans nobody yet and shares no beginnings, since a peer that is
    new would not know them; and the lines in front of its peers."""

    def __init__(self, trial: FailuresTrial, checkpoint: Checkpoint, fleet: Fleet, far: FarAway) -> None:
        self._trial = trial
        self._fleet = fleet
        self._far = far
        self._chain: tuple[PeerId, ...] = ()
        self._lost = 0
        self._stack = ExitStack()
        self._model = self._stack.enter_context(
            SwarmModelForCausalLM.from_pretrained(
                str(checkpoint.folder),
                initial_peers=fleet.addresses,
                cache=trial.cache,
                observer=self._hear,
                dtype=torch.float32,
                share_prefixes=False,
            )
        )

    @property
    def hops(self) -> int:
        return len(self._chain)

    def generate(self, prompt: Tensor, new_tokens: int, streamer: BaseStreamer | None) -> None:
        with threads(self._trial.client_threads):
            self._model.generate(
                prompt,
                exactly(self._model, new_tokens),
                attention_mask=torch.ones_like(prompt),
                streamer=streamer,
            )

    def fail(self, places: Sequence[int]) -> None:
        """Every connection to and from them is cut, so that they forget whatever was theirs to know of this client;
        they can be dialled again at once."""
        for place in places:
            index = self._fleet.peer_ids.index(self._chain[place])
            self._far.cut(index, _ports(self._fleet.pids[index]))

    def check(self, outcome: Outcome) -> None:
        """Raises SwarmError when a session did not lose a peer for each failure."""
        if self._lost < outcome.failures:
            raise SwarmError(
                f"{outcome.failures} peers were made to fail and sessions lost {self._lost}, so nothing can be said"
            )

    def _hear(self, event: Event) -> None:
        if isinstance(event, ChainChanged):
            self._chain = tuple(hop.peer for hop in event.hops)
            self._lost += len(event.lost)

    def __enter__(self) -> Self:
        prompt = torch.ones((1, self._trial.prompt_tokens), dtype=torch.long)
        with _closing(self._stack):
            self.generate(prompt, WARM_UP_TOKENS, None)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._stack.close()


@contextmanager
def _closing(stack: ExitStack) -> Iterator[None]:
    """If what it encloses fails."""
    try:
        yield
    except BaseException:
        stack.close()
        raise


def _ports(pid: int) -> list[int]:
    """What a peer's processes dial from."""
    peer = psutil.Process(pid)
    family = (peer, *peer.children(recursive=True))
    return [each.laddr.port for process in family for each in process.net_connections("tcp") if each.raddr]
