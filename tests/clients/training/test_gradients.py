"""Gradients through a swarm are those of the same model in one process, whoever is lost on the way."""

import copy
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import (
    IA3Config,
    LoHaConfig,
    LoraConfig,
    PrefixTuningConfig,
    PromptEncoderConfig,
    PromptTuningConfig,
    get_peft_model,
)
from torch import Tensor
from transformers import PreTrainedModel

from clients.model import SwarmModelForCausalLM
from peers.training.limits import TrainingLimits
from swarm.errors import HopError, MissingBlocks, UsageError
from swarm.ids import PeerId
from swarm.messages import Busy
from swarm.training import Gradients, Passed
from tests.clients.test_engines import Swarm
from tests.clients.test_hostile_hops import turn_liar
from tests.clients.training.adapted import LABELS, MASK, TOKENS, adapted, furthest, gradients, learning, loss_of

LORA = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
CONFIGS = {
    "lora": LORA,
    "rslora": LoraConfig(r=4, use_rslora=True, target_modules=["o_proj", "down_proj"], task_type="CAUSAL_LM"),
    "lora of some blocks": LoraConfig(
        r=2, target_modules=["gate_proj"], layers_to_transform=[1, 3], layers_pattern="layers", task_type="CAUSAL_LM"
    ),
    "ia3": IA3Config(
        target_modules=["k_proj", "v_proj", "down_proj"], feedforward_modules=["down_proj"], task_type="CAUSAL_LM"
    ),
    "prompt": PromptTuningConfig(num_virtual_tokens=5, task_type="CAUSAL_LM"),
    "prefix": PrefixTuningConfig(num_virtual_tokens=5, task_type="CAUSAL_LM"),
    "p-tuning": PromptEncoderConfig(num_virtual_tokens=5, encoder_hidden_size=32, task_type="CAUSAL_LM"),
}
FAMILIES = ("qwen3", "gemma2", "gemma3_text", "mixtral", "gpt_oss", "granite")
LEADING = ("qwen3", "gemma3_text", "mixtral")  # with llama, which the other tests take


@pytest.mark.parametrize("kind", CONFIGS)
def test_gradients_equal_local_training(kind: str, model: SwarmModelForCausalLM, local: PreTrainedModel) -> None:
    check_equal(CONFIGS[kind], model, local)


@pytest.mark.parametrize("family", FAMILIES, indirect=True)
def test_gradients_equal_local_training_in_other_families(model: SwarmModelForCausalLM, local: PreTrainedModel) -> None:
    check_equal(LORA, model, local)


@pytest.mark.parametrize("kind", ["prompt", "prefix"])
@pytest.mark.parametrize("family", LEADING, indirect=True)
def test_gradients_of_prompts_equal_local_training_in_other_families(
    kind: str, model: SwarmModelForCausalLM, local: PreTrainedModel
) -> None:
    check_equal(CONFIGS[kind], model, local)


def check_equal(config: Any, model: SwarmModelForCausalLM, local: PreTrainedModel) -> None:
    here, there = adapted(copy.deepcopy(local), config), adapted(model, config)
    expected, loss = loss_of(here), loss_of(there)
    expected.backward()
    loss.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    assert furthest(gradients(there), gradients(here)) < 1e-5


@pytest.mark.parametrize("victims", [["peer0", "peer1", "peer3"], ["spare0", "spare1", "spare3"]])
def test_hops_lost_between_the_passes_leave_gradients_the_same(
    victims: list[str], swarm: Swarm, model: SwarmModelForCausalLM, local: PreTrainedModel
) -> None:
    here, there = adapted(copy.deepcopy(local), LORA), adapted(model, LORA)
    loss_of(here).backward()
    loss = loss_of(there)
    for name in victims:
        swarm.connection.call(swarm.memory.kill(name))
    loss.backward()
    assert furthest(gradients(there), gradients(here)) < 1e-5


def sent_back_by(names: tuple[str, ...], swarm: Swarm, loss: Tensor) -> int:
    """Bytes that these peers send to the client on the way back."""
    sent, client = swarm.memory.network.bytes, PeerId("client")
    before = sum(sent[PeerId(name), client] for name in names)
    loss.backward()
    return sum(sent[PeerId(name), client] for name in names) - before


@pytest.mark.parametrize(("kind", "inputs"), [("lora", False), ("prompt", True)])
def test_the_first_hop_sends_gradients_of_inputs_only_where_they_learn(
    kind: str, inputs: bool, swarm: Swarm, model: SwarmModelForCausalLM
) -> None:
    of_inputs = int(MASK.sum()) * model.config.hidden_size * 4
    down = sent_back_by(("peer0", "spare0"), swarm, loss_of(adapted(model, CONFIGS[kind])))
    assert (down > of_inputs) == inputs


def test_hops_before_the_first_adapter_have_no_part_in_going_back(swarm: Swarm, model: SwarmModelForCausalLM) -> None:
    loss = loss_of(adapted(model, CONFIGS["lora of some blocks"]))
    assert sent_back_by(("peer0", "spare0"), swarm, loss) == 0


class OnceWith:
    """The body of the first gradient that anybody sends."""

    def __init__(self, body: bytes) -> None:
        self.body: bytes | None = body

    def __call__(self, message: Gradients, _: int) -> Gradients:
        body, self.body = self.body, None
        return message if body is None else replace(message, body=body)


@pytest.mark.parametrize(("start", "body"), [(0, b"1234"), (3, b"")], ids=["unwanted", "wanted"])
def test_a_hop_whose_gradient_of_inputs_has_a_wrong_size_is_replaced(
    start: int, body: bytes, swarm: Swarm, model: SwarmModelForCausalLM, local: PreTrainedModel
) -> None:
    lie = OnceWith(body)
    for name in (f"peer{start}", f"spare{start}"):
        link = swarm.connection.call(turn_liar(swarm.memory, name, lie, (Gradients,)))
        link.lying = True
    check_equal(LORA, model, local)
    assert lie.body is None


class BusyOnce:
    """In the place of the first thing that was to be sent."""

    said = False

    def __call__(self, message: Passed, _: int) -> Passed | Busy:
        if self.said:
            return message
        self.said = True
        return Busy(message.session, 30.0, "as many micro-batches as fit wait here")


def test_a_hop_that_has_too_much_to_do_is_replaced(
    swarm: Swarm, model: SwarmModelForCausalLM, local: PreTrainedModel
) -> None:
    lie = BusyOnce()
    for name in ("peer1", "spare1"):
        link = swarm.connection.call(turn_liar(swarm.memory, name, lie, (Passed,)))
        link.lying = True
    check_equal(LORA, model, local)
    assert lie.said
    assert swarm.connection.client.backoff.avoided() & {PeerId("peer1"), PeerId("spare1")}


@pytest.mark.parametrize("swarm", [("peer0", "spare1")], indirect=True, ids=["two"])
def test_peers_that_do_not_train_are_left_alone(swarm: Swarm, model: SwarmModelForCausalLM) -> None:
    loss_of(adapted(model, LORA)).backward()
    sent, client = swarm.memory.network.bytes, PeerId("client")
    assert [sent[client, PeerId(name)] > 0 for name in ("peer0", "spare0", "peer1", "spare1")] == [0, 1, 1, 0]


@pytest.mark.parametrize("swarm", [("peer1", "spare1")], indirect=True, ids=["both"])
def test_blocks_that_nobody_trains_are_named(model: SwarmModelForCausalLM) -> None:
    with pytest.raises(MissingBlocks, match=r"nobody trains blocks 1:3"):
        loss_of(adapted(model, LORA))


@pytest.mark.parametrize("share", [0.5, 1.5], ids=["each is too large", "together they are"])
def test_an_adapter_beyond_what_peers_keep_is_refused(share: float, folder: Path, tmp_path: Path) -> None:
    of_a_block = LORA.r * (64 + 64 + 64 + 32) * 4  # bytes
    swarm = Swarm(folder, tmp_path, (), limits=TrainingLimits(adapter_bytes=int(share * of_a_block)))
    with (
        closing(swarm.connection) as connection,
        SwarmModelForCausalLM.from_pretrained(folder, cache=tmp_path, connection=connection) as model,
        pytest.raises(HopError, match="lower rank, or fewer layers"),
    ):
        loss_of(adapted(model, LORA))


def test_a_batch_without_a_token_is_refused(model: SwarmModelForCausalLM) -> None:
    tuned = adapted(model, LORA)
    with pytest.raises(UsageError, match="this batch has no tokens"):
        tuned(input_ids=TOKENS, attention_mask=torch.zeros_like(TOKENS), labels=LABELS)


def test_a_row_beyond_the_context_is_refused_before_anything_is_sent(
    swarm: Swarm, model: SwarmModelForCausalLM
) -> None:
    long = torch.ones(1, model.max_positions + 1, dtype=torch.int64)
    with pytest.raises(UsageError, match="longer than this model's context"):
        adapted(model, LORA)(input_ids=long, labels=long)
    assert not any(sent for (source, _), sent in swarm.memory.network.bytes.items() if source == PeerId("client"))


def test_a_loss_that_is_no_number_is_refused_and_the_adapter_goes_on(model: SwarmModelForCausalLM) -> None:
    tuned = adapted(model, LORA)
    with pytest.raises(UsageError, match="not finite"):
        (loss_of(tuned) * float("nan")).backward()
    loss_of(tuned).backward()
    assert all(bool(gradient.isfinite().all()) for gradient in gradients(tuned).values())


def test_blocks_that_nobody_serves_any_more_are_named(swarm: Swarm, model: SwarmModelForCausalLM) -> None:
    tuned = adapted(model, LORA)
    loss_of(tuned)
    swarm.kill(1)
    with pytest.raises(MissingBlocks, match="block"):
        loss_of(tuned)


def test_dropout_follows_torchs_seed(model: SwarmModelForCausalLM) -> None:
    tuned = adapted(model, LoraConfig(r=4, lora_dropout=0.5, target_modules=["q_proj"], task_type="CAUSAL_LM"))
    tuned.train()
    losses = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        losses.append(loss_of(tuned).item())
    assert losses[0] == losses[1] != losses[2]


def test_a_hop_lost_with_dropout_leaves_the_gradients_of_the_same_seed(
    swarm: Swarm, model: SwarmModelForCausalLM
) -> None:
    tuned = adapted(model, LoraConfig(r=4, lora_dropout=0.5, target_modules=["q_proj"], task_type="CAUSAL_LM"))
    tuned.train()
    found = []
    for victim in (None, "peer1", None):
        torch.manual_seed(1)
        loss = loss_of(tuned)
        if victim is not None:
            swarm.connection.call(swarm.memory.kill(victim))
        tuned.zero_grad()
        loss.backward()
        found.append({name: gradient.clone() for name, gradient in gradients(tuned).items()})
    assert furthest(found[1], found[0]) < 1e-5
    assert furthest(found[2], found[0]) < 1e-5


def test_an_adapter_counts_when_nothing_is_trained(model: SwarmModelForCausalLM, local: PreTrainedModel) -> None:
    here, there = adapted(copy.deepcopy(local), LORA), adapted(model, LORA)
    with torch.no_grad():
        assert torch.allclose(there(TOKENS).logits, here(TOKENS).logits, atol=1e-4)
        with there.disable_adapter(), here.disable_adapter():
            assert torch.allclose(there(TOKENS).logits, here(TOKENS).logits, atol=1e-4)


def test_an_adapter_counts_when_tokens_are_generated(model: SwarmModelForCausalLM, local: PreTrainedModel) -> None:
    here, there = adapted(copy.deepcopy(local), LORA), adapted(model, LORA)
    options = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": None}
    prompt = {"input_ids": TOKENS[:1], "attention_mask": torch.ones_like(TOKENS[:1])}
    assert there.generate(**prompt, **options).tolist() == here.generate(**prompt, **options).tolist()


def test_what_peers_cannot_compute_is_refused_in_a_sentence(model: SwarmModelForCausalLM) -> None:
    tuned = get_peft_model(model, LoHaConfig(r=2, target_modules=["q_proj"]))
    with pytest.raises(UsageError, match="IA3"):
        tuned(TOKENS, labels=LABELS)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"use_dora": True}, "is a DoRA, .* leave use_dora out"),
        ({"init_lora_weights": "pissa"}, "only zeros .* begin with init_lora_weights=True"),
        ({"init_lora_weights": "pissa_niter_2"}, "only zeros .* begin with init_lora_weights=True"),
    ],
)
def test_adapters_that_need_the_weights_are_refused_in_a_sentence(
    model: SwarmModelForCausalLM, options: dict[str, Any], says: str
) -> None:
    tuned = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"], **options))
    with pytest.raises(UsageError, match=says):
        tuned(TOKENS, labels=LABELS)
    with pytest.raises(UsageError, match=says):
        tuned.generate(input_ids=TOKENS[:1], max_new_tokens=2)


def test_an_adapter_with_numbers_that_are_not_finite_is_refused(model: SwarmModelForCausalLM) -> None:
    tuned = adapted(model, LORA)
    with torch.no_grad():
        next(iter(learning(tuned).values())).fill_(float("nan"))
    with pytest.raises(UsageError, match="not finite"):
        loss_of(tuned)
