"""Serving peers that reconsider where they are: real lives on the network's twins, in virtual time."""

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress

from peers.choosing import Room
from peers.reconsidering import Reconsidering
from routing.placement import Placement
from swarm.ids import PeerId, Span
from swarm.record import PeerState
from tests.peers.test_lifecycle import (
    MODEL,
    Volunteer,
    World,
    connect,
    in_virtual_time,
    opening,
    serving,
    yes,
)

FIRST, SECOND = Span(0, 4), Span(4, 8)
MINUTE, HOUR = 60.0, 3600.0


@asynccontextmanager
async def reconsidering(
    world: World,
    names: Sequence[str],
    at: Span,
    *,
    interval: float = MINUTE,
    lot: Callable[[int], random.Random] = random.Random,
) -> AsyncIterator[list[Volunteer]]:
    """Peers that are all sent to the same blocks, and then think about it."""
    async with AsyncExitStack() as stack:
        volunteers = [await stack.enter_async_context(serving(world, name, room=Room(4))) for name in names]
        for volunteer in volunteers:
            record = volunteer.life.record
            if record is not None and record.span != at:
                assert await volunteer.life.move(Placement(at, "the test says so", 0.0, 0.0), yes)
            volunteer.served.clear()
        for seed, volunteer in enumerate(volunteers):
            stack.push_async_callback(ended, think(world, volunteer, interval, lot(seed)))
        yield volunteers


def think(world: World, volunteer: Volunteer, interval: float, lot: random.Random) -> asyncio.Task[None]:
    thinking = Reconsidering(volunteer.life, volunteer.directory, interval=interval, lot=lot, clock=world.unix_time)
    return asyncio.create_task(thinking.run(), name=f"{volunteer.peer} reconsiders")


class Even(random.Random):
    """Whose numbers are all the middle."""

    def random(self) -> float:
        return 0.5


async def ended(task: asyncio.Task[None]) -> None:
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task


async def until_it_drains(world: World, volunteer: Volunteer) -> None:
    for _ in range(round(10 * MINUTE)):
        if (await world.records())[volunteer.peer].state is PeerState.DRAINING:
            return
    raise AssertionError("it never did")


async def spans(world: World) -> dict[PeerId, Span]:
    return {peer: record.span for peer, record in (await world.records()).items()}


def moves(volunteers: Sequence[Volunteer]) -> int:
    return sum(len(volunteer.served) for volunteer in volunteers)


@in_virtual_time
async def test_peers_that_are_all_at_the_same_blocks_spread_out_and_then_rest() -> None:
    world = World()
    async with reconsidering(world, "abcdef", FIRST) as volunteers:
        await asyncio.sleep(15 * MINUTE)
        assert sorted((await spans(world)).values(), key=str) == [FIRST] * 3 + [SECOND] * 3
        assert moves(volunteers) == 3
        await asyncio.sleep(HOUR)
        assert moves(volunteers) == 3
        reasons = [served.placement.reason for volunteer in volunteers for served in volunteer.served]
        assert any("had no peer" in reason for reason in reasons)
        for volunteer in volunteers:
            (record,) = [r for r in (await world.records()).values() if r.peer == volunteer.peer]
            assert record.state is PeerState.ONLINE
            assert not volunteer.served or record.reason == volunteer.served[-1].placement.reason


@in_virtual_time
async def test_second_look_comes_soon_where_blocks_have_no_peer() -> None:
    world = World()
    async with reconsidering(world, "ab", FIRST, interval=HOUR, lot=Even) as volunteers:
        await asyncio.sleep(HOUR + MINUTE)
        assert moves(volunteers) == 1


@in_virtual_time
async def test_second_look_comes_as_late_as_any_where_blocks_have_a_peer() -> None:
    world = World()
    async with (
        serving(world, "c", room=Room(4, SECOND)),
        reconsidering(world, "abdefg", FIRST, interval=HOUR, lot=Even) as volunteers,
    ):
        await asyncio.sleep(HOUR + 10 * MINUTE)
        assert moves(volunteers) == 0
        await asyncio.sleep(HOUR)
        assert moves(volunteers) > 0


@in_virtual_time
async def test_of_two_that_hold_the_same_blocks_one_stays_whatever_both_want() -> None:
    for seed in range(10):
        world = World()
        async with reconsidering(world, f"a{seed} b{seed}".split(), FIRST) as volunteers:
            for _ in range(40):
                await asyncio.sleep(15)
                states = [(r.span, r.state) for r in (await world.records()).values()]
                assert (FIRST, PeerState.ONLINE) in states
            assert moves(volunteers) == 1
            assert set((await spans(world)).values()) == {FIRST, SECOND}


@in_virtual_time
async def test_peer_whose_neighbour_is_gone_at_the_last_moment_stays() -> None:
    world = World()
    async with serving(world, "fixed", room=Room(4, FIRST)), reconsidering(world, "a", FIRST) as volunteers:
        await until_it_drains(world, volunteers[0])
        for key in [key for key in world.shelf if key[1] == "fixed"]:
            del world.shelf[key]
        await asyncio.sleep(15)
        stayed = (await world.records())[volunteers[0].peer]
        assert (stayed.span, stayed.state, moves(volunteers)) == (FIRST, PeerState.ONLINE, 0)
        await asyncio.sleep(10 * MINUTE)
        assert moves(volunteers) == 1, "the neighbour is back"


@in_virtual_time
async def test_peer_stays_some_times_for_a_session_that_finds_nobody_else_and_then_goes() -> None:
    world = World()
    async with reconsidering(world, "abc", FIRST) as volunteers, serving(world, "d", room=Room(4, SECOND)):
        for volunteer in volunteers:
            stream = await connect(world, f"client of {volunteer.peer}", volunteer.peer)
            await stream.send(opening(FIRST).pack())
        await asyncio.sleep(10 * MINUTE)
        assert moves(volunteers) == 0
        await asyncio.sleep(HOUR)
        assert moves(volunteers) == 1


@in_virtual_time
async def test_blocks_that_cannot_be_served_are_not_tried_all_the_time() -> None:
    world = World()
    async with reconsidering(world, "ab", FIRST) as volunteers:
        for volunteer in volunteers:
            volunteer.unloadable.add(SECOND)
        await asyncio.sleep(2 * HOUR)
        assert 2 < moves(volunteers) < 16  # each is a way back to where it was
        assert set((await spans(world)).values()) == {FIRST}


@in_virtual_time
async def test_peer_that_is_paused_or_cannot_see_the_others_goes_nowhere() -> None:
    world = World()
    async with reconsidering(world, "ab", FIRST) as volunteers:
        volunteers[0].life.pause("battery")
        await volunteers[1].directory.close()
        await asyncio.sleep(HOUR)
        assert moves(volunteers) == 0


@in_virtual_time
async def test_peer_whose_user_chose_its_blocks_says_so_and_others_count_on_it_to_stay() -> None:
    world = World()
    async with serving(world, "fixed", room=Room(4, FIRST)), reconsidering(world, "a", FIRST) as volunteers:
        (fixed,) = [r for r in await world.directory().read(MODEL) if r.peer == "fixed"]
        assert fixed.fixed
        await asyncio.sleep(10 * MINUTE)
        assert moves(volunteers) == 1
