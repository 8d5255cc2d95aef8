"""How many blocks fit into this machine. All sizes are bytes.

Most of a peer's memory is weights; the rest is for KV, which grows with use.
"""

import re
from dataclasses import dataclass

from swarm.errors import UsageError

__all__ = ["GPU_PLACES", "LEAST_KV_TOKENS", "BlockCost", "blocks_that_fit", "must_stream", "parse_size", "readable"]

KV_SHARE = 0.25  # of the memory that is kept for KV when as many blocks as possible are wanted
LEAST_KV_TOKENS = 1_024  # fewer would not carry a conversation
GPU_PLACES = 2  # for blocks that pass through a GPU's memory: one computes, one is on its way
UNITS = {"B": 0, "K": 1, "M": 2, "G": 3, "T": 4}
COUNTS = {1: "one", 2: "two"}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(I?)B", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class BlockCost:
    """What one block takes here: its weights in the precision it runs in, and its KV of one token."""

    weights: int
    kv: int


def blocks_that_fit(
    memory: int, cost: BlockCost, *, num_blocks: int, wanted: int | None = None, kv_tokens: int | None = None
) -> int:
    """How many of the model's `num_blocks` fit into `memory`, with KV for `kv_tokens` or, by default, a quarter of it.

    With `wanted`, just that many, if they fit with some KV. Raises UsageError when they don't.
    """
    tokens = kv_tokens or LEAST_KV_TOKENS
    most = min(num_blocks, memory // (cost.weights + tokens * cost.kv))
    if (wanted or 1) > most:
        raise UsageError(_too_little(memory, cost, wanted or 1, tokens, most))
    if wanted or kv_tokens:
        return wanted or most
    return min(most, max(1, int(memory * (1 - KV_SHARE)) // cost.weights))


def must_stream(
    memory: int,
    cost: BlockCost,
    wanted: int,
    kv_tokens: int | None = None,
    *,
    at_once: int = 1,
    flag: str = "--max-memory",
) -> bool:
    """Whether some of `wanted` blocks have to be brought anew in each step, since not all fit into `memory` with their
    KV. Raises UsageError, naming the `flag`, when not even so many `at_once` fit.
    """
    kv = wanted * (kv_tokens or LEAST_KV_TOKENS) * cost.kv
    if min(at_once, wanted) * cost.weights + kv > memory:
        raise UsageError(
            f"{flag} {readable(memory)} is too little for {wanted} blocks, even {COUNTS[at_once]} at a time: one takes "
            f"{readable(cost.weights)}, and KV of {kv_tokens or LEAST_KV_TOKENS} tokens {readable(kv)}; give more, "
            "fewer blocks, or --quantization int8"
        )
    return wanted * cost.weights + kv > memory


def _too_little(memory: int, cost: BlockCost, wanted: int, tokens: int, most: int) -> str:
    need = wanted * (cost.weights + tokens * cost.kv)
    advice = f"give --num-blocks {most} or less" if most else "a smaller --kv-cache-tokens or --dtype bf16 may help"
    if wanted > 1:
        advice += ", or --max-memory or, for a GPU, --max-vram, to have the others brought anew in each step"
    noun = "block does" if wanted == 1 else "blocks do"
    return (
        f"{wanted} {noun} not fit: weights and KV of {tokens} tokens take {readable(need)}, "
        f"and swarm may use {readable(memory)} here; {advice}"
    )


def readable(size: float) -> str:
    """Bytes as people say them: 1.5 GB."""
    value = float(size)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000:
            return f"{value:.3g} {unit}"
        value /= 1000
    return f"{value:.3g} TB"


def parse_size(text: str) -> int:
    """Bytes from 500MB or 1.5 GiB. Raises UsageError."""
    match = _SIZE.fullmatch(text.strip())
    size = 0
    if match is not None:
        number, unit, binary = match.groups()
        size = int(float(number) * (1024 if binary else 1000) ** UNITS[unit.upper() or "B"])
    if size < 1:
        raise UsageError(f"'{text}' is no amount of memory: give a number and a unit, as in 500MB, 8GB or 6GiB")
    return size
