"""Randomised failures of real peers: nine of them, every block three times, so that even a replacement may die.

Every run must end with the tokens of the whole model; then the swarm is made whole again for the next. The gap is what
a reader sees: from the failure to the next token.
"""

import statistics
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from transformers import LogitsProcessorList, PreTrainedModel

from clients.events import ChainChanged, Event
from clients.model import SwarmModelForCausalLM
from swarm.checkpoint import Checkpoint
from swarm.ids import PeerId
from swarm.subprocesses import ServeProcess
from tests.real.conftest import SPANS
from tests.real.herd import Herd, daemon, executor, family, wait_until_free
from tests.real.prompts import Text, answers, options
from tests.real.watching import AtToken, Watch
from tests.soak.plans import CONTEXT, Case, Run, runs

pytestmark = pytest.mark.soak

NEW = 40
COPIES = 3
PATIENCE = 60.0

Answer = list[list[int]]
Gaps = dict[str, list[tuple[float, int]]]  # seconds, number of the run


@pytest.fixture(scope="module")
def herd(checkpoint: Checkpoint, cache: Path) -> Iterator[Herd]:
    with Herd(checkpoint, cache) as herd:
        herd.ensure(dict.fromkeys(SPANS, COPIES))
        yield herd
    assert herd.left_behind() == []


@pytest.fixture(scope="module")
def gaps(figures: list[str]) -> Iterator[Gaps]:
    gaps: Gaps = defaultdict(list)
    yield gaps
    for kind, seen in sorted(gaps.items()):
        middle = statistics.median(seconds for seconds, _ in seen)
        worst, run = max(seen)
        figures.append(f"{kind}: gap median {middle:.2f} s, max {worst:.2f} s (run {run}), of {len(seen)} failures")


class Attack:
    """Carries out a run's failures; `moment` is when the last of them was done."""

    def __init__(self, herd: Herd, run: Run) -> None:
        self.hit: list[ServeProcess] = []
        self.moment: float | None = None
        self.watch = Watch(self._look)
        self._herd = herd
        self._run = run
        self._timer = threading.Timer(run.delay, self._strike)
        self._replacements_are_next = False

    def begin(self) -> None:
        """Strike `delay` seconds from now."""
        self._timer.start()

    def end(self) -> None:
        """No strike any more; those who hang go on, which frees what they hold."""
        self._timer.cancel()
        if self._timer.is_alive():
            self._timer.join()
        for process in self.hit:
            if process.alive:
                process.resume()

    def _strike(self) -> None:
        if self.watch.changes:  # else the session is not even open
            self._hurt([self.watch.chain[hop] for hop in self._run.hops])
            self._replacements_are_next = self._run.again

    def _look(self, event: Event) -> None:
        if self._replacements_are_next and isinstance(event, ChainChanged) and event.lost:
            self._replacements_are_next = False
            self._hurt([event.hops[hop].peer for hop in self._run.hops])

    def _hurt(self, peers: list[PeerId]) -> None:
        victims = [self._herd.named(peer) for peer in peers]
        for victim in victims:
            WAYS[self._run.how](victim)
        self.hit += victims
        self.moment = time.monotonic()


WAYS: dict[str, Callable[[ServeProcess], None]] = {
    "kill": ServeProcess.kill,
    "hang": ServeProcess.stop,
    "executor": lambda process: executor(process).kill(),
    "daemon": lambda process: daemon(process).kill(),
    "network": lambda process: family(process)[0].kill(),
}


@pytest.mark.parametrize("run", runs(), ids=str)
def test_failing_peers_cost_no_token(herd: Herd, local: PreTrainedModel, text: Text, gaps: Gaps, run: Run) -> None:
    herd.ensure(dict.fromkeys(SPANS, COPIES))
    other = replace(run.case, start=run.case.start + 500)
    expected = [ask(local, text, case) for case in (run.case, other)[: 1 + run.both]]
    attack = Attack(herd, run)
    seen = AtToken(run.token, attack.begin)
    with (
        SwarmModelForCausalLM.from_pretrained(
            herd.checkpoint.folder,
            initial_peers=herd.addresses,
            cache=herd.cache,
            patience=PATIENCE,
            observer=attack.watch.hear,
        ) as model,
        ThreadPoolExecutor(1) as pool,
    ):
        beside = pool.submit(ask, model, text, other) if run.both else None
        if run.token is None:
            attack.begin()
        try:
            ours = [ask(model, text, run.case, seen)]
        finally:
            attack.end()
        if beside is not None:
            ours.append(beside.result(PATIENCE))
    assert ours == expected
    if attack.moment is not None and (gap := seen.gap_after(attack.moment)) is not None:
        gaps[kind(run)].append((gap, run.number))
    for process in attack.hit:
        settle(process, run.how)


def test_afterwards_no_peer_holds_anything(herd: Herd) -> None:
    herd.ensure(dict.fromkeys(SPANS, COPIES))
    with SwarmModelForCausalLM.from_pretrained(
        herd.checkpoint.folder, initial_peers=herd.addresses, cache=herd.cache
    ) as model:
        wait_until_free(herd.living, model)


def ask(model: PreTrainedModel, text: Text, case: Case, seen: AtToken | None = None) -> Answer:
    logits = LogitsProcessorList([] if seen is None else [seen])
    prompt = text.batch(case.lengths, case.start)
    return answers(model, prompt, case.seed, logits_processor=logits, **options(case.mode, NEW))


def kind(run: Run) -> str:
    """What gaps are compared by: one row of about 500 tokens, failing in mid-answer, or anything else."""
    rows = f"{CONTEXT} tokens" if run.case.lengths == (CONTEXT,) and run.case.mode != "beams" else "several rows"
    when = "prefill" if run.token is None else "decode"
    return f"{run.how}, {len(run.hops)} hops{' and who replaced them' if run.again else ''}, {when}, {rows}"


def settle(process: ServeProcess, how: str) -> None:
    """Wait until the failure is over: who was killed is gone, whose device process failed serves again."""
    if how in ("kill", "daemon", "network"):
        process.wait()
    elif how == "executor":
        process.wait_line("online again")
