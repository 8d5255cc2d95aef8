"""A span with packed weights, made block by block: what is in memory is never more than one block unpacked.

The model is first built of zeros that take no memory. Then each block's layer gets its packed tensors, from the disk
where they are kept since the last time, or from the checkpoint.
"""

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from peers.gates import find_layers
from peers.packed_files import PackedFiles
from swarm.checkpoint import Checkpoint, load_span, span_shell
from swarm.errors import ModelError
from swarm.ids import Span
from swarm.packing import fitting, pack, restore

__all__ = ["Packing", "check_packable", "load_packed"]

_log = logging.getLogger(__name__)

UNKEPT = frozenset({"bf16"})  # rounding is as fast as reading


@dataclass(frozen=True, slots=True)
class Packing:
    """In what precision, and in which cache folder the packed blocks are kept."""

    precision: str
    cache: Path


def check_packable(checkpoint: Checkpoint, precision: str) -> None:
    """Raises ModelError for a family whose weights the kernels can't take."""
    odd = checkpoint.architecture.odd_matrix
    if odd:
        raise ModelError(
            f"{checkpoint.config.model_type} models can't be served in {precision}, since their blocks have weights "
            f"that are no plain linear layers ({odd}): use --quantization none, with --dtype bf16 to save memory"
        )


def load_packed(
    checkpoint: Checkpoint,
    blocks: Span,
    packing: Packing,
    *,
    dtype: torch.dtype,
    attn_implementation: str | None = None,
) -> PreTrainedModel:
    """As `swarm.checkpoint.load_span` on the CPU, with linear layers packed and everything else in `dtype`. Raises
    ModelError."""
    precision = packing.precision
    check_packable(checkpoint, precision)
    _tell_of_others(checkpoint, blocks, precision)
    model = span_shell(checkpoint, blocks, dtype=dtype, attn_implementation=attn_implementation)
    files = None if precision in UNKEPT else PackedFiles(packing.cache, checkpoint.digest, precision)
    for layer, block in zip(find_layers(model, len(blocks)), blocks, strict=True):
        kept = files.read(block) if files else None
        if kept is None or not _fill(layer, kept):
            made = _packed(checkpoint, block, precision)
            mapped = files.write(block, made) if files else None
            if not _fill(layer, mapped or made):
                raise ModelError(f"block {block} of {checkpoint.name} lacks tensors: fetch the model again")
    return model


def _packed(checkpoint: Checkpoint, block: int, precision: str) -> dict[str, Tensor]:
    """The tensors of one block: packed where they are linear layers' weights, as they are stored where not."""
    stored = getattr(checkpoint.config, "dtype", None) or torch.float32
    model = load_span(checkpoint, Span(block, block + 1), dtype=stored)
    layer = find_layers(model, 1)[0]
    tensors: dict[str, Tensor] = {}
    for path, linear in _linears(layer):
        tensors |= {f"{path}.{name}": tensor for name, tensor in pack(linear, precision).tensors().items()}
    return tensors | {name: tensor.clone() for name, tensor in _others(layer).items()}


def _fill(layer: nn.Module, tensors: dict[str, Tensor]) -> bool:
    """Puts the tensors of a block into its `layer`; False, having changed nothing, when they are not this layer's."""
    others = _others(layer)
    linears = {path: _within(tensors, path) for path, _ in _linears(layer)}
    if not others.keys() <= tensors.keys() or not all(linears.values()):
        return False
    for name, old in others.items():
        path, _, last = name.rpartition(".")
        owner, tensor = layer.get_submodule(path), tensors[name].to(old.dtype, copy=True)  # a view keeps all it maps
        setattr(owner, last, nn.Parameter(tensor, requires_grad=False) if last in owner._parameters else tensor)
    for path, parts in linears.items():
        parent, _, last = path.rpartition(".")
        setattr(layer.get_submodule(parent), last, restore(parts).train(False))
    return True


def _linears(layer: nn.Module) -> Iterator[tuple[str, nn.Linear]]:
    for path, module in layer.named_modules():
        if type(module) is nn.Linear:
            yield path, module


def _others(layer: nn.Module) -> dict[str, Tensor]:
    """What has a place in the files and is no linear layer's."""
    linears = {path for path, _ in _linears(layer)}
    return {name: tensor for name, tensor in layer.state_dict().items() if name.rpartition(".")[0] not in linears}


def _within(tensors: dict[str, Tensor], path: str) -> dict[str, Tensor]:
    start = f"{path}."
    return {name.removeprefix(start): tensor for name, tensor in tensors.items() if name.startswith(start)}


def _tell_of_others(checkpoint: Checkpoint, blocks: Span, precision: str) -> None:
    shapes = {shape for block in blocks for shape in checkpoint.architecture.block_linears[block]}
    for width, outputs in sorted(shapes):
        fits = fitting(precision, width, outputs)
        if fits != precision:
            _log.info(
                "layers of %d inputs and %d outputs stay in %s: no %s kernel fits", width, outputs, fits, precision
            )
