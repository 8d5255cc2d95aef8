"""Training that spares slow lines: as exact as it says, whoever is lost, and off unless it is asked for."""

import copy
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from peft import LoraConfig, PrefixTuningConfig
from transformers import PreTrainedModel

from clients.model import SwarmModelForCausalLM
from clients.training.compression import Compress
from swarm.errors import UsageError
from swarm.ids import PeerId
from swarm.training import Gradients, Missing
from tests.clients.test_engines import Swarm
from tests.clients.test_hostile_hops import turn_liar
from tests.clients.training.adapted import adapted, furthest, gradients, loss_of

LORA = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
PREFIX = PrefixTuningConfig(num_virtual_tokens=5, task_type="CAUSAL_LM")
EXACT, ROUNDED = 1e-5, 0.2  # relative L2 of the gradient of any one tensor, of a model with random weights


@pytest.fixture
def swarm(request: pytest.FixtureRequest, folder: Path, tmp_path: Path) -> Iterator[Swarm]:
    swarm = Swarm(folder, tmp_path, (1, 3), compress=request.param)
    yield swarm
    swarm.connection.close()


int8 = pytest.mark.parametrize("swarm", [Compress.INT8], indirect=True)
sums = pytest.mark.parametrize("swarm", [Compress.SUMS], indirect=True)


def apart(
    model: SwarmModelForCausalLM, local: PreTrainedModel, swarm: Swarm, *victims: str, config: Any = LORA
) -> float:
    """The largest relative L2 of a gradient from that of the whole model, `victims` being lost before the way back."""
    here, there = adapted(copy.deepcopy(local), config), adapted(model, config)
    loss_of(here).backward()
    loss = loss_of(there)
    for name in victims:
        swarm.connection.call(swarm.memory.kill(name))
    loss.backward()
    return furthest(gradients(there), gradients(here))


@int8
@pytest.mark.parametrize("config", [LORA, PREFIX], ids=["lora", "prefix"])
def test_rounding_leaves_gradients_close(
    config: Any, model: SwarmModelForCausalLM, local: PreTrainedModel, swarm: Swarm
) -> None:
    assert EXACT < apart(model, local, swarm, config=config) < ROUNDED


@pytest.mark.parametrize("swarm", [Compress.AUTO], indirect=True)
def test_whatever_suits_the_lines_leaves_gradients_close(
    model: SwarmModelForCausalLM, local: PreTrainedModel, swarm: Swarm
) -> None:
    assert apart(model, local, swarm) < ROUNDED


@sums
@pytest.mark.parametrize("victims", [["peer0", "peer1", "peer3"], ["spare0", "spare1", "spare3"]])
def test_hops_lost_between_the_passes_leave_sums_the_same(
    victims: list[str], model: SwarmModelForCausalLM, local: PreTrainedModel, swarm: Swarm
) -> None:
    assert apart(model, local, swarm, *victims) < EXACT


@sums
def test_micro_batches_of_a_sum_that_is_lost_are_done_again(
    model: SwarmModelForCausalLM, local: PreTrainedModel, swarm: Swarm
) -> None:
    lost = []

    def lose(message: Gradients, _: int) -> Gradients | Missing:
        if message.block is None or lost:
            return message
        lost.append(message.id)
        return Missing(message.session, message.id)

    for name in ("peer1", "spare1"):
        link = swarm.connection.call(turn_liar(swarm.memory, name, lose, (Gradients,)))
        link.lying = True
    assert apart(model, local, swarm) < EXACT
    assert len(lost) == 1


@sums
def test_a_hop_that_is_lost_with_its_sum_is_replaced(
    model: SwarmModelForCausalLM, local: PreTrainedModel, swarm: Swarm
) -> None:
    lied = []

    def garble(message: Gradients, _: int) -> Gradients:
        if message.block is None or lied:
            return message
        lied.append(message.id)
        return replace(message, body=b"1234")

    for name in ("peer1", "spare1"):
        link = swarm.connection.call(turn_liar(swarm.memory, name, garble, (Gradients,)))
        link.lying = True
    assert apart(model, local, swarm) < EXACT
    assert len(lied) == 1


def sent(swarm: Swarm, model: SwarmModelForCausalLM) -> int:
    loss_of(adapted(model, LORA)).backward()
    client = PeerId("client")
    return sum(size for pair, size in swarm.memory.network.bytes.items() if client in pair)


@pytest.mark.parametrize("swarm", [Compress.INT8], indirect=True)
def test_much_less_is_sent(swarm: Swarm, model: SwarmModelForCausalLM, folder: Path, tmp_path: Path) -> None:
    plain = Swarm(folder, tmp_path, (1, 3))
    try:
        with SwarmModelForCausalLM.from_pretrained(folder, cache=tmp_path, connection=plain.connection) as whole:
            assert sent(swarm, model) < 0.6 * sent(plain, whole)
    finally:
        plain.connection.close()


def test_an_unknown_kind_is_refused() -> None:
    with pytest.raises(UsageError, match="none, sums, int8, auto"):
        SwarmModelForCausalLM.from_pretrained("nowhere", compress="zip")
