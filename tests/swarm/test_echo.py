"""How far a peer is, asked of it."""

import asyncio

import pytest

from swarm.echo import PROTOCOL, SECONDS, TRIPS, round_trip, serve_echo
from swarm.errors import StreamClosed, Unreachable
from swarm.identity import Identity
from swarm.ids import PeerId
from swarm.libp2p import Libp2pHost
from swarm.memory import MemoryNetwork
from swarm.transport import Stream
from swarm.wire import encode
from tests.virtual import run_virtual

A, B = PeerId("a"), PeerId("b")
WORD = encode({})


def test_shortest_trip_counts_and_dialling_does_not() -> None:
    delays = iter([0.3, 0.3, 0.5, 0.5, 0.1, 0.2, 0.4, 0.4, *[9.0] * 9])  # to dial, and of each trip

    async def main() -> None:
        network = MemoryNetwork(delay=lambda *_: next(delays))
        await serve_echo(network.transport(B))
        assert await round_trip(network.transport(A), B) == pytest.approx(0.3)

    run_virtual(main())


def test_peer_that_is_not_there_or_says_nothing_has_no_distance() -> None:
    async def silent(_: Stream) -> None:
        await asyncio.sleep(10 * SECONDS)

    async def main() -> None:
        network = MemoryNetwork()
        near = network.transport(A)
        with pytest.raises(Unreachable):
            await round_trip(near, B)
        await network.transport(B).serve(PROTOCOL, silent)
        with pytest.raises(Unreachable, match="did not answer within"):
            await round_trip(near, B)
        assert asyncio.get_running_loop().time() < 2 * SECONDS

    run_virtual(main())


def test_who_asks_on_and_on_or_not_at_all_is_left() -> None:
    async def main() -> None:
        network = MemoryNetwork()
        await serve_echo(network.transport(B))
        asker = network.transport(A)
        busy, idle = [await asker.open(B, PROTOCOL) for _ in range(2)]
        for _ in range(TRIPS):
            await busy.send(WORD)
            await busy.receive()
        await busy.send(WORD)
        with pytest.raises(StreamClosed):
            await busy.receive()
        with pytest.raises(StreamClosed):
            await idle.receive()
        assert asyncio.get_running_loop().time() == pytest.approx(SECONDS)

    run_virtual(main())


@pytest.mark.anyio
async def test_real_peers_are_a_moment_apart() -> None:
    async with await Libp2pHost.start(Identity.ephemeral()) as far:
        await serve_echo(far.transport)
        addresses = await far.transport.addresses()
        async with await Libp2pHost.start(Identity.ephemeral(), initial_peers=addresses, client=True) as near:
            assert 0 < await round_trip(near.transport, far.peer_id, addresses) < SECONDS
