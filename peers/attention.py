"""Attention over paged keys and values, as a function that transformers calls in place of its own.

All new tokens of all rows of all sessions come packed into one sequence `[1, T]`. A `PagedBatch` (`peers.batch`) says
which of them belong to which row, and lets every token attend to its own row's past. The function is registered under
two names: `PAGED` to run with, where the library makes no masks at all; and `PROBED`, where what the library would mask
tells the window of each layer: not every model hands it to its attention.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface

from peers.batch import PagedBatch
from peers.scores import Rule
from swarm.errors import ModelError

__all__ = ["PAGED", "PROBED", "Current"]

PAGED = "swarm_paged"
PROBED = "swarm_probed"
CURRENT = "swarm_current"  # the attribute of attention modules from which they get their batch
WINDOW = "swarm_window"  # the attribute of a probed mask


class Current:
    """The batch that the layers of one span work on.

    An attribute of all their modules, because not every layer hands keywords down to its attention.
    """

    def __init__(self, layers: Sequence[nn.Module]) -> None:
        self.batch: PagedBatch | None = None
        for layer in layers:
            for module in layer.modules():
                setattr(module, CURRENT, self)


def paged_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    is_causal: bool | None = None,
    position_bias: Tensor | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """What transformers calls: see `AttentionInterface`. Raises ModelError on attention that pages can't serve."""
    current: Current | None = getattr(module, CURRENT, None)
    if current is None or current.batch is None:
        raise ModelError(f"{type(module).__name__} runs outside the steps of a span")
    batch = current.batch
    if is_causal is False or position_bias is not None:
        raise ModelError(f"{type(module).__name__} looks ahead or adds a bias to its scores")
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    window = batch.window(getattr(attention_mask, WINDOW, sliding_window))
    return batch.attend(query, key, value, Rule(scale, window, softcap, s_aux)), None


def probed_mask(
    *, mask_function: Callable[..., Tensor], local_size: int | None = None, device: torch.device, **kwargs: Any
) -> Tensor:
    """A mask that tells its window instead of masking. Raises ModelError on any but causal and sliding windows."""
    zero = torch.zeros((), dtype=torch.int64, device=device)
    width = local_size or 0
    for at in {0, 2, width, 2 * width + 1, 3 * width + 2}:
        seen = torch.arange(at + 3, device=device)
        expected = (seen <= at) & (seen > at - width if local_size else seen >= 0)
        own = torch.full_like(seen, at)
        if not torch.equal(torch.as_tensor(mask_function(zero, zero, own, seen)).expand_as(seen), expected):
            raise ModelError("its attention mask is neither causal nor a sliding window")
    mask = torch.zeros(1, 1, 1, 1, device=device)
    setattr(mask, WINDOW, local_size)
    return mask


AttentionInterface.register(PAGED, paged_attention)
AttentionInterface.register(PROBED, paged_attention)
AttentionMaskInterface.register(PROBED, probed_mask)
