"""What pages hold: keys and values of every layer on the device, or rows of hidden states in main memory.

Both are plain tensors indexed by slot (page times page size plus offset). Memory that no row has touched costs nothing
on a CPU, since it is never written.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Tensor

from peers.pages import PagePool, PageTable
from swarm.errors import UsageError

__all__ = ["Arenas", "KVCache", "PagedRows", "runs", "slots"]


def slots(table: PageTable, start: int, stop: int) -> Tensor:
    """The slots of tokens `[start, stop)` of a row, int64 on the CPU."""
    first = table.first_slot
    if first is not None:
        return torch.arange(first + start, first + stop)
    tokens = torch.arange(start, stop)
    size = table.pool.page_size
    return torch.tensor(table.pages, dtype=torch.int64)[tokens // size] * size + tokens % size


def runs(table: PageTable, start: int, stop: int) -> list[tuple[int, int]]:
    """The pieces in which tokens `[start, stop)` of a row lie, in order: the first slot of each, and its tokens."""
    first = table.first_slot
    if first is not None:
        return [(first + start, stop - start)]
    size = table.pool.page_size
    pages = table.pages[start // size : -(-stop // size)]
    pieces, token = [], start
    for _, group in groupby(enumerate(pages), lambda entry: entry[1] - entry[0]):
        held = list(group)
        end = min(stop, (start // size + held[-1][0] + 1) * size)
        pieces.append((held[0][1] * size + token % size, end - token))
        token = end
    return pieces


@dataclass(frozen=True, slots=True)
class Shape:
    """Of one token in one layer."""

    heads: int
    width: int
    value_width: int


@dataclass(frozen=True, slots=True, eq=False)
class Arenas:
    """Keys and values of layers that are alike: `[layers, kv heads, slots, width]` each.

    Heads lie outside of slots, so that one head of a contiguous row is one dense matrix: attention over it is up to 1.7
    times faster.
    """

    shape: Shape
    keys: Tensor
    values: Tensor
    both: Tensor | None  # the heads of keys, then those of values, where these have the same width

    @classmethod
    def empty(cls, layers: int, slots: int, shape: Shape, *, dtype: torch.dtype, device: torch.device) -> "Arenas":
        if shape.width == shape.value_width:
            heads = 2 * shape.heads
            both = torch.empty(layers, heads, slots, shape.width, dtype=dtype, device=device)
            return cls(shape, both[:, : shape.heads], both[:, shape.heads :], both)
        keys = torch.empty(layers, shape.heads, slots, shape.width, dtype=dtype, device=device)
        values = torch.empty(layers, shape.heads, slots, shape.value_width, dtype=dtype, device=device)
        return cls(shape, keys, values, None)

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        return (self.keys, self.values) if self.both is None else (self.both,)


class KVCache:
    """Keys and values of `layers` layers.

    A layer's arenas are made when it first writes, since only then its heads are known; or by `resemble`, which puts
    layers that are alike into one tensor.
    """

    def __init__(self, layers: int, pool: PagePool, *, dtype: torch.dtype, device: torch.device) -> None:
        self.pool = pool
        self.dtype = dtype
        self.device = device
        self._places: list[tuple[Arenas, int] | None] = [None] * layers

    def place(self, layer: int) -> tuple[Arenas, int]:
        """Where a layer that has written is: its arenas, and which of their layers it is."""
        place = self._places[layer]
        if place is None:
            raise ValueError(f"layer {layer} has not written yet")
        return place

    def write(self, layer: int, slots: Tensor, keys: Tensor, values: Tensor) -> None:
        """Puts `keys` and `values`, `[kv heads, tokens, width]`, into their slots."""
        if self._places[layer] is None:
            shape = Shape(keys.shape[0], keys.shape[2], values.shape[2])
            self._places[layer] = (self._arenas(1, shape), 0)
        arenas, index = self.place(layer)
        arenas.keys[index].index_copy_(1, slots, keys)
        arenas.values[index].index_copy_(1, slots, values)

    def joint(self, layer: int, heads: int, width: int) -> tuple[Arenas, int]:
        """Where a layer writes keys and values of `heads` heads each, of the same width: its arenas, and which of their
        layers it is."""
        if self._places[layer] is None:
            self._places[layer] = (self._arenas(1, Shape(heads, width, width)), 0)
        return self.place(layer)

    def view(self, layer: int, table: PageTable) -> tuple[Tensor, Tensor]:
        """A row's keys and values, `[kv heads, length, width]`: in place when the row is contiguous, else copied."""
        arenas, place = self.place(layer)
        keys, values = arenas.keys[place], arenas.values[place]
        first = table.first_slot
        if first is not None:
            return keys.narrow(1, first, table.length), values.narrow(1, first, table.length)
        index = slots(table, 0, table.length).to(self.device)
        return keys.index_select(1, index), values.index_select(1, index)

    @torch.inference_mode()
    def copy_page(self, source: int, target: int) -> None:
        """Copies one page in all layers, as `PageTable.fork` and `crop` ask for."""
        size = self.pool.page_size
        for arenas in self._all():
            for tensor in arenas.tensors:
                tensor.narrow(2, target * size, size).copy_(tensor.narrow(2, source * size, size))

    def resemble(self, other: "KVCache") -> None:
        """Makes arenas for the layers that `other` has written, with the same heads. Raises UsageError on no memory."""
        alike: dict[Shape, list[int]] = {}
        for layer, place in enumerate(other._places):
            if place is not None:
                alike.setdefault(place[0].shape, []).append(layer)
        try:
            for shape, layers in alike.items():
                arenas = self._arenas(len(layers), shape)
                for index, layer in enumerate(layers):
                    self._places[layer] = (arenas, index)
        except (RuntimeError, MemoryError) as error:
            size = other.bytes_per_token * self.pool.tokens >> 20
            raise UsageError(
                f"there is no memory for the KV of {self.pool.tokens} tokens ({size} MiB) on {self.device}:"
                " ask for fewer KV tokens or fewer blocks"
            ) from error

    @property
    def bytes_per_token(self) -> int:
        """Bytes of all layers that have arenas."""
        return sum(tensor.nbytes for arenas in self._all() for tensor in arenas.tensors) // self.pool.tokens

    def _all(self) -> Iterator[Arenas]:
        return iter({id(place[0]): place[0] for place in self._places if place is not None}.values())

    def _arenas(self, layers: int, shape: Shape) -> Arenas:
        return Arenas.empty(layers, self.pool.tokens, shape, dtype=self.dtype, device=self.device)


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
