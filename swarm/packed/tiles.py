"""Weights in 4 bits, multiplied by our own kernel."""

from collections.abc import Mapping
from typing import ClassVar, Self

import torch
from torch import Tensor

from swarm.jit.compiler import LANES
from swarm.packed.base import PACK_WEIGHTS, Packed, rows_of
from swarm.packed.kernel import DTYPES, kernel
from swarm.packed.layout import in_order, in_tiles, out_of_tiles
from swarm.packed.levels import GROUP, has_few_levels, quantized, weights_of

__all__ = ["Int4Tiles"]


class Int4Tiles(Packed):
    """Activations are rounded to 8 bits, a scale for each 32 of a row. A row's outputs are the same to the last bit
    whatever rows it comes with."""

    name = "int4"
    outputs_at: ClassVar = {"tiles": 0}
    unpack_rows = 0  # but for gradients alone
    orderable = True

    def __init__(self, tiles: Tensor, bias: Tensor | None) -> None:
        """`tiles`: see `swarm.packed.layout`."""
        super().__init__(GROUP * tiles.shape[1], LANES * tiles.shape[0], None if bias is None else bias.float())
        self.register_buffer("tiles", tiles)
        self.tiles: Tensor

    @classmethod
    def of(cls, weight: Tensor, bias: Tensor | None) -> Self:
        few = has_few_levels(weight)
        pieces = torch.split(weight, rows_of(PACK_WEIGHTS, weight.shape[1]))
        return cls(torch.cat([in_tiles(*quantized(piece, few)) for piece in pieces]), bias)

    @classmethod
    def restored(cls, tensors: Mapping[str, Tensor]) -> Self:
        return cls(tensors["tiles"], tensors.get("bias"))

    def forward(self, x: Tensor) -> Tensor:
        if x.requires_grad and torch.is_grad_enabled():  # the kernel has no backward
            return super().forward(x)
        y = self._run(x if x.dim() == 2 else x.reshape(-1, self.in_features), None)
        return y if x.dim() == 2 else y.view(*x.shape[:-1], self.out_features)

    def normed(self, x: Tensor, norm: Tensor) -> Tensor:
        """As `forward`, of rows `[rows, in]` that are normed before; `norm` as `Kernel` takes it. For inference."""
        return self._run(x, norm)

    def add(self, x: Tensor, into: Tensor, *, gated: bool = False) -> None:
        """Adds what `forward` gives for rows `[rows, in]` to `into`, contiguous; where they are `gated`, see `Kernel`.
        For inference."""
        if into.dtype in DTYPES and x.dtype == into.dtype:
            self._run(x, None, into, gated=gated)
        else:
            into += self._run(x, None, gated=gated)

    def _run(self, rows: Tensor, norm: Tensor | None, into: Tensor | None = None, *, gated: bool = False) -> Tensor:
        multiply, tiles, bias = kernel(), self._buffers["tiles"], self._buffers["bias"]
        assert multiply is not None  # or `swarm.packing` would not have chosen this kind
        assert tiles is not None
        if rows.dtype in DTYPES:
            return multiply(rows, tiles, norm, into, bias=bias, gated=gated)
        return multiply(rows.float(), tiles, norm, bias=bias, gated=gated).to(rows.dtype)

    def _unpacked(self, start: int, end: int) -> Tensor:
        return weights_of(*out_of_tiles(self.tiles[start // LANES : end // LANES]))

    def ordered(self, order: Tensor) -> Self:
        return type(self)(in_order(self.tiles, order), None if self.bias is None else self.bias[order])
