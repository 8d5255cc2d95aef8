"""Serving peers that tell how far their neighbours are: real lives on the network's twins, in virtual time."""

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress

import pytest

from peers.choosing import Room
from peers.nearby import INTERVAL, Nearby
from swarm.distances import FRESH
from swarm.echo import serve_echo
from swarm.ids import PeerId, Span
from tests.peers.test_lifecycle import Volunteer, World, in_virtual_time, serving

FIRST, SECOND = Span(0, 4), Span(4, 8)
SECONDS = 20.0  # until a newcomer has measured and told


@asynccontextmanager
async def telling(world: World, name: str, blocks: Span) -> AsyncIterator[Volunteer]:
    async with AsyncExitStack() as stack:
        volunteer = await stack.enter_async_context(serving(world, name, room=Room(len(blocks), blocks)))
        transport = volunteer.transport
        await serve_echo(transport)
        nearby = Nearby(volunteer.life, transport, volunteer.directory, lot=random.Random(name), clock=world.unix_time)
        task = asyncio.create_task(nearby.run())
        try:
            yield volunteer
        finally:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task


async def told(world: World, name: str) -> dict[PeerId, float]:
    return dict((await world.records())[PeerId(name)].near)


@in_virtual_time
async def test_peer_tells_how_far_those_are_that_come_after_it() -> None:
    world = World()
    away = {"one": 0.03, "other": 0.2}
    world.network.delay = lambda *ends: max(away.get(end, 0.0) for end in ends)
    async with telling(world, "one", SECOND), telling(world, "other", SECOND), telling(world, "first", FIRST):
        await asyncio.sleep(SECONDS)
        assert await told(world, "first")
        await asyncio.sleep(2 * INTERVAL)
        near = await told(world, "first")
        assert near == {"one": pytest.approx(0.03), "other": pytest.approx(0.2)}
        assert list(near) == ["one", "other"], "the nearest first"
        assert await told(world, "one") == {}, "nobody comes after it but the client"


@in_virtual_time
async def test_what_has_changed_is_told_and_little_changes_are_not() -> None:
    world = World()
    away = {"one": 0.1}
    world.network.delay = lambda *ends: max(away.get(end, 0.0) for end in ends)
    async with telling(world, "first", FIRST):
        async with telling(world, "one", SECOND):
            await asyncio.sleep(2 * INTERVAL)
            assert await told(world, "first") == {"one": pytest.approx(0.1)}
            away["one"] = 0.11
            await asyncio.sleep(FRESH + 2 * INTERVAL)
            assert await told(world, "first") == {"one": pytest.approx(0.1)}
            away["one"] = 0.2
            await asyncio.sleep(FRESH + 2 * INTERVAL)
            assert await told(world, "first") == {"one": pytest.approx(0.2)}
        await asyncio.sleep(3 * INTERVAL)
        assert await told(world, "first") == {}
