"""From settings to a span that computes: found, checked against memory, loaded, measured."""

import sys
from dataclasses import dataclass
from pathlib import Path

import torch

from peers.executor_settings import ExecutorReady, ExecutorSettings, Streaming
from peers.hosted import HostedAdapter
from peers.memory_budget import LEAST_KV_TOKENS
from peers.profiling import load_or_measure
from peers.quantized import Packing
from peers.span import BlockSpan
from peers.span_memory import (
    available_memory,
    check_memory,
    default_kv_tokens,
    kv_bytes_per_token,
    limit_memory,
    span_bytes,
)
from peers.window import Passage
from routing.perf import Profile
from swarm.checkpoint import Checkpoint, resolve
from swarm.dtypes import DTYPES
from swarm.errors import ModelError, UsageError

__all__ = ["Loaded", "fit_memory", "load"]

GPU_WORK = 1 / 8  # of the memory that a GPU's blocks pass through: what is computed in, and what torch can't use


@dataclass(frozen=True, slots=True)
class Loaded:
    checkpoint: Checkpoint
    span: BlockSpan
    outbox_tokens: int
    profile: Profile
    streaming: Streaming | None
    hosted: tuple[HostedAdapter, ...]

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
            streaming=self.streaming,
            adapters=tuple((each.name, each.digest) for each in self.hosted),
        )


def load(settings: ExecutorSettings) -> Loaded:
    """Raises ModelError and UsageError in sentences that say what to do."""
    if settings.dtype not in DTYPES:
        raise UsageError(f"a dtype is one of {', '.join(DTYPES)}, not '{settings.dtype}'")
    cache = Path(settings.cache)
    dtype, device = DTYPES[settings.dtype], _device(settings.device)
    checkpoint = resolve(settings.model, cache=cache, revision=settings.revision)
    if settings.max_memory is not None:
        limit_memory(device, settings.max_memory)
    hosted = [HostedAdapter.read(name, Path(folder), checkpoint, settings.blocks) for name, folder in settings.adapters]
    beside = sum(each.nbytes for each in hosted)
    available = min(available_memory(device), settings.max_memory or sys.maxsize) - beside
    kv_tokens, room = fit_memory(checkpoint, settings, dtype, device.type, available)
    packing = None if settings.quantization == "none" and room is None else Packing(settings.quantization, cache, room)
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
    return Loaded(
        checkpoint,
        span,
        settings.outbox_tokens or span.pool.tokens,
        profile,
        _streaming(span.window),
        tuple(each.placed(span) for each in hosted),
    )


def _streaming(window: Passage | None) -> Streaming | None:
    if window is None or not window.count:
        return None
    return Streaming(blocks=window.count, size=window.size, rate=window.rate(), source=window.source)


def _device(name: str) -> torch.device:
    """The device, once it has been seen to work. Raises UsageError."""
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).partition("\n")[0]
        raise UsageError(f"the device '{name}' can't be used here: {reason}; cpu always can") from error
    return device


def fit_memory(
    checkpoint: Checkpoint, settings: ExecutorSettings, dtype: torch.dtype, kind: str, available: int
) -> tuple[int, int | None]:
    """The KV budget in tokens, as given or as memory has it beside the weights, and how many bytes of weights may be in
    memory at once: None, where all fit. `kind`: of device, as torch has it, with so many bytes `available`. Raises
    ModelError."""
    needed = span_bytes(checkpoint, settings.blocks, dtype, settings.quantization)
    per_token = kv_bytes_per_token(checkpoint, settings.blocks, dtype) + checkpoint.hidden_size * dtype.itemsize
    least = settings.kv_tokens or min(LEAST_KV_TOKENS, checkpoint.max_positions)
    passes = settings.max_memory is not None and kind in ("cpu", "cuda")
    if passes and needed + least * per_token > available:
        if kind == "cuda":
            available -= int(available * GPU_WORK)
        tokens = settings.kv_tokens or default_kv_tokens(available // 2, per_token, checkpoint.max_positions)
        return tokens, available - tokens * per_token
    check_memory(checkpoint, settings.blocks, dtype, available, settings.quantization)
    if settings.kv_tokens is not None:
        return settings.kv_tokens, None
    return default_kv_tokens(available - needed, per_token, checkpoint.max_positions), None
