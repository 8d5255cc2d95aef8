"""What adapters do in one pass over rows of several sessions: base weights meet all tokens at once, and each adapter
then changes what came out for its own rows, in place. Rows without an adapter are never touched.

All that an adapter does to one module is put together beforehand: in a fused block queries and values, say, are parts
of one product, and come from one narrow product too. *Measured* (`docs/performance.md`): two small products for each
adapter and module cost least; adapters padded into one batched product gain only where the same rows meet again and
again, so that what is padded can be kept.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import reduce
from typing import Any, Self

import torch
from torch import Tensor, nn

from peers.places import Place
from peers.training.deltas import Delta

__all__ = ["Change", "Fit", "Segment", "mixed"]


@dataclass(frozen=True, slots=True, eq=False)
class Change:
    """What one adapter does to one module: first `factors` of its inputs `[in]`, then `rescaled` parts, each from
    inputs of its own, then a `low_rank` sum, then `scales` of parts, in the module's order."""

    target: nn.Module
    factors: Tensor | None = None
    rescaled: tuple[tuple[Place, Tensor], ...] = ()
    low_rank: tuple[Tensor, Tensor] | None = None  # [in, rank], [rank, out]
    scales: tuple[tuple[Place, Tensor], ...] = ()

    @property
    def nbytes(self) -> int:
        pairs = (*self.rescaled, *self.scales)
        tensors = (self.factors, *(tensor for _, tensor in pairs), *(self.low_rank or ()))
        return sum(tensor.nbytes for tensor in tensors if tensor is not None)

    def before(self, x: Tensor) -> None:
        """In place, as all that follows. `x` `[n, in]`."""
        if self.factors is not None:
            x.mul_(self.factors)

    def after(self, x: Tensor, output: Tensor) -> None:
        """`x` `[n, in]`, `output` `[n, out]`."""
        for place, factors in self.rescaled:
            given = x.to(factors.dtype).mul(factors).to(x.dtype)
            place.part(output).copy_(place.part(self.target.forward(given)))
        if self.low_rank is not None:
            down, up = self.low_rank
            if down.dtype == x.dtype == output.dtype:
                output.addmm_(torch.mm(x, down), up)
            else:
                output.add_(torch.mm(torch.mm(x.to(down.dtype), down), up))
        for place, factors in self.scales:
            place.part(output).mul_(factors)


Segment = tuple[int, Sequence[Change]]  # so many tokens, and what changes them


@dataclass(frozen=True, slots=True, eq=False, weakref_slot=True)
class Fit:
    """An adapter on one block. `apart`: it changes modules in lists, experts, which may be given only some of a pass's
    tokens, in any order; so that it can't be in a pass with other adapters."""

    changes: tuple[Change, ...]
    apart: bool

    @classmethod
    def of(cls, deltas: Iterable[Delta]) -> Self:
        found: dict[nn.Module, list[Delta]] = {}
        apart = False
        for delta in deltas:
            found.setdefault(delta.place.target, []).append(delta)
            apart |= any(name.isdigit() for name in delta.tuned.path.split("."))
        return cls(tuple(_change(target, own) for target, own in found.items()), apart)

    @property
    def nbytes(self) -> int:
        return sum(change.nbytes for change in self.changes)


def _change(target: nn.Module, deltas: Sequence[Delta]) -> Change:
    factors = _factors(delta for delta in deltas if delta.tuned.kind == "ia3-input")
    alone = [own for place, own in factors if place.alone]
    return Change(
        target,
        alone[0] if alone else None,
        tuple(pair for pair in factors if not pair[0].alone),
        _low_rank([delta for delta in deltas if delta.tuned.kind == "lora"]),
        tuple((place, place.ordered(own)) for place, own in _factors(d for d in deltas if d.tuned.kind == "ia3")),
    )


def _factors(deltas: Iterable[Delta]) -> list[tuple[Place, Tensor]]:
    """Of each part one, which is the product where there are several."""
    found: dict[int, tuple[Place, Tensor]] = {}
    for delta in deltas:
        own = delta.tensors["scale"].flatten()
        known = found.get(delta.place.begin)
        found[delta.place.begin] = (delta.place, own if known is None else known[1] * own)
    return list(found.values())


def _low_rank(deltas: Sequence[Delta]) -> tuple[Tensor, Tensor] | None:
    """`[in, rank]` and `[rank, out]` of all parts of a module together, scaling and order included."""
    if not deltas:
        return None
    downs, ups = ([delta.tensors[name] for delta in deltas] for name in ("A", "B"))
    dtype = reduce(torch.promote_types, (tensor.dtype for tensor in (*downs, *ups)))
    down = downs[0].to(dtype) if len(downs) == 1 else torch.cat([own.to(dtype) for own in downs])
    up = down.new_zeros(len(down), deltas[0].place.whole)
    begin = 0
    for delta, own in zip(deltas, ups, strict=True):
        rank = own.shape[1]
        delta.place.part(up[begin : begin + rank]).copy_(delta.place.ordered(own.T * delta.tuned.scaling))
        begin += rank
    return down.T, up


@contextmanager
def mixed(segments: Sequence[Segment]) -> Iterator[None]:
    """Within, modules that are given the tokens of all segments, one after another, change each segment's as it
    says."""
    sizes = [tokens for tokens, _ in segments]
    found: dict[nn.Module, _Mix] = {}
    for index, (_, changes) in enumerate(segments):
        for change in changes:
            found.setdefault(change.target, _Mix(sizes)).changes.append((index, change))
    with ExitStack() as stack:
        for target, mix in found.items():
            if any(change.factors is not None for _, change in mix.changes):
                stack.callback(target.register_forward_pre_hook(mix.before).remove)
            stack.callback(target.register_forward_hook(mix.after).remove)
        yield


@dataclass(frozen=True, slots=True)
class _Mix:
    """Hooks of one module."""

    sizes: list[int]
    changes: list[tuple[int, Change]] = field(default_factory=list)

    def before(self, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        given = args[0].clone()
        parts = self._split(given)
        for index, change in self.changes:
            change.before(parts[index])
        return (given, *args[1:])

    def after(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        inputs, outputs = self._split(args[0]), self._split(output)
        for index, change in self.changes:
            change.after(inputs[index], outputs[index])

    def _split(self, states: Tensor) -> Sequence[Tensor]:
        """Of each segment, `[n, width]`. One segment is all there is, also where a module is given a part of it."""
        rows = states if states.dim() == 2 else states.view(-1, states.shape[-1])
        return (rows,) if len(self.sizes) == 1 else rows.split_with_sizes(self.sizes)
