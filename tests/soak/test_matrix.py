"""The matrix: swarms of 1, 2, 3 and 5 peers, prompts of any length, one row and four, every way to generate."""

from collections.abc import Iterator
from functools import partial
from itertools import pairwise
from pathlib import Path

import pytest
from transformers import PreTrainedModel

from clients.model import SwarmModelForCausalLM
from swarm.checkpoint import Checkpoint
from swarm.ids import Span
from tests.real.herd import Herd
from tests.real.prompts import Text, answers, options
from tests.soak.plans import SEED, Case, cases

pytestmark = pytest.mark.soak

NEW = 200
BOUNDS = {1: (0, 30), 2: (0, 13, 30), 3: (0, 7, 21, 30), 5: (0, 1, 8, 15, 23, 30)}

Answer = list[list[int]]


@pytest.fixture(scope="session")
def expected(local: PreTrainedModel, text: Text) -> dict[Case, Answer]:
    """What the whole model says, computed when it is first asked for."""
    return _Expected(local, text)


class _Expected(dict[Case, Answer]):
    def __init__(self, local: PreTrainedModel, text: Text) -> None:
        super().__init__()
        self._ask = partial(ask, local, text)

    def __missing__(self, case: Case) -> Answer:
        return self.setdefault(case, self._ask(case))


@pytest.fixture(scope="module", params=BOUNDS, ids=lambda peers: f"seed{SEED}-{peers}peers")
def model(request: pytest.FixtureRequest, checkpoint: Checkpoint, cache: Path) -> Iterator[SwarmModelForCausalLM]:
    bounds = BOUNDS[request.param]
    with Herd(checkpoint, cache) as herd:
        herd.ensure({Span(start, end): 1 for start, end in pairwise(bounds)})
        with SwarmModelForCausalLM.from_pretrained(
            checkpoint.folder, initial_peers=herd.addresses, cache=cache
        ) as model:
            yield model
    assert herd.left_behind() == []


def ask(model: PreTrainedModel, text: Text, case: Case) -> Answer:
    return answers(model, text.batch(case.lengths, case.start), case.seed, **options(case.mode, NEW))


@pytest.mark.parametrize("case", cases(), ids=str)
def test_tokens_are_those_of_one_process(
    model: SwarmModelForCausalLM, text: Text, expected: dict[Case, Answer], case: Case
) -> None:
    ours = ask(model, text, case)
    assert len(ours[0]) == NEW
    assert ours == expected[case]
