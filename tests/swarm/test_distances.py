"""What a peer measures of the ways to others, in virtual time."""

import asyncio
import random
from collections.abc import Awaitable, Callable, Iterable

import pytest

from swarm.distances import FIRST, FRESH, LOOK, MOST, WAYS, Distances
from swarm.echo import SECONDS, serve_echo
from swarm.ids import PeerId
from swarm.memory import MemoryNetwork
from swarm.record import PeerRecord, PeerState
from tests.swarm.records import record_of
from tests.virtual import run_virtual

ME = PeerId("me")


class Place:
    """Peers that answer, at distances that a test may change: seconds one way from everybody else."""

    def __init__(self) -> None:
        self.network = MemoryNetwork(delay=lambda source, target: max(self.away[source], self.away[target]))
        self.away = {ME: 0.0}
        self.records: dict[PeerId, PeerRecord] = {}
        transport = self.network.transport(ME)
        self.distances = Distances(transport, random.Random(0))

    async def put(self, name: str, away: float) -> PeerId:
        peer = PeerId(name)
        self.away[peer] = away
        await serve_echo(self.network.transport(peer))
        self.records[peer] = record_of(peer)
        return peer

    def there(self) -> Iterable[PeerRecord]:
        return self.records.values()


def at_a_place(play: Callable[[Place], Awaitable[None]]) -> None:
    async def main() -> None:
        await play(Place())

    run_virtual(main())


def test_what_is_measured_is_one_way() -> None:
    async def play(place: Place) -> None:
        near, far = await place.put("near", 0.001), await place.put("far", 0.2)
        place.records[ME] = record_of(ME)
        resting = await place.put("resting", 0.1)
        place.records[resting] = record_of(resting, state=PeerState.STANDBY)
        await place.distances.measure(place.there())
        assert place.distances.delays == {near: pytest.approx(0.001), far: pytest.approx(0.2)}

    at_a_place(play)


def test_peers_that_come_go_and_move_are_noticed() -> None:
    async def play(place: Place) -> None:
        first = await place.put("a", 0.1)
        delays = place.distances
        keeping = asyncio.create_task(delays.keep(place.there))
        await asyncio.sleep(1.0)
        late = await place.put("b", 0.3)
        await asyncio.sleep(LOOK + 3.0)
        assert delays.delays[late] == pytest.approx(0.3)
        place.away[first] = 0.05
        await asyncio.sleep(FRESH / 2)
        assert delays.delays[first] == pytest.approx(0.1)
        await asyncio.sleep(FRESH)
        assert delays.delays[first] == pytest.approx(0.05)
        place.network.hang(late)
        await asyncio.sleep(FRESH + 2 * SECONDS)
        assert delays.delays.keys() == {first}
        place.records.clear()
        await asyncio.sleep(2 * LOOK)
        assert delays.delays == {}
        keeping.cancel()

    at_a_place(play)


def test_of_many_some_are_measured() -> None:
    async def play(place: Place) -> None:
        for number in range(2 * MOST):
            await place.put(f"peer{number}", 0.1)
        for _ in range(3):
            await place.distances.measure(place.there())
        assert len(place.distances.delays) == MOST

    at_a_place(play)


def test_who_says_nothing_is_not_waited_for_long() -> None:
    async def play(place: Place) -> None:
        hung, well = await place.put("hung", 0.02), await place.put("well", 0.02)
        place.network.hang(hung)
        keeping = asyncio.create_task(place.distances.keep(place.there))
        await place.distances.settled()
        assert asyncio.get_running_loop().time() == pytest.approx(FIRST)
        assert place.distances.delays.keys() == {well}
        assert place.distances.silences == {hung: pytest.approx(FIRST / WAYS)}
        await asyncio.sleep(2 * SECONDS)
        assert place.distances.silences == {}
        keeping.cancel()

    at_a_place(play)
