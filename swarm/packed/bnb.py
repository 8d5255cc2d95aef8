"""Weights in fewer bits on CUDA devices, multiplied by bitsandbytes: 4 bits as NormalFloat (Dettmers et al. 2023,
QLoRA, section 3), 8 bits as in LLM.int8 (Dettmers et al. 2022, section 3).

Weights are packed on the CPU, and tensors are the same there and on the device. bitsandbytes computes on CPUs, too,
slowly: so these layers are tested. It is imported when the first of them packs or multiplies.
"""

import importlib.metadata
import logging
from collections.abc import Mapping
from functools import cache
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from swarm.errors import UsageError
from swarm.packed.base import NEVER, PACK_WEIGHTS, Packed, rows_of
from swarm.packed.int8 import MOST, Int8Linear

__all__ = ["BLOCK", "LlmInt8Linear", "Nf4Linear", "version"]

BLOCK = 64  # weights with one scale
OUTLIER = 6.0  # from here on an activation is not rounded to 8 bits


def version() -> str:
    """Of bitsandbytes. Raises UsageError where it is not installed."""
    try:
        return importlib.metadata.version("bitsandbytes")
    except importlib.metadata.PackageNotFoundError:
        raise UsageError(
            "weights in nf4, or in int8 on a GPU, need bitsandbytes: pip install 'swarm-peers[cuda]'"
        ) from None


@cache
def _library() -> Any:
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)  # it misses kernels for CPUs
    import bitsandbytes

    return bitsandbytes


class Nf4Linear(Packed):
    """Each 64 inputs of an output are multiples of the greatest of them: 16 levels, quantiles of a normal distribution.
    Activations keep their precision."""

    name = "nf4"
    outputs_at: ClassVar = {"levels": 0, "greatest": 0}

    def __init__(self, levels: Tensor, greatest: Tensor, bias: Tensor | None) -> None:
        """`levels` uint8 `[out, in / 2]`, the first of two in the high bits; `greatest` fp32 `[out, in / 64]`."""
        super().__init__(2 * levels.shape[1], levels.shape[0], bias)
        self.register_buffer("levels", levels)
        self.register_buffer("greatest", greatest)

    @classmethod
    def of(cls, weight: Tensor, bias: Tensor | None) -> Self:
        quantize, inputs = _library().functional.quantize_4bit, weight.shape[1]
        pieces = torch.split(weight, rows_of(PACK_WEIGHTS, inputs))
        parts = [quantize(piece.contiguous(), blocksize=BLOCK, quant_type="nf4") for piece in pieces]
        levels = torch.cat([levels.view(-1, inputs // 2) for levels, _ in parts])
        return cls(levels, torch.cat([state.absmax.view(-1, inputs // BLOCK) for _, state in parts]), bias)

    @classmethod
    def restored(cls, tensors: Mapping[str, Tensor]) -> Self:
        return cls(tensors["levels"], tensors["greatest"], tensors.get("bias"))

    def _multiplied(self, rows: Tensor) -> Tensor:
        own: Any = self._buffers
        library = _library()
        state = library.functional.QuantState(
            own["greatest"].flatten(),
            shape=torch.Size((self.out_features, self.in_features)),
            blocksize=BLOCK,
            quant_type=self.name,
            dtype=rows.dtype,
        )
        product: Tensor = library.matmul_4bit(rows, own["levels"], state)
        return product


class LlmInt8Linear(Int8Linear):
    """The tensors of `Int8Linear`. Activations are rounded to 8 bits, too, a scale a row, but for outliers. Those are
    each row's own, not whole columns of a batch as in bitsandbytes' layer: a row gives what it gives there alone."""

    name = "llm.int8"
    unpack_rows = NEVER

    def _multiplied(self, rows: Tensor) -> Tensor:
        if rows.requires_grad and torch.is_grad_enabled():  # the kernels have no backward
            return super()._multiplied(rows)
        if not len(rows):  # cuBLAS takes no empty ones
            return rows.new_empty(0, self.out_features)
        own: Any = self._buffers
        _library()  # knows the operations
        kernels: Any = torch.ops.bitsandbytes
        usual = rows.abs() < OUTLIER  # and what is no number is not
        half = rows.where(usual, 0).to(torch.float16).contiguous()  # the kernel takes no other
        rounded, scales, _ = kernels.int8_vectorwise_quant(half)
        greatest = own["scales"].float() * MOST
        product: Tensor = kernels.int8_scaled_mm(rounded, own["values"], scales, greatest, dtype=rows.dtype)
        columns = usual.all(dim=0).logical_not_().nonzero().flatten()
        if len(columns):
            some = kernels.int8_vectorwise_dequant(own["values"][:, columns], greatest).to(rows.dtype)
            product.addmm_(rows.where(~usual, 0)[:, columns], some.t())
        return product
