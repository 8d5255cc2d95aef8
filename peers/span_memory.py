"""How much memory a span takes, and whether this machine has it. All sizes are bytes."""

import psutil
import torch

from peers.machine import free_memory
from peers.memory_budget import readable
from swarm.checkpoint import Checkpoint
from swarm.errors import ModelError
from swarm.ids import Span
from swarm.packing import packed_bytes

__all__ = ["available_memory", "check_memory", "default_kv_tokens", "kv_bytes_per_token", "span_bytes"]

KV_SHARE = 0.5  # of the memory that is free once the weights are loaded
FULL_ROWS = 16  # by default there is KV for so many rows of the model's whole length, and no more
LEAST_KV_TOKENS = 256


def span_bytes(checkpoint: Checkpoint, blocks: Span, dtype: torch.dtype, quantization: str = "none") -> int:
    """Of the weights, in the precision in which they run: linear layers in `quantization`, the others in `dtype`."""
    if blocks.end > checkpoint.num_blocks:
        raise ModelError(f"{checkpoint.name} has blocks 0:{checkpoint.num_blocks}, so {blocks} is not among them")
    arch = checkpoint.architecture
    if quantization == "none":
        return sum(arch.block_parameters[block] for block in blocks) * dtype.itemsize
    linears = [shape for block in blocks for shape in arch.block_linears[block]]
    others = sum(arch.block_parameters[block] for block in blocks) - sum(width * out for width, out in linears)
    return sum(packed_bytes(quantization, width, out) for width, out in linears) + others * dtype.itemsize


def kv_bytes_per_token(checkpoint: Checkpoint, blocks: Span, dtype: torch.dtype) -> int:
    """Of keys and values in all blocks of the span."""
    config = checkpoint.config
    heads = config.num_attention_heads
    kv_heads = getattr(config, "num_key_value_heads", None) or heads
    width = getattr(config, "head_dim", None) or config.hidden_size // heads
    return int(2 * len(blocks) * kv_heads * width * dtype.itemsize)


def default_kv_tokens(available: int, bytes_per_token: int, max_positions: int) -> int:
    """A KV budget out of `available` bytes, where one token takes `bytes_per_token`, its place in the outbox included.

    Raises ModelError when not even the least useful budget fits.
    """
    tokens = min(int(available * KV_SHARE) // bytes_per_token, FULL_ROWS * max_positions)
    least = min(LEAST_KV_TOKENS, max_positions)
    if tokens < least:
        raise ModelError(
            f"no memory is left for a KV cache: {least} tokens take {readable(least * bytes_per_token)}, and "
            f"{readable(max(0, int(available * KV_SHARE)))} can be given to it; serve fewer blocks, or use bf16"
        )
    return tokens


def available_memory(device: torch.device) -> int:
    """Free on the device."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return int(free)
    return free_memory()


def limit_memory(device: torch.device, size: int) -> None:
    """Have torch give out no more of the device's memory than so many bytes, where it can be told so."""
    if device.type == "cuda":
        _, total = torch.cuda.mem_get_info(device)
        torch.cuda.set_per_process_memory_fraction(min(1.0, size / total), device)


def used_memory(device: torch.device) -> int:
    """Of the device's memory, what this process has."""
    return torch.cuda.memory_reserved(device) if device.type == "cuda" else resident_bytes()


def check_memory(
    checkpoint: Checkpoint, blocks: Span, dtype: torch.dtype, available: int, quantization: str = "none"
) -> None:
    """Raises ModelError when the weights do not fit into `available` bytes."""
    needed = span_bytes(checkpoint, blocks, dtype, quantization)
    if needed > available:
        each = needed // len(blocks)
        fitting = available // each
        advice = f"serve {fitting} blocks at most" if fitting else "not one block fits; use another machine or bf16"
        raise ModelError(
            f"blocks {blocks} of {checkpoint.name} need {readable(needed)} of memory and {readable(available)} "
            f"are available: {advice}"
        )


def resident_bytes() -> int:
    """Memory that this process uses."""
    return int(psutil.Process().memory_info().rss)
