"""Blocks computed in one call give what they give one by one, to the last bit, and only where they may be."""

import platform
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from peers.batch import PagedBatch
from peers.pages import PageTable, RowSlice
from peers.quantized import Packing
from peers.span import BlockSpan
from peers.stack import Stack
from swarm.checkpoint import resolve
from swarm.ids import Span
from swarm.packed.kernel import kernel
from tests.models import tiny_model
from tests.peers.chains import fused_blocks, one_by_one

if kernel() is None:
    pytest.skip(f"there is no such kernel for {platform.machine()} here", allow_module_level=True)

SIZES = {"hidden_size": 128, "intermediate_size": 192, "num_attention_heads": 8, "num_key_value_heads": 2}
LAYERS = 4
ALIKE = {"layer_types": ["full_attention"] * LAYERS}


def load(folder: Path, family: str = "llama", **changes: Any) -> BlockSpan:
    sizes = {**SIZES, "head_dim": 16, **changes}
    checkpoint = resolve(str(tiny_model(family, folder / "model", **sizes)), cache=folder)
    packing, device = Packing("int4", folder), torch.device("cpu")
    return BlockSpan.load(
        checkpoint, Span(0, LAYERS), dtype=torch.float32, device=device, kv_tokens=800, page_size=4, packing=packing
    )


@pytest.fixture
def span(tmp_path: Path) -> BlockSpan:
    return load(tmp_path)


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def stack_of(span: BlockSpan) -> Stack | None:
    return Stack.of(fused_blocks(span), span.cache, 0)


def rows_of(span: BlockSpan, lengths: list[int]) -> list[PageTable]:
    """Rows that grow in turn, so that none lies in one piece."""
    tables = [PageTable(span.pool) for _ in lengths]
    generator = torch.Generator().manual_seed(1)
    for begin in range(0, max(lengths), 6):
        for table, length in zip(tables, lengths, strict=True):
            n = min(6, length - begin)
            if n > 0:
                table.extend(n)
                span.forward(torch.randn(n, span.hidden_size, generator=generator), [RowSlice(table, begin, n)])
    return tables


def step(span: BlockSpan, tables: list[PageTable]) -> PagedBatch:
    slices = []
    for table in tables:
        at = table.length
        table.extend(1)
        slices.append(RowSlice(table, at, 1))
    return PagedBatch(span.cache, slices, [None] * LAYERS)


def keys_and_values(span: BlockSpan, tables: list[PageTable]) -> list[Tensor]:
    return [each.clone() for table in tables for layer in range(LAYERS) for each in span.cache.view(layer, table)]


@pytest.mark.parametrize("lengths", [[1], [50], [3, 40, 17, 90, 8], [5] * 37], ids=str)
@pytest.mark.parametrize("count", [1, 2, 3])
@torch.inference_mode()
def test_they_give_what_they_give_one_by_one(span: BlockSpan, lengths: list[int], count: int, threads: None) -> None:
    stack, tables = stack_of(span), rows_of(span, lengths)
    assert stack is not None
    hidden = torch.randn(len(lengths), span.hidden_size)
    batch = step(span, tables)
    expected, kept = one_by_one(span, hidden, batch), keys_and_values(span, tables)
    for table in tables:
        table.crop(table.length - 1)
    torch.set_num_threads(count)
    batch = step(span, tables)
    assert stack.takes(batch)
    nothing = torch.full((2, len(lengths), 16), torch.nan)
    for layer in range(LAYERS):
        span.cache.write(layer, batch.slots, nothing, nothing)
    got = hidden.clone()
    stack.forward(got, batch)
    assert torch.equal(got, expected)
    assert all(torch.equal(*pair) for pair in zip(keys_and_values(span, tables), kept, strict=True))
    assert torch.equal(span.forward(hidden, _again(span, tables)), expected)


def _again(span: BlockSpan, tables: list[PageTable]) -> list[RowSlice]:
    return [RowSlice(table, table.length - 1, 1) for table in tables]


@torch.inference_mode()
def test_who_wants_to_see_what_happens_in_between_is_shown_it(span: BlockSpan) -> None:
    stack, tables = stack_of(span), rows_of(span, [9])
    assert stack is not None
    batch = step(span, tables)
    seen: list[Tensor] = []
    down: Any = fused_blocks(span)[2].mlp.down
    hook = down.register_forward_hook(lambda module, args, output: seen.append(output))
    assert not stack.takes(batch)
    span.forward(torch.randn(1, span.hidden_size), _again(span, tables))
    assert len(seen) == 1
    hook.remove()
    assert stack.takes(batch)


def test_rows_of_prompts_are_not_taken(span: BlockSpan) -> None:
    stack, table = stack_of(span), PageTable(span.pool)
    assert stack is not None
    table.extend(3)
    assert not stack.takes(PagedBatch(span.cache, [RowSlice(table, 0, 3)], [None] * LAYERS))


@pytest.mark.parametrize(
    ("family", "changes"),
    [("llama", {"hidden_act": "gelu"}), ("llama", {"hidden_size": 48}), ("qwen2", {})],  # which has windows in some
    ids=str,
)
def test_blocks_of_another_make_are_left_alone(tmp_path: Path, family: str, changes: dict[str, Any]) -> None:
    span = load(tmp_path, family, **changes)
    assert all(span.fused)
    assert stack_of(span) is None


@pytest.mark.parametrize(
    ("family", "changes"),
    [("qwen2", ALIKE), ("qwen3", ALIKE), ("phi3", {}), ("llama", {"attention_bias": True, "mlp_bias": True})],
    ids=str,
)
@torch.inference_mode()
def test_biases_and_norms_of_heads_are_kept(tmp_path: Path, family: str, changes: dict[str, Any]) -> None:
    span = load(tmp_path, family, **changes)
    stack, tables = stack_of(span), rows_of(span, [30, 4])
    assert stack is not None
    hidden, batch = torch.randn(2, span.hidden_size), step(span, tables)
    expected = one_by_one(span, hidden, batch)
    stack.forward(hidden, batch)
    assert torch.equal(hidden, expected)


def test_a_sliding_window_is_kept(tmp_path: Path) -> None:
    span = load(tmp_path, "mistral", sliding_window=8)
    tables = rows_of(span, [30, 4])
    assert span.windows == (8,) * LAYERS
    hidden, batch = torch.randn(2, span.hidden_size), step(span, tables)
    expected = one_by_one(span, hidden, batch)
    stack = stack_of(span)
    assert stack is not None
    with torch.inference_mode():
        stack.forward(hidden, batch)
    assert torch.equal(hidden, expected)


def test_what_is_no_number_is_not_hidden(span: BlockSpan) -> None:
    tables = rows_of(span, [5, 5])
    hidden = torch.randn(2, span.hidden_size)
    hidden[0, 3] = torch.nan
    step(span, tables)
    got = span.forward(hidden, _again(span, tables))
    assert bool(got[0].isnan().any())
    assert bool(got[1].isfinite().all())
