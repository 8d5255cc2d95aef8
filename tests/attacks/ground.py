"""Where an attacker stands: its presence on the network, and all it knows of the peer it abuses."""

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from swarm.errors import NetworkError, StreamClosed, WireError
from swarm.ids import Digest, PeerId, RowId, SessionId, Span, new_session_id
from swarm.libp2p import Libp2pHost
from swarm.messages import PROTOCOL, Open, Step, StepRow
from swarm.transport import Stream

__all__ = ["Attack", "Ground", "Victim"]

BREATH = 0.05  # seconds between attempts that the victim turned away


@dataclass(frozen=True, slots=True)
class Victim:
    """A serving peer of all `blocks` of a model with states of `hidden` values."""

    peer: PeerId
    addresses: tuple[str, ...]
    digest: Digest
    blocks: int
    hidden: int

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Self:
        return cls(**{**values, "addresses": tuple(values["addresses"])})


@dataclass(eq=False, slots=True)
class Ground:
    host: Libp2pHost
    victim: Victim
    dice: random.Random

    @asynccontextmanager
    async def stream(self, protocol: str = PROTOCOL) -> AsyncIterator[Stream]:
        stream = await self.host.open_transport.open(self.victim.peer, protocol, self.victim.addresses)
        try:
            yield stream
        finally:
            stream.close()

    async def again(self, attempt: Callable[[], Awaitable[None]]) -> None:
        """`attempt` without end, however often the victim ends it."""
        while True:
            with suppress(NetworkError, StreamClosed, WireError, OSError):
                await attempt()
            await asyncio.sleep(BREATH)

    def opening(self, lease: int = 16, session: SessionId | None = None) -> Open:
        span = Span(0, self.victim.blocks)
        return Open(session or new_session_id(), self.victim.digest, span, "fp32", self.host.peer_id, None, lease)

    def step(self, session: SessionId, at: int, n: int, row: int = 1) -> Step:
        """Valid work: random hidden states for `n` tokens of a row."""
        return Step(session, (StepRow(RowId(row), at, n, at + n - 1),), "fp32", self.states(n))

    def states(self, n: int) -> bytes:
        draw = np.random.default_rng(self.dice.randrange(1 << 30))
        return draw.standard_normal((n, self.victim.hidden), dtype=np.float32).tobytes()


Attack = Callable[[Ground], Awaitable[None]]


async def swallow(stream: Stream) -> None:
    """Reads whatever comes, to the stream's end."""
    with suppress(StreamClosed, WireError):
        while True:
            await stream.receive()
