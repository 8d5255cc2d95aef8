"""Our own product with 4-bit weights, compiled for this processor when it is first asked for."""

import ctypes
import logging
import platform
import sys
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from swarm.packed.layout import FACTORS_BYTES, LANES

__all__ = ["DTYPES", "Kernel", "kernel"]

_log = logging.getLogger(__name__)

DTYPES = (torch.float32, torch.bfloat16)  # of activations
THREAD_BYTES = 64 << 10  # of weights, times rows, that are worth another thread
THREAD_ROWS = 16  # of activations that are worth another thread when they are rounded


@cache
def kernel() -> "Kernel | None":
    """The best for this processor. None where it has none of the instructions, or the system lacks what compiles for
    them or runs threads."""
    if sys.platform != "linux" or platform.machine() != "x86_64":
        return None
    try:
        from llvmlite import binding  # heavy, and needed only where weights have four bits

        from swarm.packed.code import INSTRUCTIONS
    except ImportError:
        return None
    features = binding.get_host_cpu_features()
    try:
        return next((Kernel(name) for name in INSTRUCTIONS if features.get(name) and features.get("fma")), None)
    except (OSError, RuntimeError) as error:
        _log.warning("torch's own kernel multiplies 4-bit weights, since ours can't be compiled: %s", error)
        return None


class Kernel:
    """Safe to use from many threads."""

    def __init__(self, instructions: str) -> None:
        """`instructions`: those of `swarm.packed.code.INSTRUCTIONS` that this processor shall use. Raises OSError where
        torch runs no threads of GCC's OpenMP, RuntimeError where LLVM fails."""
        self._engine = _compiled(instructions)  # the code lives as long as this does
        kind = ctypes.CFUNCTYPE(None, *[ctypes.c_int64] * 10, *[ctypes.c_int32] * 2)
        self._run = kind(self._engine.get_function_address("product"))

    def __call__(self, x: Tensor, tiles: Tensor, norm: Tensor | None = None, into: Tensor | None = None) -> Tensor:
        """From activations `[rows, in]`, one of DTYPES, and the tiles of a weight (`swarm.packed.layout`) to
        `[rows, out]` in the same dtype; for inference, on as many threads as torch may use.

        `norm`, contiguous fp32 `[in + 1]`: rows are divided by the root of their mean square plus its last value, and
        multiplied with the others, before. `into`, contiguous, in the dtype of `x`: what comes out is added to it.
        """
        x = x.contiguous()
        rows, inputs = x.shape
        count, groups, _ = tiles.shape
        out = x.new_empty(rows, count * LANES) if into is None else into
        scratch = torch.empty(rows * (inputs + groups * FACTORS_BYTES), dtype=torch.uint8)
        threads = torch.get_num_threads()
        self._run(
            x.data_ptr(),
            tiles.data_ptr(),
            out.data_ptr(),
            scratch.data_ptr(),
            0 if norm is None else norm.data_ptr(),
            rows,
            groups,
            count,
            x.dtype == torch.bfloat16,
            into is not None,
            min(threads, rows // THREAD_ROWS),
            min(threads, rows * tiles.nbytes // THREAD_BYTES),
        )
        return out


def _compiled(instructions: str) -> Any:
    from llvmlite import binding

    from swarm.packed.code import EXTERNAL, module

    openmp = _openmp()
    for name in EXTERNAL:
        binding.add_symbol(name, ctypes.cast(openmp[name], ctypes.c_void_p).value)
    binding.initialize_native_target()
    binding.initialize_native_asmprinter()
    machine = binding.Target.from_default_triple().create_target_machine(
        cpu=binding.get_host_cpu_name(), features=binding.get_host_cpu_features().flatten(), opt=3
    )
    code = binding.parse_assembly(module(instructions))
    passes = binding.create_pass_builder(machine, binding.create_pipeline_tuning_options(speed_level=2))
    passes.getModulePassManager().run(code, passes)
    engine = binding.create_mcjit_compiler(code, machine)
    engine.finalize_object()
    return engine


def _openmp() -> ctypes.CDLL:
    """The library whose threads torch uses: they take what torch was told of their number, and may be awake already."""
    torch.get_num_threads()  # loads it
    with Path("/proc/self/maps").open() as maps:
        path = next((line.split(maxsplit=5)[5].strip() for line in maps if "/libgomp" in line), None)
    if path is None:
        raise OSError("torch uses no OpenMP of GCC's")
    return ctypes.CDLL(path)
