"""Linear layers in fewer bits: bf16, int8, int4 and nf4 weights that are multiplied as they are (`swarm.packed`)."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from swarm.errors import UsageError
from swarm.opaque import OPAQUE
from swarm.packed.base import Packed
from swarm.packed.bf16 import Bf16Linear
from swarm.packed.bnb import BLOCK, LlmInt8Linear, Nf4Linear, version
from swarm.packed.int4 import Int4Linear
from swarm.packed.int8 import INPUTS, Int8Linear
from swarm.packed.kernel import kernel
from swarm.packed.levels import GROUP
from swarm.packed.tiles import Int4Tiles

__all__ = [
    "CPU",
    "KERNELS",
    "ON_CUDA",
    "PACKED",
    "Packed",
    "fitting",
    "join",
    "made_by",
    "pack",
    "packed_bytes",
    "relative_error",
    "restore",
]

PACKED = ("bf16", "int8", "int4")  # with kernels of their own on a CPU
ON_CUDA = ("int8", "nf4")  # with those of bitsandbytes
KERNELS = 2  # counted up when they become faster: what was measured of others is measured again
KINDS: tuple[type[Packed], ...] = (Bf16Linear, Int8Linear, Int4Linear, Int4Tiles, Nf4Linear)
OUTPUTS = 16  # both int4 kernels take multiples of these
CPU = torch.device("cpu")
ALIGNMENT = 64  # bytes; the int8 kernel of torch crashes at odd addresses


def fitting(precision: str, in_features: int, out_features: int) -> str:
    """`precision`, or the nearest above it whose kernel takes a weight of this shape."""
    if precision == "int4" and (in_features % GROUP or out_features % OUTPUTS):
        precision = "int8"
    if precision == "nf4" and in_features % BLOCK:
        precision = "int8"
    if precision == "int8" and in_features % INPUTS:
        precision = "bf16"
    return precision


def _kind(precision: str) -> type[Packed]:
    match precision:
        case "int4":
            return Int4Linear if kernel() is None else Int4Tiles
        case "int8":
            return Int8Linear
        case "nf4":
            return Nf4Linear
        case _:
            return Bf16Linear


def made_by(precision: str) -> str:
    """What decides how packed weights lie: those of another maker can't be used."""
    kernel = f"torch{torch.__version__}-{torch.backends.cpu.get_cpu_capability().lower()}"
    if precision == "nf4":
        kernel = f"bitsandbytes{version()}-{kernel}"
    return f"{_kind(precision).__name__}-{kernel}".lower()


@torch.no_grad()
def pack(linear: nn.Linear, precision: str) -> Packed:
    """A module with the weights of `linear`, on the CPU, in `precision`, or in the nearest that fits its shape."""
    if precision not in {*PACKED, *ON_CUDA}:
        raise UsageError(f"weights are packed as {', '.join(PACKED)}, not '{precision}'")
    kind = _kind(fitting(precision, linear.in_features, linear.out_features))
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


def restore(tensors: Mapping[str, Tensor], device: torch.device = CPU) -> Packed:
    """The module whose `tensors` these are, to compute on `device`. Raises ValueError when they are no module's."""
    tensors = {name: _placed(tensor, device) for name, tensor in tensors.items()}
    for kind in KINDS:
        if kind.outputs_at.keys() <= tensors.keys():
            on_cuda = kind is Int8Linear and device.type == "cuda"
            return (LlmInt8Linear if on_cuda else kind).restored(tensors)
    raise ValueError(f"no packed layer has the tensors {', '.join(tensors) or 'none'}")


def _placed(tensor: Tensor, device: torch.device) -> Tensor:
    if device.type != "cpu":
        return _plain(tensor).to(device)
    return tensor if tensor.layout == OPAQUE or tensor.data_ptr() % ALIGNMENT == 0 else tensor.clone()


def packed_bytes(precision: str, in_features: int, out_features: int) -> int:
    """What `pack` makes of a weight of this shape, without its bias."""
    weights = in_features * out_features
    match fitting(precision, in_features, out_features):
        case "int4":
            return weights // 2 + 4 * weights // GROUP
        case "nf4":
            return weights // 2 + 4 * weights // BLOCK
        case "int8":
            return weights + 2 * out_features
        case _:
            return 2 * weights


@torch.no_grad()
def relative_error(weight: Tensor, precision: str) -> float:
    """How far packing moves `weight` `[out, in]`: the norm of the difference over the norm of the weight."""
    fits = fitting(precision, weight.shape[1], weight.shape[0])
    kind = Int4Linear if fits == "int4" else _kind(fits)  # both of four bits have the same weights; one is compiled
    product = kind.of(weight.float(), None)(torch.eye(weight.shape[1]))
    return float((product.t() - weight).norm() / weight.norm())
