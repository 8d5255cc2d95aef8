"""A private swarm over libp2p and the DHT on loopback: an owner, a member who serves, a guest, and a stranger."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass

import pytest
from hivemind.dht.node import DHTNode
from hivemind.dht.routing import DHTID
from hivemind.p2p import PeerID

from swarm.door import Door, serve_door
from swarm.errors import AccessError, NetworkError, StreamClosed
from swarm.identity import Identity
from swarm.invites import Invite, Role
from swarm.kademlia import KademliaDirectory
from swarm.libp2p import Libp2pHost
from swarm.revocations import Revocation
from swarm.transport import Stream
from tests.swarm.members import HOUR, invited, owner
from tests.swarm.records import MODEL, record_of

pytestmark = pytest.mark.anyio

TALK = "/test/talk"
OWNER = owner()
PATIENCE = 30.0  # seconds until a test that hangs fails


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


@dataclass(frozen=True)
class Member:
    identity: Identity
    host: Libp2pHost
    directory: KademliaDirectory


@dataclass
class Home:
    stack: AsyncExitStack
    addresses: tuple[str, ...] = ()

    async def host(self, invite: Invite | None) -> tuple[Identity, Libp2pHost]:
        identity = Identity.ephemeral()
        door = None if invite is None else Door(invite, identity.peer_id)
        host = await Libp2pHost.start(identity, initial_peers=self.addresses, door=door)
        self.stack.push_async_callback(host.close)
        return identity, host

    async def join(self, invite: Invite | None, *, client: bool = False) -> Member:
        identity, host = await self.host(invite)
        directory = await KademliaDirectory.start(
            host, identity, self.addresses, client_mode=client, new_swarm=not self.addresses
        )
        self.stack.push_async_callback(directory.close)
        self.addresses = self.addresses or await host.transport.addresses()
        return Member(identity, host, directory)


@pytest.fixture(scope="module")
async def swarm() -> AsyncIterator[tuple[Home, Member]]:
    async def echo(stream: Stream) -> None:
        await stream.send(await stream.receive())

    async with AsyncExitStack() as stack, asyncio.timeout(2 * PATIENCE):
        home = Home(stack)
        first = await home.join(OWNER)
        assert first.host.door is not None
        await first.host.transport.serve(TALK, echo)
        await serve_door(first.host.open_transport, first.host.door, lambda: None)
        await first.directory.announce(record_of(first.identity.peer_id))
        yield home, first


async def test_who_may_serve_announces_and_who_may_use_reads_and_opens_streams(swarm: tuple[Home, Member]) -> None:
    home, first = swarm
    server = await home.join(invited(OWNER, Role.SERVE))
    await server.directory.announce(record_of(server.identity.peer_id))
    guest = await home.join(invited(OWNER, Role.USE), client=True)
    known = {record.peer for record in await guest.directory.read(MODEL)}
    assert {first.identity.peer_id, server.identity.peer_id} <= known
    stream = await guest.host.transport.open(first.identity.peer_id, TALK, home.addresses)
    frame = b"\x05\0\0\0\x01\0\0\0\x80"
    await stream.send(frame)
    assert await stream.receive() == frame


async def test_who_may_only_use_announces_nothing(swarm: tuple[Home, Member]) -> None:
    home, first = swarm
    guest = await home.join(invited(OWNER, Role.USE), client=True)
    with pytest.raises(NetworkError):
        await guest.directory.announce(record_of(guest.identity.peer_id))
    assert guest.identity.peer_id not in {record.peer for record in await first.directory.read()}


async def test_strangers_are_told_that_the_swarm_is_private(swarm: tuple[Home, Member]) -> None:
    home, first = swarm
    with pytest.raises(AccessError, match="private: ask its owner for an invite"):
        await home.join(None, client=True)
    with pytest.raises(AccessError, match="not by this swarm's owner"):
        await home.join(invited(owner()), client=True)
    _, host = await home.host(None)
    stream = await host.transport.open(first.identity.peer_id, TALK, home.addresses)
    await stream.send(b"\x05\0\0\0\x01\0\0\0\x80")
    with pytest.raises(StreamClosed):
        await stream.receive()


async def test_strangers_who_speak_the_dht_themselves_read_and_store_nothing(swarm: tuple[Home, Member]) -> None:
    home, first = swarm
    _, host = await home.host(None)
    eve = await DHTNode.create(p2p=host.p2p)
    home.stack.push_async_callback(eve.shutdown)
    peer, key = PeerID.from_base58(first.identity.peer_id), DHTID.generate("swarm/1/peers")
    assert await eve.protocol.call_find(peer, [key]) is None
    assert not await eve.protocol.call_store(peer, [key], [b"x"], [time.time() + 60], subkeys=["x"])


async def test_who_was_put_out_can_neither_read_nor_announce(swarm: tuple[Home, Member]) -> None:
    home, first = swarm
    invite = invited(OWNER, Role.SERVE)
    server = await home.join(invite)
    await server.directory.announce(record_of(server.identity.peer_id))
    assert server.identity.peer_id in {record.peer for record in await first.directory.read()}
    assert first.host.door is not None
    first.host.door.revocations.learn([Revocation.make(OWNER, invite.key.peer_id, time.time() + HOUR).sealed])
    assert server.identity.peer_id not in {record.peer for record in await first.directory.read()}
    with pytest.raises(AccessError, match="was taken back"):
        await home.join(invite, client=True)
