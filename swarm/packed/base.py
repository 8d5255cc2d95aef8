"""What all packed layers have in common.

Activations of any dtype go in and come out in the same. Torch's integer kernels are fast for bf16 alone (*measured*,
torch 2.13, AVX-512: 50 times slower with fp32), and read the packed weight once for every row; from some tens of rows
on it is faster to unpack the weight into bf16 for the length of the call and use the ordinary product. Both ways sum in
fp32, so they differ by rounding alone.
"""

import sys
from collections.abc import Mapping
from typing import ClassVar, Self

import torch
from torch import Tensor, nn

__all__ = ["NEVER", "PACK_WEIGHTS", "Packed", "rows_of"]

LARGEST_BLOCK = 64  # outputs that a kernel keeps together
NEVER = sys.maxsize
UNPACK_WEIGHTS = 4 << 20  # that are unpacked at once: 8 MiB
PACK_WEIGHTS = 4 << 20  # that are packed at once; it takes some 20 bytes for each


class Packed(nn.Module):
    """A linear layer `[…, in] -> […, out]`; its tensors are buffers, all of them in `tensors`."""

    name: ClassVar[str]
    outputs_at: ClassVar[dict[str, int]]  # the dimension of outputs in each of its tensors, the bias left out
    unpack_rows: int  # from so many on, the weight is unpacked
    orderable: ClassVar[bool] = False  # whether there is `ordered`

    def __init__(self, in_features: int, out_features: int, bias: Tensor | None) -> None:
        super().__init__()
        self.in_features = in_features
        self.out_features = out_features
        self.register_buffer("bias", bias)
        self.bias: Tensor | None

    def forward(self, x: Tensor) -> Tensor:
        y = self._multiplied(x if x.dim() == 2 else x.reshape(-1, self.in_features))
        bias = self._buffers["bias"]  # nn.Module's own look-up takes 0.6 µs
        if bias is not None:
            y = y + bias.to(x.dtype)
        return y if x.dim() == 2 else y.view(*x.shape[:-1], self.out_features)

    def tensors(self) -> dict[str, Tensor]:
        return dict(self.named_buffers(recurse=False))

    def extra_repr(self) -> str:
        return f"{self.in_features} -> {self.out_features}, {self.name}"

    @property
    def joinable(self) -> bool:
        """Whether its tensors and those of others, one behind the other, are those of a layer with all the outputs."""
        return True

    def ordered(self, order: Tensor) -> Self:
        """One with the same outputs in this order `[out]`; copied."""
        raise NotImplementedError

    @classmethod
    def of(cls, weight: Tensor, bias: Tensor | None) -> Self:
        """Packs `weight` `[out, in]`."""
        raise NotImplementedError

    @classmethod
    def restored(cls, tensors: Mapping[str, Tensor]) -> Self:
        """From what `tensors` gave."""
        raise NotImplementedError

    def _multiplied(self, rows: Tensor) -> Tensor:
        """`[rows, in] -> [rows, out]`, without the bias, in the dtype of `rows`."""
        own = rows.to(torch.bfloat16)
        unpacked = own.shape[0] >= self.unpack_rows or own.requires_grad  # the kernels have no backward
        return (self._unpacked_product(own) if unpacked else self._product(own)).to(rows.dtype)

    def _product(self, rows: Tensor) -> Tensor:
        """bf16 `[rows, in] -> [rows, out]`."""
        raise NotImplementedError

    def _unpacked(self, start: int, end: int) -> Tensor:
        """Outputs `[start, end)` of the weight as bf16 `[in, end - start]`."""
        raise NotImplementedError

    def _unpacked_product(self, rows: Tensor) -> Tensor:
        piece = rows_of(UNPACK_WEIGHTS, self.in_features)
        parts = [
            rows @ self._unpacked(start, min(start + piece, self.out_features))
            for start in range(0, self.out_features, piece)
        ]
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)


def rows_of(weights: int, inputs: int) -> int:
    """How many outputs have together about `weights` weights: whole blocks of any kernel's layout."""
    return max(1, weights // (inputs * LARGEST_BLOCK)) * LARGEST_BLOCK
