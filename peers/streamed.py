"""A span that need not fit into memory: every block of it is mapped from a file, and some pass through a window.

It is made in two steps, as any span: the library's layers, and then what computes in their place. Each block's tensors
are written to a file, first as the layer has them and then as they are computed with, joined and in oneDNN's own order,
so that the same kernels read the same bytes as in a span that stays in memory: outputs are equal to the last bit. What
is in memory meanwhile, beside what may be, is one block, as it was and as it becomes.
"""

import logging
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from peers.gates import find_layers
from peers.packed_files import KeptBlock, PackedFiles
from peers.quantized import Packing, Source, check_packable, fill_packed, tell_of_others
from peers.window import Window
from swarm.checkpoint import Checkpoint, load_span, span_shell
from swarm.errors import ModelError
from swarm.ids import Span
from swarm.layout import let_go_of_weights, store_by_columns
from swarm.mapping import LETS_GO
from swarm.onednn import PackedLinear, pack_linears, packs
from swarm.opaque import OPAQUE, adopts

__all__ = ["Streamed", "load_streamed"]

_log = logging.getLogger(__name__)


class Streamed:
    """The layers of one span; `files`: where they are put once they are finished."""

    def __init__(
        self, layers: Sequence[nn.Module], blocks: Span, window: Window, files: PackedFiles, plain: bool
    ) -> None:
        self.window = window
        self._indices = {id(layer): index for index, layer in enumerate(layers)}
        self._blocks = blocks
        self._files = files
        self._plain = plain

    def finish(self, layer: nn.Module) -> None:
        """To be called with each layer when its weights are what is computed with, but for their order. From then on
        they are in the window. Raises ModelError."""
        if self._plain:
            if adopts():
                pack_linears(layer)
            else:
                _tell_of_rounding(layer)
                store_by_columns(layer)
        index = self._indices[id(layer)]
        block = self._blocks.start + index
        tensors = {name: tensor for name, tensor in layer.state_dict().items() if tensor.layout != OPAQUE or adopts()}
        kept = self._files.keep(block, tensors)
        if kept is None:
            raise ModelError(_no_room(self._files, block))
        _settle(layer, kept.tensors)
        kept.mapping.let_go()
        self.window.replace(index, kept.mapping)


def load_streamed(
    checkpoint: Checkpoint,
    blocks: Span,
    packing: Packing,
    *,
    dtype: torch.dtype,
    attn_implementation: str | None = None,
) -> tuple[PreTrainedModel, Streamed]:
    """As `peers.quantized.load_packed`, also in precision "none"; at most `packing.room` bytes of weights are in memory
    at once as long as the model runs through the window. Raises ModelError and UsageError."""
    precision = packing.precision
    assert packing.room is not None
    if precision != "none":
        check_packable(checkpoint, precision)
        tell_of_others(checkpoint, blocks, precision)
    if not LETS_GO:
        _log.warning("only on Linux blocks leave memory when they have run: here more may be used than was given")
    model = span_shell(checkpoint, blocks, dtype=dtype, attn_implementation=attn_implementation)
    name = str(dtype).removeprefix("torch.")
    files = PackedFiles(packing.cache, checkpoint.digest, f"plain-{name}" if precision == "none" else precision)
    layers, mappings = find_layers(model, len(blocks)), []
    for layer, block in zip(layers, blocks, strict=True):
        kept = _filled(layer, files, checkpoint, block, precision, dtype)
        kept.mapping.let_go()
        mappings.append(kept.mapping)
    finished = PackedFiles(packing.cache, checkpoint.digest, f"streamed-{precision}-{name}")
    return model, Streamed(layers, blocks, Window(mappings, packing.room), finished, precision == "none")


def _filled(
    layer: nn.Module, files: PackedFiles, checkpoint: Checkpoint, block: int, precision: str, dtype: torch.dtype
) -> KeptBlock:
    """The file of a block, whose tensors are now in `layer`; written where it is not there."""
    plain = precision == "none"
    fill = _fill_plain if plain else fill_packed
    kept = files.open(block)
    if kept is not None and fill(layer, kept.tensors):
        return kept
    made = (
        _plain_tensors(checkpoint, block, dtype)
        if plain
        else Source(checkpoint, Span(block, block + 1), precision).packed(block)
    )
    if files.write(block, made) is None or (kept := files.open(block)) is None:
        raise ModelError(_no_room(files, block))
    if not fill(layer, kept.tensors):
        raise ModelError(f"block {block} of {checkpoint.name} lacks tensors: fetch the model again")
    return kept


def _plain_tensors(checkpoint: Checkpoint, block: int, dtype: torch.dtype) -> dict[str, Tensor]:
    """The tensors of one block under the names of the library's layer."""
    model = load_span(checkpoint, Span(block, block + 1), dtype=dtype)
    tensors = find_layers(model, 1)[0].state_dict()
    let_go_of_weights(model)
    return tensors


def _fill_plain(layer: nn.Module, tensors: dict[str, Tensor]) -> bool:
    """As `peers.quantized.fill_packed`."""
    if not layer.state_dict().keys() <= tensors.keys():
        return False
    _settle(layer, tensors)
    return True


def _settle(layer: nn.Module, tensors: dict[str, Tensor]) -> None:
    """Puts the tensors in place of those of the same names."""
    for name, tensor in tensors.items():
        path, _, last = name.rpartition(".")
        owner = layer.get_submodule(path)
        if isinstance(owner, PackedLinear):
            if tensor.layout == OPAQUE:
                parent, _, own = path.rpartition(".")
                restored = PackedLinear.restored(tensor, tensors.get(f"{path}.bias"))
                setattr(layer.get_submodule(parent), own, restored.train(False))
        elif last in owner._buffers:
            owner._buffers[last] = tensor
        elif last in owner._parameters:
            owner._parameters[last] = nn.Parameter(tensor, requires_grad=False)


def _no_room(files: PackedFiles, block: int) -> str:
    return (
        f"block {block} can't be written to {files.path(block).parent}, from where each step would read it: make room "
        "there, give another --cache-dir, or serve only as many blocks as fit into memory"
    )


def _tell_of_rounding(layer: nn.Module) -> None:
    if any(packs(module.weight) for module in layer.modules() if isinstance(module, nn.Linear)):
        _log.warning("this torch can't map weights in oneDNN's order: results differ by rounding from unstreamed ones")
