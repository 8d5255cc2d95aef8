"""How weights lie in memory. Values stay the same, to the last bit.

*Measured* (docs/performance.md): with one or two rows, torch 2.13's fp32 product on the CPU takes 0.6 to 0.85 of the
time when the weight `[out, in]` is stored column by column; with more rows both are alike.
"""

import ctypes
import sys

import torch
from torch import nn

__all__ = [
    "ALIGNMENT",
    "align",
    "give_back_memory",
    "let_go_of_files",
    "let_go_of_weights",
    "store_by_columns",
]

ALIGNMENT = 64  # bytes, a line of cache


def store_by_columns(module: nn.Module) -> None:
    """Store the weight of every fp32 `nn.Linear` on the CPU in `module` column by column. One is copied at a time."""
    for linear in module.modules():
        if isinstance(linear, nn.Linear):
            weight = linear.weight
            if weight.dtype == torch.float32 and weight.device.type == "cpu" and weight.is_contiguous():
                weight.data = weight.data.t().contiguous().t()


def let_go_of_files(module: nn.Module) -> None:
    """Copy norms and biases. Weights are views of a mapped file, and one view that is left, however small, keeps all of
    the file in memory that was ever read. What stands for weights that are not here is left as it is."""
    for parameter in module.parameters():
        if parameter.dim() < 2 and parameter.is_contiguous():
            parameter.data = parameter.data.clone()


def give_back_memory() -> None:
    """Returns what was freed to the system, where the C library can: weights that were copied leave holes in its heap,
    57 MiB of them after 30 blocks of SmolLM2."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)


def align(module: nn.Module) -> None:
    """Copy plain weights that lie at odd addresses, as in some files: how torch's products round depends on it."""
    for parameter in module.parameters():
        if parameter.layout == torch.strided and parameter.data_ptr() % ALIGNMENT:
            parameter.data = parameter.data.clone()


def let_go_of_weights(module: nn.Module) -> None:
    """Take all tensors out of a module that is not needed any more: it may refer to itself, and would keep them until
    Python looks for such things."""
    for part in module.modules():
        part._parameters.clear()
        part._buffers.clear()
