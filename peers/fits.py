"""Adapters on blocks as products take them, each made once for all sessions that use it, within a budget."""

from collections.abc import Callable
from weakref import WeakValueDictionary

from peers.changes import Fit
from peers.limits import EngineLimits
from peers.training.deltas import BlockAdapter
from swarm.errors import Busy, HopError
from swarm.messages import FaultCode
from swarm.training import AdapterKey

__all__ = ["Fits"]


class Fits:
    """They live as long as somebody holds them."""

    def __init__(self, fit: Callable[[int, BlockAdapter], Fit], limits: EngineLimits) -> None:
        """`fit`: of a block of the model and an adapter; raises HopError when that does not fit."""
        self._fit = fit
        self._limits = limits
        self._known: WeakValueDictionary[tuple[int, AdapterKey], Fit] = WeakValueDictionary()

    @property
    def nbytes(self) -> int:
        return sum(fit.nbytes for fit in self._known.values())

    def of(self, block: int, key: AdapterKey, adapter: BlockAdapter) -> Fit:
        """`key`: the digest of `adapter`. Raises HopError when it does not fit, or Busy."""
        known = self._known.get((block, key))
        if known is not None:
            return known
        limits, fit = self._limits, self._fit(block, adapter)
        if fit.nbytes > limits.fitted_bytes:
            text = f"an adapter takes {fit.nbytes} bytes to compute with; this peer has {limits.fitted_bytes} for all"
            raise HopError(FaultCode.REFUSED, text)
        if self.nbytes + fit.nbytes > limits.fitted_bytes:
            text = f"the adapters in use take all {limits.fitted_bytes} bytes that this peer has to compute with them"
            raise Busy(text, limits.retry_seconds)
        self._known[block, key] = fit
        return fit
