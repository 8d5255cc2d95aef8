"""How many blocks and how much KV fit into this machine.

All sizes are bytes. Most of a peer's memory is weights; the rest is KV, which grows with use up to its budget.
"""

from dataclasses import dataclass

from swarm.errors import UsageError

__all__ = ["BlockCost", "MemoryPlan", "plan_memory", "readable"]

KV_SHARE = 0.25  # of the memory that is kept for KV when blocks are counted
MOST_KV_TOKENS = 131_072  # by default: some 16 sessions of 8 000 tokens
LEAST_KV_TOKENS = 1_024  # fewer would not carry a conversation


@dataclass(frozen=True, slots=True)
class BlockCost:
    """What one block takes here: its weights in the precision it runs in, and its KV of one token."""

    weights: int
    kv: int


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    blocks: int  # how many can be hosted
    kv_tokens: int  # the KV budget that goes with that many


def plan_memory(
    memory: int, cost: BlockCost, *, num_blocks: int, wanted: int | None = None, kv_tokens: int | None = None
) -> MemoryPlan:
    """How many of the model's `num_blocks` fit into `memory`; `wanted` or none. Raises UsageError when they don't.

    Without `kv_tokens` a quarter of the memory is kept for KV where blocks would fill it, less where `wanted` asks so.
    """
    tokens = kv_tokens or LEAST_KV_TOKENS
    most = min(num_blocks, memory // (cost.weights + tokens * cost.kv))
    if (wanted or 1) > most:
        raise UsageError(_too_little(memory, cost, wanted or 1, tokens, most))
    blocks = wanted or (most if kv_tokens else min(num_blocks, max(1, int(memory * (1 - KV_SHARE)) // cost.weights)))
    blocks = min(blocks, most)
    left = (memory - blocks * cost.weights) // (blocks * cost.kv)
    return MemoryPlan(blocks, kv_tokens or min(left, MOST_KV_TOKENS))


def _too_little(memory: int, cost: BlockCost, wanted: int, tokens: int, most: int) -> str:
    need = wanted * (cost.weights + tokens * cost.kv)
    advice = f"give --num-blocks {most} or less" if most else "a smaller --kv-cache-tokens or --dtype bf16 may help"
    noun = "block does" if wanted == 1 else "blocks do"
    return (
        f"{wanted} {noun} not fit: weights and KV of {tokens} tokens take {readable(need)}, "
        f"and swarm may use {readable(memory)} here; {advice}"
    )


def readable(size: int) -> str:
    """Bytes as people say them: 1.5 GB."""
    value = float(size)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000:
            return f"{value:.3g} {unit}"
        value /= 1000
    return f"{value:.3g} TB"
