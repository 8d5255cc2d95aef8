"""What attention needs to know of one packed batch: whose tokens these are, and where their past is.

All new tokens of all rows of all sessions come packed into one sequence. Everything that is the same for all layers is
found out once. On the CPU rows that decode are read where they lie, in one call of our own (`peers.decode_kernel`), or
else one by one: *measured*, gathering them into one padded batch costs as much as it saves with 64 tokens a row, and
three times as much with 1000. On other devices, where a call costs more than a copy, they are gathered.
"""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar, cast

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from peers.decode_kernel import DecodeKernel, Runs, decode_kernel
from peers.kv import Arenas, KVCache, runs, slots
from peers.pages import PageTable, RowSlice
from peers.scores import Piece, Rule, decode, spelled_out

if TYPE_CHECKING:  # they need this
    from peers.fused import Norm
    from peers.turns import Turn

__all__ = ["Heads", "PagedBatch"]

LEAST_RUN = 48  # tokens: reading pieces that are shorter on average where they lie takes longer than copying them

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Part:
    """One row's place in a batch: tokens `[begin, begin + n)` of it are positions `[at, at + n)` of the row."""

    begin: int
    n: int
    at: int
    table: PageTable

    def start(self, window: int | None) -> int:
        """The first token that any of the new ones sees."""
        return 0 if window is None else max(0, self.at + 1 - window)


@dataclass(frozen=True, slots=True)
class Heads:
    """How a layer was seen to attend."""

    query: int
    kv: int
    width: int
    value_width: int
    rule: Rule
    exact: bool  # in fp32


class PagedBatch:
    """`windows`: how many tokens back each layer sees, itself included; None is all. `learn`: that is not known yet,
    and is written there. `gather`: whether several rows that decode are gathered; None: as is best for the device.
    `layer` is set by whoever runs the layers, before each of them.
    """

    def __init__(
        self,
        cache: KVCache,
        rows: Sequence[RowSlice],
        windows: list[int | None],
        *,
        learn: bool = False,
        gather: bool | None = None,
    ) -> None:
        self.cache = cache
        self.windows = windows
        self.learn = learn
        self.layer = 0
        self.calls = [0] * len(windows)  # attentions of each layer
        self.heads: list[Heads | None] = [None] * len(windows)
        self.rows = len(rows)
        self.tokens = sum(row.n for row in rows)
        self.longest = max((row.at + row.n for row in rows), default=0)  # tokens
        device = cache.device
        decoding = sum(row.n == 1 for row in rows)
        self._gather = decoding > 1 and (device.type != "cpu" if gather is None else gather)
        self._parts: list[Part] = []
        for row in rows:
            begin = self._parts[-1].begin + self._parts[-1].n if self._parts else 0
            self._parts.append(Part(begin, row.n, row.at, row.table))
        self.decoding = all(part.n == 1 for part in self._parts)
        if self.decoding:
            self.positions = torch.tensor([row.at for row in rows], device=device)
            self.slots = torch.tensor([row.table.slot(row.at) for row in rows], device=device)
        else:
            self.positions = torch.cat([torch.arange(row.at, row.at + row.n) for row in rows]).to(device)
            self.slots = torch.cat([slots(row.table, row.at, row.at + row.n) for row in rows]).to(device)
        self.known: dict[Hashable, Any] = {}  # what is the same for several layers

    def once(self, key: Hashable, make: Callable[[], T]) -> T:
        """What is the same for several layers, made when the first of them asks."""
        if key not in self.known:
            self.known[key] = make()
        return cast(T, self.known[key])

    def window(self, learned: int | None) -> int | None:
        """The window of the current layer."""
        if self.learn:
            self.windows[self.layer] = learned
        return self.windows[self.layer]

    def attend(self, query: Tensor, key: Tensor, value: Tensor, rule: Rule) -> Tensor:
        """`query` `[1, heads, T, width]`, `key`, `value` `[1, kv heads, T, width]` → `[1, T, heads, value width]`."""
        self.calls[self.layer] += 1
        if self.learn:
            widths, exact = (key.shape[3], value.shape[3]), query.dtype == torch.float32
            self.heads[self.layer] = Heads(query.shape[1], key.shape[1], *widths, rule, exact)
        self.cache.write(self.layer, self.slots, key[0], value[0])
        return self._read(query[0].transpose(0, 1), rule)[None]

    def attend_joined(self, joined: Tensor, heads: Heads, norm: "Norm | None", turn: "Turn | None") -> Tensor:
        """`joined` `[T, heads of queries, of keys and of values, width]` → `[T, heads of queries * width]`. Queries and
        keys are normed and turned here, in place."""
        query, both = joined.split_with_sizes((heads.query, 2 * heads.kv), 1)
        arenas, index = self.cache.joint(self.layer, heads.kv, heads.width)
        kernel, pairs = self._kernel(query, arenas, heads.rule), None if turn is None else turn.pairs
        if kernel is not None and pairs is not None and kernel.turns(pairs):
            factors = None if norm is None else norm.with_eps
            kernel.store(joined, pairs, arenas.keys[index], arenas.values[index], self.slots, factors)
        else:
            turned = joined.narrow(1, 0, heads.query + heads.kv)
            if norm is not None:
                turned.copy_(norm.forward(turned))
            if turn is not None:
                turn.turn(turned)
            self._store(arenas, index, both)
        return self._read(query, heads.rule).view(self.tokens, -1)

    def _store(self, arenas: Arenas, index: int, both: Tensor) -> None:
        """`both`: keys and values of the new tokens, `[T, heads of keys and of values, width]`."""
        assert arenas.both is not None
        if len(self._parts) == self.tokens == 1:
            self._targets(arenas.both)[index].copy_(both[0])
        else:
            arenas.both[index].index_copy_(1, self.slots, both.transpose(0, 1))

    def _targets(self, arena: Tensor) -> tuple[Tensor, ...]:
        """Where the only token goes, in each layer of `arena`."""
        part = self._parts[0]
        return self.once(("targets", id(arena)), lambda: arena.select(2, part.table.slot(part.at)).unbind(0))

    def _read(self, query: Tensor, rule: Rule) -> Tensor:
        """`[T, heads, width]` → `[T, heads, value width]`. The new keys and values are in the pages already."""
        arenas, index = self.cache.place(self.layer)
        if self._gather and rule.plain:
            return self._read_gathered(query, arenas, index, rule)
        if self.decoding:
            return self._decode(query, arenas, index, rule, self._parts)
        outputs = []
        for part in self._parts:
            own = query.narrow(0, part.begin, part.n)
            if part.n == 1:
                outputs.append(self._decode(own, arenas, index, rule, [part]))
            else:
                outputs.append(self._prefill(part, own, arenas, index, rule))
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs)

    # --- one new token in each row -----------------------------------------------------------------------------------

    def _decode(self, query: Tensor, arenas: Arenas, index: int, rule: Rule, parts: Sequence[Part]) -> Tensor:
        tokens, heads, width = query.shape
        kernel = self._kernel(query, arenas, rule)
        if kernel is not None:
            own = self._runs(parts, rule.window)
            return kernel(query, arenas.keys[index], arenas.values[index], own, rule.scaling)
        key = ("pieces", id(arenas), rule.window, parts[0].begin)
        rows = self.once(key, lambda: [_pieces(arenas, part, part.start(rule.window)) for part in parts])
        if tokens == 1:
            return decode(query.reshape(arenas.shape.heads, -1, width), rows[0](index), rule).view(1, heads, -1)
        queries = query.reshape(tokens, arenas.shape.heads, -1, width).unbind(0)
        outputs = [decode(own, pieces(index), rule) for own, pieces in zip(queries, rows, strict=True)]
        return torch.stack(outputs).view(tokens, heads, -1)

    def _kernel(self, query: Tensor, arenas: Arenas, rule: Rule) -> DecodeKernel | None:
        """Attends to all rows in one call, where it can."""
        shape = arenas.shape
        if query.dtype != torch.float32 or query.device.type != "cpu" or not rule.plain or arenas.both is None:
            return None
        return decode_kernel(shape.width, query.shape[1] // shape.heads)

    def runs(self, window: int | None) -> Runs:
        """Of all rows, which decode."""
        return self._runs(self._parts, window)

    def _runs(self, parts: Sequence[Part], window: int | None) -> Runs:
        def make() -> Runs:
            return Runs([runs(part.table, part.start(window), part.at + 1) for part in parts])

        return self.once(("runs", window, parts[0].begin), make)

    def _read_gathered(self, query: Tensor, arenas: Arenas, index: int, rule: Rule) -> Tensor:
        """Rows that decode in one call, each padded to the longest; rows of prompts one by one."""
        which, places, seen = self.padded(rule.window)
        rows, kv_heads = len(which), arenas.shape.heads
        k, v = (
            tensor[index].index_select(1, places.flatten()).view(kv_heads, rows, places.shape[1], -1).transpose(0, 1)
            for tensor in (arenas.keys, arenas.values)
        )
        own = query if self.decoding else query.index_select(0, which)
        grouped = own.reshape(rows, kv_heads, -1, query.shape[2])
        mask = seen[:, None, None].expand(-1, 1, grouped.shape[2], -1)
        read = scaled_dot_product_attention(grouped, k, v, attn_mask=mask, scale=rule.scaling)
        read = read.reshape(rows, query.shape[1], -1)
        if self.decoding:
            return read
        output = query.new_empty(query.shape[0], query.shape[1], read.shape[2]).index_copy_(0, which, read)
        for part in self._parts:
            if part.n > 1:
                own = query.narrow(0, part.begin, part.n)
                output.narrow(0, part.begin, part.n).copy_(self._prefill(part, own, arenas, index, rule))
        return output

    def padded(self, window: int | None) -> tuple[Tensor, Tensor, Tensor]:
        """Of the rows that decode: their places in the batch `[rows]`, the slots that each sees `[rows, longest]`,
        and which of these are no padding, bool."""
        return self.once(("padded", window), lambda: self._padded(window))

    def _padded(self, window: int | None) -> tuple[Tensor, Tensor, Tensor]:
        parts = [part for part in self._parts if part.n == 1]
        each = [slots(part.table, part.start(window), part.at + 1) for part in parts]
        lengths = torch.tensor([len(own) for own in each])
        places = torch.stack([torch.nn.functional.pad(own, (0, int(lengths.max()) - len(own))) for own in each])
        seen = torch.arange(places.shape[1]) < lengths[:, None]
        places = torch.where(seen, places, places[:, :1])  # padding is a token of the row itself, not another's
        device = self.cache.device
        return torch.tensor([part.begin for part in parts], device=device), places.to(device), seen.to(device)

    # --- several new tokens of a row ---------------------------------------------------------------------------------

    def _prefill(self, part: Part, query: Tensor, arenas: Arenas, index: int, rule: Rule) -> Tensor:
        """Each new token sees those up to itself. `query` `[n, heads, width]` → `[n, heads, value width]`."""
        start = part.start(rule.window)
        k, v = self._past(part, start, arenas.keys[index]), self._past(part, start, arenas.values[index])
        heads, kv_heads = query.shape[1], k.shape[0]
        q = query.transpose(0, 1)
        if not rule.plain:
            grouped = q.reshape(kv_heads, heads // kv_heads, part.n, -1)
            return spelled_out(grouped, k, v, self._mask(part, start, rule.window), rule).flatten(0, 1).transpose(0, 1)
        causal = part.at == 0 and (rule.window is None or part.n <= rule.window)
        mask = None if causal else self._mask(part, start, rule.window)
        output = scaled_dot_product_attention(
            q[None],
            k[None],
            v[None],
            attn_mask=mask,
            is_causal=causal,
            scale=rule.scaling,
            enable_gqa=heads != kv_heads,
        )
        return output[0].transpose(0, 1)

    def _past(self, part: Part, start: int, arena: Tensor) -> Tensor:
        """The row's tokens from `start` up to the newest, out of an arena `[heads, slots, width]`."""
        stop = part.at + part.n
        first = part.table.first_slot
        if first is not None:
            return arena.narrow(1, first + start, stop - start)
        index = self.once(("slots", start, part.begin), lambda: slots(part.table, start, stop).to(self.cache.device))
        return arena.index_select(1, index)

    def _mask(self, part: Part, start: int, window: int | None) -> Tensor:
        """Which keys from `start` on each new token of a part sees, bool `[n, keys]`."""

        def make() -> Tensor:
            own = torch.arange(part.at, part.at + part.n, device=self.cache.device)[:, None]
            seen = torch.arange(start, part.at + part.n, device=self.cache.device)[None]
            return seen <= own if window is None else (seen <= own) & (seen > own - window)

        return self.once(("mask", part.begin, window), make)


_Pieces = Callable[[int], list[Piece]]  # by layer of the arenas


def _pieces(arenas: Arenas, part: Part, start: int) -> _Pieces:
    """What a row that decodes reads, in as many pieces as it lies in, or copied when these are too many."""
    stop = part.at + 1
    found = runs(part.table, start, stop)
    if len(found) > 1 and stop - start < LEAST_RUN * len(found):
        index = slots(part.table, start, stop).to(arenas.keys.device)
        return lambda layer: [
            (arenas.keys[layer].index_select(1, index).mT, arenas.values[layer].index_select(1, index))
        ]
    if len(found) == 1:
        slot, n = found[0]
        keys = arenas.keys.narrow(2, slot, n).mT.unbind(0)  # for all layers at once
        values = arenas.values.narrow(2, slot, n).unbind(0)
        return [[piece] for piece in zip(keys, values, strict=True)].__getitem__
    several = [
        zip(arenas.keys.narrow(2, slot, n).mT.unbind(0), arenas.values.narrow(2, slot, n).unbind(0), strict=True)
        for slot, n in found
    ]
    return [list(pieces) for pieces in zip(*several, strict=True)].__getitem__
