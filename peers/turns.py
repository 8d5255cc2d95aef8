"""Rotary position embeddings of a whole step at once, from the library's own cosines and sines.

Blocks of one span mostly share them, so they are looked up once a step, out of a table that grows with the longest row.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from peers.batch import PagedBatch

__all__ = ["Compute", "Halves", "Pairs", "Turn", "Turning", "pair_order"]

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

    turns: Tensor  # complex `[T, 1, turned / 2]`

    @classmethod
    def of(cls, cos: Tensor, sin: Tensor) -> "Pairs":
        half = cos.shape[-1] // 2
        return cls(torch.complex(cos[:, :half], sin[:, :half])[:, None])

    def take(self, positions: Tensor) -> "Pairs":
        return Pairs(self.turns.index_select(0, positions))

    def turn(self, heads: Tensor) -> None:
        """Turns `[T, heads, width]` in place."""
        width = 2 * self.turns.shape[-1]
        turned = heads if width == heads.shape[-1] else heads[..., :width]
        torch.view_as_complex(turned.view(*turned.shape[:2], -1, 2)).mul_(self.turns)


@dataclass(frozen=True, slots=True)
class Halves:
    """For heads as the library has them, in any dtype."""

    cos: Tensor  # `[T, 1, turned]`
    sin: Tensor  # `[T, 1, turned]`, the first half with its sign turned

    @classmethod
    def of(cls, cos: Tensor, sin: Tensor) -> "Halves":
        half = cos.shape[-1] // 2
        return cls(cos[:, None], torch.cat([-sin[:, :half], sin[:, half:]], dim=-1)[:, None])

    def take(self, positions: Tensor) -> "Halves":
        return Halves(self.cos.index_select(0, positions), self.sin.index_select(0, positions))

    def turn(self, heads: Tensor) -> None:
        """Turns `[T, heads, width]` in place."""
        width = self.cos.shape[-1]
        turned = heads if width == heads.shape[-1] else heads[..., :width]
        swapped = turned.view(*turned.shape[:2], 2, -1).flip(2).view(turned.shape)
        turned.mul_(self.cos).addcmul_(swapped, self.sin)


Turn = Pairs | Halves


class Turning:
    """The turns of one kind of layer. `fixed`: that of a position is always the same, and may be kept."""

    def __init__(
        self, compute: Compute, kind: type[Pairs] | type[Halves], *, width: int, fixed: bool, device: torch.device
    ) -> None:
        self.width = width  # how many values of a head turn
        self._compute = compute
        self._kind = kind
        self._fixed = fixed
        self._device = device
        self._table: Turn | None = None
        self._length = 0

    @property
    def in_pairs(self) -> bool:
        return self._kind is Pairs

    def of(self, batch: PagedBatch) -> Turn:
        """Of all tokens of a batch; found out once for all layers."""
        return batch.once((Turning, id(self)), lambda: self._find(batch))

    def _find(self, batch: PagedBatch) -> Turn:
        if not self._fixed:
            return self._make(batch.positions)
        if self._table is None or batch.longest > self._length:
            self._length = max(FIRST_TABLE, 1 << (batch.longest - 1).bit_length())
            self._table = self._make(torch.arange(self._length, device=self._device))
        return self._table.take(batch.positions)

    def _make(self, positions: Tensor) -> Turn:
        cos, sin = self._compute(positions[None])
        return self._kind.of(cos[0], sin[0])
