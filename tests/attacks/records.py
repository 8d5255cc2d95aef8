"""The DHT: floods of requests, records that nobody may keep, and garbage on its protocols."""

import asyncio
import os
import time
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING

from hivemind.dht import DHTNode
from hivemind.dht.routing import DHTID
from hivemind.p2p import P2PDaemonError, P2PHandlerError, PeerID

from swarm.errors import SwarmError
from swarm.wire import encode
from tests.attacks.ground import Ground

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

AT_ONCE = 32
VALUE = 2000  # bytes
LIFETIME = 100.0
PROTOCOLS = ("DHTProtocol.rpc_store", "DHTProtocol.rpc_find", "DHTProtocol.rpc_ping")


async def stored(ground: Ground) -> None:
    """Records of nobody, under keys of everybody."""

    async def one(node: DHTNode, peer: PeerID) -> None:
        keys = [DHTID.generate() for _ in range(8)]
        values = [os.urandom(VALUE) for _ in keys]
        await node.protocol.call_store(peer, keys, values, [time.time() + LIFETIME] * len(keys))

    await _flood(ground, one)


async def found(ground: Ground) -> None:
    """Questions for keys that nobody has."""

    async def one(node: DHTNode, peer: PeerID) -> None:
        await node.protocol.call_find(peer, [DHTID.generate() for _ in range(8)])

    await _flood(ground, one)


async def garbage(ground: Ground) -> None:
    """Bytes that are no request, on the protocols of the DHT."""

    async def attempt() -> None:
        async with ground.stream(ground.dice.choice(PROTOCOLS)) as stream:
            for _ in range(64):
                await stream.send(encode({"x": os.urandom(ground.dice.randrange(1, 4000))}))

    await asyncio.gather(*(ground.again(attempt) for _ in range(4)))


async def _flood(ground: Ground, one) -> None:  # type: ignore[no-untyped-def]
    peer = PeerID.from_base58(ground.victim.peer)
    async with _joined(ground) as node:

        async def again() -> None:
            while True:
                with suppress(SwarmError, P2PDaemonError, P2PHandlerError, TimeoutError, OSError):
                    await one(node, peer)

        await asyncio.gather(*(again() for _ in range(AT_ONCE)))


@asynccontextmanager
async def _joined(ground: Ground) -> "AsyncIterator[DHTNode]":
    initial = [str(address) for address in ground.victim.addresses]
    node = await DHTNode.create(p2p=ground.host.p2p, initial_peers=initial, client_mode=True)
    try:
        yield node
    finally:
        await node.shutdown()
