"""One remote peer, as a serving peer sees it: its streams, and what it may use."""

import asyncio
import logging
from contextlib import suppress
from dataclasses import dataclass, field

from peers.rate import Bucket
from swarm.errors import StreamClosed
from swarm.ids import PeerId
from swarm.outlet import Allowance, Outlet
from swarm.transport import Stream

__all__ = ["Accepted", "Limits", "Remote"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Limits:
    """What one remote peer may use, and all together. Rates slow a peer down, counts turn it away."""

    streams: int = 8
    sessions: int = 256
    frames_per_second: float = 5_000.0
    bytes_per_second: float = 256e6
    reading: float = 0.1  # the share of this process's time that reading its frames may take
    vain_seconds: float = 0.002  # as much of that time as what was asked in vain counts for,
    vain_byte_seconds: float = 20e-9  # and each of its bytes, which have passed through three processes
    error_seconds: float = 0.02  # the same of what is no frame at all
    waiting_bytes: int = 256 << 20  # answers a slow reader may leave lying here
    next_hops: int = 64  # peers that its sessions' outputs go to
    dials_per_second: float = 4.0  # of such peers
    all_streams: int = 4096
    all_sessions: int = 4096  # the executor takes far fewer; these are also being opened, or refused
    all_next_hops: int = 1024
    all_waiting_bytes: int = 1 << 30
    idle_seconds: float = 300.0  # a stream is ended that no session needs and that brought no frame for so long
    short_seconds: float = 10.0  # the same when somebody else is to be turned away for want of streams


@dataclass(frozen=True, eq=False, slots=True)
class Accepted:
    """A stream that a remote peer has opened here."""

    stream: Stream
    outlet: Outlet

    @property
    def peer(self) -> PeerId:
        return self.stream.remote

    async def write(self) -> None:
        """What is posted, to the stream's end."""
        with suppress(StreamClosed):  # the reader of the same stream sees it too, and cleans up
            await self.outlet.run()


@dataclass(slots=True)
class Remote:
    """Everything one remote peer holds here. `heard`: when each of its streams brought a frame last."""

    frames: Bucket
    bytes: Bucket
    reading: Bucket
    dials: Bucket
    waiting: Allowance
    sessions: int = 0
    largest: int = 0  # bytes of a frame since something was asked in vain
    heard: dict[Accepted, float] = field(default_factory=dict)

    @classmethod
    def under(cls, limits: Limits, waiting: Allowance) -> "Remote":
        """`waiting`: of all remote peers. On a running loop."""
        clock = asyncio.get_running_loop().time
        return cls(
            Bucket(limits.frames_per_second, limits.frames_per_second, clock),
            Bucket(limits.bytes_per_second, limits.bytes_per_second, clock),
            Bucket(limits.reading, 2 * limits.reading, clock),
            Bucket(limits.dials_per_second, limits.next_hops, clock),
            Allowance(limits.waiting_bytes, waiting),
        )
