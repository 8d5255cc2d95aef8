"""Peers that stand by, on the network's twins and in virtual time: with lives whose executor computes nothing, and with
real engines under a client that generates."""

import asyncio
import time
from collections.abc import AsyncIterator, Iterable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import replace

import torch

from peers.announce import Load
from peers.choosing import Room
from peers.engine import Engine
from peers.lifecycle import Lifecycle, Offer
from peers.link import InlineLink
from peers.span import BlockSpan
from peers.stay import Pace
from routing.reserve import ReserveTimes
from swarm.checkpoint import Checkpoint
from swarm.ids import PeerId, Span
from swarm.memory import MemoryDirectory, MemoryNetwork
from swarm.record import PeerState
from tests.memory_swarm import MemorySwarm, Reference, feed
from tests.peers.test_lifecycle import HALF, PATIENCE, Volunteer, World, begin, in_virtual_time, serving
from tests.virtual import run_virtual

FRONT, BACK = Span(0, 4), Span(4, 8)
READY = 20.0  # s after which those that began to stand by do


async def states(world: World, volunteers: Iterable[Volunteer]) -> list[PeerState]:
    records = await world.records()
    return [records[volunteer.peer].state for volunteer in volunteers]


async def kill(world: World, volunteer: Volunteer) -> None:
    """Gone without a word: its record stays until it runs out."""
    await volunteer.directory.close()
    world.network.kill(volunteer.peer)
    await volunteer.leave()


@asynccontextmanager
async def standing_by(world: World, *names: str, room: Room = HALF) -> AsyncIterator[list[Volunteer]]:
    volunteers = [begin(world, name, room=room, stands_by=1) for name in names]
    await asyncio.sleep(READY)
    try:
        yield volunteers
    finally:
        for volunteer in volunteers:
            await volunteer.leave()


@in_virtual_time
async def test_standby_has_its_span_ready_and_serves_nothing() -> None:
    world = World()
    async with (
        serving(world, "front", room=Room(8, FRONT)),
        serving(world, "back", room=Room(8, BACK)),
        standing_by(world, "s") as (standby,),
    ):
        record = (await world.records())[standby.peer]
        assert (record.state, record.throughput, record.cache_left) == (PeerState.STANDBY, 30.0, 0)
        assert record.span in (FRONT, BACK)
        assert standby.executor.closed, "nothing is loaded"
        await asyncio.sleep(600)
        assert await states(world, [standby]) == [PeerState.STANDBY]
        assert standby.served == []


@in_virtual_time
async def test_one_standby_of_three_serves_within_seconds_of_a_death_and_stands_by_again_when_others_are_back() -> None:
    world = World()
    async with serving(world, "front", room=Room(8, FRONT)), serving(world, "other", room=Room(8, FRONT)):
        only = begin(world, "only", room=Room(8, BACK))
        await only.ready
        async with standing_by(world, "s", "t", "u", room=Room(8, BACK)) as standbys:
            await kill(world, only)
            await asyncio.sleep(12)
            online = PeerState.ONLINE
            assert all(record.fixed for record in (await world.records()).values() if record.state is online), (
                "none moves"
            )
            assert sorted(await states(world, standbys)) == [online, PeerState.STANDBY, PeerState.STANDBY]
            await asyncio.sleep(120)
            assert (await states(world, standbys)).count(online) == 1, "nor later"
            async with serving(world, "only", room=Room(8, BACK)):
                await asyncio.sleep(400)
                assert await states(world, standbys) == [PeerState.STANDBY] * 3
                assert sum(len(standby.served) for standby in standbys) == 1


@in_virtual_time
async def test_record_of_one_who_died_before_a_standby_began_does_not_keep_it_from_taking_the_next_ones_place() -> None:
    world = World()
    async with serving(world, "front", room=Room(8, FRONT)):
        first, second = (begin(world, name, room=Room(8, BACK)) for name in ("first", "second"))
        await first.ready
        await second.ready
        await kill(world, first)
        async with standing_by(world, "s", room=Room(8, BACK)) as (standby,):
            await kill(world, second)
            await asyncio.sleep(18)  # 38 since the first death: that record lives for at least 40
            assert first.peer in await world.records()
            assert await states(world, [standby]) == [PeerState.ONLINE]


@in_virtual_time
async def test_peer_that_leaves_in_good_order_is_followed_by_a_standby_too() -> None:
    world = World()
    async with (
        serving(world, "a", room=Room(8, Span(0, 8))) as leaving,
        standing_by(world, "s", room=Room(8)) as standbys,
    ):
        await leaving.leave()
        await asyncio.sleep(10)
        assert await states(world, standbys) == [PeerState.ONLINE]


@in_virtual_time
async def test_paused_standby_is_not_called_and_is_when_it_goes_on() -> None:
    world = World()
    async with (
        serving(world, "a", room=Room(8, Span(0, 8))) as only,
        standing_by(world, "s", room=Room(8)) as (standby,),
    ):
        standby.life.pause("battery")
        await asyncio.sleep(5)
        assert await states(world, [standby]) == [PeerState.PAUSED]
        await kill(world, only)
        await asyncio.sleep(100)
        assert await states(world, [standby]) == [PeerState.PAUSED]
        standby.life.resume("battery")
        await asyncio.sleep(20)
        assert await states(world, [standby]) == [PeerState.ONLINE]


@in_virtual_time
async def test_standby_gets_ready_for_blocks_that_nobody_is_ready_for_and_serves_them() -> None:
    world = World()
    front = begin(world, "front", room=Room(8, FRONT))
    await front.ready
    async with (
        serving(world, "back", room=Room(8, BACK)),
        standing_by(world, "s") as first,
        standing_by(world, "t") as second,
    ):
        ready = {(await world.records())[standby.peer].span: standby for standby in (*first, *second)}
        assert ready.keys() == {FRONT, BACK}
        await kill(world, ready[FRONT])
        await asyncio.sleep(90)
        await front.leave()
        await asyncio.sleep(150)
        record = (await world.records())[ready[BACK].peer]
        assert (record.span, record.state) == (FRONT, PeerState.ONLINE)


@in_virtual_time
async def test_standby_that_is_told_to_leave_says_goodbye() -> None:
    world = World()
    async with serving(world, "a", room=Room(8, Span(0, 8))):
        async with standing_by(world, "s") as standbys:
            pass
        assert await states(world, standbys) == [PeerState.OFFLINE]


# --- with real engines -----------------------------------------------------------------------------------------------


class InlineExecutor:
    """An engine in this process, as a life sees it."""

    pace = Pace(throughput=50.0, prefill=1000.0)
    kv_tokens = 4096
    streaming = None
    adapters: tuple[tuple[str, str], ...] = ()

    def __init__(self, checkpoint: Checkpoint, blocks: Span) -> None:
        clock = asyncio.get_running_loop().time

        def engine() -> Engine:
            span = BlockSpan.load(
                checkpoint, blocks, dtype=torch.float32, device=torch.device("cpu"), kv_tokens=4096, page_size=16
            )
            return Engine(
                span, model=checkpoint.digest, max_positions=checkpoint.max_positions, outbox_tokens=4096, clock=clock
            )

        self.link = InlineLink(engine, step_seconds=0.001)

    def load(self) -> Load:
        return Load(cache_left=self.kv_tokens, queue=0)

    async def restart(self) -> None:
        await self.link.restart()

    async def close(self) -> None:
        await self.link.close()


def test_generation_goes_on_with_identical_outputs_on_a_standby(checkpoint: Checkpoint, reference: Reference) -> None:
    blocks = checkpoint.num_blocks
    prompt = torch.arange(3, 11)

    async def main() -> None:
        loop = asyncio.get_running_loop()
        epoch = time.time()

        async with AsyncExitStack() as stack:
            swarm = await stack.enter_async_context(MemorySwarm(checkpoint, MemoryNetwork(delay=0.01)))
            await swarm.add("front", Span(0, 2))
            await swarm.add("back", Span(2, blocks))

            def clock() -> float:
                return epoch + loop.time()

            def stand_by(name: str) -> Lifecycle:
                async def start(span: Span) -> InlineExecutor:
                    return InlineExecutor(checkpoint, span)

                room = Room(blocks, Span(2, blocks))
                offer = Offer(checkpoint.digest, checkpoint.name, blocks, room, "fp32", stands_by=1)
                directory = MemoryDirectory(swarm.shelf, clock=clock)
                patience = replace(PATIENCE, reserve=ReserveTimes(calm=20.0))
                transport = swarm.network.transport(PeerId(name))
                return Lifecycle(transport, directory, offer, start, lambda _: None, patience=patience, clock=clock)

            lives = [stand_by(name) for name in "stu"]
            tasks = [asyncio.create_task(life.run()) for life in lives]
            await asyncio.sleep(10)
            session = await swarm.session(await swarm.client(), reference)
            row, expected = session.new_row(), reference.outputs(prompt)
            outputs = [await feed(session, reference, {row: prompt[:5]})]
            await swarm.kill("back")
            for at in range(5, len(prompt)):
                outputs.append(await feed(session, reference, {row: prompt[at : at + 1]}))
            assert torch.allclose(torch.cat(outputs), expected, atol=1e-4, rtol=1e-4)
            await session.close()
            records = [life.record for life in lives]
            assert sum(record is not None and record.state is PeerState.ONLINE for record in records) == 1
            await swarm.add("back again", Span(2, blocks))
            # in every slot of half a minute the lot is cast between it and the peer that is back
            for _ in range(20):
                await asyncio.sleep(60)
                if resting := all(life.record and life.record.state is PeerState.STANDBY for life in lives):
                    break
            assert resting
            for task in tasks:
                task.cancel()
                with suppress(asyncio.CancelledError):
                    await task

    run_virtual(main())
