"""Spans in one process, chained the way hops are: what peers' tests compare with the library's own model."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from peers.batch import PagedBatch
from peers.fused import FusedBlock
from peers.gates import find_layers
from peers.pages import PageTable, RowSlice
from peers.span import BlockSpan
from swarm.checkpoint import Checkpoint
from swarm.ids import Span

KV_TOKENS = 2048
PAGE_SIZE = 4

# Families whose soft caps or sinks the library's sdpa leaves out: they are compared with its eager attention.
EAGER = {"gemma2", "gpt_oss"}


class LocalModel:
    """The library's whole model: its embeddings, and what its last block gives, before the final norm."""

    def __init__(self, folder: Path, family: str) -> None:
        attention = "eager" if family in EAGER else "sdpa"
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation=attention)
        self.base: PreTrainedModel = model.base_model.eval()
        self._embedded: list[Tensor] = []
        self._out: list[Tensor] = []
        layers = self.base.layers
        layers[0].register_forward_pre_hook(lambda _, args: self._embedded.append(args[0]))
        layers[-1].register_forward_hook(lambda _, __, result: self._out.append(result))

    @torch.inference_mode()
    def run(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """What enters the first block and what leaves the last, `[T, hidden]` each, for one row of ids."""
        self._embedded.clear()
        self._out.clear()
        self.base(input_ids=ids[None], use_cache=False)
        return self._embedded[0][0], self._out[0][0]


class Hop:
    """A span, or a part of it, with its tables of some rows."""

    def __init__(self, span: BlockSpan, rows: int, blocks: Span | None = None) -> None:
        self.span = span
        self.layers = span.part(blocks or span.blocks)
        self.tables = [PageTable(span.pool) for _ in range(rows)]

    def step(self, hidden: Tensor, news: Sequence[int]) -> Tensor:
        """Runs `news[i]` new tokens of row `i`, packed; rows with none are left out."""
        slices = []
        for table, n in zip(self.tables, news, strict=True):
            if n:
                slices.append(RowSlice(table, table.length, n))
                table.extend(n)
        return self.span.forward(hidden, slices, self.layers)

    def fork(self, row: int, at: int) -> None:
        """Adds a row that begins with the first `at` tokens of `row`."""
        table, copies = self.tables[row].fork(at)
        self.span.copy_pages(copies)
        self.tables.append(table)


class Chain:
    """Hops one after another."""

    def __init__(self, hops: Sequence[Hop]) -> None:
        self.hops = hops

    def step(self, hidden: Tensor, news: Sequence[int]) -> Tensor:
        for hop in self.hops:
            hidden = hop.step(hidden, news)
        return hidden

    def fork(self, row: int, at: int) -> None:
        for hop in self.hops:
            hop.fork(row, at)


def load(checkpoint: Checkpoint, blocks: Span) -> BlockSpan:
    device = torch.device("cpu")
    return BlockSpan.load(
        checkpoint, blocks, dtype=torch.float32, device=device, kv_tokens=KV_TOKENS, page_size=PAGE_SIZE
    )


def fused_blocks(span: BlockSpan) -> list[FusedBlock]:
    fused = [layer.get_submodule("fused") for layer in find_layers(span.model, len(span.blocks))]
    return [block for block in fused if isinstance(block, FusedBlock)]


@torch.inference_mode()
def one_by_one(span: BlockSpan, states: Tensor, batch: PagedBatch) -> Tensor:
    """What the fused blocks of a span make of `states`."""
    states = states.clone()
    for batch.layer, block in enumerate(fused_blocks(span)):
        block.forward(states, batch)
    return states
