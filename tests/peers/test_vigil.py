"""Who is taken to be gone, on the network's twin."""

import asyncio
from collections.abc import Callable
from dataclasses import replace

from peers.vigil import Vigil
from swarm.ids import PeerId
from swarm.memory import MemoryNetwork
from swarm.messages import PROTOCOL
from swarm.transport import Stream
from tests.routing.records import record
from tests.virtual import run_virtual

A = record("a", 0, 4, num_blocks=4, issued=900.0)
NOW = 1000.0


async def serve(network: MemoryNetwork) -> None:
    async def handler(stream: Stream) -> None:
        await stream.receive()

    await network.transport(PeerId("a")).serve(PROTOCOL, handler)


def watching(play: Callable[[MemoryNetwork, Vigil], "asyncio.Future[None] | object"]) -> None:
    async def main() -> None:
        network = MemoryNetwork()
        await serve(network)
        vigil = Vigil(network.transport(PeerId("me")), clock=lambda: NOW)
        await play(network, vigil)  # type: ignore[misc]

    run_virtual(main())


def test_peer_that_answered_and_does_not_any_more_is_gone() -> None:
    async def play(network: MemoryNetwork, vigil: Vigil) -> None:
        await vigil.look([A])
        assert vigil.gone == set()
        network.kill(A.peer)
        await vigil.look([A])
        vigil.heed([A])
        assert vigil.gone == {A.peer}

    watching(play)


def test_peer_that_never_answered_is_not_for_us_to_judge() -> None:
    async def play(network: MemoryNetwork, vigil: Vigil) -> None:
        network.kill(A.peer)
        await vigil.look([A])
        await vigil.look([A])
        assert vigil.gone == set()

    watching(play)


def test_peer_that_announces_itself_again_is_not_gone_and_has_to_answer_before_it_can_be() -> None:
    async def play(network: MemoryNetwork, vigil: Vigil) -> None:
        await vigil.look([A])
        network.kill(A.peer)
        await vigil.look([A])
        later = replace(A, issued=NOW + 20, expires=NOW + 80)
        vigil.heed([later])
        assert vigil.gone == set()
        await vigil.look([later])
        assert vigil.gone == set()

    watching(play)


def test_peer_that_answers_again_is_not_gone() -> None:
    async def play(network: MemoryNetwork, vigil: Vigil) -> None:
        await vigil.look([A])
        network.kill(A.peer)
        await vigil.look([A])
        await serve(network)
        await vigil.look([A])
        assert vigil.gone == set()

    watching(play)


def test_peer_whose_record_has_run_out_is_forgotten() -> None:
    async def play(network: MemoryNetwork, vigil: Vigil) -> None:
        await vigil.look([A])
        network.kill(A.peer)
        await vigil.look([A])
        vigil.heed([])
        assert vigil.gone == set()

    watching(play)
