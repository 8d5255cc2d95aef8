"""A hundred steps through real peers: gradients and losses are those of one process, also when a peer is killed every
ten seconds."""

import copy
import random
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pytest
import torch
from peft import LoraConfig, PrefixTuningConfig, PromptTuningConfig
from torch import Tensor
from transformers import PreTrainedModel

from clients.finetune.data import Row, collate
from clients.model import SwarmModelForCausalLM
from swarm.checkpoint import Checkpoint
from swarm.errors import SwarmError
from swarm.subprocesses import ServeProcess
from tests.clients.training.adapted import adapted, furthest, learning
from tests.real.conftest import SPANS
from tests.real.herd import Herd
from tests.real.prompts import Text
from tests.soak.plans import SEED

pytestmark = pytest.mark.soak

STEPS = 100
KILL_SECONDS = 10.0
PATIENCE = 180.0  # a new peer may take that long on a busy machine
LENGTHS = (20, 12)  # tokens of rows
KEPT_TEXTS = 8  # batches that come again and again
CONFIGS = {
    "lora": LoraConfig(r=8, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"),
    "prompt": PromptTuningConfig(num_virtual_tokens=8, task_type="CAUSAL_LM"),
    "prefix": PrefixTuningConfig(num_virtual_tokens=8, task_type="CAUSAL_LM"),
}


def batch_of(text: Text, number: int) -> dict[str, Tensor]:
    """Padded on the right: on the left, the loss of a row's first token would be what padding makes of it."""
    pieces = [text.piece(length, 40 * number + 97 * index) for index, length in enumerate(LENGTHS)]
    return collate([Row(tuple(piece), (True,) * len(piece)) for piece in pieces])


class Curve:
    """A hundred steps of one model. `first`: gradients of the adapter's tensors in the first step."""

    def __init__(self, tuned: Any, text: Text) -> None:
        self.losses: list[float] = []
        self.first: dict[str, Tensor] = {}
        began = time.monotonic()
        optimizer = torch.optim.AdamW(learning(tuned).values(), lr=2e-4)
        for number in range(STEPS):
            loss = tuned(**batch_of(text, number % KEPT_TEXTS)).loss
            optimizer.zero_grad()
            loss.backward()
            if not self.first:
                self.first = {name: parameter.grad.clone() for name, parameter in learning(tuned).items()}
            optimizer.step()
            self.losses.append(loss.item())
        self.seconds = time.monotonic() - began
        self.weights = {name: parameter.detach().clone() for name, parameter in learning(tuned).items()}

    def apart(self, other: "Curve") -> float:
        """The most that two losses of a step differ."""
        return max(abs(a - b) for a, b in zip(self.losses, other.losses, strict=True))

    def equals(self, other: "Curve") -> bool:
        """To the last bit: losses, and the adapter at the end."""
        same = all(torch.equal(self.weights[name], tensor) for name, tensor in other.weights.items())
        return same and self.losses == other.losses


class Killer:
    """A context manager: within, somebody of whose blocks there are others is killed every KILL_SECONDS by the clock,
    and one more started for them."""

    def __init__(self, herd: Herd) -> None:
        self.killed: list[str] = []
        self.spared = 0  # times that no span had two who serve
        self._herd = herd
        self._random = random.Random(SEED)
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        next_at = time.monotonic() + KILL_SECONDS
        while not self._over.wait(next_at - time.monotonic()):
            next_at += KILL_SECONDS
            self._strike()

    def _strike(self) -> None:
        serving = {span: [one for one in self._herd.of(span) if is_ready(one)] for span in SPANS}
        possible = [span for span, processes in serving.items() if len(processes) > 1]
        if not possible:
            self.spared += 1
            return
        span = self._random.choice(possible)
        victim = serving[span][0]  # the longest here, whom the client knows best
        self._herd.kill(victim)
        self._herd.bury()
        self._herd.start(span)
        self.killed.append(victim.name)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._over.set()
        self._thread.join()


def is_ready(process: ServeProcess) -> bool:
    try:
        return bool(process.ready)
    except SwarmError:
        return False


@pytest.fixture(scope="module")
def herd(checkpoint: Checkpoint, cache: Path) -> Iterator[Herd]:
    with Herd(checkpoint, cache) as herd:
        yield herd
    assert herd.left_behind() == []


@pytest.fixture(scope="module")
def over_peers(herd: Herd, text: Text) -> Callable[[str], Curve]:
    """The curve of one kind of adapter, trained by whoever serves now."""

    def train(kind: str) -> Curve:
        with SwarmModelForCausalLM.from_pretrained(
            herd.checkpoint.folder, initial_peers=herd.addresses, cache=herd.cache, patience=PATIENCE
        ) as model:
            return Curve(adapted(model, CONFIGS[kind]), text)

    return train


@pytest.fixture(scope="module")
def undisturbed(herd: Herd, over_peers: Callable[[str], Curve]) -> Callable[[str], Curve]:
    """With one peer for each span, to whom nothing happens."""
    known: dict[str, Curve] = {}

    def train(kind: str) -> Curve:
        if kind not in known:
            herd.ensure(dict.fromkeys(SPANS, 1))
            known[kind] = over_peers(kind)
        return known[kind]

    return train


@pytest.mark.parametrize("kind", CONFIGS)
def test_gradients_and_losses_are_those_of_one_process(
    kind: str, undisturbed: Callable[[str], Curve], local: PreTrainedModel, text: Text, figures: list[str]
) -> None:
    there = undisturbed(kind)
    here = Curve(adapted(copy.deepcopy(local), CONFIGS[kind]), text)
    gradients, losses = furthest(there.first, here.first), there.apart(here)
    figures.append(
        f"{kind}: gradients of step 1 {gradients:.1e} apart (relative L2, worst of {len(here.first)} tensors), "
        f"losses of {STEPS} steps at most {losses:.1e} apart, {here.losses[0]:.4f} to {here.losses[-1]:.4f}; "
        f"{there.seconds:.0f} s, one process {here.seconds:.0f} s"
    )
    assert gradients < 1e-5
    assert losses < 1e-3
    assert sum(there.losses[-KEPT_TEXTS:]) < sum(there.losses[:KEPT_TEXTS])


def test_peers_killed_every_ten_seconds_change_no_loss(
    herd: Herd, undisturbed: Callable[[str], Curve], over_peers: Callable[[str], Curve], figures: list[str]
) -> None:
    calm = undisturbed("lora")
    herd.ensure(dict.fromkeys(SPANS, 2))
    with Killer(herd) as killer:
        restless = over_peers("lora")
    herd.ensure(dict.fromkeys(SPANS, 1))
    figures.append(
        f"lora with kills: {STEPS} steps in {restless.seconds:.0f} s, {len(killer.killed)} peers killed by the clock "
        f"({killer.spared} times nobody could be spared), losses at most {restless.apart(calm):.1e} apart from those "
        f"without, which took {calm.seconds:.0f} s; to the last bit the same: {restless.equals(calm)}"
    )
    assert len(killer.killed) > 2
    assert restless.equals(calm)
