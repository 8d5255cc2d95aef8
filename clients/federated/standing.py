"""Where a run stands: the common adapter after so many rounds, and what the server's optimizer remembers."""

import struct
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from clients.federated.rules import Change, combined, slots_of, stepped
from clients.federated.terms import Terms
from swarm.codecs import raw_bytes
from swarm.errors import WireError

__all__ = ["Standing", "read_delta"]

ROUND = struct.Struct("<Q")


@dataclass(frozen=True, slots=True)
class Standing:
    """`weights` and each of `slots` are [size] fp32."""

    round: int
    weights: Tensor
    slots: tuple[Tensor, ...]

    @classmethod
    def first(cls, terms: Terms, weights: Tensor) -> Self:
        return cls(0, weights, tuple(torch.zeros_like(weights) for _ in range(slots_of(terms.server))))

    def after(self, terms: Terms, changes: list[Change]) -> "Standing":
        change = combined(terms.rule, changes)
        weights, slots = stepped(terms.server, terms.server_rate, self.weights, self.slots, change)
        return Standing(self.round + 1, weights, slots)

    def pack(self) -> bytes:
        return ROUND.pack(self.round) + b"".join(raw_bytes(tensor) for tensor in (self.weights, *self.slots))

    @staticmethod
    def nbytes(terms: Terms) -> int:
        return ROUND.size + terms.delta_bytes * (1 + slots_of(terms.server))

    @classmethod
    def parse(cls, terms: Terms, data: bytes) -> Self:
        """Raises WireError."""
        if len(data) != cls.nbytes(terms):
            raise WireError(f"the state of this run has {cls.nbytes(terms)} bytes, not {len(data)}")
        (number,) = ROUND.unpack_from(data)
        numbers = torch.frombuffer(bytearray(data[ROUND.size :]), dtype=torch.float32).view(-1, terms.size)
        if number > terms.rounds or not bool(numbers.isfinite().all()):
            raise WireError("the state of this run has finite numbers and no more rounds than agreed")
        return cls(number, numbers[0], tuple(numbers[1:]))


def read_delta(terms: Terms, data: bytes) -> Tensor:
    """[size] fp32. Raises WireError for one that no honest member would send."""
    if len(data) != terms.delta_bytes:
        raise WireError(f"it is {len(data)} bytes long and not {terms.delta_bytes}")
    delta = torch.frombuffer(bytearray(data), dtype=torch.float32)
    if not bool(delta.isfinite().all()):
        raise WireError("it holds numbers that are not finite")
    norm, most = float(delta.double().norm()), 1.001 * terms.clip * (1 + terms.noise * terms.size**0.5 * 2)
    if norm > most:
        raise WireError(f"it is {norm:.3g} long and {most:.3g} is allowed")
    return delta
