"""The one seam to the network: open a stream to a peer, serve a protocol.

A stream carries whole frames (`swarm.wire`) as bytes, in order, both ways; who is on the other side has been proved.
`swarm.libp2p` is the real side, `swarm.memory` the twin; both pass `tests/swarm/test_transport_contract.py`.
"""

import asyncio
import logging
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Sequence

from swarm.errors import ProtocolError, StreamClosed
from swarm.ids import PeerId

__all__ = ["Handler", "Stream", "Transport", "handle"]

_log = logging.getLogger(__name__)


class Stream(ABC):
    """An ordered two-way pipe of frames to one peer."""

    remote: PeerId

    @property
    @abstractmethod
    def gone(self) -> bool:
        """Whether the other side has ended both directions; `receive` still gives what it sent before."""

    @abstractmethod
    async def send(self, frame: bytes) -> None:
        """Queue one encoded frame; waits while the other side is slow. Raises StreamClosed."""

    @abstractmethod
    async def receive(self) -> bytes:
        """The next frame, whole, its prefix included. Raises StreamClosed at the end, WireError on nonsense."""

    @abstractmethod
    def close(self) -> None:
        """Both directions, at once; safe to repeat. A pending `receive` on either side raises StreamClosed."""


Handler = Callable[[Stream], Awaitable[None]]


async def handle(handler: Handler, stream: Stream) -> None:
    """Run `handler` for `stream` to its end, and close it. What the other side does wrong ends that stream alone; any
    other error is the handler's own fault and goes to the loop's exception handler."""
    try:
        await handler(stream)
    except (StreamClosed, ProtocolError) as error:
        _log.debug("the stream of %s ended: %s", stream.remote, error)
    except Exception as error:
        message = f"the handler of a stream from {stream.remote} failed"
        asyncio.get_running_loop().call_exception_handler({"message": message, "exception": error})
    finally:
        stream.close()


class Transport(ABC):
    """A peer's presence on the network."""

    peer_id: PeerId

    @abstractmethod
    async def open(self, peer: PeerId, protocol: str, addresses: Sequence[str] = ()) -> Stream:
        """A new stream to `peer`. Raises Unreachable when it can't be dialled or does not serve `protocol`."""

    @abstractmethod
    async def serve(self, protocol: str, handler: Handler) -> None:
        """Run `handler`, from now on, for every stream that others open; the stream is closed when it returns."""

    @abstractmethod
    async def addresses(self) -> tuple[str, ...]:
        """Where others can dial this peer: multiaddresses that end in its id."""

    @abstractmethod
    async def close(self) -> None:
        """End every stream and leave the network."""
