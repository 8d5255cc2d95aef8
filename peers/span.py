"""A span of blocks that computes: the library's own layers over paged keys and values.

The library's base model runs with its own rotary embeddings and per-layer types, its layers narrowed to the blocks of
the span. Gates (`peers.gates`) let through only the blocks of the hop at hand, and give the first of them the hidden
states that came in, whatever the model did to its input before: embedding scales and learned positions are the
client's. No code here knows a model family; `probe` finds out whether one can work. Layers of the usual kind are then
replaced by fused blocks (`peers.fused`), each only when it gives what the layer gave.
"""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial
from itertools import groupby
from typing import Self

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from peers.attention import PAGED, PROBED
from peers.batch import PagedBatch
from peers.changes import Change, Fit, Segment, mixed
from peers.fused import FusedBlock
from peers.fusing import fuse
from peers.gates import Gates, find_layers
from peers.kv import KVCache
from peers.offload import load_offloaded
from peers.pages import PagePool, PageTable, RowSlice
from peers.quantized import Packing, load_packed
from peers.recorded import Recordings, on_gpu
from peers.rotary import Rotaries, TurningRotary
from peers.stack import Stack
from peers.streamed import load_streamed
from peers.training.deltas import BlockAdapter
from peers.transfer import to_device
from peers.trial import Trial
from peers.window import Passage
from swarm.checkpoint import Checkpoint, load_span
from swarm.errors import HopError, ModelError, UsageError
from swarm.ids import Span
from swarm.layout import align, give_back_memory, let_go_of_files
from swarm.messages import FaultCode
from swarm.onednn import pack_linears
from swarm.packing import Packed

__all__ = ["BlockSpan", "RowSlice"]

PROBE_TOKENS = 3
PROBE_TOLERANCE = 1e-3  # relative to what the blocks add to their input, besides rounding
ROUNDINGS = 4  # how many units in the last place a layer may differ between two ways to batch it


class BlockSpan:
    """Blocks `blocks` of one model, with the pages of all rows that run through them.

    One thread runs one step at a time.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        blocks: Span,
        *,
        kv_tokens: int,
        page_size: int = 16,
        dtype: torch.dtype | None = None,
        finish: Callable[[nn.Module], None] | None = None,
        window: Passage | None = None,
        device: torch.device | None = None,
    ) -> None:
        """`model`: a base model with exactly these layers. `dtype`: of hidden states, keys and values; by default the
        model's, as `device`. `finish` is called with each layer once it is fused or is not going to be: its weights
        may be put into another order then, or elsewhere. `window`: through which weights pass that don't all stay on
        the device. Raises ModelError when the model can't run in a swarm."""
        self.window = window
        self.blocks = blocks
        self.model = model
        model.requires_grad_(False).train(False)
        self.hidden_size: int = model.config.get_text_config().hidden_size
        self.dtype: torch.dtype = dtype or model.dtype
        self.device: torch.device = device or model.device
        packed = [module for module in model.modules() if isinstance(module, Packed)]
        self._rounding = torch.finfo(torch.bfloat16 if packed else self.dtype).eps
        self._in_pairs = self.dtype == torch.float32 and all(module.orderable for module in packed)
        self.pool = PagePool(-(-kv_tokens // page_size), page_size)
        self.cache = KVCache(len(blocks), self.pool, dtype=self.dtype, device=self.device)
        self._windows: list[int | None] = [None] * len(blocks)
        self._layers = find_layers(model, len(blocks))
        self._gates = Gates(self._layers, window)
        self._wholes: dict[tuple[int, int], Stack | Recordings | None] = {}
        self._rotary = TurningRotary(model)
        self.cache.resemble(self.probe())
        self._fuse(finish)

    @classmethod
    def load(
        cls,
        checkpoint: Checkpoint,
        blocks: Span,
        *,
        dtype: torch.dtype,
        device: torch.device,
        kv_tokens: int,
        page_size: int = 16,
        packing: Packing | None = None,
    ) -> Self:
        """Loads the blocks' weights and checks that they compute what they should. Raises ModelError.

        `dtype` is that of the weights, or with `packing` of all but the linear layers' weights."""
        finish: Callable[[nn.Module], None] | None = None
        window: Passage | None = None
        if packing is None:
            model = load_span(checkpoint, blocks, dtype=dtype, device=device, attn_implementation=PAGED)
            finish = pack_linears
            let_go_of_files(model)
        elif packing.room is not None and device.type == "cuda":
            model, offload = load_offloaded(
                checkpoint, blocks, packing, dtype=dtype, device=device, attn_implementation=PAGED
            )
            finish, window = offload.finish, offload
        elif packing.room is not None:
            model, streamed = load_streamed(checkpoint, blocks, packing, dtype=dtype, attn_implementation=PAGED)
            finish, window = streamed.finish, streamed.window
        else:
            model = load_packed(checkpoint, blocks, packing, dtype=dtype, device=device, attn_implementation=PAGED)
        span = cls(
            model,
            blocks,
            kv_tokens=kv_tokens,
            page_size=page_size,
            dtype=dtype,
            finish=finish,
            window=window,
            device=device,
        )
        if packing is None:
            align(model)  # what is still plain
        give_back_memory()
        return span

    @property
    def fused(self) -> tuple[bool, ...]:
        """Which blocks run fused; the others run as the library has them."""
        return tuple(self._gates.fused(slice(index, index + 1)) is not None for index in range(len(self.blocks)))

    @property
    def windows(self) -> tuple[int | None, ...]:
        """How many tokens back each layer sees, itself included; None is all."""
        return tuple(self._windows)

    def part(self, hop: Span) -> slice:
        """The layers of this span that a hop uses, for `forward`. Raises UsageError when it is not within the span."""
        if hop not in self.blocks:
            raise UsageError(f"blocks {hop} are not within {self.blocks}")
        return slice(hop.start - self.blocks.start, hop.end - self.blocks.start)

    def fit(self, block: int, adapter: BlockAdapter) -> Fit:
        """What an adapter does to a block of this span, for `forward`. Raises HopError when it does not fit."""
        if adapter.prefix is not None:
            raise HopError(FaultCode.REFUSED, "keys and values in front of rows are for passes that keep nothing")
        return Fit.of(adapter.to(self.device).deltas(self._layers[block - self.blocks.start]))

    @torch.inference_mode()
    def forward(
        self,
        hidden: Tensor,
        rows: Sequence[RowSlice],
        layers: slice | None = None,
        adapted: Sequence[Sequence[Change]] = (),
    ) -> Tensor:
        """Runs `layers` (of this span, counted from 0; default all) over the packed new tokens of `rows`.

        `hidden` `[T, hidden size]`: the rows' tokens in the order of `rows`, in any dtype and on any device. Returns
        the same shape in the span's dtype and on its device. Keys and values are written for these layers alone.
        `adapted`, unless no row is: what changes each row, from `fit`; best put rows of the same next to each other.
        """
        layers = layers or slice(0, len(self.blocks))
        tokens = sum(row.n for row in rows)
        if hidden.shape != (tokens, self.hidden_size):
            raise ValueError(f"{tokens} tokens of width {self.hidden_size} don't have shape {list(hidden.shape)}")
        batches = [PagedBatch(self.cache, packed, self._windows) for packed in self._rotary.split(rows)]
        parts = torch.split(hidden, [batch.tokens for batch in batches])
        outputs: list[Tensor] = []
        begin = 0
        for part, batch in zip(parts, batches, strict=True):
            end = begin + batch.rows
            with mixed(_segments(rows[begin:end], adapted[begin:end])):
                outputs.append(self._run(part, batch, layers))
            begin = end
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs)

    def copy_pages(self, copies: Sequence[tuple[int, int]]) -> None:
        """Carries out what `PageTable.fork` or `crop` asked for."""
        for source, target in copies:
            self.cache.copy_page(source, target)

    def _run(self, hidden: Tensor, batch: PagedBatch, layers: slice) -> Tensor:
        self._rotary.reset()
        blocks = self._gates.fused(layers)
        if blocks is not None:
            states = to_device(hidden, self.device, self.dtype)
            whole = self._whole(layers, blocks)
            if whole is not None and whole.takes(batch):
                whole.forward(states, batch)
                return states
            for batch.layer, block in enumerate(blocks, layers.start):
                if self.window is None:
                    states = block.forward(states, batch)
                else:
                    with self.window.open(batch.layer):
                        states = block.forward(states, batch)
            return states
        states = hidden.to(device=self.device, dtype=self.dtype)[None]
        with self._gates.open(layers, states, batch):
            self.model(inputs_embeds=states, position_ids=batch.positions[None], use_cache=False)
            return self._gates.output[0]

    def _whole(self, layers: slice, blocks: Sequence[FusedBlock]) -> Stack | Recordings | None:
        """These blocks as one for rows that decode, where they can be."""
        key = (layers.start, layers.stop)
        if key not in self._wholes:
            if self.window is not None:
                self._wholes[key] = None
            elif self.device.type == "cuda":
                self._wholes[key] = Recordings.of(blocks, self.cache, layers.start, on_gpu(self.device))
            else:
                self._wholes[key] = Stack.of(blocks, self.cache, layers.start)
        return self._wholes[key]

    @torch.inference_mode()
    def probe(self) -> KVCache:
        """Learns each layer's window, and checks that a few tokens give the same at once, one by one, and packed.

        Returns the small cache that it used. Raises ModelError, naming the family and the reason, when they do not.
        """
        pool = PagePool(PROBE_TOKENS, PROBE_TOKENS)
        scratch = KVCache(len(self.blocks), pool, dtype=self.dtype, device=self.device)
        try:
            self._probe(scratch)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # the library's model code raises whatever its own assumptions lead to
            family = self.model.config.model_type
            reason = str(error).strip().partition("\n")[0]
            raise ModelError(f"{family} models can't run in a swarm: {reason}") from error
        return scratch

    def _probe(self, scratch: KVCache) -> None:
        whole, first, second = (PageTable(scratch.pool) for _ in range(3))
        generator = torch.Generator().manual_seed(0)
        tokens = torch.randn(PROBE_TOKENS, self.hidden_size, generator=generator).to(self.device, self.dtype)
        layers = slice(0, len(self.blocks))
        self.model.set_attn_implementation(PROBED)
        batch = self._seen = PagedBatch(scratch, [_new(whole, PROBE_TOKENS)], self._windows, learn=True)
        expected = self._run(tokens, batch, layers)
        if any(calls != 1 for calls in batch.calls):
            raise ModelError("its blocks do not all attend just once through the library's AttentionInterface")
        self.model.set_attn_implementation(PAGED)
        steps = [([_new(first, 2), _new(second, 1)], [0, 1, 0]), ([_new(first, 1), _new(second, 1)], [2, 1])]
        for rows, which in steps:
            output = self._run(tokens[which], PagedBatch(scratch, rows, self._windows), layers)
            if not self._agree(output, expected[which], tokens[which]):
                raise ModelError("its blocks keep state outside attention")

    @torch.inference_mode()
    def _fuse(self, finish: Callable[[nn.Module], None] | None) -> None:
        """Puts fused blocks in place of the layers that they equal."""
        rotaries = Rotaries(self.model, self._rotary, self._seen.positions[None], self.dtype, in_pairs=self._in_pairs)
        trial = Trial(self.hidden_size, self.dtype, self.device, rounding=self._rounding)
        for index, layer in enumerate(self._layers):
            heads, part = self._seen.heads[index], slice(index, index + 1)
            assert heads is not None  # the layer has attended once
            expected = trial.run(self._windows, index, partial(self._run, layers=part))
            for block in fuse(layer, heads, rotaries.of(self._gates.embeddings[index], heads)):
                with nullcontext() if self.window is None else self.window.trying(block):
                    output = trial.run(self._windows, index, block)
                if trial.agrees(expected, output):
                    self._gates.replace(index, block)
                    break
            if finish is not None:
                finish(layer)
        del self._seen, self._gates.embeddings[:]

    def _agree(self, output: Tensor, expected: Tensor, given: Tensor) -> bool:
        """Whether two outputs differ by no more than rounding explains. Rounding grows with depth as a random walk."""
        if not bool(expected.isfinite().all()):
            raise ModelError(f"blocks {self.blocks} turn harmless input into NaN or infinity in {self.dtype}")
        rounding = ROUNDINGS * self._rounding * len(self.blocks) ** 0.5 * expected.float().norm()
        allowed = PROBE_TOLERANCE * (expected - given).float().norm() + rounding
        return bool((output - expected).float().norm() <= allowed)


def _segments(rows: Sequence[RowSlice], adapted: Sequence[Sequence[Change]]) -> list[Segment]:
    """Neighbours that are changed alike, together."""
    pairs = zip(rows, adapted, strict=True) if adapted else ()
    alike = groupby(pairs, key=lambda pair: id(pair[1]))
    segments = [list(each) for _, each in alike]
    return [(sum(row.n for row, _ in each), each[0][1]) for each in segments]


def _new(table: PageTable, n: int) -> RowSlice:
    at = table.length
    table.extend(n)
    return RowSlice(table, at, n)
