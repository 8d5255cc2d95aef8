"""How the changes of several members become one step of the common adapter.

Pure, and the same to the last bit on every machine: numbers are combined one by one, in fp64 and in a fixed order, so
that no sum depends on how a processor groups it.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from types import MappingProxyType

import torch
from torch import Tensor

__all__ = ["RULES", "SERVERS", "Change", "combined", "slots_of", "stepped"]

TRIM = Fraction(1, 4)  # of the values at either end that a trimmed mean leaves out
UNEVEN = 2.0  # how much more than the median member's a member's tokens may count
MOMENTUM = 0.9
SECOND = 0.99
FLOOR = 1e-3  # of Adam's divisor, in units of the step it makes (tau in Reddi et al. 2021)
DECAY = 0.01


@dataclass(frozen=True, slots=True)
class Change:
    """`delta` [size] fp32: what training has added to the adapter. `tokens`: that it was trained on."""

    delta: Tensor
    tokens: int


def combined(rule: str, changes: Sequence[Change]) -> Tensor:
    """[size] fp64; `changes`, one or more, in an order that all members agree on."""
    return RULES[rule](changes)


def stepped(
    server: str, rate: float, weights: Tensor, slots: Sequence[Tensor], change: Tensor
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """The next weights [size] fp32 and slots of the optimizer that takes `change` [size] fp64 for minus a gradient
    (Reddi et al., *Adaptive Federated Optimization*, ICLR 2021, algorithms 1 and 2)."""
    before = weights.double()
    step, kept = SERVERS[server](rate, before, [slot.double() for slot in slots], change)
    return (before + step).float(), tuple(slot.float() for slot in kept)


def slots_of(server: str) -> int:
    """How many tensors of the adapter's size the optimizer keeps; all begin as zeros."""
    return {"avg": 0, "avgm": 1}.get(server, 2)


def _mean(changes: Sequence[Change]) -> Tensor:
    """Weighted by tokens, of which nobody's count for much more than the median member's: they can't be checked."""
    middle = sorted(change.tokens for change in changes)[len(changes) // 2]
    weights = [min(change.tokens, UNEVEN * middle) for change in changes]
    total = torch.zeros_like(changes[0].delta, dtype=torch.float64)
    for change, weight in zip(changes, weights, strict=True):
        total = total + change.delta.double() * (weight / sum(weights))
    return total


def _median(changes: Sequence[Change]) -> Tensor:
    """Of each number on its own (Yin et al., ICML 2018); tokens don't count."""
    values = _sorted(changes)
    return (values[(len(changes) - 1) // 2] + values[len(changes) // 2]) / 2


def _trimmed(changes: Sequence[Change]) -> Tensor:
    """The mean of each number without the largest and the smallest ones; tokens don't count."""
    cut = min(math.ceil(TRIM * len(changes)), (len(changes) - 1) // 2)
    values = _sorted(changes)[cut : len(changes) - cut]
    total = torch.zeros_like(values[0])
    for value in values:
        total = total + value
    return total / len(values)


def _sorted(changes: Sequence[Change]) -> Tensor:
    return torch.stack([change.delta for change in changes]).double().sort(dim=0).values


Stepped = tuple[Tensor, tuple[Tensor, ...]]


def _avg(rate: float, _: Tensor, slots: Sequence[Tensor], change: Tensor) -> Stepped:
    return rate * change, ()


def _avgm(rate: float, _: Tensor, slots: Sequence[Tensor], change: Tensor) -> Stepped:
    momentum = MOMENTUM * slots[0] + change
    return rate * momentum, (momentum,)


def _adam(rate: float, _: Tensor, slots: Sequence[Tensor], change: Tensor) -> Stepped:
    first = MOMENTUM * slots[0] + (1 - MOMENTUM) * change
    second = SECOND * slots[1] + (1 - SECOND) * (change * change)
    return rate * (first / (second.sqrt() + FLOOR * rate)), (first, second)


def _adamw(rate: float, weights: Tensor, slots: Sequence[Tensor], change: Tensor) -> Stepped:
    step, kept = _adam(rate, weights, slots, change)
    return step - (rate * DECAY) * weights, kept


RULES: Mapping[str, Callable[[Sequence[Change]], Tensor]] = MappingProxyType(
    {"mean": _mean, "median": _median, "trimmed": _trimmed}
)
SERVERS: Mapping[str, Callable[[float, Tensor, Sequence[Tensor], Tensor], Stepped]] = MappingProxyType(
    {"avg": _avg, "avgm": _avgm, "adam": _adam, "adamw": _adamw}
)
