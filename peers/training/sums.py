"""Gradients of adapters that micro-batches of one client add up until it asks for them: sent once, not each time.

They last as long as the session and no longer: what is lost with it, its client has computed again elsewhere.
"""

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from swarm.errors import HopError
from swarm.messages import FaultCode
from swarm.training import AdapterKeys

__all__ = ["Sums"]

MOST = 8  # sums of one session: a client has one way back under way, as a rule


@dataclass(slots=True)
class _Sum:
    keys: AdapterKeys
    count: int  # of micro-batches
    tensors: dict[int, list[Tensor]]  # by block

    @property
    def nbytes(self) -> int:
        return sum(tensor.nbytes for own in self.tensors.values() for tensor in own)


@dataclass(slots=True)
class Sums:
    _held: OrderedDict[int, _Sum] = field(default_factory=OrderedDict)

    @property
    def nbytes(self) -> int:
        return sum(each.nbytes for each in self._held.values())

    def add(
        self,
        id: int,  # noqa: A002 (the frame's word)
        keys: AdapterKeys,
        tensors: Mapping[int, Sequence[Tensor]],
        *,
        limit: int,
    ) -> None:
        """Add gradients of the adapters `keys`. Beyond `limit` bytes, the oldest sums are dropped. Raises HopError for
        gradients of other adapters than those that the sum is of."""
        known = self._held.get(id)
        if known is None:
            self._held[id] = _Sum(
                keys, 1, {block: [tensor.clone() for tensor in own] for block, own in tensors.items()}
            )
            while self._held and (len(self._held) > MOST or self.nbytes > limit):
                self._held.popitem(last=False)
            return
        if known.keys != keys:
            raise HopError(FaultCode.BAD_INPUT, "gradients of different adapters can't be added up")
        known.count += 1
        for block, own in tensors.items():
            for total, tensor in zip(known.tensors[block], own, strict=True):
                total += tensor

    def take(self, id: int, count: int) -> dict[int, list[Tensor]] | None:  # noqa: A002 (the frame's word)
        """The sums by block, which are forgotten here; None where not all of `count` micro-batches are in them."""
        found = self._held.pop(id, None)
        return found.tensors if found is not None and found.count == count else None
