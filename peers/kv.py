"""What pages hold: keys and values of every layer on the device, or rows of hidden states in main memory.

Both are plain tensors indexed by slot (page times page size plus offset). Memory that no row has touched costs nothing
on a CPU, since it is never written.
"""

import torch
from torch import Tensor

from peers.pages import PagePool, PageTable
from swarm.errors import UsageError

__all__ = ["KVCache", "PagedRows", "slots"]


def slots(table: PageTable, start: int, stop: int) -> Tensor:
    """The slots of tokens `[start, stop)` of a row, int64 on the CPU."""
    first = table.first_slot
    if first is not None:
        return torch.arange(first + start, first + stop)
    tokens = torch.arange(start, stop)
    size = table.pool.page_size
    return torch.tensor(table.pages, dtype=torch.int64)[tokens // size] * size + tokens % size


class KVCache:
    """Keys and values of `layers` layers, one arena `[kv heads, slots, head width]` each for keys and for values.

    A layer's arenas are made when it first writes, since only then its heads are known; or by `resemble`. Heads lie
    outermost, so that one head of a contiguous row is one dense matrix: attention over it is up to 1.7 times faster.
    """

    def __init__(self, layers: int, pool: PagePool, *, dtype: torch.dtype, device: torch.device) -> None:
        self.pool = pool
        self.dtype = dtype
        self.device = device
        self._arenas: list[tuple[Tensor, Tensor] | None] = [None] * layers

    def write(self, layer: int, slots: Tensor, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Puts `keys` and `values`, `[kv heads, tokens, width]`, into their slots; returns the layer's two arenas."""
        arenas = self._arenas[layer]
        if arenas is None:
            arenas = self._arenas[layer] = (self._arena(keys), self._arena(values))
        arenas[0].index_copy_(1, slots, keys)
        arenas[1].index_copy_(1, slots, values)
        return arenas

    def view(self, layer: int, table: PageTable) -> tuple[Tensor, Tensor]:
        """A row's keys and values, `[kv heads, length, width]`: in place when the row is contiguous, else copied."""
        arenas = self._arenas[layer]
        if arenas is None:
            raise ValueError(f"layer {layer} has not written yet")
        keys, values = arenas
        first = table.first_slot
        if first is not None:
            return keys.narrow(1, first, table.length), values.narrow(1, first, table.length)
        index = slots(table, 0, table.length).to(self.device)
        return keys.index_select(1, index), values.index_select(1, index)

    @torch.inference_mode()
    def copy_page(self, source: int, target: int) -> None:
        """Copies one page in all layers, as `PageTable.fork` and `crop` ask for."""
        size = self.pool.page_size
        for arenas in self._arenas:
            for arena in arenas or ():
                arena.narrow(1, target * size, size).copy_(arena.narrow(1, source * size, size))

    def resemble(self, other: "KVCache") -> None:
        """Makes arenas for the layers that `other` has written, with the same heads. Raises UsageError on no memory."""
        try:
            for layer, arenas in enumerate(other._arenas):
                if arenas is not None:
                    self._arenas[layer] = (self._arena(arenas[0]), self._arena(arenas[1]))
        except (RuntimeError, MemoryError) as error:
            size = other.bytes_per_token * self.pool.tokens >> 20
            raise UsageError(
                f"there is no memory for the KV of {self.pool.tokens} tokens ({size} MiB) on {self.device}:"
                " ask for fewer KV tokens or fewer blocks"
            ) from error

    @property
    def bytes_per_token(self) -> int:
        """Bytes of all layers that have arenas."""
        arenas = (arena for pair in self._arenas for arena in pair or ())
        return sum(arena.shape[0] * arena.shape[2] * arena.element_size() for arena in arenas)

    def _arena(self, like: Tensor) -> Tensor:
        heads, _, width = like.shape
        return torch.empty(heads, self.pool.tokens, width, dtype=self.dtype, device=self.device)


class PagedRows:
    """Rows of hidden states `[tokens, width]` in pages, in main memory: what an outbox is made of."""

    def __init__(self, pool: PagePool, width: int, dtype: torch.dtype) -> None:
        self.pool = pool
        self._arena = torch.empty(pool.tokens, width, dtype=dtype)

    @property
    def bytes_per_token(self) -> int:
        return self._arena.shape[1] * self._arena.element_size()

    @torch.inference_mode()
    def write(self, table: PageTable, at: int, rows: Tensor) -> None:
        """Stores `rows` `[n, width]` as tokens `[at, at + n)`, for which `table` already has room."""
        if at + len(rows) > table.length:
            raise ValueError(f"a row of {table.length} tokens has no room for {len(rows)} at {at}")
        first = table.first_slot
        if first is not None:
            self._arena.narrow(0, first + at, len(rows)).copy_(rows)
        else:
            self._arena.index_copy_(0, slots(table, at, at + len(rows)), rows.to(self._arena))

    def append(self, table: PageTable, rows: Tensor) -> None:
        """Extends `table` and stores `rows` `[n, width]` at its end. Raises OutOfPages, and nothing is changed."""
        at = table.length
        table.extend(len(rows))
        self.write(table, at, rows)

    @torch.inference_mode()
    def read(self, table: PageTable, start: int, stop: int) -> Tensor:
        """A copy of tokens `[start, stop)`, `[n, width]`."""
        if not 0 <= start <= stop <= table.length:
            raise ValueError(f"a row of {table.length} tokens has no tokens {start}:{stop}")
        first = table.first_slot
        if first is not None:
            return self._arena.narrow(0, first + start, stop - start).clone()
        return self._arena.index_select(0, slots(table, start, stop))

    @torch.inference_mode()
    def copy_page(self, source: int, target: int) -> None:
        size = self.pool.page_size
        self._arena.narrow(0, target * size, size).copy_(self._arena.narrow(0, source * size, size))
