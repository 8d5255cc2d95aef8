"""How many blocks fit into this machine. All sizes are bytes.

Most of a peer's memory is weights; the rest is for KV, which grows with use.
"""

from dataclasses import dataclass

from swarm.errors import UsageError

__all__ = ["BlockCost", "blocks_that_fit", "readable"]

KV_SHARE = 0.25  # of the memory that is kept for KV when as many blocks as possible are wanted
LEAST_KV_TOKENS = 1_024  # fewer would not carry a conversation


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
