"""Blocks whose weights lie in main memory and pass through a GPU's: each is there for its turn in a step.

There are two places on the GPU for what passes. While one block computes, the next is copied into the other place, by a
stream of the GPU's own that waits for nothing but the place. Main memory is registered with the GPU, which reads it by
itself then. Vectors (norms, biases, scales) are small, and always on the GPU; matrices pass. Which blocks do, and why
always the same, is said in `peers.window`.
"""

import logging
import math
import time
import weakref
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from peers.gates import find_layers
from peers.machine import free_memory
from peers.memory_budget import GPU_PLACES, readable
from peers.quantized import Packing, load_packed
from peers.window import passing_blocks
from swarm.checkpoint import Checkpoint, load_span
from swarm.errors import ModelError
from swarm.ids import Span
from swarm.layout import let_go_of_files
from swarm.packing import CPU

__all__ = ["Offload", "load_offloaded"]

_log = logging.getLogger(__name__)

ALIGNMENT = 256  # bytes, between the tensors of a block: kernels read them fastest so
COPIES = 3  # by which the rate is measured
META = torch.device("meta")


class Offload:
    """A window (`peers.window.Passage`). One thread at a time."""

    source = "main memory"

    def __init__(self, layers: Sequence[nn.Module], device: torch.device, *, room: int, main: int) -> None:
        """`layers`: of a span, their matrices on the CPU and all else on `device`; `room`: how many bytes of them may
        be there at once; `main`: how many are free in main memory. Raises UsageError when not even two blocks at a
        time fit, ModelError when main memory is too small."""
        self._layers = list(layers)
        self._device = device
        self._unfinished = set(range(len(layers)))
        sizes = [sum(_padded(own.tensor) for own in _matrices(layer)) for layer in layers]
        vectors = sum(own.tensor.nbytes for layer in layers for own in _tensors(layer) if own.tensor.dim() < 2)
        passing = passing_blocks(sizes, room - vectors, at_once=GPU_PLACES, flag="--max-vram")
        self.count = len(passing)
        self.size = sum(sizes[index] for index in passing)
        self.name = f"{self.count} of {len(sizes)} blocks, {self.size} bytes, from main memory"
        if self.size > main:
            raise ModelError(
                f"{self.count} blocks wait in main memory for their turn on the GPU, {readable(self.size)}, and "
                f"{readable(main)} are free: serve fewer blocks, or give a larger --max-vram"
            )
        self._next = dict(zip(passing, passing[1:] + passing[:1], strict=True))
        self._made: list[_Place] = []
        self._kept: dict[int, _Kept] = {}
        cuda: Any = torch.cuda
        self._stream = cuda.Stream(device) if device.type == "cuda" else None

    @contextmanager
    def open(self, index: int) -> Iterator[None]:
        """Within, block `index` of the span can compute."""
        if index in self._unfinished:
            with self.trying(self._layers[index]):
                yield
        elif index in self._kept:
            with self._turn(index):
                yield
        else:
            yield

    @contextmanager
    def trying(self, module: nn.Module) -> Iterator[None]:
        """Within, a module that is not in its place yet can compute."""
        matrices = list(_matrices(module))
        _move(matrices, self._device)
        try:
            yield
        finally:
            for own in matrices:
                own.put_back()

    def finish(self, layer: nn.Module) -> None:
        """To be called with each layer when its weights are what is computed with. From then on it stays or passes."""
        index = next(index for index in self._unfinished if self._layers[index] is layer)
        if index in self._next:
            self._kept[index] = _Kept(layer, pinned=self._device.type == "cuda")
        else:
            _move(_matrices(layer), self._device)
        self._unfinished.discard(index)

    @torch.inference_mode()
    def rate(self) -> float | None:
        """Bytes per second from main memory to the GPU; None where nothing passes."""
        if not self._kept:
            return None
        kept, place = next(iter(self._kept.values())), self._places()[0]
        place.block, content, began = None, place.content[: len(kept.content)], 0.0
        for copies in range(1 + COPIES):
            if copies == 1:  # the first is slower
                self._synchronize()
                began = time.perf_counter()
            content.copy_(kept.content, non_blocking=True)
        self._synchronize()
        return COPIES * len(content) / (time.perf_counter() - began)

    @contextmanager
    def _turn(self, index: int) -> Iterator[None]:
        kept, places = self._kept[index], self._places()
        here = next((place for place in places if place.block == index), places[0])
        self._bring(index, here)
        here.wait()
        kept.fill(here.content)
        self._bring(self._next[index], next(place for place in places if place is not here))
        try:
            yield
        finally:
            kept.empty()

    def _places(self) -> list["_Place"]:
        """Made when all layers are finished, since more is on the device until then."""
        if not self._made:
            largest = max(len(kept.content) for kept in self._kept.values())
            self._made = [_Place(largest, self._device) for _ in range(GPU_PLACES)]
        return self._made

    def _bring(self, index: int, place: "_Place") -> None:
        """Has a block copied into a place, if it is not there, once all that has been started so far is done."""
        if place.block == index:
            return
        place.block = None
        content = self._kept[index].content
        if self._stream is None:
            place.content[: len(content)].copy_(content)
        else:
            self._stream.wait_stream(torch.cuda.current_stream(self._device))
            with torch.cuda.stream(self._stream):
                place.content[: len(content)].copy_(content, non_blocking=True)
            place.copied = self._stream.record_event()
        place.block = index

    def _synchronize(self) -> None:
        if self._stream is not None:
            torch.cuda.synchronize(self._device)


class _Place:
    """Room for one block on the device."""

    def __init__(self, size: int, device: torch.device) -> None:
        self.content = torch.empty(size, dtype=torch.uint8, device=device)
        self.block: int | None = None  # that is there, or is being copied
        self.copied: torch.cuda.Event | None = None

    def wait(self) -> None:
        """What is computed from now on comes after the copy."""
        if self.copied is not None:
            torch.cuda.current_stream(self.content.device).wait_event(self.copied)


@dataclass(frozen=True, slots=True)
class _Own:
    """A tensor of a module, and where the module looks it up."""

    owner: dict[str, Tensor | None]
    name: str
    tensor: Tensor

    def put(self, tensor: Tensor) -> None:
        """Another in its place."""
        plain = isinstance(self.tensor, nn.Parameter)
        self.owner[self.name] = nn.Parameter(tensor, requires_grad=False) if plain else tensor

    def put_back(self) -> None:
        self.owner[self.name] = self.tensor


class _Kept:
    """The matrices of a layer, one after another in main memory. Outside of its turn the layer has none."""

    def __init__(self, layer: nn.Module, *, pinned: bool) -> None:
        self._own = list(_matrices(layer))
        self._parts: list[slice] = []
        end = 0
        for own in self._own:
            self._parts.append(slice(end, end + own.tensor.nbytes))
            end += _padded(own.tensor)
        self.content = torch.empty(end, dtype=torch.uint8)
        for own, view in self._views(self.content):
            view.copy_(own.tensor)
        if pinned:
            _register(self.content)
        for own in self._own:
            own.put(torch.empty_like(own.tensor, device=META))
        self._own = list(_matrices(layer))  # the same, with shapes and no values

    def fill(self, content: Tensor) -> None:
        for own, view in self._views(content):
            own.put(view)

    def empty(self) -> None:
        for own in self._own:
            own.put_back()

    def _views(self, content: Tensor) -> Iterator[tuple[_Own, Tensor]]:
        for own, part in zip(self._own, self._parts, strict=True):
            yield own, content[part].view(own.tensor.dtype).view(own.tensor.shape)


def load_offloaded(
    checkpoint: Checkpoint,
    blocks: Span,
    packing: Packing,
    *,
    dtype: torch.dtype,
    device: torch.device,
    attn_implementation: str | None = None,
) -> tuple[PreTrainedModel, Offload]:
    """As `peers.quantized.load_packed`, also in precision "none"; at most `packing.room` bytes of weights are on
    `device` at once as long as the model runs through the window. Raises ModelError and UsageError."""
    assert packing.room is not None
    if packing.precision == "none":
        model = load_span(checkpoint, blocks, dtype=dtype, attn_implementation=attn_implementation)
        let_go_of_files(model)
    else:
        model = load_packed(
            checkpoint,
            blocks,
            packing,
            dtype=dtype,
            device=device,
            attn_implementation=attn_implementation,
            filled=lambda layer: _move(_matrices(layer), CPU),
        )
    layers = find_layers(model, len(blocks))
    matrices = {id(own.tensor) for layer in layers for own in _matrices(layer)}
    _move((own for own in _tensors(model) if id(own.tensor) not in matrices), device)
    return model, Offload(layers, device, room=packing.room, main=free_memory())


def _move(tensors: Iterable[_Own], device: torch.device) -> None:
    for own in tensors:
        own.put(own.tensor.to(device))


def _matrices(module: nn.Module) -> Iterator[_Own]:
    return (own for own in _tensors(module) if own.tensor.dim() > 1)


def _tensors(module: nn.Module) -> Iterator[_Own]:
    for part in module.modules():
        for owner in (part._parameters, part._buffers):
            for name, tensor in list(owner.items()):
                if tensor is not None:
                    yield _Own(owner, name, tensor)  # type: ignore[arg-type]  # parameters are tensors


def _padded(tensor: Tensor) -> int:
    return math.ceil(tensor.nbytes / ALIGNMENT) * ALIGNMENT


def _register(content: Tensor) -> None:
    """Lets the GPU read this memory by itself. torch's own pinned memory comes in powers of two, up to twice of what is
    needed."""
    cuda: Any = torch.cuda
    runtime = cuda.cudart()
    error = runtime.cudaHostRegister(content.data_ptr(), content.nbytes, 0)
    if int(error):
        _log.warning("the GPU can't read main memory by itself here (CUDA error %d): copies take longer", int(error))
    else:
        weakref.finalize(content, runtime.cudaHostUnregister, content.data_ptr()).atexit = False
