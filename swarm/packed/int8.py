"""Weights in 8 bits, multiplied by torch's own kernel.

*Rows from which unpacking wins*, measured with one thread on Zen 5 over four shapes of SmolLM2: 20 to 28; with 512 rows
it is 2.6 to 3 times faster.
"""

from collections.abc import Mapping
from typing import ClassVar, Self

import torch
from torch import Tensor

from swarm.packed.base import PACK_WEIGHTS, Packed, rows_of
from swarm.packed.levels import positive

__all__ = ["INPUTS", "Int8Linear"]

INPUTS = 32  # the kernel reads so many at once, beyond the end if need be
UNPACK_ROWS = 24
MOST = 127
BF16_UP = 1 + 2**-8  # so that rounding to bf16 never makes a scale too small


class Int8Linear(Packed):
    """Each output has one scale: the greatest of its weights is 127."""

    name = "int8"
    outputs_at: ClassVar = {"values": 0, "scales": 0}
    unpack_rows = UNPACK_ROWS

    def __init__(self, values: Tensor, scales: Tensor, bias: Tensor | None) -> None:
        """`values` int8 `[out, in]`, `scales` bf16 `[out]`."""
        super().__init__(values.shape[1], values.shape[0], bias)
        self.register_buffer("values", values)
        self.register_buffer("scales", scales)
        self.values: Tensor
        self.scales: Tensor

    @classmethod
    def of(cls, weight: Tensor, bias: Tensor | None) -> Self:
        scales = positive(weight.abs().amax(dim=1).float() / MOST * BF16_UP).to(torch.bfloat16)
        values = torch.empty_like(weight, dtype=torch.int8, memory_format=torch.contiguous_format)
        piece = rows_of(PACK_WEIGHTS, weight.shape[1])
        for part, scale, into in zip(
            torch.split(weight, piece), torch.split(scales, piece), torch.split(values, piece), strict=True
        ):
            into.copy_((part.float() / scale.float()[:, None]).round_())
        return cls(values, scales, bias)

    @classmethod
    def restored(cls, tensors: Mapping[str, Tensor]) -> Self:
        return cls(tensors["values"], tensors["scales"], tensors.get("bias"))

    def _product(self, rows: Tensor) -> Tensor:
        own = self._buffers
        product: Tensor = torch.ops.aten._weight_int8pack_mm(rows, own["values"], own["scales"])
        return product

    def _unpacked_product(self, rows: Tensor) -> Tensor:
        return super()._unpacked_product(rows) * self.scales

    def _unpacked(self, start: int, end: int) -> Tensor:
        return self.values[start:end].to(torch.bfloat16).t()  # whole numbers up to 127 are exact; scales come after
