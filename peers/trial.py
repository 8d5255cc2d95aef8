"""Whether two ways to compute one layer give the same, tried on tokens that are kind and on some that are not."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from peers.batch import PagedBatch
from peers.kv import KVCache
from peers.pages import PagePool, PageTable, RowSlice

__all__ = ["Trial"]

STEPS = (((0, 4),), ((0, 1), (1, 1)), ((1, 3), (0, 1)))  # of rows, and how many tokens each adds
TOKENS = sum(n for step in STEPS for _, n in step)
LOUD = (1, 1000.0)  # one token is so much louder: it shows what is clipped
SPIKE = (2, 30.0)  # one has all in one place, as the first tokens of real models do
TOLERANCE = 1e-4  # of what the layer adds to a token
ROUNDINGS = 8  # of what the layer adds and of the token itself

Run = Callable[[Tensor, PagedBatch], Tensor]  # hidden states `[T, hidden]` → the same


class Trial:
    def __init__(self, hidden_size: int, dtype: torch.dtype, device: torch.device, *, rounding: float) -> None:
        """`rounding`: by how much one operation may round, relatively."""
        tokens = torch.randn(TOKENS, hidden_size, generator=torch.Generator().manual_seed(1))
        tokens[LOUD[0]] *= LOUD[1]
        tokens[SPIKE[0]] = 0
        tokens[SPIKE[0], hidden_size // 3] = SPIKE[1]
        self._tokens = tokens.to(device, dtype)
        self._rounding = ROUNDINGS * rounding

    def run(self, windows: Sequence[int | None], layer: int, run: Run) -> Tensor:
        """What `run` makes of the tokens as layer `layer`, with pages of its own."""
        pool = PagePool(2, TOKENS)
        cache = KVCache(len(windows), pool, dtype=self._tokens.dtype, device=self._tokens.device)
        tables, outputs, begin = [PageTable(pool), PageTable(pool)], [], 0
        for step in STEPS:
            rows = []
            for row, n in step:
                rows.append(RowSlice(tables[row], tables[row].length, n))
                tables[row].extend(n)
            batch = PagedBatch(cache, rows, list(windows))
            batch.layer = layer
            outputs.append(run(self._tokens[begin : begin + batch.tokens].clone(), batch))
            begin += batch.tokens
        return torch.cat(outputs)

    def agrees(self, expected: Tensor, output: Tensor) -> bool:
        """Whether no token differs by more than rounding explains."""
        expected, output, given = expected.float(), output.float(), self._tokens.float()
        added, whole = (expected - given).norm(dim=-1), expected.norm(dim=-1)
        allowed = (TOLERANCE + self._rounding) * added + self._rounding * whole
        return bool(((output - expected).norm(dim=-1) <= allowed).all())
