"""Weights in bf16."""

from collections.abc import Mapping
from typing import ClassVar, Self

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from swarm.onednn import PackedLinear, packs
from swarm.opaque import OPAQUE, adopts
from swarm.packed.base import Packed

__all__ = ["Bf16Linear"]


class Bf16Linear(Packed):
    """In the order in which oneDNN reads it, where there is oneDNN."""

    name = "bf16"
    outputs_at: ClassVar = {"weight": 0}
    unpack_rows = 0

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        """`weight` bf16 `[out, in]`, plain or as oneDNN has packed it."""
        super().__init__(weight.shape[1], weight.shape[0], bias)
        self.linear = _ordinary(weight)

    @classmethod
    def of(cls, weight: Tensor, bias: Tensor | None) -> Self:
        return cls(weight.to(torch.bfloat16), bias)

    @classmethod
    def restored(cls, tensors: Mapping[str, Tensor]) -> Self:
        return cls(tensors["weight"], tensors.get("bias"))

    def tensors(self) -> dict[str, Tensor]:
        linear = self.linear
        weight = linear.packed if isinstance(linear, PackedLinear) and adopts() else linear.weight
        return super().tensors() | {"weight": weight.detach()}

    def _unpacked_product(self, rows: Tensor) -> Tensor:
        if rows.requires_grad:
            return F.linear(rows, self.linear.weight)
        product: Tensor = self.linear(rows)
        return product


def _ordinary(weight: Tensor) -> nn.Linear | PackedLinear:
    """The product with `weight`, packed where it can be."""
    if weight.layout == OPAQUE:
        return PackedLinear.restored(weight, None)
    plain = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    plain.weight = nn.Parameter(weight, requires_grad=False)
    return PackedLinear(plain) if packs(weight) else plain
