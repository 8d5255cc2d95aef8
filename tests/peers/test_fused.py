"""Fused blocks: which layers they replace, that they give what these give, and that nothing else is taken for one."""

import copy
import gc
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaModel, PreTrainedModel

from peers.pages import PageTable, RowSlice
from peers.quantized import Packing
from peers.span import BlockSpan
from swarm.checkpoint import resolve
from swarm.ids import Span
from swarm.packing import PACKED
from tests.models import FAMILIES, tiny_model
from tests.peers.chains import load

FUSED = {"llama", "mistral", "qwen2", "qwen3", "phi3", "mixtral", "qwen3_moe"}
CONFIG = LlamaConfig(
    vocab_size=16,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=8,
    pad_token_id=None,
)


@pytest.mark.parametrize("family", FAMILIES)
def test_families_of_the_usual_build_are_fused_and_others_run_as_the_library_has_them(
    tmp_path: Path, family: str
) -> None:
    checkpoint = resolve(str(tiny_model(family, tmp_path / family)), cache=tmp_path)
    span = load(checkpoint, Span(1, 4))
    assert span.fused == (family in FUSED,) * 3


def local(config: LlamaConfig = CONFIG) -> LlamaModel:
    """A model whose output is that of its last block, and whose weights are large enough to matter."""
    torch.manual_seed(0)
    model = LlamaModel(copy.deepcopy(config)).eval()  # spans set options in it
    model.norm = nn.Identity()
    for parameter in model.parameters():
        parameter.data.normal_(std=1.5 * parameter.shape[-1] ** -0.5) if parameter.dim() > 1 else None
    return model


@torch.inference_mode()
def outputs(model: PreTrainedModel, hidden: Tensor) -> Tensor:
    result: Tensor = model(inputs_embeds=hidden[None], use_cache=False).last_hidden_state[0]
    return result


def span_of(model: PreTrainedModel) -> BlockSpan:
    return BlockSpan(model, Span(0, 3), kv_tokens=512, page_size=4)


def run(span: BlockSpan, hidden: Tensor, news: list[int], layers: slice | None = None) -> Tensor:
    """One row, in steps."""
    table, parts, begin = PageTable(span.pool), [], 0
    for n in news:
        table.extend(n)
        parts.append(span.forward(hidden[begin : begin + n], [RowSlice(table, begin, n)], layers))
        begin += n
    table.release()
    return torch.cat(parts)


close = partial(torch.testing.assert_close, atol=2e-5, rtol=2e-5)


@pytest.mark.parametrize("options", [{}, {"attention_bias": True, "mlp_bias": True}, {"hidden_act": "gelu"}], ids=str)
@pytest.mark.parametrize("news", [[40], [37, 1, 1, 1], [1] * 4 + [36]], ids=str)
def test_fused_blocks_give_what_the_layers_give(options: dict[str, Any], news: list[int]) -> None:
    config = LlamaConfig(**CONFIG.to_dict() | options)
    hidden = torch.randn(40, 32)
    expected = outputs(local(config), hidden)
    span = span_of(local(config))
    assert all(span.fused)
    close(run(span, hidden, news), expected)


def test_the_callers_hidden_states_stay_as_they_are() -> None:
    span, hidden = span_of(local()), torch.randn(5, 32)
    before = hidden.clone()
    run(span, hidden, [5])
    assert torch.equal(hidden, before)


def test_positions_beyond_those_seen_so_far_are_turned_like_others() -> None:
    hidden = torch.randn(1100, 32)
    config = LlamaConfig(**CONFIG.to_dict() | {"num_hidden_layers": 1})
    expected = outputs(local(config), hidden)
    span = BlockSpan(local(config), Span(0, 1), kv_tokens=1200)
    close(run(span, hidden, [1000, 1, 99]), expected)


class Halved(nn.Module):
    """A layer made of the same parts that does something else with them."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        for name, child in layer.named_children():
            self.add_module(name, child)

    def forward(self, hidden_states: Tensor, position_embeddings: Any = None, **rest: Any) -> Tensor:
        assert isinstance(self.input_layernorm, nn.Module)
        assert isinstance(self.self_attn, nn.Module)
        assert isinstance(self.post_attention_layernorm, nn.Module)
        assert isinstance(self.mlp, nn.Module)
        normed = self.input_layernorm(hidden_states)
        attended, _ = self.self_attn(hidden_states=normed, position_embeddings=position_embeddings, **rest)
        hidden_states = hidden_states + 0.5 * attended
        result: Tensor = hidden_states + self.mlp(self.post_attention_layernorm(hidden_states))
        return result


def test_layer_that_does_something_else_with_the_same_parts_is_left_as_it_is() -> None:
    model, hidden = local(), torch.randn(9, 32)
    model.layers[1] = Halved(model.layers[1])
    expected = outputs(model, hidden)
    span = span_of(model)
    assert span.fused == (True, False, True)
    close(run(span, hidden, [7, 1, 1]), expected)
    first, rest = run(span, hidden, [9], slice(0, 1)), slice(1, 3)
    close(run(span, first, [9], rest), expected)


def test_layer_with_weights_that_nobody_knows_is_left_as_it_is() -> None:
    model = local()
    model.layers[0].register_parameter("gain", nn.Parameter(torch.ones(1)))
    assert span_of(model).fused == (False, True, True)


def test_layer_that_clips_only_what_is_loud_is_left_as_it_is() -> None:
    class Clipped(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x).clamp(-1, 1)

    model = local()
    projection = model.layers[2].self_attn.q_proj
    model.layers[2].self_attn.q_proj = Clipped(32, 32, bias=False)
    model.layers[2].self_attn.q_proj.weight = projection.weight
    assert span_of(model).fused == (True, True, False)


@pytest.mark.parametrize("precision", PACKED)
def test_packed_weights_are_joined_and_compute_the_same(tmp_path: Path, precision: str) -> None:
    config = LlamaConfig(**CONFIG.to_dict() | {"hidden_size": 64, "head_dim": 32, "intermediate_size": 128})
    local(config).save_pretrained(tmp_path / "model")
    checkpoint = resolve(str(tmp_path / "model"), cache=tmp_path)
    device = torch.device("cpu")
    span = BlockSpan.load(
        checkpoint,
        Span(0, 3),
        dtype=torch.float32,
        device=device,
        kv_tokens=64,
        packing=Packing(precision, tmp_path),
    )
    assert all(span.fused)
    kinds = {type(module).__name__ for module in span.model.modules() if hasattr(module, "in_features")}
    assert "Beside" not in {type(module).__name__ for module in span.model.modules()}
    assert "Linear" not in kinds or precision == "bf16"


@pytest.mark.skipif(sys.platform != "linux", reason="asks Linux what is mapped")
def test_files_of_packed_weights_are_let_go_once_the_weights_are_joined(tmp_path: Path) -> None:
    checkpoint = resolve(str(tiny_model("llama", tmp_path / "model")), cache=tmp_path)
    packing, device = Packing("int8", tmp_path), torch.device("cpu")
    for _ in range(2):  # packed, then read
        span = BlockSpan.load(checkpoint, Span(0, 4), dtype=torch.float32, device=device, kv_tokens=64, packing=packing)
        gc.collect()
        assert all(span.fused)
        assert ".packed" not in Path("/proc/self/maps").read_text()
