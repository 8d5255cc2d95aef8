"""A span by itself: parts, dtypes, rows that do not depend on their company, and models that it refuses."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    GraniteConfig,
    GraniteModel,
    Llama4TextConfig,
    Llama4TextModel,
    LlamaConfig,
    LlamaModel,
    NemotronConfig,
    NemotronModel,
    PreTrainedModel,
    Qwen2MoeConfig,
    Qwen2MoeModel,
)

from peers.pages import PageTable, RowSlice
from peers.span import BlockSpan
from swarm.checkpoint import resolve
from swarm.errors import ModelError, UsageError
from swarm.ids import Span
from tests.models import tiny_model

SIZES: dict[str, Any] = {
    "vocab_size": 16,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "pad_token_id": None,
}


@pytest.fixture
def config() -> LlamaConfig:
    return LlamaConfig(**SIZES)


def local(config: LlamaConfig) -> LlamaModel:
    """A model whose output is that of its last block, and whose weights are large enough to matter."""
    torch.manual_seed(0)
    model = LlamaModel(config).eval()
    model.norm = nn.Identity()
    for parameter in model.parameters():
        parameter.data.normal_(std=1.5 * parameter.shape[-1] ** -0.5) if parameter.dim() > 1 else None
    return model


def span_of(model: PreTrainedModel, **options: Any) -> BlockSpan:
    return BlockSpan(model, Span(3, 5), **{"kv_tokens": 512, **options})


def step(span: BlockSpan, hidden: Tensor, tables: list[PageTable], news: list[int]) -> Tensor:
    slices = []
    for table, n in zip(tables, news, strict=True):
        slices.append(RowSlice(table, table.length, n))
        table.extend(n)
    return span.forward(hidden, slices)


@torch.inference_mode()
def outputs(model: PreTrainedModel, hidden: Tensor) -> Tensor:
    result: Tensor = model(inputs_embeds=hidden[None], use_cache=False).last_hidden_state[0]
    return result


def test_hop_within_the_span_is_a_slice_of_its_layers(config: LlamaConfig) -> None:
    span = span_of(LlamaModel(config))
    assert span.part(Span(3, 5)) == slice(0, 2)
    assert span.part(Span(4, 5)) == slice(1, 2)
    with pytest.raises(UsageError, match="4:6 are not within 3:5"):
        span.part(Span(4, 6))


def test_hidden_states_that_do_not_match_the_rows_are_refused(config: LlamaConfig) -> None:
    span = span_of(LlamaModel(config))
    table = PageTable(span.pool)
    table.extend(2)
    with pytest.raises(ValueError, match="2 tokens of width 32"):
        span.forward(torch.zeros(3, 32), [RowSlice(table, 0, 2)])


def test_step_after_a_refused_one_is_not_disturbed(config: LlamaConfig) -> None:
    model, hidden = local(config), torch.randn(5, 32)
    expected = outputs(model, hidden)
    span = span_of(model)
    tables = [PageTable(span.pool)]
    with pytest.raises(ValueError, match="tokens of width"):
        step(span, hidden[:, :-1], tables, [5])
    tables[0].crop(0)
    torch.testing.assert_close(step(span, hidden, tables, [5]), expected, atol=1e-4, rtol=1e-4)


def test_span_takes_no_pages_by_being_loaded_and_knows_its_kv(config: LlamaConfig) -> None:
    span = span_of(LlamaModel(config), kv_tokens=1, page_size=16)
    assert (span.pool.free, span.pool.pages) == (1, 1)
    assert span.cache.bytes_per_token == 2 * 2 * 2 * 8 * 4  # keys and values, layers, heads, width, fp32


def test_kv_that_does_not_fit_into_memory_is_refused_at_once(config: LlamaConfig) -> None:
    with pytest.raises(UsageError, match="no memory for the KV of 1000000000000000 tokens"):
        span_of(LlamaModel(config), kv_tokens=10**15, page_size=10**12)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_stays_close_to_the_library_in_the_same_dtype(tmp_path: Path, dtype: torch.dtype) -> None:
    checkpoint = resolve(str(tiny_model("llama", tmp_path / "model")), cache=tmp_path)
    options: dict[str, Any] = {"dtype": dtype, "device": torch.device("cpu"), "kv_tokens": 64}
    span = BlockSpan.load(checkpoint, Span(1, 3), **options)
    exact = BlockSpan.load(checkpoint, Span(1, 3), **{**options, "dtype": torch.float32})
    hidden = torch.randn(12, 64)
    halves = torch.cat([step(span, hidden[:9], [row := PageTable(span.pool)], [9]), step(span, hidden[9:], [row], [3])])
    expected = step(exact, hidden, [PageTable(exact.pool)], [12])
    assert halves.dtype == dtype
    assert (halves.float() - expected).norm() < 8 * torch.finfo(dtype).eps * expected.norm()


SCALINGS: dict[str, dict[str, Any]] = {
    "longrope": {
        "rope_type": "longrope",
        "rope_theta": 10000.0,
        "short_factor": [1.0, 1.1, 1.2, 1.3],
        "long_factor": [2.0, 3.0, 4.0, 5.0],
        "original_max_position_embeddings": 16,
        "factor": 4.0,
    },
    "dynamic": {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 4.0},
}


@pytest.mark.parametrize("scaling", SCALINGS.values(), ids=SCALINGS.keys())
def test_long_rows_do_not_turn_the_rotary_embeddings_of_others(scaling: dict[str, Any]) -> None:
    limit = 64 if scaling["rope_type"] == "longrope" else 16
    config = LlamaConfig(**SIZES, max_position_embeddings=limit, rope_parameters=scaling)
    rows = [torch.randn(n, 32) for n in (40, 8, 30, 16)]
    expected = torch.cat([outputs(local(config), row) for row in rows])
    span = span_of(local(config))
    output = step(span, torch.cat(rows), [PageTable(span.pool) for _ in rows], [len(row) for row in rows])
    torch.testing.assert_close(output, expected, atol=1e-4, rtol=1e-4)


def test_what_a_model_does_before_its_first_block_is_left_to_the_client() -> None:
    config = GraniteConfig(**SIZES, embedding_multiplier=7.0)
    hidden = torch.randn(5, 32)
    plain = GraniteModel(config).eval()
    plain.embedding_multiplier = 1.0
    plain.norm = nn.Identity()
    expected = outputs(plain, hidden)
    plain.embedding_multiplier = 7.0
    span = span_of(plain)
    torch.testing.assert_close(step(span, hidden, [PageTable(span.pool)], [5]), expected)


def test_windows_are_learned_where_layers_do_not_tell_them_to_their_attention() -> None:
    kinds = ["full_attention", "sliding_attention"]
    options = {"use_sliding_window": True, "sliding_window": 4, "layer_types": kinds}
    experts = {"num_experts": 2, "num_experts_per_tok": 1, "moe_intermediate_size": 16}
    model = Qwen2MoeModel(Qwen2MoeConfig(**SIZES | options | experts))
    assert span_of(model).windows == (None, 4)


def test_layers_that_hand_no_keywords_to_their_attention_work_too() -> None:
    model = NemotronModel(NemotronConfig(**SIZES)).eval()
    model.norm = nn.Identity()
    hidden = torch.randn(5, 32)
    expected = outputs(model, hidden)
    span = span_of(model)
    torch.testing.assert_close(step(span, hidden, [PageTable(span.pool)], [5]), expected, atol=1e-5, rtol=1e-5)


class Remembering(nn.Module):
    """A mixer over time outside attention, as in models with convolutions or recurrence."""

    def forward(self, states: Tensor) -> Tensor:
        return states + torch.roll(states, 1, dims=1)


def test_blocks_with_state_outside_attention_are_refused(config: LlamaConfig) -> None:
    model = local(config)
    model.layers[1].mlp = Remembering()
    with pytest.raises(ModelError, match="llama models can't run in a swarm: its blocks keep state"):
        span_of(model)


def test_blocks_without_attention_are_refused(config: LlamaConfig) -> None:
    class Silent(nn.Module):
        def forward(self, hidden_states: Tensor, **_: Any) -> tuple[Tensor, None]:
            return hidden_states, None

    model = local(config)
    model.layers[0].self_attn = Silent()
    with pytest.raises(ModelError, match="do not all attend just once"):
        span_of(model)


def test_blocks_that_need_more_than_hidden_states_are_refused(config: LlamaConfig) -> None:
    class WithExtras(LlamaModel):
        def forward(self, *args: Any, **kwargs: Any) -> Any:
            return super().forward(*args, **kwargs, per_layer_input=torch.zeros(1))

    with pytest.raises(ModelError, match="need 'per_layer_input' besides hidden states"):
        span_of(WithExtras(config))


def test_blocks_that_attend_in_chunks_are_refused() -> None:
    config = Llama4TextConfig(
        **SIZES | {"intermediate_size_mlp": 48, "num_local_experts": 2, "attention_chunk_size": 4, "moe_layers": []}
    )
    with pytest.raises(ModelError, match="llama4_text models can't run in a swarm: its attention mask is neither"):
        span_of(Llama4TextModel(config))


def test_weights_that_make_infinities_are_refused(config: LlamaConfig) -> None:
    model = local(config)
    model.layers[0].mlp.down_proj.weight.data.fill_(torch.inf)
    with pytest.raises(ModelError, match=r"blocks 3:5 turn harmless input into NaN or infinity in torch.float32"):
        span_of(model)


def test_model_without_a_list_of_its_layers_is_refused(config: LlamaConfig) -> None:
    with pytest.raises(ModelError, match="no list of 3 layers"):
        BlockSpan(LlamaModel(config), Span(0, 3), kv_tokens=16)


def test_layers_of_a_span_run_in_its_steps_alone(config: LlamaConfig) -> None:
    span = span_of(LlamaModel(config))
    with pytest.raises(ModelError, match="run only in its own steps"):
        span.model(inputs_embeds=torch.zeros(1, 1, 32))
