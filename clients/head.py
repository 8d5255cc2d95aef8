"""The head of a client's model: one linear layer for the rows of all sessions that are at it in one moment."""

from collections.abc import Callable
from typing import Any, Self

import torch
from torch import Tensor, nn

from clients.gathering import Gathering
from swarm.layout import store_by_columns
from swarm.onednn import PackedLinear, packs
from swarm.packing import pack

__all__ = ["Head"]


class Head(nn.Linear):
    """Safe to use from many threads. Parameters, their names and gradients are those of any linear layer.

    Its product is made with a second copy of the weight, packed for oneDNN. *Measured* with 49152 x 576 in fp32 and one
    thread: 3.1 ms for one row and 6.3 for sixteen, where reading the weight takes 3.0; 4.3 and 17.5 by columns.
    """

    @classmethod
    def of(cls, linear: nn.Linear) -> Self:
        """`linear` with its own parameters, which stay shared with whoever shares them."""
        head = cls(linear.in_features, linear.out_features, bias=linear.bias is not None, device="meta")
        head.weight, head.bias = linear.weight, linear.bias
        return head

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._gathering = Gathering()
        self._shortcut: _Shortcut | None = None

    def pack(self, precision: str | None = None) -> None:
        """Make it fast for as long as the weight stays as it is now: without loss, or in one of `swarm.packing.PACKED`
        (*measured* as above, one and sixteen rows: bf16 2.0 and 4.5 ms, int8 2.1 and 28, int4 1.2 and 25). Raises
        UsageError."""
        if precision is not None:
            self._shortcut = _Shortcut(self.weight, pack(self, precision))
        elif packs(self.weight):
            self._shortcut = _Shortcut(self.weight, PackedLinear(self))
        else:
            store_by_columns(self)

    @property
    def copy_bytes(self) -> int:
        """What the second copy of the weight takes."""
        return 0 if self._shortcut is None else self._shortcut.nbytes

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002
        learns = torch.is_grad_enabled() and (input.requires_grad or self.weight.requires_grad)
        if learns or torch.is_autocast_enabled("cpu"):
            return super().forward(input)
        logits = self._gathering.call(self._product, input.reshape(-1, self.in_features))
        return logits.view(*input.shape[:-1], self.out_features)

    @torch.inference_mode(False)  # whoever waits with us may be in another mode than we are
    @torch.no_grad()
    def _product(self, rows: Tensor) -> Tensor:
        if self._shortcut is not None and self._shortcut.leads_from(self.weight):
            return self._shortcut.product(rows)
        return super().forward(rows)


class _Shortcut:
    """What stands for the product with `weight` [out, in] while that stays as it is. A copied layer has none."""

    def __init__(self, weight: Tensor, product: nn.Module) -> None:
        self.product: Callable[[Tensor], Tensor] = product
        self.nbytes = sum(t.numel() * t.element_size() for t in (*product.parameters(), *product.buffers()))
        self._first = weight[0].detach().clone()
        self._seen = (weight.data_ptr(), weight._version)

    def __reduce__(self) -> Any:
        return type(None), ()

    def leads_from(self, weight: Tensor) -> bool:
        """Adapters that are merged change `weight.data`, which counts no version."""
        return (weight.data_ptr(), weight._version) == self._seen and torch.equal(weight[0], self._first)
