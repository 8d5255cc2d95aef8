"""Spans whose blocks pass through a GPU's memory compute what spans that stay there compute, to the last bit.

Where there is no GPU, the CPU stands for it: what passes is copied from main memory to two other places there.
"""

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from peers.attention import PAGED
from peers.offload import Offload, load_offloaded
from peers.pages import PageTable, RowSlice
from peers.places import Place
from peers.quantized import Packing
from peers.span import BlockSpan
from peers.span_memory import span_bytes
from peers.training.deltas import BlockAdapter
from swarm.checkpoint import load_span, resolve
from swarm.errors import ModelError, UsageError
from swarm.ids import Span
from swarm.training import TensorSpec, Tuned
from tests.models import tiny_model
from tests.peers.ring import Model

PRECISIONS = ("none", "int8", "nf4")
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def room(model: Model, blocks: float, precision: str = "none") -> int:
    """Bytes that so many of its blocks take on the device, with the vectors of all."""
    checkpoint = model.checkpoint
    vectors = checkpoint.num_blocks * 8_000
    return int(blocks * span_bytes(checkpoint, Span(0, 1), torch.float32, precision)) + vectors


def load_whole(model: Model, cache: Path, precision: str = "none") -> BlockSpan:
    blocks = Span(0, model.checkpoint.num_blocks)
    if precision == "none":  # without the order in which only CPUs want weights
        whole = load_span(model.checkpoint, blocks, dtype=torch.float32, device=DEVICE, attn_implementation=PAGED)
        return BlockSpan(whole, blocks, kv_tokens=256)
    packing = Packing(precision, cache)
    return BlockSpan.load(model.checkpoint, blocks, dtype=torch.float32, device=DEVICE, kv_tokens=256, packing=packing)


def load(model: Model, cache: Path, room: int, precision: str = "none") -> BlockSpan:
    blocks, packing = Span(0, model.checkpoint.num_blocks), Packing(precision, cache, room)
    loaded, offload = load_offloaded(
        model.checkpoint, blocks, packing, dtype=torch.float32, device=DEVICE, attn_implementation=PAGED
    )
    return BlockSpan(
        loaded,
        blocks,
        kv_tokens=256,
        dtype=torch.float32,
        finish=offload.finish,
        window=offload,
        device=DEVICE,
    )


def outputs(span: BlockSpan, hidden: Tensor, layers: slice | None = None) -> Tensor:
    """Of a prompt, and of two tokens after it."""
    table, n = PageTable(span.pool), len(hidden) - 2
    results = []
    for at, tokens in ((0, n), (n, 2)):
        table.extend(tokens)
        results.append(span.forward(hidden[at : at + tokens], [RowSlice(table, at, tokens)], layers).cpu())
    table.release()
    return torch.cat(results)


def passage(span: BlockSpan) -> Offload:
    assert isinstance(span.window, Offload)
    return span.window


def on_device(span: BlockSpan) -> int:
    """Bytes of weights."""
    offload = passage(span)
    tensors = [tensor for layer in offload._layers for tensor in layer.state_dict().values()]
    assert {tensor.device.type for tensor in tensors} <= {DEVICE.type, "meta"}
    stays = sum(tensor.nbytes for tensor in tensors if tensor.device.type == DEVICE.type)
    return stays + sum(place.content.nbytes for place in offload._made)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return Model.make(tmp_path_factory.mktemp("models"))


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_span_that_passes_is_equal_to_the_last_bit(model: Model, tmp_path: Path, precision: str) -> None:
    hidden = model.row(20)
    expected = outputs(load_whole(model, tmp_path, precision), hidden)
    most = room(model, 2, precision)
    span = load(model, tmp_path, most, precision)
    assert passage(span).count >= 3
    for _ in range(2):
        assert torch.equal(outputs(span, hidden), expected)
    assert on_device(span) <= most


@pytest.mark.parametrize("family", ["mixtral", "gpt_oss", "gpt_neox", "gemma2", "qwen3"])
def test_any_family_can_pass(tmp_path: Path, family: str) -> None:
    folder = tiny_model(family, tmp_path / family)
    model = Model(resolve(str(folder), cache=tmp_path / "cache"), nn.Identity())
    hidden, most = model.row(9), room(model, 2)
    span, whole = load(model, tmp_path, most), load_whole(model, tmp_path)
    assert passage(span).count > 0
    assert span.fused == whole.fused
    assert torch.equal(outputs(span, hidden), outputs(whole, hidden))
    assert on_device(span) <= most


def test_some_stay_when_there_is_room_and_a_hop_takes_a_part(model: Model, tmp_path: Path) -> None:
    hidden, most = model.row(5), room(model, 3)
    span = load(model, tmp_path, most)
    assert passage(span).count == 3
    whole = load_whole(model, tmp_path)
    for part in (slice(1, 3), slice(0, 4), slice(3, 4), slice(2, 3)):
        assert torch.equal(outputs(span, hidden, part), outputs(whole, hidden, part))
    assert on_device(span) <= most


def test_adapters_fit_blocks_that_pass(model: Model, tmp_path: Path) -> None:
    hidden, layers = model.row(5), slice(1, 2)
    results = []
    for span in (load(model, tmp_path, room(model, 2)), load_whole(model, tmp_path)):
        place = Place.find(span._layers[1], "self_attn.q_proj")
        assert place is not None
        table = PageTable(span.pool)
        table.extend(5)
        fit = span.fit(1, scales(place.outputs))
        row = RowSlice(table, 0, 5)
        results.append(span.forward(hidden, [row], layers, adapted=[fit.changes]).cpu())
        assert not torch.equal(results[-1], outputs(span, hidden, layers))
    assert torch.equal(*results)


def scales(width: int) -> BlockAdapter:
    """Of queries (IA)^3."""
    tuned = Tuned("self_attn.q_proj", "ia3", 1.0, 0.0, (TensorSpec("scale", "fp32", (width,)),))
    return BlockAdapter((tuned,), (torch.linspace(-2, 2, width),))


def test_how_fast_main_memory_is_read_is_measured(model: Model, tmp_path: Path) -> None:
    span, hidden = load(model, tmp_path, room(model, 2)), model.row(5)
    expected, rate = outputs(span, hidden), passage(span).rate()
    assert rate is not None
    assert rate > 0
    assert torch.equal(outputs(span, hidden), expected)  # though a place has something else now
    assert passage(load(model, tmp_path, room(model, 5))).rate() is None  # nothing passes


@pytest.fixture
def offload() -> Offload:
    return finished(6, fit=3)


def finished(count: int, fit: int) -> Offload:
    """Layers of one matrix each, 4 KiB, which has their numbers; `fit`: so many on the device."""
    layers = [nn.Linear(32, 32) for _ in range(count)]
    for number, layer in enumerate(layers):
        nn.init.constant_(layer.weight, number)
        layer.to(DEVICE).weight = nn.Parameter(layer.weight.cpu())
    offload = Offload(layers, DEVICE, room=(fit << 12) + 128 * count, main=1 << 30)
    for layer in layers:
        offload.finish(layer)
    return offload


def seen(offload: Offload, index: int) -> set[float]:
    with offload.open(index):
        return set(matrix(offload, index).flatten().tolist())


def matrix(offload: Offload, index: int) -> Tensor:
    weight = offload._layers[index].weight
    assert isinstance(weight, Tensor)
    return weight


def test_the_next_that_passes_is_on_its_way_while_one_computes(offload: Offload) -> None:
    passing = [index for index in range(6) if matrix(offload, index).is_meta]
    assert len(passing) == 5  # one stays beside the two places
    for index, following in zip(passing * 2, [*passing[1:], passing[0]] * 2, strict=True):
        brought = [place for place in offload._made if place.block == index]
        with offload.open(index):
            assert all(place.block == index for place in brought)  # and is not copied again
            assert {place.block for place in offload._made} == {index, following}


def test_who_fails_leaves_its_place(offload: Offload) -> None:
    def fail() -> None:
        with offload.open(5):
            raise ArithmeticError

    with pytest.raises(ArithmeticError):
        fail()
    assert matrix(offload, 5).is_meta
    assert seen(offload, 5) == {5}


@given(count=st.integers(1, 8), fit=st.integers(2, 8), order=st.lists(st.integers(0, 7), max_size=30))
def test_in_any_order_each_finds_its_own(count: int, fit: int, order: list[int]) -> None:
    offload = finished(count, fit)
    assert offload.count == (0 if count <= fit else count - fit + 2)
    for index in order:
        assert seen(offload, index % count) == {index % count}


def test_room_for_not_even_two_blocks_is_refused(model: Model, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"2 blocks at a time take .* give a larger --max-vram"):
        load(model, tmp_path, room(model, 1.5))


def test_too_little_main_memory_is_refused() -> None:
    layers = [nn.Linear(32, 32, bias=False) for _ in range(4)]
    with pytest.raises(ModelError, match=r"12\.3 kB, and 1 kB are free"):
        Offload(layers, DEVICE, room=3 << 12, main=1000)
