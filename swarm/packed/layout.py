"""How 4-bit weights lie for our own product: in tiles of 16 outputs, a vector's lanes.

    tiles uint8 [out / 16, in / 32, 320]

For each group of 32 inputs, four lines of 64 bytes of levels, then one of scales and zeros. Byte `4 * lane + i` of line
`l` holds two levels of the tile's output `lane`: of input `8 * l + i` in its low bits, of `8 * l + 4 + i` in its high
bits. The last line has a scale and a zero in bf16 for each lane. A weight is `zero + scale * (level - 8)`.
"""

import torch
from torch import Tensor

from swarm.jit.compiler import LANES, LINE

__all__ = ["FACTORS_BYTES", "GROUP_BYTES", "LEVELS_BYTES", "in_order", "in_tiles", "out_of_tiles"]

LINES = 4  # of levels
LEVELS_BYTES = LINES * LINE  # of a group
GROUP_BYTES = LEVELS_BYTES + LINE
FACTORS_BYTES = 12  # what goes with 32 activations that are rounded to a byte each


def in_tiles(levels: Tensor, scales: Tensor) -> Tensor:
    """The tiles of levels `[out, in]` from 0 to 15, and bf16 scales with zeros `[in / 32, out, 2]`."""
    groups, count = scales.shape[0], len(levels) // LANES
    halves = levels.to(torch.uint8).view(count, LANES, groups, LINES, 2, 4)
    pairs = halves[:, :, :, :, 0] | halves[:, :, :, :, 1] << 4  # [tile, lane, group, line, input]
    lines = pairs.permute(0, 2, 3, 1, 4).reshape(count, groups, LEVELS_BYTES)
    last = scales.view(groups, count, LANES, 2).transpose(0, 1).contiguous().view(torch.uint8)
    return torch.cat((lines, last.view(count, groups, LINE)), dim=2)


def out_of_tiles(tiles: Tensor) -> tuple[Tensor, Tensor]:
    """The levels and scales of some tiles, as `in_tiles` takes them."""
    count, groups, _ = tiles.shape
    pairs = tiles[:, :, :LEVELS_BYTES].reshape(count, groups, LINES, LANES, 4)
    levels = torch.stack((pairs & 15, pairs >> 4), dim=3)  # [tile, group, line, half, lane, input]
    last = tiles[:, :, LEVELS_BYTES:].contiguous().view(torch.bfloat16).view(count, groups, LANES, 2)
    return levels.permute(0, 4, 1, 2, 3, 5).reshape(count * LANES, -1), last.transpose(0, 1).reshape(groups, -1, 2)


def in_order(tiles: Tensor, order: Tensor) -> Tensor:
    """Tiles of the same outputs, in this order `[out]`."""
    count, groups, _ = tiles.shape
    lanes = tiles.view(torch.int32).view(count, groups, LINES + 1, LANES)  # a lane's part of a line
    outputs = lanes.permute(0, 3, 1, 2).reshape(count * LANES, groups, LINES + 1).index_select(0, order)
    ordered = outputs.view(count, LANES, groups, LINES + 1).permute(0, 2, 3, 1).contiguous()
    return ordered.view(torch.uint8).view(tiles.shape)
