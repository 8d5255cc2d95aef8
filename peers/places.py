"""Where a linear layer of the library is in a layer that computes, so that adapters can change what comes out of it.

In a fused block it is a part of a larger map, and its outputs may stand in another order. The module that is found is
called as a module, whoever computes, so hooks on it are heard.
"""

from dataclasses import dataclass
from typing import Self

from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from peers.fused import FusedBlock
from swarm.onednn import PackedLinear
from swarm.packing import Packed

__all__ = ["Place"]


@dataclass(frozen=True, slots=True, eq=False)
class Place:
    """Outputs `[begin, begin + outputs)` of the `whole` of `target`'s, in `order`, None for the library's. `alone`:
    they are all that `target` gives, and in the library's order."""

    target: nn.Module
    outputs: int
    inputs: int
    whole: int
    begin: int = 0
    order: Tensor | None = None
    alone: bool = True

    @classmethod
    def find(cls, layer: nn.Module, path: str) -> Self | None:
        """The place of the library's linear layer at `path` of a layer; None when there is none."""
        fused = layer._modules.get("fused")
        if isinstance(fused, FusedBlock):
            part = fused.parts.get(path)
            if part is None:
                return None
            target = fused.get_submodule(part.path)
            whole = sum(other.outputs for other in fused.parts.values() if other.path == part.path)
            return cls(target, part.outputs, part.inputs, whole, part.begin, part.order, part.alone)
        try:
            target = layer.get_submodule(path)
        except AttributeError:
            return None
        if isinstance(target, Conv1D):
            inputs, outputs = target.weight.shape
            return cls(target, outputs, inputs, outputs)
        if path and isinstance(target, nn.Linear | PackedLinear | Packed):
            return cls(target, target.out_features, target.in_features, target.out_features)
        return None

    def part(self, output: Tensor) -> Tensor:
        """Of what `target` gives `[…, whole]`, a view."""
        return output if self.alone else output.narrow(-1, self.begin, self.outputs)

    def ordered(self, values: Tensor) -> Tensor:
        """From the library's order of outputs `[…, outputs]` to that of `target`."""
        return values if self.order is None else values.index_select(-1, self.order.to(values.device))
