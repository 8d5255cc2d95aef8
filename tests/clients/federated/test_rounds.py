"""Members that train a tiny model over real engines in memory: what they end with, and how they go on after a stop."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch

from clients.federated.member import Member
from clients.federated.options import Together
from clients.federated.rounds import Kept, Round, Rounds, flat
from clients.federated.terms import Terms
from clients.federated.whole import terms_of
from clients.finetune.adapter import with_adapter
from clients.finetune.data import Row
from clients.finetune.run import Tuning
from clients.finetune.settings import Settings
from clients.model import SwarmModelForCausalLM
from swarm.errors import UsageError
from swarm.fields import Contact
from swarm.identity import Identity
from tests.clients.test_engines import Swarm

LOCAL_STEPS = 2


@pytest.fixture
def swarm(text_folder: Path, tmp_path: Path) -> Iterator[Swarm]:
    swarm = Swarm(text_folder, tmp_path, (1,))
    yield swarm
    swarm.connection.close()


class Trainer:
    """One client with rows of its own."""

    def __init__(self, swarm: Swarm, folder: Path, cache: Path, stack: ExitStack, number: int, rounds: int = 3) -> None:
        rows = [Row(tuple(range(5 + at + 3 * number, 17 + at + 3 * number)), (True,) * 12) for at in range(4)]
        output = cache / f"member{number}"
        self.settings = Settings(
            model="tiny",
            data="rows",
            output=output,
            steps=rounds * LOCAL_STEPS,
            batch=2,
            learning_rate=1e-2,
            held_out=0.25,
        )
        model = SwarmModelForCausalLM.from_pretrained(folder, cache=cache, connection=swarm.connection)
        stack.enter_context(model)
        torch.manual_seed(0)
        tuned: Any = with_adapter(model, self.settings)
        self.terms = terms(self.settings, len(flat(tuned)))
        self.kept = Kept.load(output, self.terms, flat(tuned))
        tuning = Tuning(self.settings, tuned, rows)
        self.rounds = Rounds(
            self.terms, tuning, tuned, self.kept, folder=output, steps=LOCAL_STEPS, caller=swarm.connection
        )
        self.tuned = tuned
        self.told: list[Round] = []
        self._swarm = swarm

    def run(self, identity: Identity, first: Identity) -> None:
        async def met() -> Member:
            transport = self._swarm.memory.network.transport(identity.peer_id)
            contacts = [Contact(first.peer_id)]
            member = Member(transport, identity, self.terms, self.kept.standing, contacts=contacts, patience=60.0)
            return await self._swarm.memory.stack.enter_async_context(member)

        self.rounds.run(self._swarm.connection.call(met()), self.told.append)


def terms(settings: Settings, size: int, **options: Any) -> Terms:
    common = {"local_steps": LOCAL_STEPS, "rule": "mean", "server": "avg", "server_rate": None, "clip": 10.0}
    together = {"join": "run", **common, "noise": 0.0, "min_members": 2, "wait": 60.0, **options}
    return terms_of(settings, Together(**together), "0" * 64, size)


def together(trainers: list[Trainer]) -> None:
    identities = [Identity.ephemeral() for _ in trainers]
    with ThreadPoolExecutor(len(trainers)) as pool:
        list(pool.map(lambda t, i: t.run(i, identities[0]), trainers, identities))


def test_members_end_with_one_adapter_that_all_have_learned_from(
    swarm: Swarm, text_folder: Path, tmp_path: Path
) -> None:
    with ExitStack() as stack:
        trainers = [Trainer(swarm, text_folder, tmp_path, stack, number) for number in range(2)]
        together(trainers)
        assert torch.equal(flat(trainers[0].tuned), flat(trainers[1].tuned))
        for trainer in trainers:
            assert [told.round for told in trainer.told] == [1, 2, 3]
            assert all(len(told.losses) == 2 for told in trainer.told)
            assert trainer.told[-1].evaluation < trainer.told[0].evaluation  # type: ignore[operator]
        ended = Kept.load(trainers[0].settings.output, trainers[0].terms, torch.zeros(0))
        assert ended.standing.round == 3
        assert ended.releases == 3
        assert len(ended.vouchers) == 2
        assert torch.equal(ended.standing.weights, flat(trainers[0].tuned))


def test_the_options_of_another_run_are_refused(tmp_path: Path) -> None:
    settings = Settings(model="tiny", data="rows", output=tmp_path, steps=4)
    mine = terms(settings, 3)
    Kept.load(tmp_path, mine, torch.ones(3)).save(tmp_path, mine)
    assert Kept.load(tmp_path, mine, torch.zeros(3)).standing.weights.tolist() == [1.0, 1.0, 1.0]
    with pytest.raises(UsageError, match="another run"):
        Kept.load(tmp_path, terms(settings, 3, rule="median"), torch.zeros(3))


def test_steps_that_are_no_whole_rounds_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no multiple"):
        terms(Settings(model="tiny", data="rows", output=tmp_path, steps=5), 3)
