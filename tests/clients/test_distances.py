"""Chains of near peers: what a client measures in virtual time, and what it makes of that."""

import asyncio
import random
from collections.abc import Awaitable, Callable, Sequence

import pytest

from clients.client import Client, Model
from clients.distances import FIRST, FRESH, LOOK, MOST, NEAR, UNKNOWN, WAYS, Distances
from swarm.checkpoint import Checkpoint
from swarm.echo import SECONDS, serve_echo
from swarm.ids import PeerId, Span
from swarm.memory import MemoryDirectory
from swarm.record import PeerRecord
from tests.memory_swarm import MemorySwarm, in_swarm

ME = PeerId("client")
FRONT, BACK = Span(0, 2), Span(2, 4)


class Place:
    """Peers that answer, at distances that a test may change: seconds one way from everybody else."""

    def __init__(self, swarm: MemorySwarm) -> None:
        self.swarm = swarm
        self.away: dict[PeerId, float] = {}
        swarm.network.delay = self._delay

    async def put(self, name: str, away: float, blocks: Span = FRONT, *, rate: float = 50.0) -> PeerId:
        peer = PeerId(name)
        self.away[peer] = away
        await serve_echo(self.swarm.network.transport(peer))
        self.swarm.announce(name, blocks, pace=(rate, 1000.0))
        return peer

    def distances(self) -> Distances:
        return Distances(self.swarm.network.transport(ME), random.Random(0), asyncio.get_running_loop().time)

    async def client(self, *, measures: bool) -> Client:
        checkpoint = self.swarm.checkpoint
        model = Model(checkpoint.name, checkpoint.digest, checkpoint.num_blocks, checkpoint.hidden_size)
        transport, directory = self.swarm.network.transport(ME), MemoryDirectory(self.swarm.shelf)
        client = Client(transport, directory, model, dice=random.Random(0), measures=measures)
        return await self.swarm.stack.enter_async_context(client)

    @property
    def records(self) -> Sequence[PeerRecord]:
        return [record for (model, _), record in self.swarm.shelf.items() if model is not None]

    def _delay(self, source: PeerId, target: PeerId) -> float:
        return max(self.away.get(source, 0.0), self.away.get(target, 0.0))


def at_a_place(checkpoint: Checkpoint, play: Callable[[Place], Awaitable[None]]) -> None:
    in_swarm(checkpoint, lambda swarm: play(Place(swarm)))


@pytest.mark.parametrize(("measures", "expected"), [(True, ["near0", "near1"]), (False, ["far0", "far1"])])
def test_chain_goes_through_near_peers_where_distances_are_measured(
    checkpoint: Checkpoint, measures: bool, expected: list[str]
) -> None:
    async def play(place: Place) -> None:
        for number, blocks in enumerate((FRONT, BACK)):
            await place.put(f"near{number}", 0.02, blocks)
            await place.put(f"far{number}", 0.15, blocks, rate=100.0)
        client = await place.client(measures=measures)
        hops = client.plan(Span(0, 4), source=ME, sink=ME)
        assert [hop.peer for hop in hops] == expected

    at_a_place(checkpoint, play)


def test_what_is_measured_is_one_way_and_next_door_nobody_is_preferred(checkpoint: Checkpoint) -> None:
    async def play(place: Place) -> None:
        one, other, far = [await place.put(name, away) for name, away in [("a", 0.001), ("b", 0.009), ("c", 0.2)]]
        distances = place.distances()
        await distances.measure(place.records)
        links = distances.links()
        assert [links.between(ME, peer).delay for peer in (one, other, far)] == pytest.approx([NEAR, NEAR, 0.2])
        assert links.between(far, ME).delay == pytest.approx(0.2)
        assert links.between(one, far).delay == pytest.approx(0.2)
        assert links.between(one, PeerId("unheard of")) == UNKNOWN

    at_a_place(checkpoint, play)


def test_peers_that_come_go_and_move_are_noticed(checkpoint: Checkpoint) -> None:
    async def play(place: Place) -> None:
        first = await place.put("a", 0.1)
        distances = place.distances()
        keeping = asyncio.create_task(distances.keep(lambda: place.records))
        await asyncio.sleep(1.0)
        late = await place.put("b", 0.3)
        await asyncio.sleep(LOOK + 3.0)
        assert distances.links().between(ME, late).delay == pytest.approx(0.3)
        place.away[first] = 0.05
        await asyncio.sleep(FRESH / 2)
        assert distances.links().between(ME, first).delay == pytest.approx(0.1)
        await asyncio.sleep(FRESH)
        assert distances.links().between(ME, first).delay == pytest.approx(0.05)
        place.swarm.network.hang(late)
        await asyncio.sleep(FRESH + 2 * SECONDS)
        assert distances.links().between(ME, late) == UNKNOWN
        place.swarm.shelf.clear()
        await asyncio.sleep(2 * LOOK)
        assert distances.links().known == {}
        keeping.cancel()

    at_a_place(checkpoint, play)


def test_of_many_some_are_measured(checkpoint: Checkpoint) -> None:
    async def play(place: Place) -> None:
        for number in range(2 * MOST):
            await place.put(f"peer{number}", 0.1)
        distances = place.distances()
        for _ in range(3):
            await distances.measure(place.records)
        assert len(distances.links().known) == MOST

    at_a_place(checkpoint, play)


def test_peers_that_say_nothing_are_not_waited_for_long_nor_taken_for_near(checkpoint: Checkpoint) -> None:
    async def play(place: Place) -> None:
        hung, well = await place.put("hung", 0.02), await place.put("well", 0.02)
        place.swarm.network.hang(hung)
        began = asyncio.get_running_loop().time()
        client = await place.client(measures=True)
        assert asyncio.get_running_loop().time() - began == pytest.approx(FIRST)
        links = client._distances.links()
        assert links.between(ME, well).delay == pytest.approx(0.02)
        assert links.between(ME, hung).delay == pytest.approx(FIRST / WAYS)
        await asyncio.sleep(2 * SECONDS)
        assert client._distances.links().between(ME, hung) == UNKNOWN

    at_a_place(checkpoint, play)
