"""Our own product with 4-bit weights, compiled for this processor when it is first asked for."""

import logging
from functools import cache

import torch
from torch import Tensor

from swarm.jit.compiler import LANES, Compiled, features
from swarm.packed.layout import FACTORS_BYTES
from swarm.packed.levels import GROUP

__all__ = ["DTYPES", "Kernel", "kernel", "threads_for"]

_log = logging.getLogger(__name__)

DTYPES = (torch.float32, torch.bfloat16)  # of activations
THREAD_BYTES = 64 << 10  # of weights, times rows, that are worth another thread
THREAD_ROWS = 16  # of activations that are worth another thread when they are rounded


@cache
def kernel() -> "Kernel | None":
    """The best for this processor; None where it has none of the instructions, or nothing is compiled for it."""
    here = features()
    if not here.get("fma"):
        return None
    from swarm.packed.code import INSTRUCTIONS

    try:
        return next((Kernel(name) for name in INSTRUCTIONS if here.get(name)), None)
    except RuntimeError as error:
        _log.warning("torch's own kernel multiplies 4-bit weights, since ours can't be compiled: %s", error)
        return None


class Kernel:
    """Safe to use from many threads."""

    def __init__(self, instructions: str) -> None:
        """`instructions`: those of `swarm.packed.code.INSTRUCTIONS` that this processor shall use. Raises RuntimeError
        where LLVM fails."""
        from swarm.jit.threads import arguments
        from swarm.packed.code import KINDS, module

        self.compiled = Compiled(module(instructions))
        self._run = self.compiled.function("product", *arguments(KINDS, 2))

    def __call__(
        self,
        x: Tensor,
        tiles: Tensor,
        norm: Tensor | None = None,
        into: Tensor | None = None,
        *,
        bias: Tensor | None = None,
        gated: bool = False,
    ) -> Tensor:
        """From activations `[rows, in]`, one of DTYPES, and the tiles of a weight (`swarm.packed.layout`) to
        `[rows, out]` in the same dtype; for inference, on as many threads as torch may use.

        `norm`, contiguous fp32 `[in + 1]`: rows are divided by the root of their mean square plus its last value, and
        multiplied with the others, before. `into`, contiguous, in the dtype of `x`: what comes out is added to it.
        `bias`: contiguous fp32 `[out]`. `gated`: `x` is `[rows, 2 * in]`, and the silu of its first half times the
        second is multiplied.
        """
        x = x.contiguous()
        rows = len(x)
        count, groups, _ = tiles.shape
        out = x.new_empty(rows, count * LANES) if into is None else into
        scratch = torch.empty(rows * groups * (GROUP + FACTORS_BYTES), dtype=torch.uint8)
        by_rows, by_tiles = threads_for(rows, tiles)
        self._run(
            x.data_ptr(),
            tiles.data_ptr(),
            out.data_ptr(),
            scratch.data_ptr(),
            0 if norm is None else norm.data_ptr(),
            0 if bias is None else bias.data_ptr(),
            rows,
            groups,
            count,
            x.dtype == torch.bfloat16,
            into is not None,
            gated,
            by_rows,
            by_tiles,
        )
        return out


def threads_for(rows: int, tiles: Tensor) -> tuple[int, int]:
    """How many shall round so many rows, and multiply them with a weight."""
    most = torch.get_num_threads()
    return min(most, rows // THREAD_ROWS), min(most, rows * tiles.nbytes // THREAD_BYTES)
