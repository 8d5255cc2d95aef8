"""Weights in 4 bits, multiplied by torch's own kernel: where `swarm.packed.tiles` can't be used.

*Rows from which unpacking wins*, measured with one thread on Zen 5 over four shapes of SmolLM2: 60 to 75; with 512 rows
it is 2 to 2.3 times faster.
"""

from collections.abc import Mapping
from functools import cache
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from swarm.packed.base import LARGEST_BLOCK, NEVER, PACK_WEIGHTS, Packed, rows_of
from swarm.packed.levels import GROUP, has_few_levels, quantized, weights_of

__all__ = ["Int4Linear"]

UNPACK_ROWS = 64

_kernels: Any = torch.ops.aten


class Int4Linear(Packed):
    """Each group of 32 inputs of an output has 16 levels, `zero + scale * (level - 8)`."""

    name = "int4"
    outputs_at: ClassVar = {"levels": 0, "scales": 1}

    def __init__(self, levels: Tensor, scales: Tensor, bias: Tensor | None) -> None:
        """`levels` uint8 `[out, in / 2]`, laid out for the kernel; `scales` bf16 `[in / 32, out, 2]`, with zeros."""
        super().__init__(2 * levels.shape[1], levels.shape[0], bias)
        self.register_buffer("levels", levels)
        self.register_buffer("scales", scales)
        self.levels: Tensor
        self.scales: Tensor
        block = _block_of_layout()
        self._block = block if block and self.out_features % block == 0 else None
        self.unpack_rows = UNPACK_ROWS if self._block else NEVER

    @property
    def joinable(self) -> bool:
        return self._block is not None

    @classmethod
    def of(cls, weight: Tensor, bias: Tensor | None) -> Self:
        few = has_few_levels(weight)
        parts = [quantized(part, few) for part in torch.split(weight, rows_of(PACK_WEIGHTS, weight.shape[1]))]
        levels = [_kernels._convert_weight_to_int4pack_for_cpu(part.to(torch.int32), 1) for part, _ in parts]
        return cls(torch.cat(levels), torch.cat([scales for _, scales in parts], dim=1), bias)

    @classmethod
    def restored(cls, tensors: Mapping[str, Tensor]) -> Self:
        return cls(tensors["levels"], tensors["scales"], tensors.get("bias"))

    def _product(self, rows: Tensor) -> Tensor:
        own = self._buffers
        product: Tensor = _kernels._weight_int4pack_mm_for_cpu(rows, own["levels"], GROUP, own["scales"])
        return product

    def _unpacked(self, start: int, end: int) -> Tensor:
        if self._block is None:
            return self._product(torch.eye(self.in_features, dtype=torch.bfloat16))[:, start:end]
        pairs = self.levels.view(-1, self.in_features, self._block // 2)[start // self._block : -(-end // self._block)]
        levels = torch.stack((pairs & 15, pairs >> 4), dim=1).transpose(2, 3)  # [block, half, output, in]
        return weights_of(levels.reshape(-1, self.in_features), self.scales[:, start:end])


@cache
def _block_of_layout() -> int | None:
    """How torch lays 4-bit weights out on this processor: in blocks of so many outputs, the first half of which is in
    the low bits. None: otherwise, and only its kernel can read them."""
    levels = (torch.arange(2 * LARGEST_BLOCK * GROUP) * 7 % 16).view(-1, GROUP)
    levels = (levels + torch.arange(2 * LARGEST_BLOCK)[:, None] // 5) % 16
    packed = _kernels._convert_weight_to_int4pack_for_cpu(levels.to(torch.int32), 1).flatten()
    for block in (LARGEST_BLOCK, LARGEST_BLOCK // 2):
        pairs = packed.view(-1, GROUP, block // 2)
        both = torch.cat((pairs & 15, pairs >> 4), dim=2)  # [blocks, in, block]
        if torch.equal(both.transpose(1, 2).reshape(-1, GROUP).to(levels.dtype), levels):
            return block
    return None
