"""Attention of rows that decode, in one call for all of them, compiled for this processor."""

import logging
from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor

from swarm.jit.compiler import LANES, Compiled, features

__all__ = ["DecodeKernel", "Runs", "decode_kernel", "threads_to_store", "turn_strides"]

_log = logging.getLogger(__name__)

THREAD_VALUES = 1 << 16  # of keys, times query heads, that are worth another thread
THREAD_TOKENS = 16  # to take in that are worth another thread


class Runs:
    """Where rows lie: of each, its runs of slots."""

    def __init__(self, rows: Sequence[Sequence[tuple[int, int]]]) -> None:
        """`rows`: of each, the first slot and the number of tokens of each run."""
        flat = [number for row in rows for run in row for number in run]
        starts = [0]
        for row in rows:
            starts.append(starts[-1] + len(row))
        self.rows = len(rows)
        self.runs, self.starts = torch.tensor(flat, dtype=torch.int64), torch.tensor(starts, dtype=torch.int64)
        lengths = [sum(n for _, n in row) for row in rows]
        self.longest, self.tokens = max(lengths), sum(lengths)


@cache
def decode_kernel(width: int, group: int) -> "DecodeKernel | None":
    """For heads of this width, and so many query heads to each head of keys; None where there is none."""
    here = features()
    if width % LANES or not (here.get("fma") and here.get("avx2")):
        return None
    try:
        return DecodeKernel(width, group)
    except RuntimeError as error:
        _log.warning("rows are attended to one by one, since our own code can't be compiled: %s", error)
        return None


class DecodeKernel:
    """Safe to use from many threads."""

    def __init__(self, width: int, group: int) -> None:
        from peers.decode_code import ATTEND, PAD, STORE, at_once, module
        from swarm.jit.threads import arguments

        self.compiled = Compiled(module(width, group))
        self._attend = self.compiled.function("attend", *arguments(ATTEND, 1))
        self._store = self.compiled.function("store", *arguments(STORE, 1))
        self._at_once, self._pad = at_once(width, group), PAD

    def turns(self, pairs: Tensor) -> bool:
        """Whether it can turn so many pairs of a head."""
        return 2 * pairs.shape[2] % LANES == 0

    def store(
        self,
        joined: Tensor,
        pairs: Tensor,
        keys: Tensor,
        values: Tensor,
        slots: Tensor,
        norm: Tensor | None = None,
    ) -> None:
        """Norms and turns queries and keys, queries in place, and puts keys and values of one layer into their slots.

        `joined` fp32 `[T, heads of queries, of keys and of values, width]`, `pairs` complex `[T, 1 or heads of queries
        and of keys, pairs]`, `slots` `[T]`, all contiguous; `keys` and `values` as for a call. `norm`: fp32, for each
        head of queries and of keys its factors `[width]`, and then what is added to the mean square."""
        tokens, heads, _ = joined.shape
        self._store(
            joined.data_ptr(),
            0 if norm is None else norm.data_ptr(),
            pairs.data_ptr(),
            keys.data_ptr(),
            values.data_ptr(),
            slots.data_ptr(),
            tokens,
            heads - 2 * keys.shape[0],
            keys.shape[0],
            2 * pairs.shape[2],
            *turn_strides(pairs),
            4 * keys.stride(0),
            threads_to_store(tokens),
        )

    def __call__(self, query: Tensor, keys: Tensor, values: Tensor, runs: Runs, scaling: float) -> Tensor:
        """`query` fp32 `[rows, heads, width]`, `keys` and `values` `[kv heads, slots, width]` of one layer, each head
        contiguous and as far from the next in both → `[rows, heads, width]`."""
        rows, heads, width = query.shape
        if query.stride(1) != width or query.stride(2) != 1:
            query = query.contiguous()
        out = query.new_empty(rows, heads, width)
        threads, scratch = self.shares(runs, heads * width)
        self._attend(
            query.data_ptr(),
            keys.data_ptr(),
            values.data_ptr(),
            out.data_ptr(),
            runs.runs.data_ptr(),
            runs.starts.data_ptr(),
            scratch.data_ptr(),
            rows,
            keys.shape[0],
            4 * query.stride(0),
            4 * keys.stride(0),
            runs.longest,
            scaling,
            threads,
        )
        return out

    def shares(self, runs: Runs, values: int) -> tuple[int, Tensor]:
        """How many threads shall attend, with so many values of queries a row, and what they need for their scores."""
        threads = max(1, min(torch.get_num_threads(), runs.tokens * values // THREAD_VALUES))
        return threads, torch.empty(threads * self._at_once * (runs.longest + self._pad))


def turn_strides(pairs: Tensor) -> tuple[int, int]:
    """Bytes from one token's to the next one's, and from one head's to the next one's."""
    size = pairs.element_size()
    return size * pairs.stride(0), size * pairs.stride(1) if pairs.shape[1] > 1 else 0


def threads_to_store(tokens: int) -> int:
    return min(torch.get_num_threads(), tokens // THREAD_TOKENS)
