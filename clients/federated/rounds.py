"""A member's own work: train from the common adapter, say what changed, take what came of it; go on after a stop."""

import struct
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

import msgpack
import torch
from torch import Tensor

from clients.federated.frames import Signed, signed_in
from clients.federated.member import Member
from clients.federated.privacy import clipped, noised
from clients.federated.standing import Standing
from clients.federated.terms import MAX_MEMBERS, Terms
from clients.finetune.run import Tuning
from swarm.atomic import write_file
from swarm.errors import UsageError, WireError
from swarm.ids import PeerId
from swarm.unpacking import unpack

__all__ = ["Kept", "Round", "Rounds", "flat", "put"]

NAME = "federated.bin"
RELEASES = struct.Struct("<I")
T = TypeVar("T")


class Caller(Protocol):
    def call(self, work: Coroutine[Any, Any, T]) -> T: ...


@dataclass(frozen=True, slots=True)
class Round:
    """What is told after each. `loss`: this member's, while it trained. `evaluation`: of the common adapter on its own
    held-out rows. `releases`: changes that this member has ever said in this run."""

    round: int
    losses: Mapping[PeerId, float]
    left_out: Mapping[PeerId, str]
    loss: float
    evaluation: float | None
    releases: int


@dataclass(frozen=True, slots=True)
class Kept:
    """What outlives the process: the common state, and how often this member has spoken."""

    standing: Standing
    releases: int
    vouchers: tuple[Signed, ...] = ()  # by which others will believe that the run stands there

    def save(self, folder: Path, terms: Terms) -> None:
        vouchers: bytes = msgpack.packb([each.pack() for each in self.vouchers])
        write_file(folder / NAME, terms.key + RELEASES.pack(self.releases) + self.standing.pack() + vouchers)

    @classmethod
    def load(cls, folder: Path, terms: Terms, weights: Tensor) -> "Kept":
        """A new beginning from `weights` where nothing is kept. Raises UsageError."""
        path = folder / NAME
        if not path.exists():
            return cls(Standing.first(terms, weights), 0)
        data = path.read_bytes()
        at, end = len(terms.key) + RELEASES.size, len(terms.key) + RELEASES.size + Standing.nbytes(terms)
        if data[: len(terms.key)] != terms.key:
            raise UsageError(f"{folder} holds another run, or other options: give those of before, or another --output")
        try:
            standing = Standing.parse(terms, data[at:end])
            vouchers = signed_in(unpack(data[end:]), MAX_MEMBERS)
        except (WireError, ValueError) as error:
            raise UsageError(f"{path} can't be read: remove it to begin again ({error})") from error
        return cls(standing, RELEASES.unpack_from(data, len(terms.key))[0], tuple(vouchers))


class Rounds:
    """Blocking; `caller` runs what the member does on its loop."""

    def __init__(
        self, terms: Terms, tuning: Tuning, tuned: Any, kept: Kept, *, folder: Path, steps: int, caller: Caller
    ) -> None:
        self._terms, self._tuning, self._tuned = terms, tuning, tuned
        self._releases = kept.releases
        self._folder, self._steps, self._caller = folder, steps, caller

    def run(self, member: Member, tell: Callable[[Round], None]) -> None:
        """To the last round. Raises SwarmError."""
        call = self._caller.call
        standing = call(member.settle())
        while standing.round < self._terms.rounds:
            delta, tokens, loss = self._train(standing)
            self._releases += 1
            self._keep(standing, member)  # first: what is said can't be taken back
            outcome = call(member.share(delta, tokens, loss))
            standing = call(member.settle())
            self._take(standing, member)
            evaluation = self._tuning.evaluate() if self._tuning.held_out else None
            tell(Round(standing.round, outcome.losses, outcome.left_out, loss, evaluation, self._releases))
        self._take(standing, member)
        call(member.farewell())

    def _train(self, standing: Standing) -> tuple[Tensor, int, float]:
        put(self._tuned, standing.weights)
        self._tuning.progress.step = standing.round * self._steps
        self._tuned.train()
        steps = [self._tuning.advance() for _ in range(self._steps)]
        delta = clipped(flat(self._tuned) - standing.weights, self._terms.clip)
        delta = noised(delta, self._terms.noise * self._terms.clip)
        return delta, sum(tokens for _, tokens in steps), sum(loss for loss, _ in steps) / len(steps)

    def _take(self, standing: Standing, member: Member) -> None:
        put(self._tuned, standing.weights)
        self._tuning.progress.step = standing.round * self._steps
        self._tuning.save()
        self._keep(standing, member)

    def _keep(self, standing: Standing, member: Member) -> None:
        vouchers = self._caller.call(_vouchers(member))
        Kept(standing, self._releases, tuple(vouchers)).save(self._folder, self._terms)


async def _vouchers(member: Member) -> list[Signed]:
    return member.vouchers  # on the member's own loop


def _learning(tuned: Any) -> list[Tensor]:
    return [p for _, p in sorted(tuned.named_parameters(), key=lambda named: str(named[0])) if p.requires_grad]


def flat(tuned: Any) -> Tensor:
    """[size] fp32: all of the adapter's numbers, tensor after tensor in the order of their names."""
    return torch.cat([p.detach().float().reshape(-1) for p in _learning(tuned)])


@torch.no_grad()
def put(tuned: Any, weights: Tensor) -> None:
    parameters = _learning(tuned)
    for parameter, part in zip(parameters, torch.split(weights, [p.numel() for p in parameters]), strict=True):
        parameter.copy_(part.view(parameter.shape))
