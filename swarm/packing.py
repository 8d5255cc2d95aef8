"""Linear layers in fewer bits: bf16, int8 and int4 weights that torch's own kernels multiply with.

Activations of any dtype go in and come out in the same; inside they are bf16, since the integer kernels of torch are
fast for nothing else (*measured*, torch 2.13, AVX-512: 50 times slower with fp32). A kernel reads the packed weight
once for every row; from some tens of rows on it is faster to unpack the weight into bf16 for the length of the call and
use the ordinary product. Both ways sum in fp32, so they differ by rounding alone.

*Rows from which unpacking wins*, measured with one thread on Zen 5 over four shapes of SmolLM2: int8 20 to 28 (with
512 rows 2.6 to 3 times faster), int4 60 to 75 (with 512 rows 2 to 2.3 times faster).
"""

import sys
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any, ClassVar, Self

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from swarm.errors import UsageError
from swarm.onednn import PackedLinear, packs
from swarm.opaque import OPAQUE, adopts

__all__ = ["PACKED", "Packed", "fitting", "join", "pack", "packed_bytes", "relative_error", "restore"]

GROUP = 32  # inputs that share a scale and a zero in int4: as in the Q4 formats of GGUF
KERNEL_INPUTS = 32  # the integer kernels read so many inputs at once, beyond the end if need be
KERNEL_OUTPUTS = 16  # the int4 kernel takes multiples of these
ALIGNMENT = 64  # bytes; the int8 kernel of torch crashes at odd addresses
LARGEST_BLOCK = 64  # outputs that the int4 kernel keeps together
INT8_UNPACK_ROWS, INT4_UNPACK_ROWS, NEVER = 24, 64, sys.maxsize
UNPACK_WEIGHTS = 4 << 20  # that are unpacked at once: 8 MiB
PACK_WEIGHTS = 4 << 20  # that are packed at once; it takes some 20 bytes for each
INT8_MOST, INT4_MOST, INT4_MIDDLE = 127, 15, 8
LEAST_SCALE = 1e-30
BF16_UP = 1 + 2**-8  # so that rounding to bf16 never makes a scale too small
COARSE_STEPS = tuple(range(INT4_MOST, 7, -1))  # between a group's least and greatest value; 7 are also 14
ON_LEVEL = 0.02  # of a step: values as near as this to levels were made of them
SAMPLE_ROWS = 64  # of a weight: they show whether it had 4 bits before
MOSTLY = 0.9

_kernels: Any = torch.ops.aten


class Packed(nn.Module):
    """A linear layer `[…, in] -> […, out]`; its tensors are buffers, all of them in `tensors`."""

    name: ClassVar[str]
    outputs_at: ClassVar[dict[str, int]]  # the dimension of outputs in each of its tensors, the bias left out
    unpack_rows: int  # from so many on, the weight is unpacked

    def __init__(self, in_features: int, out_features: int, bias: Tensor | None) -> None:
        super().__init__()
        self.in_features = in_features
        self.out_features = out_features
        self.register_buffer("bias", bias)
        self.bias: Tensor | None

    def forward(self, x: Tensor) -> Tensor:
        rows = (x if x.dim() == 2 else x.reshape(-1, self.in_features)).to(torch.bfloat16)
        unpacked = rows.shape[0] >= self.unpack_rows or rows.requires_grad  # the kernels have no backward
        y = (self._unpacked_product(rows) if unpacked else self._product(rows)).to(x.dtype)
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

    @classmethod
    def of(cls, weight: Tensor, bias: Tensor | None) -> Self:
        """Packs `weight` `[out, in]`."""
        raise NotImplementedError

    @classmethod
    def restored(cls, tensors: Mapping[str, Tensor]) -> Self:
        """From what `tensors` gave."""
        raise NotImplementedError

    def _product(self, rows: Tensor) -> Tensor:
        """bf16 `[rows, in] -> [rows, out]`."""
        raise NotImplementedError

    def _unpacked(self, start: int, end: int) -> Tensor:
        """Outputs `[start, end)` of the weight as bf16 `[in, end - start]`."""
        raise NotImplementedError

    def _unpacked_product(self, rows: Tensor) -> Tensor:
        piece = _rows_of(UNPACK_WEIGHTS, self.in_features)
        parts = [
            rows @ self._unpacked(start, min(start + piece, self.out_features))
            for start in range(0, self.out_features, piece)
        ]
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)


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


class Int8Linear(Packed):
    """Each output has one scale: the greatest of its weights is 127."""

    name = "int8"
    outputs_at: ClassVar = {"values": 0, "scales": 0}
    unpack_rows = INT8_UNPACK_ROWS

    def __init__(self, values: Tensor, scales: Tensor, bias: Tensor | None) -> None:
        """`values` int8 `[out, in]`, `scales` bf16 `[out]`."""
        super().__init__(values.shape[1], values.shape[0], bias)
        self.register_buffer("values", values)
        self.register_buffer("scales", scales)
        self.values: Tensor
        self.scales: Tensor

    @classmethod
    def of(cls, weight: Tensor, bias: Tensor | None) -> Self:
        scales = _positive(weight.abs().amax(dim=1).float() / INT8_MOST * BF16_UP).to(torch.bfloat16)
        values = torch.empty_like(weight, dtype=torch.int8, memory_format=torch.contiguous_format)
        piece = _rows_of(PACK_WEIGHTS, weight.shape[1])
        for part, scale, into in zip(_split(weight, piece), _split(scales, piece), _split(values, piece), strict=True):
            into.copy_((part.float() / scale.float()[:, None]).round_())
        return cls(values, scales, bias)

    @classmethod
    def restored(cls, tensors: Mapping[str, Tensor]) -> Self:
        return cls(tensors["values"], tensors["scales"], tensors.get("bias"))

    def _product(self, rows: Tensor) -> Tensor:
        own = self._buffers
        product: Tensor = _kernels._weight_int8pack_mm(rows, own["values"], own["scales"])
        return product

    def _unpacked_product(self, rows: Tensor) -> Tensor:
        return super()._unpacked_product(rows) * self.scales

    def _unpacked(self, start: int, end: int) -> Tensor:
        return self.values[start:end].to(torch.bfloat16).t()  # whole numbers up to 127 are exact; scales come after


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
        self.unpack_rows = INT4_UNPACK_ROWS if self._block else NEVER

    @property
    def joinable(self) -> bool:
        return self._block is not None

    @classmethod
    def of(cls, weight: Tensor, bias: Tensor | None) -> Self:
        few = _has_few_levels(weight)
        parts = [_quantized(part, few) for part in _split(weight, _rows_of(PACK_WEIGHTS, weight.shape[1]))]
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
        half, inputs = self._block // 2, self.in_features
        pairs = self.levels.view(-1, inputs, half)[start // self._block : -(-end // self._block)].transpose(0, 1)
        weight = torch.empty(inputs, pairs.shape[1], 2, half, dtype=torch.bfloat16)
        weight[:, :, 0] = (pairs & 15).view(torch.int8) - INT4_MIDDLE
        weight[:, :, 1] = (pairs >> 4).view(torch.int8) - INT4_MIDDLE
        grouped = weight.view(-1, GROUP, end - start)
        scales, zeros = (self.scales[:, None, start:end, which].contiguous() for which in (0, 1))  # else 3 times slower
        return torch.addcmul(zeros, grouped, scales, out=grouped).view(inputs, -1)


def fitting(precision: str, in_features: int, out_features: int) -> str:
    """`precision`, or the nearest above it whose kernel takes a weight of this shape."""
    if precision == "int4" and (in_features % GROUP or out_features % KERNEL_OUTPUTS):
        precision = "int8"
    if precision == "int8" and in_features % KERNEL_INPUTS:
        precision = "bf16"
    return precision


_KINDS: dict[str, type[Packed]] = {kind.name: kind for kind in (Bf16Linear, Int8Linear, Int4Linear)}
PACKED = tuple(_KINDS)


@torch.no_grad()
def pack(linear: nn.Linear, precision: str) -> Packed:
    """A module with the weights of `linear`, on the CPU, in `precision`, or in the nearest that fits its shape."""
    if precision not in _KINDS:
        raise UsageError(f"weights are packed as {', '.join(_KINDS)}, not '{precision}'")
    kind = _KINDS[fitting(precision, linear.in_features, linear.out_features)]
    return kind.of(linear.weight.detach(), None if linear.bias is None else linear.bias.detach().clone())


def join(linears: Sequence[Packed]) -> Packed | None:
    """One layer with the outputs of all of them, which have the same inputs; None where packed weights can't be joined.
    They are copied."""
    kind = type(linears[0])
    if not all(type(linear) is kind and linear.joinable for linear in linears):
        return None
    each = [linear.tensors() for linear in linears]
    biased = any("bias" in tensors for tensors in each)
    names = set(each[0]) - {"bias"}
    whole = {name: torch.cat([_plain(tensors[name]) for tensors in each], dim=kind.outputs_at[name]) for name in names}
    if biased:
        pairs = zip(linears, each, strict=True)
        like = next(tensors["bias"] for tensors in each if "bias" in tensors)
        whole["bias"] = torch.cat(
            [tensors.get("bias", like.new_zeros(linear.out_features)) for linear, tensors in pairs]
        )
    return kind.restored(whole)


def _plain(tensor: Tensor) -> Tensor:
    return tensor.to_dense() if tensor.layout == OPAQUE else tensor


def restore(tensors: Mapping[str, Tensor]) -> Packed:
    """The module whose `tensors` these are. Raises ValueError when they are no module's."""
    tensors = {
        name: tensor if tensor.layout == OPAQUE or tensor.data_ptr() % ALIGNMENT == 0 else tensor.clone()
        for name, tensor in tensors.items()
    }
    for kind, name in ((Bf16Linear, "weight"), (Int8Linear, "values"), (Int4Linear, "levels")):
        if name in tensors:
            return kind.restored(tensors)
    raise ValueError(f"no packed layer has the tensors {', '.join(tensors) or 'none'}")


def packed_bytes(precision: str, in_features: int, out_features: int) -> int:
    """What `pack` makes of a weight of this shape, without its bias."""
    weights = in_features * out_features
    match fitting(precision, in_features, out_features):
        case "int4":
            return weights // 2 + 4 * weights // GROUP
        case "int8":
            return weights + 2 * out_features
        case _:
            return 2 * weights


def relative_error(weight: Tensor, precision: str) -> float:
    """How far packing moves `weight` `[out, in]`: the norm of the difference over the norm of the weight."""
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    linear.weight = nn.Parameter(weight.float(), requires_grad=False)
    with torch.no_grad():
        product = pack(linear, precision)(torch.eye(weight.shape[1]))
        return float((product.t() - weight).norm() / weight.norm())


# --- int8 and int4 by values -----------------------------------------------------------------------------------------


def _positive(scales: Tensor) -> Tensor:
    return scales.clamp_min(LEAST_SCALE)


def _split(tensor: Tensor, size: int) -> tuple[Tensor, ...]:
    return torch.split(tensor, size)


def _groups(weight: Tensor) -> Tensor:
    """`[out, in / 32, 32]`."""
    return weight.float().view(weight.shape[0], -1, GROUP)


def _rows_of(weights: int, inputs: int) -> int:
    """How many outputs have together about `weights` weights: whole blocks of any kernel's layout."""
    return max(1, weights // (inputs * LARGEST_BLOCK)) * LARGEST_BLOCK


def _quantized(weight: Tensor, few: bool) -> tuple[Tensor, Tensor]:
    """Levels `[out, in]` from 0 to 15, and scales with zeros as the kernel wants them, of `weight` `[out, in]`."""
    groups = _groups(weight)
    low = groups.amin(dim=2)
    width = groups.amax(dim=2) - low
    steps = _steps(groups, low, width) if few else torch.full_like(low, INT4_MOST)
    scales = _positive(width / steps).to(torch.bfloat16).float()
    zeros = (low + INT4_MIDDLE * width / steps).to(torch.bfloat16).float()
    levels = ((groups - zeros[..., None]) / scales[..., None]).add_(INT4_MIDDLE).round_().clamp_(0, INT4_MOST)
    pairs = torch.stack((scales, zeros), dim=2).transpose(0, 1).to(torch.bfloat16).contiguous()
    return levels.flatten(1), pairs


def _steps(groups: Tensor, low: Tensor, width: Tensor) -> Tensor:
    """Into how many steps each group's width falls: of those that its values fit, the most; 15 where none fits."""
    steps = torch.full_like(low, INT4_MOST)
    for count in reversed(COARSE_STEPS):
        steps = torch.where(_fits(groups, low, width, count), count, steps)
    return steps


def _fits(groups: Tensor, low: Tensor, width: Tensor, count: int) -> Tensor:
    """Which groups have all their values on `count + 1` levels."""
    places = (groups - low[..., None]) / _positive(width / count)[..., None]
    return (places - places.round()).abs_().amax(dim=2) < ON_LEVEL


def _has_few_levels(weight: Tensor) -> bool:
    """Whether a sample of the groups of `weight` looks as if it had been in some 4-bit format whose groups need not
    use all 16 levels."""
    groups = _groups(weight[:: max(1, weight.shape[0] // SAMPLE_ROWS)])
    low = groups.amin(dim=2)
    width = groups.amax(dim=2) - low
    if bool(_fits(groups, low, width, INT4_MOST).all()):
        return False  # no need to look for others
    fits = torch.stack([_fits(groups, low, width, count) for count in COARSE_STEPS]).any(dim=0)
    return bool(fits.float().mean() > MOSTLY)


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
