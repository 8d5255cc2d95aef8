"""SmolLM2 by rounds: four members, each with texts about something else, against one client with all of them; deaths in
each round; a poisoner.

Members train the model of this process in turn, and are joined by the network's twin: what is measured is what is
learned, not how fast. Everything between members is the real thing.
"""

import asyncio
import copy
import statistics
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from pydoc_data.topics import topics
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

ROUNDS, LOCAL_STEPS, BATCH, LENGTH = 5, 4, 1, 64
TRAINED, HELD_OUT = 20, 4  # rows of each text
CLIP = 10.0  # as `swarm finetune --join` has it by default; honest changes are much shorter
ROOT = Path(__file__).parent.parent.parent
ADAPTER = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
TEXTS = {
    "a story": lambda: (ROOT / "swarm" / "prose.txt").read_text(),
    "a licence": lambda: (ROOT / "LICENSE").read_text(),
    "a language's reference": lambda: topics["specialnames"],
    "a program": lambda: Path(statistics.__file__).read_text(),
}
Lie = Callable[[Tensor], Tensor]


@dataclass
class Lab:
    """One model whose adapter everybody borrows for the time of a step; `first`: the adapter before all training.
    `rows`: to train on, one list for each text."""

    tuned: Any
    rows: list[list[Row]]
    held_out: list[Row]
    first: Tensor
    folder: Path
    losses: dict[str, float] = field(default_factory=dict)

    @property
    def all(self) -> list[Row]:
        return [row for rows in self.rows for row in rows]

    def tuning(self, rows: Sequence[Row], name: str, batch: int = BATCH) -> Tuning:
        put(self.tuned, self.first)
        options: dict[str, Any] = {"model": "smollm2", "data": name, "output": self.folder / name, "held_out": 0.0}
        steps = ROUNDS * LOCAL_STEPS
        return Tuning(Settings(steps=steps, batch=batch, learning_rate=2e-3, **options), self.tuned, rows)

    def loss(self, weights: Tensor) -> float:
        """Over rows of all texts that nobody has trained on."""
        tuning = self.tuning(self.held_out, "held-out")
        tuning.held_out = self.held_out
        put(self.tuned, weights)
        return tuning.evaluate()

    def alone(self, rows: Sequence[Row], name: str, batch: int = BATCH) -> float:
        """What one client learns that has these rows."""
        tuning = self.tuning(rows, name, batch)
        self.tuned.train()
        for _ in range(ROUNDS * LOCAL_STEPS):
            tuning.advance()
        return self.loss(flat(self.tuned))


@pytest.fixture(scope="module")
def lab(local: PreTrainedModel, checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Lab:
    tokenizer = AutoTokenizer.from_pretrained(checkpoint.folder)
    texts = [tokenizer(text())["input_ids"] for text in TEXTS.values()]
    rows = [
        [Row(tuple(ids[at * LENGTH :][:LENGTH]), (True,) * LENGTH) for at in range(TRAINED + HELD_OUT)] for ids in texts
    ]
    torch.manual_seed(0)
    tuned = get_peft_model(copy.deepcopy(local), copy.deepcopy(ADAPTER))
    held_out = [row for some in rows for row in some[TRAINED:]]
    return Lab(tuned, [some[:TRAINED] for some in rows], held_out, flat(tuned), tmp_path_factory.mktemp("lab"))


def honest(delta: Tensor) -> Tensor:
    return delta


def poison(delta: Tensor) -> Tensor:
    """As far the other way as is allowed."""
    return clipped(-1e6 * delta, CLIP)


class Group:
    """Members with a text each, and a liar who knows all of them where `liar` says so. `mortal`: whether one of them
    dies in each round, and comes again."""

    def __init__(self, lab: Lab, rule: str, *, liar: bool = False, mortal: bool = False) -> None:
        self.lab, self.mortal = lab, mortal
        rows = [*lab.rows, lab.all] if liar else lab.rows
        self.lies: list[Lie] = [honest] * len(lab.rows) + [poison] * liar
        options: dict[str, Any] = {"rule": rule, "server": "avg", "clip": CLIP}
        self.terms = Terms(name="lab", size=len(lab.first), rounds=ROUNDS, min_members=len(rows) - mortal, **options)
        self.network = MemoryNetwork(delay=0.01)
        self.begin = Identity.ephemeral()
        self.tunings = [lab.tuning(some, f"{rule}{liar}{mortal}{number}") for number, some in enumerate(rows)]
        self.longest, self.seconds = 0.0, 0.0
        self.took_part: list[int] = []

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
        learned = flat(self.lab.tuned) - weights
        self.longest = max(self.longest, float(learned.norm()))
        delta = self.lies[number](clipped(learned, self.terms.clip))
        return delta, sum(count for _, count in steps), sum(loss for loss, _ in steps) / LOCAL_STEPS

    async def learn(self, stack: AsyncExitStack, number: int) -> Standing:
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
                outcome = await member.share(delta, tokens, loss)
                if number == 0:
                    self.took_part.append(len(outcome.losses))
            standing = await member.settle()
        await member.farewell()
        return standing

    async def run(self) -> list[Standing]:
        async with AsyncExitStack() as stack:
            ends = list(await asyncio.gather(*(self.learn(stack, number) for number in range(len(self.lies)))))
            self.seconds = asyncio.get_running_loop().time()
            return ends

    def loss(self) -> float:
        """Of the adapter with which all members end."""
        ends = run_virtual(self.run())
        assert len({end.pack() for end in ends}) == 1
        return self.lab.loss(ends[0].weights)


@pytest.mark.soak
def test_four_members_with_different_texts_learn_what_one_client_with_all_texts_does(
    lab: Lab, figures: list[str]
) -> None:
    before = lab.loss(lab.first)
    central = lab.alone(lab.all, "central", batch=len(TEXTS) * BATCH)
    alone = [lab.alone(rows, f"alone{number}") for number, rows in enumerate(lab.rows)]
    group = Group(lab, "mean")
    together = lab.losses["four"] = group.loss()
    told = " ".join(f"{loss:.4f}" for loss in alone)
    figures.append(f"before {before:.4f}, central {central:.4f}, four members {together:.4f}; each alone {told}")
    figures.append(f"longest change {group.longest:.3f}, members in rounds {group.took_part}, {group.seconds:.1f} s")
    assert together < 1.05 * central < before


@pytest.mark.soak
def test_one_of_four_that_dies_in_each_round_changes_little_of_what_is_learned(lab: Lab, figures: list[str]) -> None:
    four = lab.losses.get("four") or Group(lab, "mean").loss()
    group = Group(lab, "mean", mortal=True)
    dying = group.loss()
    figures.append(f"four members {four:.4f}, one of four dying in each round {dying:.4f}")
    figures.append(f"members in rounds {group.took_part}, {group.seconds:.1f} s")
    assert max(group.took_part) == len(TEXTS) - 1
    assert abs(dying / four - 1) < 0.05


@pytest.mark.soak
def test_a_poisoner_of_five_is_neutralised_by_robust_rules_and_not_by_a_mean(lab: Lab, figures: list[str]) -> None:
    four = lab.losses.get("four") or Group(lab, "mean").loss()
    losses = {rule: Group(lab, rule, liar=True).loss() for rule in ("mean", "median", "trimmed")}
    told = ", ".join(f"{rule} {loss:.4f}" for rule, loss in losses.items())
    figures.append(f"four honest members {four:.4f}; with a poisoner: {told}")
    assert losses["median"] < 1.05 * four
    assert losses["trimmed"] < 1.05 * four
    assert losses["mean"] > 1.05 * four
