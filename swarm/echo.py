"""How long a frame takes to a peer and back. The network process answers, whatever its device has to do."""

import asyncio
import math
from collections.abc import Sequence
from contextlib import suppress

from swarm.errors import StreamClosed, Unreachable
from swarm.ids import PeerId
from swarm.transport import Stream, Transport
from swarm.wire import encode

__all__ = ["PROTOCOL", "round_trip", "serve_echo"]

PROTOCOL = "/swarm/1/echo"
TRIPS = 3  # of which the shortest counts: a way can seem longer than it is, and never shorter
SECONDS = 10.0  # for all of them, dialling included
ECHO = encode({"kind": "echo"})


async def serve_echo(transport: Transport) -> None:
    """Answer whoever asks, from now on."""

    async def attend(stream: Stream) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(SECONDS):
                for _ in range(TRIPS):
                    await stream.receive()
                    await stream.send(ECHO)
                with suppress(StreamClosed):
                    await stream.receive()  # it closes when it has heard

    await transport.serve(PROTOCOL, attend)


async def round_trip(transport: Transport, peer: PeerId, addresses: Sequence[str] = ()) -> float:
    """Seconds to `peer` and back. Raises NetworkError when it does not answer, or knows no echo."""
    clock, shortest = asyncio.get_running_loop().time, math.inf
    try:
        async with asyncio.timeout(SECONDS):
            stream = await transport.open(peer, PROTOCOL, addresses)
            try:
                for _ in range(TRIPS):
                    began = clock()
                    await stream.send(ECHO)
                    await stream.receive()
                    shortest = min(shortest, clock() - began)
            finally:
                stream.close()
    except TimeoutError:
        raise Unreachable(f"peer {peer} did not answer within {SECONDS:g} s") from None
    return shortest
