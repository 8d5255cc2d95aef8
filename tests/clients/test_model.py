"""The model's face to the library: what is local is the library's, what is remote goes through a session."""

import gc
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close
from transformers import DynamicCache, GenerationMixin, LlamaForCausalLM, PreTrainedModel

from clients.blocks import blocks_of
from clients.head import Head
from clients.model import SwarmModelForCausalLM
from swarm.errors import ModelError, UsageError
from tests.clients.local_session import LocalConnection
from tests.models import FAMILIES

IDS = torch.arange(3, 33).reshape(2, 15)
LEFT = torch.tensor([[0, 0, 5, 6, 7, 8], [9, 10, 11, 12, 13, 14]])
RIGHT = torch.tensor([[5, 6, 7, 8, 0, 0], [9, 10, 11, 12, 13, 14]])
CONTEXT = 1024  # tokens, of every tiny model

all_families = pytest.mark.parametrize("family", FAMILIES, indirect=True)


def storage_bytes(model: PreTrainedModel) -> int:
    tensors = [*model.parameters(), *model.buffers()]
    return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}.values())


@all_families
def test_logits_and_loss_equal_local(
    model: SwarmModelForCausalLM, local: PreTrainedModel, connection: LocalConnection
) -> None:
    ours, theirs = model(IDS, labels=IDS), local(IDS, labels=IDS)
    assert_close(ours.logits, theirs.logits)
    assert_close(ours.loss, theirs.loss)
    assert ours.past_key_values is None
    assert connection.open_sessions == 0


@all_families
def test_no_block_takes_memory(model: SwarmModelForCausalLM, local: PreTrainedModel) -> None:
    blocks = {id(p) for p in model.get_submodule(model._blocks_path).parameters()}
    ours = sum(p.nbytes for p in model.parameters() if id(p) not in blocks)
    assert storage_bytes(model) <= ours + 4096
    copy = sum(module.copy_bytes for module in model.modules() if isinstance(module, Head))
    assert model.get_memory_footprint() == storage_bytes(model) + copy
    assert copy <= local.get_output_embeddings().weight.nbytes
    assert dict(model.named_parameters()).keys() == dict(local.named_parameters()).keys()


@all_families
def test_embed_is_what_the_first_block_is_handed(model: SwarmModelForCausalLM, local: PreTrainedModel) -> None:
    hidden = local(IDS[:1], output_hidden_states=True).hidden_states[0][0]
    assert_close(model.embed(IDS[0, 4:], 4), hidden[4:])


@pytest.mark.parametrize("ids", [LEFT, RIGHT], ids=["left", "right"])
def test_padding_is_never_sent(
    model: SwarmModelForCausalLM, local: PreTrainedModel, connection: LocalConnection, ids: torch.Tensor
) -> None:
    mask = (ids != 0).long()
    real = mask.bool()
    assert_close(model(ids, attention_mask=mask).logits[real], local(ids, attention_mask=mask).logits[real])
    assert connection.sent == [(10, 10)]


def test_only_wanted_positions_travel_back(model: SwarmModelForCausalLM, connection: LocalConnection) -> None:
    whole = model(IDS).logits
    assert_close(model(IDS, logits_to_keep=2).logits, whole[:, -2:])
    assert_close(model(IDS, logits_to_keep=torch.tensor([3, 7])).logits, whole[:, [3, 7]])
    assert [want for _, want in connection.sent] == [30, 4, 30]


@all_families
def test_the_part_below_the_head_may_be_called_by_itself(
    model: SwarmModelForCausalLM, local: PreTrainedModel, connection: LocalConnection
) -> None:
    mask = (RIGHT != 0).long()
    with torch.no_grad():
        ours, theirs = (each.base_model(RIGHT, mask).last_hidden_state for each in (model, local))
    assert_close(ours[mask.bool()], theirs[mask.bool()])
    assert connection.open_sessions == 0


def test_inputs_may_be_embeddings(model: SwarmModelForCausalLM) -> None:
    assert_close(model(inputs_embeds=model.get_input_embeddings()(IDS)).logits, model(IDS).logits)


def test_a_cache_that_was_asked_for_goes_on(model: SwarmModelForCausalLM, connection: LocalConnection) -> None:
    begun = model(IDS[:, :9], use_cache=True)
    assert connection.open_sessions == 1
    with begun.past_key_values as cache:
        rest = model(IDS[:, 9:], past_key_values=cache)
    assert_close(torch.cat([begun.logits, rest.logits], dim=1), model(IDS).logits)
    assert connection.open_sessions == 0


def test_hidden_states_are_those_on_this_side_of_the_blocks(
    model: SwarmModelForCausalLM, local: PreTrainedModel
) -> None:
    ours = model(IDS, output_hidden_states=True).hidden_states
    theirs = local(IDS, output_hidden_states=True).hidden_states
    assert len(ours) == 2
    assert_close(ours[0], theirs[0])
    assert_close(ours[1], theirs[-1])


def test_many_threads_share_a_model(model: SwarmModelForCausalLM, local: PreTrainedModel) -> None:
    prompts = [IDS[:1, : 3 + n] for n in range(8)]
    with ThreadPoolExecutor(8) as threads:
        ours = list(threads.map(lambda ids: model.generate(ids, max_new_tokens=9, eos_token_id=None), prompts))
    theirs = [local.generate(ids, max_new_tokens=9, eos_token_id=None) for ids in prompts]
    assert [ids.tolist() for ids in ours] == [ids.tolist() for ids in theirs]


def test_it_is_what_it_says(model: SwarmModelForCausalLM, folder: Path) -> None:
    assert isinstance(model, LlamaForCausalLM)
    assert isinstance(model, GenerationMixin)
    assert type(model).__name__ == "SwarmLlamaForCausalLM"
    assert model.name_or_path == str(folder)
    assert (model.device.type, model.dtype, model.training) == ("cpu", torch.float32, False)
    assert "(layers): RemoteBlocks(4 x LlamaDecoderLayer, computed by the peers of a swarm)" in repr(model)
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_another_type_takes_no_memory_for_blocks_either(
    folder: Path, tmp_path: Path, connection: LocalConnection
) -> None:
    with SwarmModelForCausalLM.from_pretrained(
        folder, dtype=torch.bfloat16, cache=tmp_path, connection=connection
    ) as model:
        assert model.dtype == torch.bfloat16
        small = storage_bytes(model)
        model.float()
        assert blocks_of(model)[0].mlp.up_proj.weight.dtype == torch.float32
        assert small < storage_bytes(model) < 2 * small + 4096


def test_a_closed_model_says_so(model: SwarmModelForCausalLM) -> None:
    model.close()
    model.close()
    assert model.closed
    with pytest.raises(UsageError, match="this model is closed"):
        model(IDS)
    with pytest.raises(UsageError, match="this model is closed"):
        model.generate(IDS)


def test_closing_a_model_ends_what_still_runs_in_other_threads(
    model: SwarmModelForCausalLM, connection: LocalConnection
) -> None:
    connection.gate.clear()
    with ThreadPoolExecutor(1) as threads:
        running = threads.submit(model.generate, IDS[:1], max_new_tokens=9)
        connection.waiting.wait()
        model.close()
        with pytest.raises(UsageError, match="closed while a step was under way"):
            running.result()
    assert connection.open_sessions == 0


def test_a_cache_that_nobody_closed_is_freed_when_it_goes(
    model: SwarmModelForCausalLM, connection: LocalConnection
) -> None:
    output = model(IDS, use_cache=True)
    assert connection.open_sessions == 1
    del output
    gc.collect()
    assert connection.sessions[0].gone.wait(10)


def test_nothing_is_saved(model: SwarmModelForCausalLM, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="nothing to save"):
        model.save_pretrained(tmp_path / "saved")


def test_no_gradients_go_through_a_cache(model: SwarmModelForCausalLM) -> None:
    embeddings = model.get_input_embeddings()(IDS).requires_grad_()
    with model.new_cache() as cache, pytest.raises(UsageError, match="use_cache=False"):
        model(inputs_embeds=embeddings, past_key_values=cache)


def test_weights_that_are_elsewhere_are_not_trained(model: SwarmModelForCausalLM) -> None:
    next(blocks_of(model).parameters()).requires_grad_(True)
    with pytest.raises(UsageError, match="train an adapter"):
        model(IDS)


def test_the_head_can_be_trained(model: SwarmModelForCausalLM) -> None:
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.clone())
    model(IDS, labels=IDS).loss.backward()
    assert model.lm_head.weight.grad is not None


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"past_key_values": DynamicCache()}, "come from model.new_cache"),
        ({"position_ids": torch.arange(1, 16)[None]}, "position_ids must count"),
        ({"attention_mask": torch.ones(2, 17)}, "has 17 columns"),
        ({"attention_mask": torch.ones(2, 1, 15, 15)}, "attention mask is"),
        ({"output_attentions": True}, "output_attentions is not possible"),
        ({"output_router_logits": True}, "output_router_logits is not possible"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_what_cannot_be_is_refused_before_anything_is_sent(
    model: SwarmModelForCausalLM, connection: LocalConnection, options: dict[str, object], sentence: str
) -> None:
    with pytest.raises(UsageError, match=sentence):
        model(IDS, **options)
    assert not connection.sent


def test_a_context_longer_than_the_models_is_refused_before_anything_is_sent(
    model: SwarmModelForCausalLM, connection: LocalConnection
) -> None:
    with pytest.raises(UsageError, match="1025 tokens is longer than this model's context of 1024"):
        model(torch.full((1, CONTEXT + 1), 5))
    with pytest.raises(UsageError, match="1000 tokens of prompt and up to 25 new ones"):
        model.generate(torch.full((1, 1000), 5), max_new_tokens=25)
    with pytest.raises(UsageError, match="2000 tokens of prompt and up to 1 new"):
        model.generate(torch.full((1, 2000), 5))
    assert not connection.sessions


def test_weights_that_a_client_needs_must_be_there(folder: Path, tmp_path: Path, connection: LocalConnection) -> None:
    from safetensors.torch import save_file
    from transformers import AutoConfig

    from swarm.checkpoint import client_weights, resolve

    weights = client_weights(resolve(str(folder), cache=tmp_path))
    del weights["model.norm.weight"]
    AutoConfig.from_pretrained(folder).save_pretrained(tmp_path / "torn")
    save_file(weights, tmp_path / "torn" / "model.safetensors")
    with pytest.raises(ModelError, match="lacks 1 tensors that a client needs"):
        SwarmModelForCausalLM.from_pretrained(tmp_path / "torn", cache=tmp_path, connection=connection)
