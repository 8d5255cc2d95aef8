"""From settings to a span that computes: found, checked against memory, loaded, measured."""

from dataclasses import dataclass
from pathlib import Path

import torch

from peers.executor_settings import ExecutorReady, ExecutorSettings
from peers.profiling import load_or_measure
from peers.quantized import Packing
from peers.span import BlockSpan
from peers.span_memory import available_memory, check_memory, default_kv_tokens, kv_bytes_per_token, span_bytes
from routing.perf import Profile
from swarm.checkpoint import Checkpoint, resolve
from swarm.errors import ModelError, UsageError

__all__ = ["Loaded", "load"]

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True, slots=True)
class Loaded:
    checkpoint: Checkpoint
    span: BlockSpan
    outbox_tokens: int
    profile: Profile

    def ready(self, pid: int, settings: ExecutorSettings) -> ExecutorReady:
        return ExecutorReady(
            pid=pid,
            model=self.checkpoint.digest,
            blocks=self.span.blocks,
            hidden_size=self.span.hidden_size,
            max_positions=self.checkpoint.max_positions,
            kv_tokens=self.span.pool.tokens,
            outbox_tokens=self.outbox_tokens,
            dtype=settings.dtype,
            device=settings.device,
            profile=self.profile,
        )


def load(settings: ExecutorSettings) -> Loaded:
    """Raises ModelError and UsageError in sentences that say what to do."""
    if settings.dtype not in DTYPES:
        raise UsageError(f"a dtype is one of {', '.join(DTYPES)}, not '{settings.dtype}'")
    cache = Path(settings.cache)
    dtype, device = DTYPES[settings.dtype], _device(settings.device)
    checkpoint = resolve(settings.model, cache=cache, revision=settings.revision)
    kv_tokens = _fit(checkpoint, settings, dtype, available_memory(device))
    packing = None if settings.quantization == "none" else Packing(settings.quantization, cache)
    try:
        span = BlockSpan.load(
            checkpoint,
            settings.blocks,
            dtype=dtype,
            device=device,
            kv_tokens=kv_tokens,
            page_size=settings.page_size,
            packing=packing,
        )
    except (MemoryError, torch.OutOfMemoryError) as error:
        need = span_bytes(checkpoint, settings.blocks, dtype, settings.quantization)
        raise ModelError(f"memory ran out loading blocks {settings.blocks}, {need} bytes: serve fewer") from error
    profile = load_or_measure(span, checkpoint.digest, settings.quantization, cache)
    return Loaded(checkpoint, span, settings.outbox_tokens or span.pool.tokens, profile)


def _device(name: str) -> torch.device:
    """The device, once it has been seen to work. Raises UsageError."""
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).partition("\n")[0]
        raise UsageError(f"the device '{name}' can't be used here: {reason}; cpu always can") from error
    return device


def _fit(checkpoint: Checkpoint, settings: ExecutorSettings, dtype: torch.dtype, available: int) -> int:
    """The KV budget, as given or as memory has it once the weights are there. Raises ModelError."""
    check_memory(checkpoint, settings.blocks, dtype, available, settings.quantization)
    if settings.kv_tokens is not None:
        return settings.kv_tokens
    left = available - span_bytes(checkpoint, settings.blocks, dtype, settings.quantization)
    per_token = kv_bytes_per_token(checkpoint, settings.blocks, dtype) + checkpoint.hidden_size * dtype.itemsize
    return default_kv_tokens(left, per_token, checkpoint.max_positions)
