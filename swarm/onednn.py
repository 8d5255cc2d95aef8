"""Products with weights that oneDNN has put into the order in which its kernels read them.

*Measured* (30 blocks of SmolLM2, one core with AVX-512, floor of reading the weights 11.4 ms): fp32 takes 13.4, 14.9,
25 and 67 ms with 1, 4, 16 and 64 rows, where torch's own product takes 25.9, 36, 55 and 150; bf16 takes 7.9, 8.7, 14.7
and 36, where torch takes 15.2, 15.6, 21.5 and 42. The packed weight takes as much memory as the plain one.
"""

import functools
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from swarm.layout import store_by_columns

__all__ = ["PackedLinear", "pack_linears", "packs"]

ROWS = 16  # what the order is chosen for: that for one row is half as fast with others, and no faster with one
DTYPES = (torch.float32, torch.bfloat16)
TOLERANCE = 1e-2  # relative; bf16 rounds to 4e-3


class PackedLinear(nn.Module):
    """`x @ weight.T + bias` as `nn.Linear` computes it, for inference on the CPU. Raises ValueError where `packs` says
    no. The weight of the `nn.Linear` is not kept."""

    def __init__(self, source: nn.Linear) -> None:
        super().__init__()
        if not packs(source.weight):
            raise ValueError(f"oneDNN can't pack {source.weight.dtype} on {source.weight.device} here")
        self._set(_pack(source.weight.detach()), source.bias)

    @classmethod
    def restored(cls, packed: Tensor, bias: Tensor | None) -> Self:
        """From another one's `packed` and bias."""
        module = cls.__new__(cls)
        nn.Module.__init__(module)
        module._set(packed, None if bias is None else nn.Parameter(bias, requires_grad=False))
        return module

    def _set(self, packed: Tensor, bias: nn.Parameter | None) -> None:
        self.out_features, self.in_features = packed.shape
        self.dtype = packed.dtype
        self.bias = bias
        self.packed = nn.Parameter(packed, requires_grad=False)
        self._operands = (self.packed, self.bias)  # found without nn.Module's look-up, which is slow
        self._source = packed  # it may keep the memory alive in which the parameter lies

    @property
    def weight(self) -> Tensor:
        """A plain copy, `[out, in]`, for code that looks at weights."""
        return self.packed.to_dense()

    def forward(self, x: Tensor) -> Tensor:
        return _product(x, *self._operands)


def pack_linears(module: nn.Module) -> None:
    """Replaces every `nn.Linear` below `module` by a packed one; where this can't be, fp32 weights are stored by
    columns. One is copied at a time."""
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is nn.Linear and packs(child.weight):
                setattr(parent, name, PackedLinear(child).train(child.training))
    store_by_columns(module)


def packs(weight: Tensor) -> bool:
    """Whether such a weight can be packed on this machine."""
    return weight.device.type == "cpu" and weight.dtype in DTYPES and _works(weight.dtype)


@functools.cache
def _works(dtype: torch.dtype) -> bool:
    """Tried once, since it depends on the processor and on how torch was built."""
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return False
    weight, x = (torch.linspace(-1, 1, n * 32).view(n, 32).to(dtype) for n in (48, 3))
    try:
        with torch.inference_mode():
            result = _product(x, _pack(weight), None)
    except (RuntimeError, AttributeError):  # not built in, or not for this processor
        return False
    expected = linear(x.double(), weight.double())
    return bool((result.double() - expected).norm() <= TOLERANCE * expected.norm())


def _pack(weight: Tensor) -> Tensor:
    packed: Any = torch.ops.mkldnn._reorder_linear_weight(weight, ROWS)
    assert isinstance(packed, Tensor)
    return packed


def _product(x: Tensor, packed: Tensor, bias: Tensor | None) -> Tensor:
    result: Any = torch.ops.mkldnn._linear_pointwise(x, packed, bias, "none", [], "")
    assert isinstance(result, Tensor)
    return result
