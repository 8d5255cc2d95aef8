"""Generating with an adapter is what plain PEFT does, at the price of one step a token."""

import copy
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import IA3Config, LoraConfig, PeftModel
from torch import Tensor
from transformers import PreTrainedModel

from clients.model import SwarmModelForCausalLM
from clients.session import Session
from peers.limits import EngineLimits
from swarm.checkpoint import resolve
from swarm.errors import SwarmError, UsageError
from swarm.ids import Span
from swarm.memory import MemoryNetwork
from swarm.training import PackedAdapter, TensorSpec, Tuned, adapter_key
from tests.clients.test_engines import After, Swarm
from tests.clients.training.adapted import TOKENS, adapted, learning
from tests.memory_swarm import MemorySwarm, Reference
from tests.virtual import run_virtual

LORA = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
EVERYWHERE = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
CONFIGS = {
    "lora": LORA,
    "lora everywhere": LoraConfig(r=2, target_modules=EVERYWHERE, task_type="CAUSAL_LM"),
    "lora of some blocks": LoraConfig(
        r=2, target_modules=["gate_proj"], layers_to_transform=[1, 3], layers_pattern="layers", task_type="CAUSAL_LM"
    ),
    "ia3": IA3Config(
        target_modules=["k_proj", "q_proj", "down_proj"], feedforward_modules=["down_proj"], task_type="CAUSAL_LM"
    ),
    "ia3 of joined inputs": IA3Config(
        target_modules=["v_proj", "up_proj"], feedforward_modules=["up_proj", "v_proj"], task_type="CAUSAL_LM"
    ),
}
FAMILIES = ("qwen3", "gemma2", "mixtral")
PROMPT = TOKENS[:1]
LONG = torch.arange(5, 45)[None]
NEW = {"max_new_tokens": 10, "do_sample": False, "eos_token_id": None}


def tokens_of(tuned: Any, ids: Tensor = PROMPT, **options: Any) -> Any:
    return tuned.generate(input_ids=ids, attention_mask=torch.ones_like(ids), **NEW, **options).tolist()


def logits_of(tuned: Any) -> Tensor:
    """Of a prompt, and of three tokens after it one by one."""
    with torch.no_grad():
        begun = tuned(PROMPT, use_cache=True)
        cache = begun.past_key_values
        steps = [tuned(TOKENS[1:2, at : at + 1], past_key_values=cache).logits for at in range(3)]
    return torch.cat([begun.logits, *steps], dim=1)


def check_equal(config: Any, model: SwarmModelForCausalLM, local: PreTrainedModel) -> None:
    here, there = adapted(copy.deepcopy(local), config).eval(), adapted(model, config).eval()
    torch.testing.assert_close(logits_of(there), logits_of(here), atol=1e-4, rtol=1e-4)
    assert tokens_of(there) == tokens_of(here)


@pytest.mark.parametrize("kind", CONFIGS)
def test_logits_and_tokens_equal_those_of_peft(kind: str, model: SwarmModelForCausalLM, local: PreTrainedModel) -> None:
    check_equal(CONFIGS[kind], model, local)


@pytest.mark.parametrize("family", FAMILIES, indirect=True)
def test_logits_and_tokens_equal_those_of_peft_in_other_families(
    model: SwarmModelForCausalLM, local: PreTrainedModel
) -> None:
    check_equal(LORA, model, local)


@pytest.mark.parametrize("family", ["phi3"], indirect=True)
def test_weights_that_the_library_has_joined_take_adapters(
    model: SwarmModelForCausalLM, local: PreTrainedModel
) -> None:
    config = LoraConfig(r=2, target_modules=["qkv_proj", "gate_up_proj"], task_type="CAUSAL_LM")
    check_equal(config, model, local)


def test_every_token_is_computed_once(swarm: Swarm, model: SwarmModelForCausalLM) -> None:
    tokens_of(adapted(model, LORA).eval())
    done = sum(member.engine.stats().tokens_done for member in swarm.memory.members.values())
    assert done == 3 * (PROMPT.shape[1] + NEW["max_new_tokens"] - 1)  # over three hops


def test_a_hop_that_is_killed_leaves_tokens_identical(
    swarm: Swarm, model: SwarmModelForCausalLM, local: PreTrainedModel
) -> None:
    here, there = adapted(copy.deepcopy(local), LORA).eval(), adapted(model, LORA).eval()
    assert tokens_of(there, streamer=After(4, lambda: swarm.kill_at_work(1))) == tokens_of(here)


def test_a_step_of_training_counts_in_the_next_answer(model: SwarmModelForCausalLM, local: PreTrainedModel) -> None:
    here, there = adapted(copy.deepcopy(local), LORA).eval(), adapted(model, LORA).eval()
    before = tokens_of(there)
    for tuned in (here, there):
        with torch.no_grad():
            for parameter in learning(tuned).values():
                parameter.mul_(-2)
    after = tokens_of(there)
    assert after == tokens_of(here)
    assert after != before


def test_two_adapters_and_none_at_once(swarm: Swarm, folder: Path, tmp_path: Path, local: PreTrainedModel) -> None:
    here, there = [], []
    for config in (None, LORA, CONFIGS["ia3"]):
        own = SwarmModelForCausalLM.from_pretrained(folder, cache=tmp_path, connection=swarm.connection)
        for models, model in ((here, copy.deepcopy(local)), (there, own)):
            models.append(model if config is None else adapted(model, config).eval())
    with ThreadPoolExecutor(len(there)) as pool:  # prompts longer than a page, which peers may share
        found = list(pool.map(lambda tuned: tokens_of(tuned, LONG), there * 2))
    assert found == [tokens_of(tuned, LONG) for tuned in here] * 2
    assert found[0] != found[1] != found[2]


def test_set_adapter_chooses_what_the_next_answer_is_computed_with(
    model: SwarmModelForCausalLM, local: PreTrainedModel, tmp_path: Path
) -> None:
    for name, config in (("a", LORA), ("b", CONFIGS["lora everywhere"])):
        adapted(copy.deepcopy(local), config).save_pretrained(tmp_path / name)
    here, there = (
        PeftModel.from_pretrained(each, tmp_path / "a", "a").eval() for each in (copy.deepcopy(local), model)
    )
    for each in (here, there):
        each.load_adapter(tmp_path / "b", "b")
    found = {}
    for name in ("b", "a", "b"):
        for each in (here, there):
            each.set_adapter(name)
        found[name] = tokens_of(there)
        assert found[name] == tokens_of(here)
    assert found["a"] != found["b"]


def test_the_librarys_own_way_to_adapters_is_open_too(
    model: SwarmModelForCausalLM, local: PreTrainedModel, tmp_path: Path
) -> None:
    adapted(copy.deepcopy(local), LORA).save_pretrained(tmp_path)
    models = (copy.deepcopy(local), model)
    footprint = model.get_memory_footprint()
    for each in models:
        each.load_adapter(tmp_path)
    assert tokens_of(model) == tokens_of(models[0]) != tokens_of(local)
    assert model.get_memory_footprint() < footprint + 100_000
    for each in models:
        each.disable_adapters()
    assert tokens_of(model) == tokens_of(models[0]) == tokens_of(local)


def test_past_keys_and_values_of_another_adapter_are_refused(model: SwarmModelForCausalLM) -> None:
    tuned = adapted(model, LORA).eval()
    with model.new_cache() as cache:
        tokens_of(tuned, past_key_values=cache)
        with tuned.disable_adapter(), pytest.raises(UsageError, match="another adapter"):
            tuned.generate(input_ids=torch.cat([PROMPT, PROMPT], 1), past_key_values=cache, **NEW)


def test_peers_without_room_for_an_adapter_say_so(folder: Path, tmp_path: Path) -> None:
    async def main() -> None:
        checkpoint = resolve(str(folder), cache=tmp_path)
        async with MemorySwarm(checkpoint, MemoryNetwork()) as swarm:
            await swarm.add("peer", Span(0, 4), limits=EngineLimits(adapter_bytes=100))
            connection = await swarm.client()
            specs = (TensorSpec("A", "fp32", (1, 64)), TensorSpec("B", "fp32", (64, 1)))
            tuned, body = (Tuned("self_attn.q_proj", "lora", 1.0, 0.0, specs),), bytes(512)
            adapters = {1: PackedAdapter(adapter_key(tuned, body), tuned, body)}
            session = Session(
                connection,
                embed=Reference(checkpoint).embed,
                lease=8,
                patience=5.0,
                observer=None,
                adapters=adapters,
            )
            with pytest.raises(SwarmError, match="100 bytes that a client may keep here"):
                await session.open()

    run_virtual(main())
