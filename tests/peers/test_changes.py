"""Rows with different adapters in one pass: each comes out as by itself."""

import gc
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from peers.fits import Fits
from peers.limits import EngineLimits
from peers.pages import PageTable, RowSlice
from peers.places import Place
from peers.quantized import Packing
from peers.span import BlockSpan
from peers.training.deltas import BlockAdapter
from peers.training.trainee import Trainee
from swarm.checkpoint import resolve
from swarm.errors import Busy, HopError
from swarm.ids import Span
from swarm.training import TensorSpec, Tuned
from tests.models import tiny_model

BLOCKS, CPU = Span(1, 3), torch.device("cpu")
LINEARS = [f"self_attn.{name}_proj" for name in "qkvo"] + [f"mlp.{name}_proj" for name in ("gate", "up", "down")]
ADAPTERS: tuple[Mapping[str, str], ...] = (  # kinds by paths
    {"self_attn.q_proj": "lora", "self_attn.v_proj": "lora", "self_attn.qkv_proj": "lora"},
    dict.fromkeys(LINEARS, "lora"),
    {"self_attn.k_proj": "ia3", "self_attn.v_proj": "ia3", "mlp.down_proj": "ia3-input"},
    {"self_attn.v_proj": "ia3-input", "self_attn.q_proj": "ia3-input", "mlp.up_proj": "ia3", "mlp.down_proj": "lora"},
)
NEW = (3, 1, 1, 2, 1, 4)  # tokens of each row
EACH = range(len(NEW))
WHOSE = (None, 0, 0, 1, 2, 3)  # adapter of each row
close = partial(torch.testing.assert_close, rtol=1e-4, atol=1e-4)


def adapter(span: BlockSpan, kinds: Mapping[str, str], seed: int) -> BlockAdapter:
    """For the first block, of a rank that depends on the seed."""
    generator = torch.Generator().manual_seed(seed)
    tuned: list[Tuned] = []
    tensors: list[Tensor] = []
    for path, kind in kinds.items():
        place = Place.find(span._layers[0], path)
        if place is None:
            continue
        shapes: dict[str, tuple[int, ...]] = {"scale": (place.inputs if kind == "ia3-input" else place.outputs,)}
        if kind == "lora":
            shapes = {"A": (2 + seed, place.inputs), "B": (place.outputs, 2 + seed)}
        tuned.append(Tuned(path, kind, 0.5, 0.0, tuple(TensorSpec(name, "fp32", s) for name, s in shapes.items())))
        tensors += [torch.randn(shape, generator=generator) / 4 + (kind != "lora") for shape in shapes.values()]
    return BlockAdapter(tuple(tuned), tuple(tensors))


class Tuning:
    def __init__(self, folder: Path, family: str, packing: Packing | None = None, **changes: Any) -> None:
        self.checkpoint = resolve(str(tiny_model(family, folder / family, **changes)), cache=folder)
        self.span = BlockSpan.load(
            self.checkpoint, BLOCKS, dtype=torch.float32, device=CPU, kv_tokens=512, packing=packing
        )
        self.adapters = [
            {block: adapter(self.span, kinds, seed + 10 * block) for block in BLOCKS}
            for seed, kinds in enumerate(ADAPTERS)
        ]
        fits = [[self.span.fit(block, own) for block, own in adapters.items()] for adapters in self.adapters]
        self.changes = [tuple(change for fit in own for change in fit.changes) for own in fits]
        self.hidden = [torch.randn(n, self.span.hidden_size) for n in NEW]

    def run(self, which: Sequence[int], *, adapted: bool = True) -> list[Tensor]:
        """These rows in one pass, from their beginning."""
        rows = [RowSlice(PageTable(self.span.pool), 0, NEW[index]) for index in which]
        for row in rows:
            row.table.extend(row.n)
        whose = [WHOSE[index] for index in which] if adapted else []
        changes = [() if own is None else self.changes[own] for own in whose]
        found = self.span.forward(torch.cat([self.hidden[index] for index in which]), rows, adapted=changes)
        for row in rows:
            row.table.release()
        return list(found.split([row.n for row in rows]))

    def expected(self, index: int) -> Tensor:
        """As it is computed where adapters are trained."""
        trainee = Trainee.load(self.checkpoint, BLOCKS, dtype=torch.float32, device=CPU)
        whose = WHOSE[index]
        adapters = {} if whose is None else self.adapters[whose]
        return trainee.forward(BLOCKS, self.hidden[index], [NEW[index]], adapters, seed=None, keep=False).output


@pytest.mark.parametrize("family", ["llama", "phi3", "gemma2", "mixtral"])
def test_rows_of_a_mixed_pass_are_what_each_adapter_makes_of_them(tmp_path: Path, family: str) -> None:
    tuning = Tuning(tmp_path, family)
    for index, found in enumerate(tuning.run(EACH)):
        close(found, tuning.expected(index))


def test_neighbours_in_any_order_make_no_difference(tmp_path: Path) -> None:
    tuning = Tuning(tmp_path, "llama")
    alone = [tuning.run([index])[0] for index in EACH]
    for order in ([5, 4, 3, 2, 1, 0], [1, 3, 2, 0], [4, 5]):
        for index, found in zip(order, tuning.run(order), strict=True):
            close(found, alone[index])


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_rows_without_an_adapter_are_the_same_to_the_bit_whatever_changes_others(tmp_path: Path, family: str) -> None:
    tuning = Tuning(tmp_path, family)
    plain, mixed = tuning.run([1, 0, 3], adapted=False), tuning.run([1, 0, 3])
    assert torch.equal(mixed[1], plain[1])
    assert not torch.allclose(mixed[0], plain[0], atol=1e-2)


def test_rows_that_have_to_be_computed_one_by_one_keep_their_adapters(tmp_path: Path) -> None:
    rope = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0}
    tuning = Tuning(tmp_path, "llama", rope_parameters=rope, max_position_embeddings=3)
    alone = [tuning.run([index])[0] for index in EACH]
    for found, own in zip(tuning.run(EACH), alone, strict=True):
        close(found, own)


@pytest.mark.parametrize("precision", ["int8", "int4", "nf4"])
def test_packed_weights_take_adapters_too(tmp_path: Path, precision: str) -> None:
    tuning = Tuning(tmp_path, "llama", Packing(precision, tmp_path / "packed"), hidden_size=128, intermediate_size=128)
    for index, (found, plain) in enumerate(zip(tuning.run(EACH), tuning.run(EACH, adapted=False), strict=True)):
        expected = tuning.run([index])[0]
        if WHOSE[index] is not None:
            assert (found - expected).norm() < (plain - expected).norm() / 4  # kernels take other ways with other rows


def test_adapters_in_lists_of_modules_stay_apart(tmp_path: Path) -> None:
    span = Tuning(tmp_path, "gemma2").span
    layer = span._layers[0]
    layer.add_module("experts", torch.nn.ModuleList([torch.nn.Linear(64, 64)]))
    assert not span.fit(1, adapter(span, {"self_attn.q_proj": "lora"}, 0)).apart
    assert span.fit(1, adapter(span, {"experts.0": "lora"}, 0)).apart


def test_an_adapter_is_fitted_once_while_it_is_used_and_within_the_budget(tmp_path: Path) -> None:
    tuning = Tuning(tmp_path, "llama")
    own = tuning.adapters[0][1]
    size = tuning.span.fit(1, own).nbytes
    fits = Fits(tuning.span.fit, EngineLimits(fitted_bytes=size))
    held = [fits.of(1, b"a", own), fits.of(1, b"a", own)]
    assert held[0] is held[1]
    assert fits.nbytes == size
    with pytest.raises(Busy, match=f"all {size} bytes"):
        fits.of(1, b"b", own)
    held.clear()
    gc.collect()
    assert fits.of(1, b"b", own).nbytes == size
    with pytest.raises(HopError, match="bytes to compute with"):
        Fits(tuning.span.fit, EngineLimits(fitted_bytes=size - 1)).of(1, b"a", own)
