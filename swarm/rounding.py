"""Rows of numbers in few bits: blocks of them share a scale, and each is a whole number of levels.

A body is all scales (one for each block of each row), then all values, row after row; the last block of a row may be
shorter. NaN and infinity come out as NaN, so that a reader notices.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Rounding", "as_bytes"]

NIBBLE = 8  # what is added to a level so that four bits hold it


@dataclass(frozen=True, slots=True)
class Rounding:
    """`block` values share a scale of dtype `scale`, and are whole numbers in -`levels`..`levels` of `bits`, 8 or 4."""

    block: int
    levels: int
    scale: torch.dtype
    bits: int = 8

    def row_bytes(self, width: int) -> int:
        return -(-width * self.bits // 8) + self._blocks(width) * self.scale.itemsize

    def encode(self, rows: Tensor) -> bytes:
        """`rows` `[n, width]`, any float dtype and device."""
        count, width = rows.shape
        blocks = self._blocks(width)
        values = rows.detach().to(device="cpu", dtype=torch.float32)
        padded = torch.nn.functional.pad(values, (0, blocks * self.block - width)).view(count, blocks, self.block)
        scales = self._scales(padded.abs().amax(dim=-1, keepdim=True))
        divisors = torch.where(scales > 0, scales.float(), 1.0)  # also where the scale is NaN: the product is NaN again
        exact = (padded / divisors).round_().clamp_(-self.levels, self.levels).nan_to_num_(nan=0.0)
        levels = exact.to(torch.int8).view(count, blocks * self.block)[:, :width]
        return b"".join((as_bytes(scales), as_bytes(levels if self.bits == 8 else _paired(levels))))

    def decode(self, body: Tensor, count: int, width: int) -> Tensor:
        """fp32 `[count, width]` of `body`, uint8 of the right size in own memory."""
        if not count:
            return torch.empty(0, width)
        cut = count * self._blocks(width) * self.scale.itemsize
        scales = body[:cut].view(self.scale).view(count, -1).float().repeat_interleave(self.block, dim=1)[:, :width]
        packed = body[cut:].view(count, -1)
        levels = packed.view(torch.int8) if self.bits == 8 else _parted(packed, width)
        return levels.float().mul_(scales)

    def _scales(self, peaks: Tensor) -> Tensor:
        # A finite peak beyond what scales reach is cut, not made infinite; NaN and infinity stay as they are.
        reach = torch.finfo(self.scale).max
        return torch.where(peaks.isfinite(), (peaks / self.levels).clamp(max=reach), peaks).to(self.scale)

    def _blocks(self, width: int) -> int:
        return -(-width // self.block)


def as_bytes(values: Tensor) -> memoryview:
    """A tensor on the CPU as it lies in memory."""
    return values.contiguous().view(torch.uint8).numpy().reshape(-1).data


def _paired(levels: Tensor) -> Tensor:
    """Two levels a byte: the first of a pair is in the low half."""
    shifted = torch.nn.functional.pad(levels + NIBBLE, (0, levels.shape[1] % 2)).to(torch.uint8)
    return shifted[:, ::2] | (shifted[:, 1::2] << 4)


def _parted(packed: Tensor, width: int) -> Tensor:
    pairs = torch.stack((packed & 15, packed >> 4), dim=-1).view(len(packed), -1)
    return pairs[:, :width].to(torch.int8) - NIBBLE
