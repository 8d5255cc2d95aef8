"""Two hosts on loopback, of which one asks the other whether it can be dialled."""

import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from hivemind.utils.multiaddr import Multiaddr

from swarm.addresses import packed
from swarm.entrance import is_relayed
from swarm.errors import StreamClosed
from swarm.identity import Identity
from swarm.libp2p import Libp2pHost
from swarm.reach import PROTOCOL, Reach, ask_reach, relay_address, serve_reach
from swarm.wire import decode, encode

pytestmark = pytest.mark.anyio

HOME = "127.0.0.1"


@asynccontextmanager
async def two() -> AsyncIterator[tuple[Libp2pHost, Libp2pHost, str]]:
    """Who tries, who asks, and the address of the first."""
    async with await Libp2pHost.start(Identity.ephemeral()) as trier:
        (address, *_) = await trier.transport.addresses()
        async with await Libp2pHost.start(Identity.ephemeral(), initial_peers=[address], client=True) as asker:
            yield trier, asker, address


async def test_machine_that_others_can_dial_learns_so() -> None:
    async with two() as (trier, asker, address):
        unknown = await ask_reach(asker.transport, [address], HOME, 0)
        assert unknown.reached is None, "who does not know the protocol says nothing"
        await serve_reach(trier)
        found = await ask_reach(asker.transport, [address], HOME, 0)
        assert found == Reach(True, HOME, found.port)
        assert found.port


async def test_only_who_asks_counts_as_reached_and_only_ports_are_tried() -> None:
    async with two() as (trier, asker, address):
        await serve_reach(trier)
        stream = await asker.transport.open(trier.peer_id, PROTOCOL, [address])
        with socket.create_server((HOME, 0)) as closed:
            port = closed.getsockname()[1]
        await stream.send(encode({"kind": "reach", "port": port, "digest": b"d" * 16}))
        assert decode(await stream.receive()).header["reached"] is False
        stream = await asker.transport.open(trier.peer_id, PROTOCOL, [address])
        own = int(address.split("/")[4])  # somebody listens there, and is not who asks
        await stream.send(encode({"kind": "reach", "port": own, "digest": b"d" * 16}))
        assert decode(await stream.receive()).header["reached"] is False
        stream = await asker.transport.open(trier.peer_id, PROTOCOL, [address])
        await stream.send(encode({"kind": "reach", "port": 0, "digest": b""}))
        with pytest.raises(StreamClosed):
            await stream.receive()


async def test_where_a_host_was_reached_is_told_besides_its_own_addresses() -> None:
    async with await Libp2pHost.start(Identity.ephemeral(), also=["/ip4/44.0.0.1/tcp/31330"]) as host:
        also, own = await host.transport.addresses()
        assert also == f"/ip4/44.0.0.1/tcp/31330/p2p/{host.peer_id}"
        assert own.startswith(f"/ip4/{HOME}/tcp/")


def test_address_through_a_relay_is_known_as_such_and_written_as_the_daemon_reads_it() -> None:
    relay, peer = Identity.ephemeral().peer_id, Identity.ephemeral().peer_id
    direct = f"/ip4/44.0.0.1/tcp/31330/p2p/{relay}"
    circuit = f"{direct}/p2p-circuit/p2p/{peer}"
    assert is_relayed([direct, circuit])
    assert not is_relayed([direct])
    assert relay_address([f"/ip4/192.168.1.2/tcp/1/p2p/{peer}", circuit, direct]) == direct
    assert relay_address([circuit]) is None
    place, one, rest = packed("/ip4/44.0.0.1/tcp/31330"), packed(f"/p2p/{relay}"), packed("/p2p-circuit")
    assert packed(direct + "/p2p-circuit") == place + one + rest
    assert place == Multiaddr("/ip4/44.0.0.1/tcp/31330").to_bytes()
    assert one[:3] == bytes([0xA5, 0x03, 38]), "an Ed25519 id is a multihash of 38 bytes, and no CID"
