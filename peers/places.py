"""Where a linear layer of the library is in a layer that computes, so that adapters can change what comes out of it.

In a fused block it is a part of a larger map, and its outputs may stand in another order. The module that is found is
called as a module, whoever computes, so hooks on it are heard.
"""

from dataclasses import dataclass
from typing import Any, Self

from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from peers.fused import FusedBlock
from swarm.onednn import PackedLinear
from swarm.packing import Packed

__all__ = ["Place"]


@dataclass(frozen=True, slots=True, eq=False)
class Place:
    """Outputs `[begin, begin + outputs)` of `target`, in `order`, None for the library's. `alone`: they are all that
    `target` gives, and in the library's order."""

    target: nn.Module
    outputs: int
    inputs: int
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
            order = None if part.order is None else part.order.to(_device(target))
            return cls(target, part.outputs, part.inputs, part.begin, order, part.alone)
        try:
            target = layer.get_submodule(path)
        except AttributeError:
            return None
        if isinstance(target, Conv1D):
            inputs, outputs = target.weight.shape
            return cls(target, outputs, inputs)
        if path and isinstance(target, nn.Linear | PackedLinear | Packed):
            return cls(target, target.out_features, target.in_features)
        return None

    def add(self, output: Tensor, change: Tensor) -> Tensor:
        """What `target` gives then; `change` `[…, outputs]` is in the library's order."""
        change = change.to(output.dtype)
        if self.alone:
            return output + change
        self._part(output).add_(change if self.order is None else change.index_select(-1, self.order))
        return output

    def scale(self, output: Tensor, scale: Tensor) -> Tensor:
        """What `target` gives then; `scale` `[outputs]` is in the library's order."""
        if self.alone:
            return output.to(scale.dtype).mul(scale).to(output.dtype)
        part = self._part(output)
        part.copy_(part.to(scale.dtype).mul(scale if self.order is None else scale[self.order]))
        return output

    def computed(self, output: Tensor, inputs: Tensor) -> Tensor:
        """What `target` gives when this part of it is given `inputs`."""
        self._part(output).copy_(self._part(self.target.forward(inputs)))
        return output

    def _part(self, output: Tensor) -> Tensor:
        return output.narrow(-1, self.begin, self.outputs)


def _device(module: nn.Module) -> Any:
    return next(tensor.device for tensor in (*module.parameters(), *module.buffers()))
