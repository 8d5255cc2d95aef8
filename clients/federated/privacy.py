"""Noise on what a member says, and what it can prove to have given away so far."""

from importlib import import_module

import torch
from torch import Tensor

from swarm.errors import UsageError

__all__ = ["check_accountant", "clipped", "noised", "spent"]

ORDERS = (1.25, 1.5, 1.75, *(float(order) for order in range(2, 65)), 128.0, 256.0, 512.0)


def clipped(delta: Tensor, most: float) -> Tensor:
    """`delta`, no longer than `most` as an L2 norm."""
    norm = float(delta.double().norm())
    return delta if norm <= most else delta * (most / norm)


def noised(delta: Tensor, deviation: float) -> Tensor:
    """Fresh noise each time, which no seed repeats: two releases under the same noise would give it away."""
    if not deviation:
        return delta
    generator = torch.Generator()
    generator.seed()
    return delta + deviation * torch.randn(delta.shape, generator=generator)


def check_accountant() -> None:
    """Raises UsageError where the library that counts is not installed."""
    try:
        import_module("dp_accounting")
    except ModuleNotFoundError as error:
        raise UsageError("--noise needs dp-accounting: pip install 'swarm-peers[privacy]'") from error


def spent(noise: float, releases: int, delta: float) -> float:
    """Epsilon after so many changes of one member, clipped and with noise of deviation `noise` times the clip on each.

    Neighbours are two data sets of this member that differ in everything, so that clipped changes are at most twice the
    clip apart; others see each change on its own, so that numbers of members don't help, and no sampling is claimed.
    """
    accounting = import_module("dp_accounting")
    accountant = accounting.rdp.RdpAccountant(ORDERS)
    accountant.compose(accounting.GaussianDpEvent(noise / 2), releases)
    return float(accountant.get_epsilon(delta))
