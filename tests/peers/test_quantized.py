"""Spans with packed weights: near the plain ones, from the checkpoint or from disk, and never unpacked as a whole."""

from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from peers.gates import find_layers
from peers.packed_files import PackedFiles
from peers.pages import PageTable, RowSlice
from peers.quantized import Packing, Source, fill_packed, load_packed
from peers.span import PAGED, BlockSpan
from peers.span_memory import span_bytes
from swarm.checkpoint import resolve, span_shell
from swarm.errors import ModelError, UsageError
from swarm.ids import Span
from swarm.packed.bnb import LlmInt8Linear
from swarm.packed.int8 import Int8Linear
from swarm.packing import PACKED, Packed
from tests.models import tiny_model
from tests.peers.ring import Model

# Of what four blocks add, with random weights that are much larger than trained ones.
LOSS = {"bf16": 0.04, "int8": 0.08, "int4": 0.5, "nf4": 0.65}
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


@pytest.mark.parametrize("precision", [*PACKED, "nf4"])
def test_packed_span_is_near_the_plain_one(model: Model, tmp_path: Path, precision: str) -> None:
    hidden = model.row(90)
    expected = model.blocks(hidden)
    span = load(model, precision, tmp_path)
    assert span.dtype == torch.float32
    distance = (outputs(span, hidden) - expected).norm() / (expected - hidden).norm()
    assert distance < LOSS[precision]


def as_on_a_gpu(model: PreTrainedModel) -> PreTrainedModel:
    """With weights in int8 multiplied as on a CUDA device."""
    for path, linear in list(model.named_modules()):
        if isinstance(linear, Int8Linear):
            parent, _, name = path.rpartition(".")
            setattr(model.get_submodule(parent), name, LlmInt8Linear.restored(linear.tensors()))
    return model


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_int8_as_on_a_gpu_is_near_the_plain_span(model: Model, tmp_path: Path, dtype: torch.dtype) -> None:
    hidden = model.row(90)
    expected = model.blocks(hidden)
    packed = load_packed(model.checkpoint, ALL, Packing("int8", tmp_path), dtype=dtype, attn_implementation=PAGED)
    span = BlockSpan(as_on_a_gpu(packed), ALL, kv_tokens=256, dtype=dtype)
    assert all(span.fused)
    assert sum(isinstance(module, LlmInt8Linear) for module in span.model.modules()) == 4 * len(ALL)
    assert (outputs(span, hidden) - expected).norm() / (expected - hidden).norm() < 2 * LOSS["int8"]


def test_a_span_in_nf4_is_fused_from_the_checkpoint_and_from_disk(model: Model, tmp_path: Path) -> None:
    spans = [load(model, "nf4", tmp_path) for _ in range(2)]
    hidden = model.row(7)
    assert all(spans[1].fused)
    assert torch.equal(*(outputs(span, hidden) for span in spans))


@pytest.mark.parametrize("precision", ["bf16", "int8", "nf4"])
def test_all_of_a_block_is_put_on_the_device(model: Model, precision: str) -> None:
    block, elsewhere = Span(0, 1), torch.device("meta")
    layer = find_layers(span_shell(model.checkpoint, block, dtype=torch.bfloat16), 1)[0]
    tensors = Source(model.checkpoint, block, precision).packed(0)
    assert fill_packed(layer, tensors, elsewhere)
    assert {tensor.device for tensor in layer.state_dict().values()} == {elsewhere}


def test_devices_without_a_kernel_are_refused(model: Model, tmp_path: Path) -> None:
    for precision, device, advice in (
        ("int4", "cuda", "int4 works on the cpu; use --quantization nf4 on a GPU"),
        ("int8", "mps", "int8 works on the cpu; leave it out for mps"),
        ("nf4", "mps", "nf4 works on GPUs with CUDA; leave it out for mps"),
    ):
        with pytest.raises(UsageError, match=advice):
            load_packed(
                model.checkpoint, ALL, Packing(precision, tmp_path), dtype=torch.float32, device=torch.device(device)
            )


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


@pytest.mark.parametrize("precision", [*PACKED, "nf4"])
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
