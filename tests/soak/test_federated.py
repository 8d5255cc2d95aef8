"""SmolLM2 by rounds: four members against one client with all the data; deaths in each round; a poisoner.

Members train the model of this process in turn, and are joined by the network's twin: what is measured is what is
learned, not how fast. Everything between members is the real thing.
"""

import asyncio
import copy
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedModel

from clients.federated.member import Member
from clients.federated.privacy import clipped
from clients.federated.rounds import flat, put
from clients.federated.standing import Standing
from clients.federated.terms import Terms
from clients.finetune.data import Row
from clients.finetune.run import Tuning
from clients.finetune.settings import Settings
from swarm.checkpoint import Checkpoint
from swarm.fields import Contact
from swarm.identity import Identity
from swarm.memory import MemoryNetwork
from tests.virtual import run_virtual

ROUNDS, LOCAL_STEPS, BATCH, LENGTH = 5, 4, 2, 48
PROSE = Path(__file__).parent.parent.parent / "swarm" / "prose.txt"
ADAPTER = LoraConfig(r=8, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")


@dataclass
class Lab:
    """One model whose adapter everybody borrows for the time of a step; `first`: the adapter before all training."""

    tuned: Any
    rows: list[Row]
    first: Tensor
    folder: Path

    def tuning(self, rows: list[Row], *, steps: int, batch: int, name: str) -> Tuning:
        put(self.tuned, self.first)
        options: dict[str, Any] = {"model": "smollm2", "data": name, "output": self.folder / name, "held_out": 0.0}
        return Tuning(Settings(steps=steps, batch=batch, learning_rate=1e-3, **options), self.tuned, rows)

    @torch.no_grad()
    def loss(self, weights: Tensor) -> float:
        """Over all rows."""
        put(self.tuned, weights)
        tuning = self.tuning_of_all(1)
        put(self.tuned, weights)
        tuning.held_out = self.rows
        return tuning.evaluate()

    def tuning_of_all(self, steps: int, batch: int = BATCH) -> Tuning:
        return self.tuning(self.rows, steps=steps, batch=batch, name=f"all{steps}x{batch}")

    def central(self, steps: int, batch: int) -> float:
        tuning = self.tuning_of_all(steps, batch)
        self.tuned.train()
        for _ in range(steps):
            tuning.advance()
        return self.loss(flat(self.tuned))


@pytest.fixture
def lab(local: PreTrainedModel, checkpoint: Checkpoint, tmp_path: Path) -> Lab:
    tokens = AutoTokenizer.from_pretrained(checkpoint.folder)(PROSE.read_text())["input_ids"]
    rows = [Row(tuple(tokens[at : at + LENGTH]), (True,) * LENGTH) for at in range(0, len(tokens) - LENGTH, LENGTH)]
    torch.manual_seed(0)
    tuned = get_peft_model(copy.deepcopy(local), copy.deepcopy(ADAPTER))
    return Lab(tuned, rows[:40], flat(tuned), tmp_path)


def honest(delta: Tensor) -> Tensor:
    return delta


def poison(delta: Tensor) -> Tensor:
    """As far the other way as is allowed."""
    return clipped(-100.0 * delta, 1.0)


class Group:
    """Members with consecutive parts of the rows; `mortal`: how many of them die in each round, and come again."""

    def __init__(self, lab: Lab, rule: str, lies: list[Callable[[Tensor], Tensor]], mortal: bool = False) -> None:
        self.lab, self.lies, self.mortal = lab, lies, mortal
        options: dict[str, Any] = {"rule": rule, "server": "avg", "clip": 1.0, "min_members": 2}
        self.terms = Terms(name="lab", size=len(lab.first), rounds=ROUNDS, **options)
        self.network = MemoryNetwork(delay=0.01)
        self.begin = Identity.ephemeral()
        part = len(lab.rows) // len(lies)
        self.tunings = [
            lab.tuning(lab.rows[n * part : (n + 1) * part], steps=ROUNDS * LOCAL_STEPS, batch=BATCH, name=f"{rule}{n}")
            for n in range(len(lies))
        ]

    async def member(self, stack: AsyncExitStack, identity: Identity) -> Member:
        transport, start = self.network.transport(identity.peer_id), Standing.first(self.terms, self.lab.first)
        contacts = [Contact(self.begin.peer_id)]
        return await stack.enter_async_context(Member(transport, identity, self.terms, start, contacts=contacts))

    def train(self, number: int, weights: Tensor, at: int) -> tuple[Tensor, int, float]:
        put(self.lab.tuned, weights)
        tuning = self.tunings[number]
        tuning.progress.step = at * LOCAL_STEPS
        self.lab.tuned.train()
        steps = [tuning.advance() for _ in range(LOCAL_STEPS)]
        delta = self.lies[number](clipped(flat(self.lab.tuned) - weights, self.terms.clip))
        return delta, sum(count for _, count in steps), sum(loss for loss, _ in steps) / LOCAL_STEPS

    async def learn(self, stack: AsyncExitStack, number: int) -> Standing:
        """The last of them dies in each round, before its claim is out."""
        identity = self.begin if number == 0 else Identity.ephemeral()
        member = await self.member(stack, identity)
        standing = await member.settle()
        while standing.round < ROUNDS:
            await asyncio.sleep(1.0)
            delta, tokens, loss = self.train(number, standing.weights, standing.round)
            if self.mortal and number == standing.round % (len(self.lies) - 1) + 1:
                sharing = asyncio.create_task(member.share(delta, tokens, loss))
                await asyncio.sleep(0.005)  # its claim is on the way
                self.network.kill(identity.peer_id)
                sharing.cancel()
                await asyncio.gather(sharing, return_exceptions=True)
                identity = Identity.ephemeral()
                member = await self.member(stack, identity)
            else:
                await member.share(delta, tokens, loss)
            standing = await member.settle()
        await member.farewell()
        return standing

    async def run(self) -> list[Standing]:
        async with AsyncExitStack() as stack:
            return list(await asyncio.gather(*(self.learn(stack, number) for number in range(len(self.lies)))))

    def loss(self) -> float:
        """Of the adapter with which all members end."""
        ends = run_virtual(self.run())
        assert len({end.pack() for end in ends}) == 1
        return self.lab.loss(ends[0].weights)


@pytest.mark.soak
def test_four_members_learn_what_one_client_with_all_data_does_also_when_one_dies_each_round(
    lab: Lab, figures: list[str]
) -> None:
    before = lab.loss(lab.first)
    central = lab.central(ROUNDS * LOCAL_STEPS, 4 * BATCH)
    together = Group(lab, "mean", [honest] * 4).loss()
    dying = Group(lab, "mean", [honest] * 4, mortal=True).loss()
    figures.append(f"loss before {before:.4f}, central {central:.4f}, four members {together:.4f}, dying {dying:.4f}")
    assert together < 1.05 * central < before
    assert dying < 1.05 * central


@pytest.mark.soak
def test_a_poisoner_of_five_is_neutralised_by_a_median(lab: Lab, figures: list[str]) -> None:
    before = lab.loss(lab.first)
    clean = Group(lab, "mean", [honest] * 4).loss()
    losses = {rule: Group(lab, rule, [honest] * 4 + [poison]).loss() for rule in ("mean", "median", "trimmed")}
    told = ", ".join(f"{rule} {loss:.4f}" for rule, loss in losses.items())
    figures.append(f"loss before {before:.4f}, four honest {clean:.4f}; with a poisoner: {told}")
    assert losses["median"] < 1.05 * clean
    assert losses["trimmed"] < 1.05 * clean
    assert losses["mean"] > losses["median"]
