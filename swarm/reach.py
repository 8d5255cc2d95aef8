"""Whether others can dial this machine: asked of peers before it serves, who try it.

Before a peer listens it opens a plain TCP port where it means to listen, and tells the peers that it knows: the port,
and a digest of what they will read there. Each tries at the IP address from which it sees us coming, and at no other,
so that nobody can be made to try the ports of a third. What they read proves that it was us they reached, and not
another peer behind the same router.
"""

import asyncio
import ipaddress
import secrets
from asyncio import StreamReader, StreamWriter
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

from swarm import fields
from swarm.addresses import cannot_listen, peer_of
from swarm.entrance import HIGHEST_PORT
from swarm.errors import StreamClosed, SwarmError, WireError
from swarm.libp2p import Libp2pHost
from swarm.transport import Stream, Transport
from swarm.wire import decode, encode

__all__ = ["Reach", "ask_reach", "relay_address", "serve_reach"]

PROTOCOL = "/swarm/1/reach"
WORD = 16  # bytes that are read where we listen
TRY_SECONDS = 3.0  # for one attempt to reach who asked
ASK_SECONDS = 12.0  # for an answer, dialling included
AT_ONCE = 16  # attempts for all who ask here; more wait, as long as they like
ASKED = 4  # peers at most


@dataclass(frozen=True, slots=True)
class Reach:
    """What others found. `reached`: whether anybody could dial us, None when nobody could say; `address`: the IP
    address that they see us at; `port`: where we listened, and should."""

    reached: bool | None
    address: str
    port: int


# --- who asks --------------------------------------------------------------------------------------------------------


async def ask_reach(transport: Transport, peers: Sequence[str], host: str, port: int) -> Reach:
    """What `peers` (multiaddresses) find at `port` of this machine, 0 for any free one. Raises NetworkError when nobody
    can listen there."""
    word = secrets.token_bytes(WORD)

    async def greet(_: StreamReader, writer: StreamWriter) -> None:
        with suppress(OSError):
            writer.write(word)
            await writer.drain()
        writer.close()

    try:
        server = await asyncio.start_server(greet, host, port)
    except OSError as error:
        raise cannot_listen(f"{host}:{port}", error.strerror) from error
    async with server:
        listening = int(server.sockets[0].getsockname()[1])
        async with asyncio.TaskGroup() as group:
            asked = [group.create_task(_ask(transport, peer, listening, word)) for peer in peers[:ASKED]]
    return _together([answer for task in asked if (answer := task.result()) is not None], listening)


def _together(answers: Sequence[tuple[bool, str]], port: int) -> Reach:
    """One who got through is enough."""
    if not answers:
        return Reach(None, "", port)
    reached, address = max(answers)
    return Reach(reached, address, port)


async def _ask(transport: Transport, peer: str, port: int, word: bytes) -> tuple[bool, str] | None:
    try:
        async with asyncio.timeout(ASK_SECONDS):
            stream = await transport.open(peer_of(peer), PROTOCOL, [peer])
            try:
                await stream.send(encode({"kind": "reach", "port": port, "digest": _digest(word)}))
                header = decode(await stream.receive()).header
            finally:
                stream.close()
        address = fields.text(fields.get(header, "address"), "an IP address", 64)
        return fields.get(header, "reached") is True, str(ipaddress.ip_address(address))
    except (SwarmError, TimeoutError, ValueError):
        return None  # it is gone, does not know how to try, or says what makes no sense


# --- who tries -------------------------------------------------------------------------------------------------------


async def serve_reach(host: Libp2pHost) -> None:
    """From now on, try to reach whoever asks."""
    turns = asyncio.Semaphore(AT_ONCE)

    async def attend(stream: Stream) -> None:
        async with asyncio.timeout(ASK_SECONDS):
            header = decode(await stream.receive()).header
            port = fields.whole(fields.get(header, "port"), 1, HIGHEST_PORT, "a port")
            digest = fields.get(header, "digest")
            address = _direct(await host.seen_at(stream.remote))
            if address is None:
                raise WireError("who comes through a relay can't be told where it is")
            async with turns:
                reached = await _greeted(address, port, digest)
            await stream.send(encode({"kind": "reached", "address": address, "reached": reached}))
            with suppress(StreamClosed):
                await stream.receive()  # it closes when it has heard

    async def bounded(stream: Stream) -> None:
        with suppress(TimeoutError):
            await attend(stream)

    await host.transport.serve(PROTOCOL, bounded)


def _direct(addresses: Iterable[str]) -> str | None:
    """The IP address of the first connection that is not a relay's."""
    for address in addresses:
        parts = address.split("/")
        if "p2p-circuit" not in parts and len(parts) > 2 and parts[1] in ("ip4", "ip6"):
            return parts[2]
    return None


async def _greeted(address: str, port: int, digest: Any) -> bool:
    writer: StreamWriter | None = None
    try:
        async with asyncio.timeout(TRY_SECONDS):
            reader, writer = await asyncio.open_connection(address, port)
            return bool(_digest(await reader.readexactly(WORD)) == digest)
    except (OSError, EOFError, TimeoutError):
        return False
    finally:
        if writer is not None:
            writer.close()


def _digest(word: bytes) -> bytes:
    return blake2b(word, digest_size=16).digest()


def relay_address(addresses: Iterable[str]) -> str | None:
    """The address among a peer's at which anybody can ask it to relay: its own, and public; None for most peers."""
    for address in addresses:
        found = _direct([address])
        if found is not None and ipaddress.ip_address(found).is_global:
            return address
    return None
