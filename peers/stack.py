"""Blocks that are alike, with 4-bit weights, as one call for rows that decode.

Each operation of a block that is a call of its own costs some microseconds, and two or three times as much where a peer
has waited for the network and its caches are cold.
"""

import ctypes
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Self

import torch
from torch import Tensor
from torch.nn.functional import silu

from peers.batch import PagedBatch
from peers.decode_kernel import DecodeKernel, decode_kernel, threads_to_store, turn_strides
from peers.fused import FusedBlock, Mlp, watched
from peers.kv import Arenas, KVCache
from peers.turns import Turning
from swarm.jit.compiler import LANES, Compiled
from swarm.packed.kernel import kernel, threads_for
from swarm.packed.layout import FACTORS_BYTES
from swarm.packed.levels import GROUP
from swarm.packed.tiles import Int4Tiles

__all__ = ["ARGUMENTS", "LINE", "THREADS", "Shape", "Stack"]

_log = logging.getLogger(__name__)

ARGUMENTS = (  # addresses, of which `blocks` is that of a line for each block, and then numbers
    *("blocks", "states", "joined", "attended", "wide", "rounded", "scores", "pairs", "slots", "runs", "starts"),
    *("count", "rows", "token_turns", "head_turns", "kv_head", "longest"),
)
LINE = (  # addresses of a block's parts, 0 for what it has not
    *("norm", "joined", "joined_bias", "head_norm", "out", "out_bias"),
    *("second_norm", "wide", "wide_bias", "down", "down_bias", "keys", "values"),
)
THREADS = ("rounding", "joining", "leaving", "widening", "narrowing", "storing", "attending")  # for so many threads


@dataclass(frozen=True, slots=True)
class Shape:
    """Of blocks that are alike."""

    hidden: int
    queries: int
    kv: int
    width: int
    turned: int
    inner: int
    scaling: float


@dataclass(frozen=True, slots=True)
class _Kind:
    """What blocks of one stack have in common."""

    shape: Shape
    turning: Turning
    window: int | None


class Stack:
    """One thread at a time."""

    @classmethod
    def of(cls, blocks: Sequence[FusedBlock], cache: KVCache, first: int) -> Self | None:
        """Of blocks whose keys and values are the layers of `cache` from `first` on; None where they are not alike, or
        are of another make."""
        kinds = {_kind(block) for block in blocks}
        arenas = {id(cache.place(layer)[0]) for layer in range(first, first + len(blocks))}
        kind = kinds.pop() if len(kinds) == len(arenas) == 1 else None
        run = None if kind is None else _compiled(kind.shape)
        return None if kind is None or run is None else cls(blocks, cache, first, kind, run)

    def __init__(self, blocks: Sequence[FusedBlock], cache: KVCache, first: int, kind: _Kind, run: "_Run") -> None:
        self._kind, self._run = kind, run
        self._linears = [linear for block in blocks for linear in _linears(block)]
        self._arenas = cache.place(first)[0]
        self._parts = [_parts(block, *cache.place(layer)) for layer, block in enumerate(blocks, first)]  # kept alive
        addresses = [[0 if part is None else part.data_ptr() for part in parts] for parts in self._parts]
        self._lines = torch.tensor(addresses, dtype=torch.int64)
        self._room: tuple[Tensor, ...] = ()

    def takes(self, batch: PagedBatch) -> bool:
        """Whether this can compute these rows: they decode, and nobody else wants to see what happens in between."""
        return batch.decoding and not watched(self._linears)

    def forward(self, states: Tensor, batch: PagedBatch) -> None:
        """`states` fp32 `[rows, hidden]`, contiguous, are changed in place."""
        kind, rows = self._kind, len(states)
        pairs, runs = kind.turning.of(batch).pairs, batch.runs(kind.window)
        assert pairs is not None  # heads are in the order of pairs
        if not self._room or len(self._room[0]) < rows:
            self._room = _room(kind.shape, rows)
        attending, scores = self._run.attention.shares(runs, kind.shape.queries * kind.shape.width)
        each = [threads_for(rows, linear.tiles) for linear in self._linears[:4]]
        given = (self._lines, states, *self._room, scores, pairs, batch.slots, runs.runs, runs.starts)
        self._run.call(
            *(tensor.data_ptr() for tensor in given),
            len(self._lines),
            rows,
            *turn_strides(pairs),
            4 * self._arenas.keys.stride(1),
            runs.longest,
            each[0][0],
            *(by_tiles for _, by_tiles in each),
            threads_to_store(rows),
            attending,
        )


@dataclass(frozen=True, slots=True)
class _Run:
    """Compiled for one shape."""

    compiled: Compiled  # lives as long as what it compiled
    call: Any
    attention: DecodeKernel


@cache
def _compiled(shape: Shape) -> _Run | None:
    multiply, attention = kernel(), decode_kernel(shape.width, shape.queries // shape.kv)
    if multiply is None or attention is None:
        return None
    from peers.stack_code import module

    product = multiply.compiled.address("product")
    store, attend = (attention.compiled.address(name) for name in ("store", "attend"))
    elsewhere = {f"product_{product:x}": product, f"store_{store:x}": store, f"attend_{attend:x}": attend}
    try:
        compiled = Compiled(module(shape, *elsewhere), elsewhere)
    except RuntimeError as error:
        _log.warning("blocks are computed operation by operation, since our own code can't be compiled: %s", error)
        return None
    kinds = (*[ctypes.c_int64] * len(ARGUMENTS), *[ctypes.c_int32] * len(THREADS))
    return _Run(compiled, compiled.function("stack", *kinds), attention)


def _kind(block: FusedBlock) -> _Kind | None:
    attention, mlp = block.attention, block.mlp
    heads, turning = attention.heads, attention.turning
    if not isinstance(mlp, Mlp) or mlp.act is not silu or not heads.rule.plain:
        return None
    if turning is None or not turning.in_pairs or turning.width % LANES:
        return None
    if not all(isinstance(own, Int4Tiles) for own in _linears(block)):
        return None
    inner = _linears(block)[3].in_features
    shape = Shape(block.norm.width, heads.query, heads.kv, heads.width, turning.width, inner, heads.rule.scaling)
    return _Kind(shape, turning, heads.rule.window)


def _linears(block: FusedBlock) -> tuple[Any, Any, Any, Any]:
    return block.attention.joined, block.attention.out, block.mlp.joined, block.mlp.down


def _parts(block: FusedBlock, arenas: Arenas, index: int) -> list[Tensor | None]:
    """In the order of LINE."""
    joined, out, wide, down = _linears(block)
    head_norm = block.attention.norm
    return [
        *(block.norm.with_eps, joined.tiles, joined.bias, None if head_norm is None else head_norm.with_eps),
        *(out.tiles, out.bias, block.mlp_norm.with_eps, wide.tiles, wide.bias, down.tiles, down.bias),
        *(arenas.keys[index], arenas.values[index]),
    ]


def _room(shape: Shape, rows: int) -> tuple[Tensor, ...]:
    """For what comes out between operations, `[rows, …]` each: joined, attended, wide, and rounded activations."""
    heads = shape.queries * shape.width
    widths = (heads + 2 * shape.kv * shape.width, heads, 2 * shape.inner)
    rounded = max(shape.hidden, heads, shape.inner) // GROUP * (GROUP + FACTORS_BYTES)
    return (*(torch.empty(rows, width) for width in widths), torch.empty(rows, rounded, dtype=torch.uint8))
