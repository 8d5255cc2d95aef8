"""Rotary position embeddings of a whole step at once, from the library's own cosines and sines.

Blocks of one span mostly share them, so they are looked up once a step, out of a table that grows with the longest row.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from peers.batch import Heads, PagedBatch

__all__ = ["Compute", "Halves", "Pairs", "Source", "Turn", "Turning", "pair_order"]

FIRST_TABLE = 1024  # positions

# The library's rotary embedding of one kind of layer: positions `[1, T]` → cosines and sines `[1, T, width]`.
Compute = Callable[[Tensor], tuple[Tensor, Tensor]]


def pair_order(width: int, turned: int) -> list[int]:
    """The order of a head's `width` values in which the two that turn together, `turned / 2` apart, are neighbours."""
    half = turned // 2
    return [place for pair in range(half) for place in (pair, pair + half)] + list(range(turned, width))


@dataclass(frozen=True, slots=True)
class Pairs:
    """For heads in `pair_order`: each pair is one complex number, and turns in place in one multiplication. fp32."""

    pairs: Tensor  # complex `[T, 1 or heads, turned / 2]`

    @classmethod
    def of(cls, cos: Tensor, sin: Tensor) -> "Pairs":
        half = cos.shape[-1] // 2
        return cls(torch.complex(cos[:, :half], sin[:, :half])[:, None])

    def take(self, positions: Tensor) -> "Pairs":
        return Pairs(self.pairs.index_select(0, positions))

    def scaled(self, scales: Tensor) -> "Pairs":
        return Pairs(self.pairs * scales)

    def turn(self, heads: Tensor) -> None:
        """Turns `[T, heads, width]` in place."""
        width = 2 * self.pairs.shape[-1]
        turned = heads if width == heads.shape[-1] else heads[..., :width]
        torch.view_as_complex(turned.view(*turned.shape[:2], -1, 2)).mul_(self.pairs)


@dataclass(frozen=True, slots=True)
class Halves:
    """For heads as the library has them, in any dtype."""

    pairs: ClassVar[None] = None
    cos: Tensor  # `[T, 1 or heads, turned]`
    sin: Tensor  # `[T, 1 or heads, turned]`, the first half with its sign turned

    @classmethod
    def of(cls, cos: Tensor, sin: Tensor) -> "Halves":
        half = cos.shape[-1] // 2
        return cls(cos[:, None], torch.cat([-sin[:, :half], sin[:, half:]], dim=-1)[:, None])

    def take(self, positions: Tensor) -> "Halves":
        return Halves(self.cos.index_select(0, positions), self.sin.index_select(0, positions))

    def scaled(self, scales: Tensor) -> "Halves":
        return Halves(self.cos * scales, self.sin * scales)

    def turn(self, heads: Tensor) -> None:
        """Turns `[T, heads, width]` in place."""
        width = self.cos.shape[-1]
        turned = heads if width == heads.shape[-1] else heads[..., :width]
        swapped = turned.view(*turned.shape[:2], 2, -1).flip(2).view(turned.shape)
        turned.mul_(self.cos).addcmul_(swapped, self.sin)


Turn = Pairs | Halves


@dataclass(frozen=True, slots=True, eq=False)
class Source:
    """Where the cosines and sines of one kind of layer come from. `fixed`: those of a position are always the same, and
    may be kept. `width`: how many values of a head turn."""

    compute: Compute
    kind: type[Pairs] | type[Halves]
    width: int
    fixed: bool
    device: torch.device


class Turning:
    """The turns of layers of one kind. Queries are multiplied with the scale of their scores on this occasion, where
    that is free: in fp32, when all of a head turns."""

    def __init__(self, source: Source, heads: Heads) -> None:
        self.width = source.width
        self.in_pairs = source.kind is Pairs
        self._source = source
        self.fixed = source.fixed
        self._tables: list[Turn] = []  # recorded steps (`peers.recorded`) go on with shorter ones
        self._length = 0
        rule = heads.rule
        self._scales: Tensor | None = None
        if heads.exact and source.width == heads.width and rule.scaling != 1:
            factors = torch.tensor([rule.scaling] * heads.query + [1.0] * heads.kv, device=source.device)
            self._scales = factors[:, None]

    def remaining(self, heads: Heads) -> Heads:
        """What attention still has to do."""
        return heads if self._scales is None else replace(heads, rule=replace(heads.rule, scaling=1.0))

    def of(self, batch: PagedBatch) -> Turn:
        """Of all tokens of a batch; found out once for all layers."""
        found: Turn | None = batch.known.get(self)
        if found is None:
            found = batch.known[self] = self._find(batch)
        return found

    def _find(self, batch: PagedBatch) -> Turn:
        if not self._source.fixed:
            return self._scaled(self._make(batch.positions))
        if batch.longest > self._length:
            self._length = max(FIRST_TABLE, 1 << (batch.longest - 1).bit_length())
            self._tables.append(self._make(torch.arange(self._length, device=self._source.device)))
        return self._scaled(self._tables[-1].take(batch.positions))

    def _make(self, positions: Tensor) -> Turn:
        cos, sin = self._source.compute(positions[None])
        return self._source.kind.of(cos[0], sin[0])

    def _scaled(self, turn: Turn) -> Turn:
        return turn if self._scales is None else turn.scaled(self._scales)
