"""Weights as 16 levels a group of 32 inputs: each is near `zero + scale * (level - 8)`.

A group's least and greatest value are levels. Between them are 15 steps; or fewer, where the weight was in some 4-bit
format before, whose groups need not use all levels: then its values are met exactly.
"""

import torch
from torch import Tensor

__all__ = ["GROUP", "MIDDLE", "has_few_levels", "positive", "quantized", "weights_of"]

GROUP = 32  # as in the Q4 formats of GGUF
MOST, MIDDLE = 15, 8
LEAST_SCALE = 1e-30
COARSE_STEPS = tuple(range(MOST, 7, -1))  # between a group's least and greatest value; 7 are also 14
ON_LEVEL = 0.02  # of a step: values as near as this to levels were made of them
SAMPLE_ROWS = 64  # of a weight: they show whether it had 4 bits before
MOSTLY = 0.9


def positive(scales: Tensor) -> Tensor:
    return scales.clamp_min(LEAST_SCALE)


def _groups(weight: Tensor) -> Tensor:
    """`[out, in / 32, 32]`."""
    return weight.float().view(weight.shape[0], -1, GROUP)


def quantized(weight: Tensor, few: bool) -> tuple[Tensor, Tensor]:
    """Of `weight` `[out, in]`: levels `[out, in]` from 0 to 15, and bf16 scales with zeros `[in / 32, out, 2]`."""
    groups = _groups(weight)
    low = groups.amin(dim=2)
    width = groups.amax(dim=2) - low
    steps = _steps(groups, low, width) if few else torch.full_like(low, MOST)
    scales = positive(width / steps).to(torch.bfloat16).float()
    zeros = (low + MIDDLE * width / steps).to(torch.bfloat16).float()
    levels = ((groups - zeros[..., None]) / scales[..., None]).add_(MIDDLE).round_().clamp_(0, MOST)
    pairs = torch.stack((scales, zeros), dim=2).transpose(0, 1).to(torch.bfloat16).contiguous()
    return levels.flatten(1), pairs


def weights_of(levels: Tensor, scales: Tensor) -> Tensor:
    """Of what `quantized` gives, with levels of any dtype: bf16 `[in, out]`."""
    grouped = levels.t().to(torch.bfloat16).sub_(MIDDLE).view(-1, GROUP, len(levels))
    scale, zero = (scales[:, None, :, which].contiguous() for which in (0, 1))  # else 3 times slower
    return torch.addcmul(zero, grouped, scale, out=grouped).view(-1, len(levels))


def _steps(groups: Tensor, low: Tensor, width: Tensor) -> Tensor:
    """Into how many steps each group's width falls: of those that its values fit, the most; 15 where none fits."""
    steps = torch.full_like(low, MOST)
    for count in reversed(COARSE_STEPS):
        steps = torch.where(_fits(groups, low, width, count), count, steps)
    return steps


def _fits(groups: Tensor, low: Tensor, width: Tensor, count: int) -> Tensor:
    """Which groups have all their values on `count + 1` levels."""
    places = (groups - low[..., None]) / positive(width / count)[..., None]
    return (places - places.round()).abs_().amax(dim=2) < ON_LEVEL


def has_few_levels(weight: Tensor) -> bool:
    """Whether a sample of the groups of `weight` looks as if it had been in some 4-bit format whose groups need not
    use all 16 levels."""
    groups = _groups(weight[:: max(1, weight.shape[0] // SAMPLE_ROWS)])
    low = groups.amin(dim=2)
    width = groups.amax(dim=2) - low
    if bool(_fits(groups, low, width, MOST).all()):
        return False  # no need to look for others
    fits = torch.stack([_fits(groups, low, width, count) for count in COARSE_STEPS]).any(dim=0)
    return bool(fits.float().mean() > MOSTLY)
