"""Prefix tuning: keys and values in front of every row, which travel as adapters of the blocks do."""

from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import Cache, DynamicCache
from transformers.cache_utils import DynamicLayer

from clients.training.adapters import Adapters, spec
from swarm.errors import UsageError
from swarm.training import Tuned

__all__ = ["Prefix"]


@dataclass(frozen=True, slots=True)
class Prefix:
    """For each block keys and values `[heads, n, head size]`, the same in front of every row."""

    layers: tuple[tuple[Tensor, Tensor], ...]

    @property
    def length(self) -> int:
        return self.layers[0][0].shape[1]

    @classmethod
    def of(cls, cache: Cache | None) -> "Prefix | None":
        """What PEFT hands over as `past_key_values`; None for anything else. Raises UsageError where rows differ."""
        if type(cache) is not DynamicCache or not cache.layers:
            return None
        pairs = [
            (layer.keys, layer.values)
            for layer in cache.layers
            if isinstance(layer, DynamicLayer) and layer.keys is not None and layer.values is not None
        ]
        if len(pairs) < len(cache.layers):
            raise UsageError(
                "past_key_values of a swarm's model come from model.new_cache(), or are a prefix of all blocks"
            )
        if any(not torch.equal(tensor, tensor[:1].expand_as(tensor)) for pair in pairs for tensor in pair):
            raise UsageError("keys and values in front of the rows of a batch are the same for all of its rows")
        return cls(tuple((keys[0], values[0]) for keys, values in pairs))

    def mask(self, attention_mask: Tensor | None, columns: int) -> Tensor | None:
        """The mask without the columns of the prefix."""
        if attention_mask is None or attention_mask.shape[1] == columns:
            return attention_mask
        return attention_mask[:, self.length :]

    def joined(self, adapters: Adapters) -> Adapters:
        """With the prefix before what else is tuned."""
        blocks = {}
        for block, (keys, values) in enumerate(self.layers):
            tuned, tensors = adapters.blocks.get(block, ((), ()))
            own = Tuned("", "prefix", 1.0, 0.0, (spec("keys", keys), spec("values", values)))
            blocks[block] = ((own, *tuned), (keys, values, *tensors))
        return Adapters(blocks)
