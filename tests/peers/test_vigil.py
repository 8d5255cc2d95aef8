"""Who is taken to be gone, on the network's twin."""

import asyncio
from collections.abc import Callable
from dataclasses import replace

from peers.vigil import OVERDUE, Vigil
from swarm.ids import PeerId
from swarm.memory import MemoryNetwork
from swarm.messages import PROTOCOL
from swarm.transport import Stream
from tests.routing.records import record
from tests.virtual import run_virtual

NOW = 1000.0
A = record("a", 0, 4, num_blocks=4, issued=NOW - 10)


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


def test_peer_that_never_answered_is_not_for_us_to_judge_while_its_record_is_young() -> None:
    async def play(network: MemoryNetwork, vigil: Vigil) -> None:
        network.kill(A.peer)
        young = replace(A, issued=NOW - OVERDUE + 1)
        assert vigil.doubtful([young]) == [young]
        await vigil.look([young])
        await vigil.look([young])
        assert (vigil.gone, vigil.silent) == (set(), {A.peer})
        assert vigil.doubtful([young]) == []

    watching(play)


def test_peer_that_never_answered_and_should_have_announced_itself_is_gone_until_it_does() -> None:
    async def play(network: MemoryNetwork, vigil: Vigil) -> None:
        network.kill(A.peer)
        old = replace(A, issued=NOW - OVERDUE - 1)
        assert vigil.doubtful([old]) == [old]
        await vigil.look([old])
        vigil.heed([old])
        assert (vigil.gone, vigil.silent) == ({A.peer}, set())
        vigil.heed([replace(A, issued=NOW - 5)])  # by a clock that is behind ours
        assert vigil.gone == set()

    watching(play)


def test_peer_that_answers_is_not_gone_however_old_its_record() -> None:
    async def play(network: MemoryNetwork, vigil: Vigil) -> None:
        await vigil.look([replace(A, issued=NOW - OVERDUE - 1)])
        assert (vigil.gone, vigil.silent, vigil.doubtful([A])) == (set(), set(), [])

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
