"""Attention over paged keys and values, as a function that transformers calls in place of its own.

All new tokens of all rows of all sessions come packed into one sequence `[1, T]`. A `PagedBatch` says which of them
belong to which row; the function writes their keys and values into the pages and lets every token attend to its own
row's past. It is registered under two names: `PAGED` to run with, where the library makes no masks at all; and
`PROBED`, where what the library would mask tells the window of each layer: not every model hands it to its attention.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface

from peers.kv import KVCache, slots
from peers.pages import RowSlice
from swarm.errors import ModelError

__all__ = ["PAGED", "PROBED", "Current", "PagedBatch"]

PAGED = "swarm_paged"
PROBED = "swarm_probed"
CURRENT = "swarm_current"  # the attribute of attention modules from which they get their batch
WINDOW = "swarm_window"  # the attribute of a probed mask
SCORES = 1 << 24  # attention scores that are in memory at once where they are spelled out


@dataclass(frozen=True, slots=True)
class Part:
    """One row's place in a batch: tokens `[begin, begin + n)` of it are positions `[at, at + n)` of the row."""

    begin: int
    n: int
    at: int
    first_slot: int | None  # where the row lies if it is contiguous
    index: Tensor | None  # else the slots of all its tokens

    def span(self, arena: Tensor, start: int) -> Tensor:
        """The row's tokens from `start` up to the newest, out of an arena `[heads, slots, width]`."""
        if self.first_slot is not None:
            return arena.narrow(1, self.first_slot + start, self.at + self.n - start)
        assert self.index is not None
        return arena.index_select(1, self.index[start:])


@dataclass(frozen=True, slots=True)
class Rule:
    """How a layer attends: the numbers that the library hands to its attention."""

    scaling: float
    window: int | None
    softcap: float | None
    sinks: Tensor | None  # [heads]

    @property
    def plain(self) -> bool:
        return self.softcap is None and self.sinks is None


class PagedBatch:
    """What attention needs to know of one packed batch: whose tokens these are, and where their past is.

    `windows`: how many tokens back each layer sees, itself included; None is all. `learn`: that is not known yet, and
    is written there. `layer` is set by whoever runs the layers, before each of them.
    """

    def __init__(
        self, cache: KVCache, rows: Sequence[RowSlice], windows: list[int | None], *, learn: bool = False
    ) -> None:
        device = cache.device
        self.cache = cache
        self.windows = windows
        self.learn = learn
        self.layer = 0
        self.calls = [0] * len(windows)  # attentions of each layer
        self.parts = _parts(rows, device)
        self.tokens = sum(row.n for row in rows)
        self.decoding = all(row.n == 1 for row in rows)
        if self.decoding:
            self.positions = torch.tensor([row.at for row in rows], device=device)
            self.slots = torch.tensor([row.table.slot(row.at) for row in rows], device=device)
        else:
            self.positions = torch.cat([torch.arange(row.at, row.at + row.n) for row in rows]).to(device)
            self.slots = torch.cat([slots(row.table, row.at, row.at + row.n) for row in rows]).to(device)
        self._masks: dict[tuple[int, int | None], Tensor] = {}

    def window(self, mask: Tensor | None, told: int | None) -> int | None:
        """The window of the current layer, learned from its mask, or else from what the layer told."""
        if self.learn:
            self.windows[self.layer] = getattr(mask, WINDOW, told)
        return self.windows[self.layer]

    def attend(self, query: Tensor, key: Tensor, value: Tensor, rule: Rule) -> Tensor:
        """`query` `[1, heads, T, width]`, `key`, `value` `[1, kv heads, T, width]` → `[1, T, heads, value width]`."""
        self.calls[self.layer] += 1
        arenas = self.cache.write(self.layer, self.slots, key[0], value[0])
        if self.decoding:
            return self._decode(query, *arenas, rule)
        outputs = [self._prefill(index, query, *arenas, rule) for index in range(len(self.parts))]
        return (outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=1)).transpose(0, 1)[None]

    def _decode(self, query: Tensor, keys: Tensor, values: Tensor, rule: Rule) -> Tensor:
        """One new token in each row: the query heads of one kv head are so many queries, and no mask is needed."""
        heads, kv_heads = query.shape[1], keys.shape[0]
        queries = query[0].transpose(0, 1).reshape(self.tokens, 1, kv_heads, heads // kv_heads, -1).unbind(0)
        outputs = []
        for part, grouped in zip(self.parts, queries, strict=True):
            start = 0 if rule.window is None else max(0, part.at + 1 - rule.window)
            k, v = part.span(keys, start), part.span(values, start)
            if rule.plain:
                outputs.append(scaled_dot_product_attention(grouped, k[None], v[None], scale=rule.scaling))
            else:
                outputs.append(_spelled_out(grouped[0].unsqueeze(2), k, v, None, rule)[None])
        output = outputs[0] if len(outputs) == 1 else torch.cat(outputs)
        return output.reshape(1, self.tokens, heads, -1)

    def _prefill(self, index: int, query: Tensor, keys: Tensor, values: Tensor, rule: Rule) -> Tensor:
        """Several new tokens of one row, each of which sees those up to itself. Returns `[heads, n, value width]`."""
        part = self.parts[index]
        start = 0 if rule.window is None else max(0, part.at + 1 - rule.window)
        k, v = part.span(keys, start), part.span(values, start)
        q = query.narrow(2, part.begin, part.n)
        heads, kv_heads = q.shape[1], k.shape[0]
        if not rule.plain:
            grouped = q[0].reshape(kv_heads, heads // kv_heads, part.n, -1)
            return _spelled_out(grouped, k, v, self._mask(index, start, rule.window), rule).flatten(0, 1)
        causal = part.at == 0 and (rule.window is None or part.n <= rule.window)
        mask = None if causal else self._mask(index, start, rule.window)
        return scaled_dot_product_attention(
            q, k[None], v[None], attn_mask=mask, is_causal=causal, scale=rule.scaling, enable_gqa=heads != kv_heads
        )[0]

    def _mask(self, index: int, start: int, window: int | None) -> Tensor:
        """Which keys from `start` on each new token of a part sees, bool `[n, keys]`; made once for all layers."""
        mask = self._masks.get((index, window))
        if mask is None:
            part = self.parts[index]
            own = torch.arange(part.at, part.at + part.n, device=self.cache.device)[:, None]
            seen = torch.arange(start, part.at + part.n, device=self.cache.device)[None]
            mask = seen <= own
            if window is not None:
                mask &= seen > own - window
            self._masks[index, window] = mask
        return mask


class Current:
    """The batch that the layers of one span work on.

    An attribute of all their modules, because not every layer hands keywords down to its attention.
    """

    def __init__(self, layers: Sequence[nn.Module]) -> None:
        self.batch: PagedBatch | None = None
        for layer in layers:
            for module in layer.modules():
                setattr(module, CURRENT, self)


def _parts(rows: Sequence[RowSlice], device: torch.device) -> list[Part]:
    parts, begin = [], 0
    for row in rows:
        first = row.table.first_slot
        index = None if first is not None else slots(row.table, 0, row.at + row.n).to(device)
        parts.append(Part(begin, row.n, row.at, first, index))
        begin += row.n
    return parts


def _spelled_out(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, rule: Rule, most_scores: int = SCORES
) -> Tensor:
    """Attention with soft caps or sinks, which torch's fused one has not.

    `query` `[kv heads, group, n, width]`, `key` and `value` `[kv heads, keys, width]`, `mask` `[n, keys]` →
    `[kv heads, group, n, value width]`. Long prompts go piecewise, since the scores are all in memory.
    """
    kv_heads, group, n, _ = query.shape
    piece = max(1, most_scores // (kv_heads * group * key.shape[1]))
    if n > piece:
        begins = range(0, n, piece)
        cut = [(query[:, :, b : b + piece], None if mask is None else mask[b : b + piece]) for b in begins]
        return torch.cat([_spelled_out(q, key, value, m, rule) for q, m in cut], dim=2)
    scores = torch.matmul(query.flatten(1, 2), key.transpose(1, 2)) * rule.scaling
    if rule.softcap is not None:
        scores = torch.tanh(scores / rule.softcap) * rule.softcap
    scores = scores.view(kv_heads, group, n, -1).float()
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))
    if rule.sinks is not None:
        sinks = rule.sinks.float().view(kv_heads, group, 1, 1).expand(-1, -1, n, 1)
        weights = torch.softmax(torch.cat([scores, sinks], dim=-1), dim=-1)[..., :-1]
    else:
        weights = torch.softmax(scores, dim=-1)
    return torch.matmul(weights.to(value.dtype).flatten(1, 2), value).view(kv_heads, group, n, -1)


def paged_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    is_causal: bool | None = None,
    position_bias: Tensor | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """What transformers calls: see `AttentionInterface`. Raises ModelError on attention that pages can't serve."""
    current: Current | None = getattr(module, CURRENT, None)
    if current is None or current.batch is None:
        raise ModelError(f"{type(module).__name__} runs outside the steps of a span")
    batch = current.batch
    if is_causal is False or position_bias is not None:
        raise ModelError(f"{type(module).__name__} looks ahead or adds a bias to its scores")
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    window = batch.window(attention_mask, sliding_window)
    return batch.attend(query, key, value, Rule(scale, window, softcap, s_aux)), None


def probed_mask(
    *, mask_function: Callable[..., Tensor], local_size: int | None = None, device: torch.device, **kwargs: Any
) -> Tensor:
    """A mask that tells its window instead of masking. Raises ModelError on any but causal and sliding windows."""
    zero = torch.zeros((), dtype=torch.int64, device=device)
    width = local_size or 0
    for at in {0, 2, width, 2 * width + 1, 3 * width + 2}:
        seen = torch.arange(at + 3, device=device)
        expected = (seen <= at) & (seen > at - width if local_size else seen >= 0)
        own = torch.full_like(seen, at)
        if not torch.equal(torch.as_tensor(mask_function(zero, zero, own, seen)).expand_as(seen), expected):
            raise ModelError("its attention mask is neither causal nor a sliding window")
    mask = torch.zeros(1, 1, 1, 1, device=device)
    setattr(mask, WINDOW, local_size)
    return mask


AttentionInterface.register(PAGED, paged_attention)
AttentionInterface.register(PROBED, paged_attention)
AttentionMaskInterface.register(PROBED, probed_mask)
