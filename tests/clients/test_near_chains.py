"""Chains of near peers: what a client makes of what it has measured, and of what peers tell, in virtual time."""

import random
from dataclasses import replace

import pytest

from clients.client import Client, Model
from swarm.checkpoint import Checkpoint
from swarm.echo import serve_echo
from swarm.ids import PeerId, Span
from swarm.memory import MemoryDirectory
from tests.memory_swarm import MemorySwarm, in_swarm

ME = PeerId("client")
FRONT, BACK = Span(0, 2), Span(2, 4)


async def put(swarm: MemorySwarm, name: str, blocks: Span, *, rate: float = 50.0, near: str | None = None) -> None:
    await serve_echo(swarm.network.transport(PeerId(name)))
    swarm.announce(name, blocks, pace=(rate, 1000.0))
    if near is not None:
        key = swarm.checkpoint.digest, PeerId(name)
        swarm.shelf[key] = replace(swarm.shelf[key], near=((PeerId(near), 0.001),))


async def chain(swarm: MemorySwarm, *, measures: bool = True) -> list[PeerId]:
    checkpoint = swarm.checkpoint
    model = Model(checkpoint.name, checkpoint.digest, checkpoint.num_blocks, checkpoint.hidden_size)
    directory = MemoryDirectory(swarm.shelf)
    client = Client(swarm.network.transport(ME), directory, model, dice=random.Random(0), measures=measures)
    await swarm.stack.enter_async_context(client)
    return [hop.peer for hop in client.plan(Span(0, 4), source=ME, sink=ME)]


@pytest.mark.parametrize(("measures", "expected"), [(True, ["near0", "near1"]), (False, ["far0", "far1"])])
def test_chain_goes_through_near_peers(checkpoint: Checkpoint, measures: bool, expected: list[str]) -> None:
    """The far ones are faster, and so far away that the first of them has not answered when the chain is planned."""

    async def play(swarm: MemorySwarm) -> None:
        away = {"near": 0.02, "far": 0.15}
        swarm.network.delay = lambda *ends: max(away.get(end.rstrip("01"), 0.0) for end in ends)
        for number, blocks in enumerate((FRONT, BACK)):
            await put(swarm, f"near{number}", blocks)
            await put(swarm, f"far{number}", blocks, rate=100.0)
        assert await chain(swarm, measures=measures) == expected

    in_swarm(checkpoint, play)


@pytest.mark.parametrize("town", ["a", "b"])
def test_chain_stays_in_one_town(checkpoint: Checkpoint, town: str) -> None:
    """Both are equally far; only the peers of one tell that they are neighbours."""

    async def play(swarm: MemorySwarm) -> None:
        swarm.network.delay = 0.1
        for name in "ab":
            await put(swarm, f"{name}0", FRONT, near=f"{name}1" if name == town else None)
            await put(swarm, f"{name}1", BACK)
        assert await chain(swarm) == [f"{town}0", f"{town}1"]

    in_swarm(checkpoint, play)
