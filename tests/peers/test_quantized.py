"""Spans with packed weights: near the plain ones, from the checkpoint or from disk, and never unpacked as a whole."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from peers.packed_files import PackedFiles
from peers.pages import PageTable, RowSlice
from peers.quantized import Packing
from peers.span import BlockSpan
from peers.span_memory import span_bytes
from swarm.checkpoint import resolve
from swarm.errors import ModelError
from swarm.ids import Span
from swarm.packing import PACKED, Packed
from tests.models import tiny_model
from tests.peers.ring import Model

# Of what four blocks add, with random weights that are much larger than trained ones.
LOSS = {"bf16": 0.04, "int8": 0.08, "int4": 0.5}
ALL = Span(0, 4)
DENSE = ("llama", "qwen2", "gemma2", "gemma3_text", "phi3", "gpt_neox", "granite")


def load(
    model: Model, precision: str, cache: Path, blocks: Span = ALL, dtype: torch.dtype = torch.float32
) -> BlockSpan:
    return BlockSpan.load(
        model.checkpoint,
        blocks,
        dtype=dtype,
        device=torch.device("cpu"),
        kv_tokens=256,
        packing=Packing(precision, cache),
    )


def outputs(span: BlockSpan, hidden: Tensor) -> Tensor:
    table = PageTable(span.pool)
    table.extend(len(hidden))
    result = span.forward(hidden, [RowSlice(table, 0, len(hidden))])
    table.release()
    return result


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return Model.make(tmp_path_factory.mktemp("models"))


@pytest.mark.parametrize("precision", PACKED)
def test_packed_span_is_near_the_plain_one(model: Model, tmp_path: Path, precision: str) -> None:
    hidden = model.row(90)
    expected = model.blocks(hidden)
    span = load(model, precision, tmp_path)
    assert span.dtype == torch.float32
    distance = (outputs(span, hidden) - expected).norm() / (expected - hidden).norm()
    assert distance < LOSS[precision]


@pytest.mark.parametrize("family", DENSE)
def test_any_dense_family_can_be_packed(tmp_path: Path, family: str) -> None:
    folder = tiny_model(family, tmp_path / family)
    model = Model(resolve(str(folder), cache=tmp_path / "cache"), torch.nn.Identity())
    last = model.checkpoint.num_blocks
    span = load(model, "int4", tmp_path, Span(1, last))
    again = load(model, "int4", tmp_path, Span(1, last))
    hidden = model.row(5)
    assert torch.equal(outputs(span, hidden), outputs(again, hidden))


def test_a_family_with_merged_experts_is_refused(tmp_path: Path) -> None:
    folder = tiny_model("qwen3_moe", tmp_path / "moe")
    model = Model(resolve(str(folder), cache=tmp_path / "cache"), torch.nn.Identity())
    with pytest.raises(ModelError, match=r"qwen3_moe models can't be served in int8, .* use --quantization none"):
        load(model, "int8", tmp_path)


@pytest.mark.parametrize("precision", PACKED)
def test_size_is_what_was_said(model: Model, tmp_path: Path, precision: str) -> None:
    blocks = Span(1, 3)
    span = load(model, precision, tmp_path, blocks, torch.bfloat16)
    layers = [module for name, module in span.model.named_modules() if isinstance(module, Packed)]
    packed = sum(tensor.nbytes for layer in layers for tensor in layer.tensors().values())
    inside = {id(parameter) for layer in layers for parameter in layer.parameters()}
    plain = sum(parameter.nbytes for parameter in span.model.parameters() if id(parameter) not in inside)
    assert packed + plain == span_bytes(model.checkpoint, blocks, torch.bfloat16, precision)


def test_the_second_start_maps_what_the_first_has_written(model: Model, tmp_path: Path) -> None:
    hidden = model.row(7)
    first = outputs(load(model, "int8", tmp_path), hidden)
    files = PackedFiles(tmp_path, model.checkpoint.digest, "int8")
    written = {block: files.path(block).stat().st_mtime_ns for block in range(4)}
    assert torch.equal(outputs(load(model, "int8", tmp_path), hidden), first)
    assert {block: files.path(block).stat().st_mtime_ns for block in range(4)} == written


@pytest.mark.parametrize("spoil", [b"", b"\0" * 100], ids=["empty", "zeros"])
def test_a_damaged_file_is_packed_again(model: Model, tmp_path: Path, spoil: bytes) -> None:
    hidden = model.row(7)
    first = outputs(load(model, "int4", tmp_path), hidden)
    path = PackedFiles(tmp_path, model.checkpoint.digest, "int4").path(2)
    path.write_bytes(spoil)
    assert torch.equal(outputs(load(model, "int4", tmp_path), hidden), first)
    assert path.stat().st_size > len(spoil)


def test_a_cache_that_takes_nothing_is_no_obstacle(model: Model, tmp_path: Path) -> None:
    (tmp_path / "packed").write_text("a file where a folder should be")
    hidden = model.row(7)
    other = tmp_path / "other"
    assert torch.equal(outputs(load(model, "int8", tmp_path), hidden), outputs(load(model, "int8", other), hidden))
