"""A serving peer's life on the network's twins, in virtual time, with an executor that computes nothing."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field

import pytest

from peers.announce import Load, Timing
from peers.choosing import Room
from peers.executor_settings import ExecutorStats
from peers.lifecycle import Lifecycle, Offer, Patience, Served
from peers.link import ExecutorLink, ExecutorLost
from peers.restarts import RestartPolicy
from peers.stay import Pace
from routing.placement import Placement
from swarm.errors import ModelError, NetworkError, SwarmError, UsageError
from swarm.ids import Digest, PeerId, Span, new_session_id
from swarm.memory import MemoryDirectory, MemoryNetwork, MemoryTransport
from swarm.messages import PROTOCOL, Close, Fault, FaultCode, Open, parse
from swarm.record import PeerRecord, PeerState
from swarm.transport import Stream
from tests.virtual import run_virtual

EPOCH = 1_700_000_000.0
MODEL = Digest("0" * 64)
HALF = Room(4)  # of the eight blocks
PATIENCE = Patience(
    settle=0.5,
    drain=5.0,
    timing=Timing(period=20, lifetime=60, first_retry=1),
    restarts=RestartPolicy(most=5, window=600, first=0.5, longest=30),
)


class PaperExecutor(ExecutorLink):
    """Takes frames and computes nothing; fails when told to, and for a number of starts after that."""

    def __init__(self) -> None:
        self.starts = 1
        self.closed = False
        self.failing_starts = 0
        self.pace = Pace(throughput=30.0, prefill=300.0)
        self.kv_tokens = 1000
        self.adapters: tuple[tuple[str, str], ...] = (("style", "5e" * 16),)
        self._lost = asyncio.Event()

    @property
    def link(self) -> ExecutorLink:
        return self

    @property
    def stats(self) -> ExecutorStats:
        return ExecutorStats()

    def load(self) -> Load:
        return Load(cache_left=777, queue=3)

    def crash(self) -> None:
        self._lost.set()

    async def send(self, peer: PeerId, frame: bytes) -> None:
        if self._lost.is_set():
            raise ExecutorLost("crashed")

    async def receive(self) -> tuple[PeerId, bytes]:
        await self._lost.wait()
        raise ExecutorLost("crashed")

    async def gone(self, peer: PeerId) -> None:
        await self.send(peer, b"")

    async def restart(self) -> None:
        self.starts += 1
        await asyncio.sleep(1)
        if self.failing_starts:
            self.failing_starts -= 1
            raise ExecutorLost("does not start")
        self._lost.clear()

    async def close(self) -> None:
        self.closed = True


@dataclass
class World:
    """The network and the shelf that all peers of one test share."""

    network: MemoryNetwork = field(default_factory=MemoryNetwork)
    shelf: dict[tuple[Digest | None, PeerId], PeerRecord] = field(default_factory=dict)
    read_delay: float = 0.0

    def unix_time(self) -> float:
        return EPOCH + asyncio.get_running_loop().time()

    def directory(self) -> MemoryDirectory:
        return SlowDirectory(self.shelf, clock=self.unix_time)

    async def records(self) -> dict[PeerId, PeerRecord]:
        return {record.peer: record for record in await self.directory().read(MODEL)}


class SlowDirectory(MemoryDirectory):
    """Takes half a second for everything, so that peers which join together don't see each other at first."""

    async def announce(self, record: PeerRecord) -> None:
        await asyncio.sleep(0.5)
        await super().announce(record)

    async def read(self, model: Digest | None = None) -> tuple[PeerRecord, ...]:
        await asyncio.sleep(0.5)
        return await super().read(model)


@dataclass
class Volunteer:
    """`served`: all that it came to serve; `unloadable`: spans that its executor does not start with."""

    transport: MemoryTransport
    executor: PaperExecutor
    directory: MemoryDirectory
    ready: asyncio.Future[Served]
    served: list[Served]
    unloadable: set[Span]
    life: Lifecycle
    task: asyncio.Task[None]

    @property
    def peer(self) -> PeerId:
        return self.transport.peer_id

    async def leave(self) -> None:
        self.task.cancel()
        with suppress(asyncio.CancelledError):
            await self.task


def begin(
    world: World, name: str, *, room: Room, num_blocks: int = 8, loading: float = 3.0, stands_by: int | None = None
) -> Volunteer:
    executor, directory = PaperExecutor(), world.directory()
    ready: asyncio.Future[Served] = asyncio.get_running_loop().create_future()
    served: list[Served] = []
    unloadable: set[Span] = set()

    async def start(span: Span) -> PaperExecutor:
        await asyncio.sleep(loading)
        if span in unloadable:
            raise ModelError(f"blocks {span} can't be read")
        executor.closed = False
        return executor

    def on_ready(now: Served) -> None:
        served.append(now)
        if not ready.done():
            ready.set_result(now)

    offer = Offer(MODEL, "tiny", num_blocks, room, "fp32", stands_by=stands_by)
    transport = world.network.transport(PeerId(name))
    life = Lifecycle(transport, directory, offer, start, on_ready, patience=PATIENCE, clock=world.unix_time)
    task = asyncio.create_task(life.run(), name=name)
    return Volunteer(transport, executor, directory, ready, served, unloadable, life, task)


@asynccontextmanager
async def serving(world: World, name: str, *, room: Room = HALF) -> AsyncIterator[Volunteer]:
    volunteer = begin(world, name, room=room)
    await volunteer.ready
    try:
        yield volunteer
    finally:
        await volunteer.leave()


async def connect(world: World, name: str, to: PeerId) -> Stream:
    return await world.network.transport(PeerId(name)).open(to, PROTOCOL)


def opening(blocks: Span) -> Open:
    return Open(new_session_id(), MODEL, blocks, "fp32", prev=PeerId("client"), next=None, lease=16)


def in_virtual_time(test: Callable[[], Awaitable[None]]) -> Callable[[], None]:
    async def main() -> None:
        await test()

    def run() -> None:
        run_virtual(main())

    return run


@in_virtual_time
async def test_peer_is_joining_while_it_loads_and_online_with_what_was_measured() -> None:
    world = World()
    volunteer = begin(world, "a", room=HALF)
    await asyncio.sleep(3)
    joining = (await world.records())[volunteer.peer]
    assert joining.state is PeerState.JOINING
    served = await volunteer.ready
    online = (await world.records())[volunteer.peer]
    assert online.state is PeerState.ONLINE
    assert (online.throughput, online.prefill, online.cache_left, online.queue) == (30.0, 300.0, 777, 3)
    assert online.span == served.placement.span
    assert online.reason == served.placement.reason
    await volunteer.leave()


@in_virtual_time
async def test_second_peer_takes_the_blocks_that_the_first_lacks() -> None:
    world = World()
    async with serving(world, "a", room=Room(8, Span(0, 5))), serving(world, "b", room=Room(3)) as second:
        served = second.ready.result()
        assert served.placement.span == Span(5, 8)
        assert "5:8" in served.placement.reason


@in_virtual_time
async def test_peers_that_join_together_sort_themselves_out() -> None:
    world = World()
    volunteers = [begin(world, name, room=Room(2)) for name in "abcd"]
    spans = [(await volunteer.ready).placement.span for volunteer in volunteers]
    assert sorted(block for span in spans for block in span) == list(range(8))
    for volunteer in volunteers:
        assert (await world.records())[volunteer.peer].span == volunteer.ready.result().placement.span
    for volunteer in volunteers:
        await volunteer.leave()


@in_virtual_time
async def test_blocks_that_were_asked_for_are_kept_whoever_else_has_them() -> None:
    world = World()
    volunteers = [begin(world, name, room=Room(8, Span(0, 4))) for name in "abc"]
    assert {(await volunteer.ready).placement.span for volunteer in volunteers} == {Span(0, 4)}
    for volunteer in volunteers:
        await volunteer.leave()


@in_virtual_time
async def test_lost_executor_is_started_again_and_the_peer_joins_anew_meanwhile() -> None:
    world = World()
    async with serving(world, "a") as volunteer:
        volunteer.executor.crash()
        await asyncio.sleep(1.2)
        assert (await world.records())[volunteer.peer].state is PeerState.JOINING
        await asyncio.sleep(10)
        assert (await world.records())[volunteer.peer].state is PeerState.ONLINE
        assert volunteer.executor.starts == 2


@in_virtual_time
async def test_executor_that_fails_to_start_again_is_tried_a_few_times() -> None:
    world = World()
    async with serving(world, "a") as volunteer:
        volunteer.executor.failing_starts = 3
        volunteer.executor.crash()
        await asyncio.sleep(60)
        assert (await world.records())[volunteer.peer].state is PeerState.ONLINE


@in_virtual_time
async def test_executor_that_never_comes_back_ends_the_peer_in_a_sentence() -> None:
    world = World()
    volunteer = begin(world, "a", room=HALF)
    await volunteer.ready
    volunteer.executor.failing_starts = 1000
    volunteer.executor.crash()
    with pytest.raises(SwarmError, match=r"failed 5 times within 10 minutes.*does not start"):
        await volunteer.task
    assert volunteer.executor.closed
    assert (await world.records())[volunteer.peer].state is PeerState.OFFLINE


@in_virtual_time
async def test_leaving_peer_says_goodbye_and_closes_its_executor() -> None:
    world = World()
    async with serving(world, "a") as volunteer:
        pass
    assert volunteer.executor.closed
    assert (await world.records())[volunteer.peer].state is PeerState.OFFLINE


@in_virtual_time
async def test_peer_that_is_told_to_leave_while_it_loads_says_goodbye_too() -> None:
    world = World()
    volunteer = begin(world, "a", room=HALF)
    await asyncio.sleep(4)
    await volunteer.leave()
    assert not volunteer.ready.done()
    assert (await world.records())[volunteer.peer].state is PeerState.OFFLINE


@in_virtual_time
async def test_leaving_peer_says_so_refuses_new_sessions_and_waits_for_the_last_to_close() -> None:
    world = World()
    async with serving(world, "a") as volunteer:
        stream = await connect(world, "client", volunteer.peer)
        blocks = volunteer.ready.result().placement.span
        old, new = opening(blocks), opening(blocks)
        await stream.send(old.pack())
        await asyncio.sleep(0.1)
        volunteer.task.cancel()
        await asyncio.sleep(1)
        assert (await world.records())[volunteer.peer].state is PeerState.DRAINING
        await stream.send(new.pack())
        answers = [parse(await stream.receive()) for _ in range(2)]
        told = [(answer.session, answer.code) for answer in answers if isinstance(answer, Fault)]
        assert told == [(old.session, FaultCode.DRAINING), (new.session, FaultCode.DRAINING)]
        assert not volunteer.task.done()
        await stream.send(Close(old.session).pack())
        await asyncio.wait([volunteer.task], timeout=2)
        assert volunteer.task.done()


@in_virtual_time
async def test_leaving_peer_does_not_wait_for_ever() -> None:
    world = World()
    async with serving(world, "a") as volunteer:
        stream = await connect(world, "client", volunteer.peer)
        await stream.send(opening(volunteer.ready.result().placement.span).pack())
        await asyncio.sleep(0.1)
        volunteer.task.cancel()
        await asyncio.wait([volunteer.task], timeout=PATIENCE.drain + 2)
        assert volunteer.task.done()


@in_virtual_time
async def test_peer_goes_on_serving_when_the_directory_is_gone() -> None:
    world = World()
    async with serving(world, "a") as volunteer:
        await volunteer.directory.close()
        await asyncio.sleep(1000)
        assert not volunteer.task.done()
        await connect(world, "client", volunteer.peer)


@in_virtual_time
async def test_directory_that_fails_at_the_beginning_ends_the_peer() -> None:
    world = World()
    volunteer = begin(world, "a", room=HALF)
    await volunteer.directory.close()
    with pytest.raises(NetworkError):
        await volunteer.task


@in_virtual_time
async def test_blocks_outside_the_model_end_the_peer() -> None:
    volunteer = begin(World(), "a", room=Room(8, Span(6, 9)))
    with pytest.raises(UsageError, match="6:9"):
        await volunteer.task


@in_virtual_time
async def test_paused_peer_takes_no_sessions_and_goes_on_when_no_reason_is_left() -> None:
    world = World()
    async with serving(world, "a") as volunteer:
        stream = await connect(world, "client", volunteer.peer)
        volunteer.life.pause("battery")
        volunteer.life.pause("it was told to")
        await asyncio.sleep(1)
        assert (await world.records())[volunteer.peer].state is PeerState.PAUSED
        await stream.send(opening(Span(0, 4)).pack())
        fault = parse(await stream.receive())
        assert isinstance(fault, Fault)
        assert fault.code is FaultCode.DRAINING
        volunteer.life.resume("battery")
        await asyncio.sleep(1)
        assert (await world.records())[volunteer.peer].state is PeerState.PAUSED, "one reason is left"
        volunteer.life.resume("it was told to")
        await asyncio.sleep(1)
        assert (await world.records())[volunteer.peer].state is PeerState.ONLINE


@in_virtual_time
async def test_peer_that_was_paused_stays_so_when_its_executor_is_started_again() -> None:
    world = World()
    async with serving(world, "a") as volunteer:
        volunteer.life.pause("battery")
        volunteer.executor.crash()
        await asyncio.sleep(10)
        assert volunteer.executor.starts == 2
        assert (await world.records())[volunteer.peer].state is PeerState.PAUSED


@in_virtual_time
async def test_peer_that_is_paused_while_it_loads_comes_up_paused() -> None:
    world = World()
    volunteer = begin(world, "a", room=HALF)
    volunteer.life.pause("battery")
    await volunteer.ready
    await asyncio.sleep(1)
    assert (await world.records())[volunteer.peer].state is PeerState.PAUSED
    await volunteer.leave()


THERE = Placement(Span(4, 8), "blocks 4:8 had the least throughput", 10.0, 20.0)


async def yes() -> bool:
    return True


@in_virtual_time
async def test_peer_that_moves_drains_joins_and_serves_other_blocks_in_the_same_life() -> None:
    world = World()
    async with serving(world, "a", room=Room(4, Span(0, 4))) as volunteer:
        stream = await connect(world, "client", volunteer.peer)
        old = opening(Span(0, 4))
        await stream.send(old.pack())
        await asyncio.sleep(0.1)
        moving = asyncio.create_task(volunteer.life.move(THERE, yes))
        await asyncio.sleep(2)
        assert (await world.records())[volunteer.peer].state is PeerState.DRAINING
        told = parse(await stream.receive())
        assert isinstance(told, Fault)
        assert told.code is FaultCode.DRAINING
        await stream.send(Close(old.session).pack())
        await asyncio.sleep(2)
        joining = (await world.records())[volunteer.peer]
        assert (joining.state, joining.span, joining.reason) == (PeerState.JOINING, THERE.span, THERE.reason)
        assert await moving
        online = (await world.records())[volunteer.peer]
        assert (online.state, online.span, online.throughput) == (PeerState.ONLINE, THERE.span, 30.0)
        assert [served.placement.span for served in volunteer.served] == [Span(0, 4), THERE.span]
        assert not volunteer.executor.closed
        await connect(world, "another", volunteer.peer)
    assert (await world.records())[volunteer.peer].state is PeerState.OFFLINE


@in_virtual_time
async def test_peer_whose_sessions_find_nobody_else_stays_unless_it_must_go() -> None:
    world = World()
    async with serving(world, "a", room=Room(4, Span(0, 4))) as volunteer:
        stream = await connect(world, "client", volunteer.peer)
        await stream.send(opening(Span(0, 4)).pack())
        await asyncio.sleep(0.1)
        assert not await volunteer.life.move(THERE, yes)
        await asyncio.sleep(1)
        stayed = (await world.records())[volunteer.peer]
        assert (stayed.state, stayed.span) == (PeerState.ONLINE, Span(0, 4))
        new = opening(Span(0, 4))
        await stream.send(new.pack())
        await asyncio.sleep(0.1)
        assert await volunteer.life.move(THERE, yes, insist=True)
        assert (await world.records())[volunteer.peer].span == THERE.span


@in_virtual_time
async def test_peer_that_is_needed_after_all_stays_and_takes_sessions_again() -> None:
    world = World()
    async with serving(world, "a", room=Room(4, Span(0, 4))) as volunteer:
        states = []

        async def no() -> bool:
            states.append((await world.records())[volunteer.peer].state)
            return False

        assert not await volunteer.life.move(THERE, no)
        await asyncio.sleep(1)
        assert states == [PeerState.DRAINING], "others know of it before it asks"
        assert (await world.records())[volunteer.peer].state is PeerState.ONLINE
        assert await volunteer.life.move(THERE, yes)


@in_virtual_time
async def test_blocks_that_cannot_be_loaded_send_the_peer_back() -> None:
    world = World()
    async with serving(world, "a", room=Room(4, Span(0, 4))) as volunteer:
        volunteer.unloadable.add(THERE.span)
        assert not await volunteer.life.move(THERE, yes)
        back = (await world.records())[volunteer.peer]
        assert (back.state, back.span, back.reason) == (PeerState.ONLINE, Span(0, 4), "blocks 4:8 could not be served")
        volunteer.unloadable.clear()
        assert await volunteer.life.move(THERE, yes)


@in_virtual_time
async def test_peer_that_is_paused_while_it_drains_for_a_move_stays_paused_where_it_is() -> None:
    world = World()
    async with serving(world, "a", room=Room(4, Span(0, 4))) as volunteer:
        moving = asyncio.create_task(volunteer.life.move(THERE, yes))
        await asyncio.sleep(0.2)
        volunteer.life.pause("battery")
        assert not await moving
        await asyncio.sleep(1)
        paused = (await world.records())[volunteer.peer]
        assert (paused.state, paused.span) == (PeerState.PAUSED, Span(0, 4))


@in_virtual_time
async def test_peer_that_loses_its_executor_while_it_drains_for_a_move_moves() -> None:
    world = World()
    async with serving(world, "a", room=Room(4, Span(0, 4))) as volunteer:
        stream = await connect(world, "client", volunteer.peer)
        await stream.send(opening(Span(0, 4)).pack())
        await asyncio.sleep(0.1)
        moving = asyncio.create_task(volunteer.life.move(THERE, yes))
        await asyncio.sleep(1.5)
        volunteer.executor.crash()
        assert await moving


@in_virtual_time
async def test_peer_may_be_told_to_leave_at_any_moment_of_a_move() -> None:
    for seconds in (0.2, 0.7, 1.2, 2.5, 4.0, 5.5):
        world = World()
        async with serving(world, "a", room=Room(4, Span(0, 4))) as volunteer:
            moving = asyncio.create_task(volunteer.life.move(THERE, yes))
            await asyncio.sleep(seconds)
        assert volunteer.task.cancelled()
        assert await moving is (seconds > 5)
        assert (await world.records())[volunteer.peer].state is PeerState.OFFLINE


@in_virtual_time
async def test_one_move_is_made_at_a_time() -> None:
    world = World()
    volunteer = begin(world, "a", room=Room(4, Span(0, 4)))
    assert not await volunteer.life.move(THERE, yes), "it serves nothing yet"
    await volunteer.ready
    first = asyncio.create_task(volunteer.life.move(THERE, yes))
    await asyncio.sleep(0.1)
    assert not await volunteer.life.move(THERE, yes)
    assert await first
    await volunteer.leave()
