"""A span with packed weights, made block by block: never is more in memory unpacked than one block or 64 MiB.

The model is first built of zeros that take no memory. Then each block's layer gets its packed tensors, from the disk
where they are kept since the last time, or from the checkpoint.
"""

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from peers.gates import find_layers
from peers.packed_files import PackedFiles
from swarm.checkpoint import Checkpoint, load_span, span_shell
from swarm.errors import ModelError, UsageError
from swarm.ids import Span
from swarm.layout import let_go_of_weights
from swarm.packed.bnb import version
from swarm.packing import CPU, ON_CUDA, PACKED, fitting, pack, restore

__all__ = ["Packing", "Source", "check_kernels", "check_packable", "fill_packed", "load_packed", "tell_of_others"]

_log = logging.getLogger(__name__)

AT_ONCE = 64 << 20  # bytes of blocks that are read together: building the library's model takes 0.1 s each time
UNKEPT = frozenset({"bf16"})  # rounding is as fast as reading


@dataclass(frozen=True, slots=True)
class Packing:
    """In what precision, and in which cache folder the packed blocks are kept. `room`: how many bytes of them may be in
    the device's memory at once (`peers.streamed`, `peers.offload`; the precision may be "none" there); None: all."""

    precision: str
    cache: Path
    room: int | None = None


def check_packable(checkpoint: Checkpoint, precision: str, device: str = "cpu") -> None:
    """Raises ModelError for a family whose weights the kernels can't take, UsageError for a device that has none for
    this precision; `device`: its type."""
    check_kernels(precision, device)
    odd = checkpoint.architecture.odd_matrix
    if odd:
        raise ModelError(
            f"{checkpoint.config.model_type} models can't be served in {precision}, since their blocks have weights "
            f"that are no plain linear layers ({odd}): use --quantization none, with --dtype bf16 to save memory"
        )


def check_kernels(precision: str, device: str) -> None:
    """`device`: its type. Raises UsageError."""
    if device == "cuda" and precision == "int4":
        raise UsageError("--quantization int4 works on the cpu; use --quantization nf4 on a GPU")
    if device not in ("cpu", "cuda"):
        where = "the cpu" if precision in PACKED else "GPUs with CUDA"
        raise UsageError(f"--quantization {precision} works on {where}; leave it out for {device}")
    if precision == "nf4" or (device == "cuda" and precision in ON_CUDA):
        version()  # or it says what is missing


def load_packed(
    checkpoint: Checkpoint,
    blocks: Span,
    packing: Packing,
    *,
    dtype: torch.dtype,
    device: torch.device = CPU,
    attn_implementation: str | None = None,
    filled: Callable[[nn.Module], None] | None = None,
) -> PreTrainedModel:
    """As `swarm.checkpoint.load_span`, with linear layers packed and everything else in `dtype`. Each block is packed
    on the CPU, and on `device` when `filled` is called with its layer; what is no block's is moved there without it
    alone. Raises ModelError and UsageError."""
    precision = packing.precision
    check_packable(checkpoint, precision, device.type)
    tell_of_others(checkpoint, blocks, precision)
    model = span_shell(checkpoint, blocks, dtype=dtype, attn_implementation=attn_implementation)
    files = None if precision in UNKEPT else PackedFiles(packing.cache, checkpoint.digest, precision)
    source = Source(checkpoint, blocks, precision)
    for layer, block in zip(find_layers(model, len(blocks)), blocks, strict=True):
        kept = files.read(block) if files else None
        if kept is None or not fill_packed(layer, kept, device):
            made = source.packed(block)
            mapped = files.write(block, made) if files else None
            if not fill_packed(layer, mapped or made, device):
                raise ModelError(f"block {block} of {checkpoint.name} lacks tensors: fetch the model again")
        if filled is not None:
            filled(layer)
    if filled is None:
        nn.Module.to(model, device=device)  # what has no place in the files
    return model


class Source:
    """Packs the blocks of a checkpoint, asked for in ascending order."""

    def __init__(self, checkpoint: Checkpoint, blocks: Span, precision: str) -> None:
        self._checkpoint, self._blocks, self._precision = checkpoint, blocks, precision
        self._stored = getattr(checkpoint.config, "dtype", None) or torch.float32  # then weights are mapped
        self._layers: dict[int, nn.Module] = {}

    def packed(self, block: int) -> dict[str, Tensor]:
        """Its tensors: packed where they are linear layers' weights, as they are stored where not."""
        if block not in self._layers:
            self._read(block)
        layer = self._layers.pop(block)
        tensors: dict[str, Tensor] = {}
        for path, linear in _linears(layer):
            tensors |= {f"{path}.{name}": tensor for name, tensor in pack(linear, self._precision).tensors().items()}
        tensors |= {name: tensor.clone() for name, tensor in _others(layer).items()}
        let_go_of_weights(layer)
        return tensors

    def _read(self, block: int) -> None:
        self._layers.clear()  # before others are read
        size = max(1, self._checkpoint.architecture.block_parameters[block] * self._stored.itemsize)
        some = Span(block, min(self._blocks.end, block + max(1, AT_ONCE // size)))
        model = load_span(self._checkpoint, some, dtype=self._stored)
        self._layers = dict(zip(some, find_layers(model, len(some)), strict=True))


def fill_packed(layer: nn.Module, tensors: dict[str, Tensor], device: torch.device = CPU) -> bool:
    """Puts the tensors of a block into its `layer`, on `device`; False, having changed nothing, when they are not this
    layer's."""
    others = _others(layer)
    linears = {path: _within(tensors, path) for path, _ in _linears(layer)}
    if not others.keys() <= tensors.keys() or not all(linears.values()):
        return False
    for name, old in others.items():
        path, _, last = name.rpartition(".")
        owner = layer.get_submodule(path)
        tensor = tensors[name].to(device, old.dtype, copy=True)  # a view keeps all it maps
        setattr(owner, last, nn.Parameter(tensor, requires_grad=False) if last in owner._parameters else tensor)
    for path, parts in linears.items():
        parent, _, last = path.rpartition(".")
        setattr(layer.get_submodule(parent), last, restore(parts, device).train(False))
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


def tell_of_others(checkpoint: Checkpoint, blocks: Span, precision: str) -> None:
    shapes = {shape for block in blocks for shape in checkpoint.architecture.block_linears[block]}
    for width, outputs in sorted(shapes):
        fits = fitting(precision, width, outputs)
        if fits != precision:
            _log.info(
                "layers of %d inputs and %d outputs stay in %s: no %s kernel fits", width, outputs, fits, precision
            )
