"""A decoder block as few operations: what most families' layers compute, without the steps in between.

A layer of the library takes some fifty operations and their Python. Here queries, keys and values come from one
product, gate and up from another; rotary embeddings turn queries and keys together, in place; keys and values go from
the product straight into their pages; and what a block adds is added in place. `peers.fusing` makes such blocks out of
the library's layers, and they take a layer's place only where they give what it gives.

One core computes a small model's block in a quarter of a millisecond, of which Python must not take much: an attribute
that is a module costs 0.6 µs and a call of one as much again, some twenty times a block. So blocks look their parts up
in `_modules`, and call the `forward` of what is theirs; maps to which others may attach are called as modules.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn
from torch.nn.functional import rms_norm, silu

from peers.batch import Heads, PagedBatch
from peers.turns import Turning
from swarm.packed.tiles import Int4Tiles

__all__ = ["Attention", "Beside", "FusedBlock", "Mlp", "Norm", "Part", "WholeMlp", "watched"]


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """Where a linear layer of the library is in a fused block: outputs `[begin, begin + outputs)` of the map at `path`,
    in `order`, None for its own. `alone`: the map has no other outputs, and these are in order."""

    path: str
    begin: int
    outputs: int
    inputs: int
    order: Tensor | None
    alone: bool


class Norm(nn.Module):
    """A root mean square norm over the last dimension.

    In fp32 the root of `mean(x²) + eps` is a hypotenuse, which takes half the operations of torch's own `rms_norm`.
    """

    def __init__(self, weight: Tensor, eps: float, repeats: Sequence[int] | None = None) -> None:
        """`weight` `[width]`; or `[n, width]`, of which row `i` is for so many heads as `repeats[i]` says."""
        super().__init__()
        self.width, self.eps = weight.shape[-1], eps
        self.weight = nn.Parameter(weight.detach().clone(), requires_grad=False)
        self._fp32 = weight.dtype == torch.float32
        each = self.weight.detach()
        if repeats is not None:
            each = each.repeat_interleave(torch.tensor(repeats, device=weight.device), dim=0)
        self._factors = each * self.width**0.5 if self._fp32 else each.clone()
        self._least = each.new_tensor((eps * self.width) ** 0.5)
        self.with_eps = torch.cat([each.float().flatten(), each.new_tensor([eps]).float()])

    def forward(self, x: Tensor) -> Tensor:
        if self._fp32:
            length = torch.hypot(torch.linalg.vector_norm(x, dim=-1, keepdim=True), self._least)
            return torch.div(x, length).mul_(self._factors)
        return rms_norm(x, (self.width,), None, self.eps).mul_(self._factors)


def watched(modules: Iterable[nn.Module]) -> bool:
    """Whether anybody wants to see, or change, what goes into one of them or comes out: adapters do."""
    return any(module._forward_hooks or module._forward_pre_hooks for module in modules)


def _ours(linear: nn.Module) -> TypeGuard[Int4Tiles]:
    """Whether it does what stands around it, too."""
    return isinstance(linear, Int4Tiles) and not watched((linear,))


def _enter(norm: Norm, linear: nn.Module, states: Tensor) -> Tensor:
    """`linear` of the normed states."""
    if _ours(linear):
        return linear.normed(states, norm.with_eps)
    result: Tensor = linear(norm.forward(states))
    return result


def _leave(linear: nn.Module, x: Tensor, states: Tensor) -> None:
    """Adds `linear` of `x` to the states."""
    if _ours(linear):
        linear.add(x, states)
    else:
        states += linear(x)


class Attention(nn.Module):
    """Adds to hidden states what attention makes of them."""

    def __init__(
        self, joined: nn.Module, norm: Norm | None, out: nn.Module, heads: Heads, turning: Turning | None
    ) -> None:
        """`joined`: to queries, keys and values; `norm`: of queries and keys, weight `[query and kv heads, width]`."""
        super().__init__()
        self.joined, self.norm, self.out = joined, norm, out
        self.turning = turning
        self.heads = heads if turning is None else turning.remaining(heads)
        self._shape = (-1, heads.query + 2 * heads.kv, heads.width)

    def forward(self, states: Tensor, before: Norm, batch: PagedBatch) -> None:
        parts: Any = self._modules
        joined = _enter(before, parts["joined"], states).view(self._shape)
        turn = None if self.turning is None else self.turning.of(batch)
        _leave(parts["out"], batch.attend_joined(joined, self.heads, parts.get("norm"), turn), states)


class Mlp(nn.Module):
    """Adds to hidden states what a gated perceptron makes of them."""

    def __init__(self, joined: nn.Module, act: Callable[[Tensor], Tensor], down: nn.Module) -> None:
        """`joined`: to gate and up. `act` gives a new tensor."""
        super().__init__()
        self.joined, self.down = joined, down
        self._act = (act,)  # a module would be looked up slowly

    @property
    def act(self) -> Callable[[Tensor], Tensor]:
        return self._act[0]

    def forward(self, states: Tensor, before: Norm) -> None:
        parts: Any = self._modules
        wide, act, down = _enter(before, parts["joined"], states), self._act[0], parts["down"]
        if act is silu and _ours(down):
            down.add(wide, states, gated=True)
        else:
            gate, up = wide.chunk(2, dim=-1)
            _leave(down, act(gate).mul_(up), states)


class Beside(nn.Module):
    """Maps whose weights can't be joined, as one."""

    def __init__(self, linears: Sequence[nn.Module]) -> None:
        super().__init__()
        self.linears = nn.ModuleList(linears)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([linear(x) for linear in self.linears], dim=-1)


class WholeMlp(nn.Module):
    """The library's own, experts for example."""

    def __init__(self, mlp: nn.Module) -> None:
        super().__init__()
        self.mlp = mlp

    def forward(self, states: Tensor, before: Norm) -> None:
        result = self.mlp(before.forward(states)[None])
        states += (result[0] if isinstance(result, tuple) else result)[0]


class FusedBlock(nn.Module):
    def __init__(
        self,
        norm: Norm,
        attention: Attention,
        mlp_norm: Norm,
        mlp: nn.Module,
        parts: Mapping[str, Part] | None = None,
    ) -> None:
        """`parts`: of the library's layer, by their paths there."""
        super().__init__()
        self.parts = dict(parts or {})
        self.norm, self.attention, self.mlp_norm, self.mlp = norm, attention, mlp_norm, mlp

    def forward(self, states: Tensor, batch: PagedBatch) -> Tensor:
        """`states` `[T, hidden]` are changed in place, and returned. `batch.layer` is this block's."""
        parts: Any = self._modules
        parts["attention"].forward(states, parts["norm"], batch)
        parts["mlp"].forward(states, parts["mlp_norm"])
        return states
