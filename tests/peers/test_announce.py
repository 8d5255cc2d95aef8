"""The announce loop, on the directory's twin in virtual time."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace

from peers.announce import Announcer, Load, Timing
from swarm.directory import Directory
from swarm.errors import NetworkError
from swarm.identity import Identity
from swarm.ids import Digest, PeerId, Span
from swarm.memory import MemoryDirectory
from swarm.messages import Contact
from swarm.record import PeerRecord, PeerState, Presence
from tests.virtual import run_virtual

ME = PeerId("12D3KooWme")
EPOCH = 1_700_000_000.0
TIMING = Timing(period=20, lifetime=60, patience=15, first_retry=1, farewell=3)
RECORD = PeerRecord(
    contact=Contact(ME, ("/memory/1/p2p/12D3KooWme",)),
    model=Digest("0" * 64),
    model_name="tiny",
    num_blocks=8,
    span=Span(0, 4),
    state=PeerState.JOINING,
    throughput=10.0,
    prefill=100.0,
    cache_left=0,
    precision="fp32",
    version="0",
    public_name="",
    reason="no live peer holds them",
    queue=0,
    issued=0.0,
    expires=0.0,
)


def unix_time() -> float:
    return EPOCH + asyncio.get_running_loop().time()


@dataclass
class Weather(Directory):
    """A directory that notes every record it takes, and can be out of reach or out of breath for a while."""

    inner: MemoryDirectory = field(default_factory=lambda: MemoryDirectory({}, clock=unix_time))
    storm_until: float = 0.0
    hang_until: float = 0.0
    taken: list[PeerRecord] = field(default_factory=list)

    async def announce(self, record: PeerRecord) -> None:
        now = asyncio.get_running_loop().time()
        await asyncio.sleep(max(0.0, self.hang_until - now))
        if now < self.storm_until:
            raise NetworkError("no peer of the directory answers")
        self.taken.append(record)
        await self.inner.announce(record)

    async def read(self, model: Digest | None = None) -> tuple[PeerRecord, ...]:
        return await self.inner.read(model)

    async def appear(self, presence: Presence, run: Identity) -> None:
        await self.inner.appear(presence, run)

    async def present(self, run: PeerId) -> tuple[Presence, ...]:
        return await self.inner.present(run)

    async def close(self) -> None:
        await self.inner.close()


@asynccontextmanager
async def announcing(directory: Directory, loads: Iterator[Load] | None = None):  # type: ignore[no-untyped-def]
    load = (lambda: next(loads)) if loads is not None else (lambda: Load(cache_left=1000, queue=0))
    announcer = Announcer(directory, RECORD, load, timing=TIMING, clock=unix_time)
    task = asyncio.create_task(announcer.run())
    try:
        yield announcer
    finally:
        task.cancel()
        await asyncio.wait([task])


def in_virtual_time(test: Callable[[], Awaitable[None]]) -> Callable[[], None]:
    async def main() -> None:
        await test()

    def run() -> None:
        run_virtual(main())

    return run


@in_virtual_time
async def test_record_never_runs_out_while_the_peer_announces() -> None:
    directory = Weather()
    async with announcing(directory):
        await asyncio.sleep(0.1)
        for _ in range(100):
            assert [record.peer for record in await directory.read(RECORD.model)] == [ME]
            await asyncio.sleep(7)
    assert 30 <= len(directory.taken) <= 40


@in_virtual_time
async def test_change_is_announced_at_once() -> None:
    directory = Weather()
    async with announcing(directory) as announcer:
        await asyncio.sleep(1)
        announcer.change(state=PeerState.ONLINE)
        await asyncio.sleep(0.01)
        (record,) = await directory.read(RECORD.model)
        assert record.state is PeerState.ONLINE


@in_virtual_time
async def test_load_is_fresh_in_every_announcement() -> None:
    directory = Weather()
    async with announcing(directory, iter(Load(cache_left=n, queue=2 * n) for n in range(100))):
        await asyncio.sleep(3 * TIMING.period)
    assert [(r.cache_left, r.queue) for r in directory.taken[:3]] == [(0, 0), (1, 2), (2, 4)]


@in_virtual_time
async def test_directory_out_of_reach_is_tried_again_and_never_fatal() -> None:
    directory = Weather(storm_until=1000)
    async with announcing(directory):
        await asyncio.sleep(999)
        assert directory.taken == []
        await asyncio.sleep(1 + TIMING.period)
        assert await directory.read(RECORD.model)


@in_virtual_time
async def test_directory_that_hangs_does_not_stop_the_loop() -> None:
    directory = Weather(hang_until=100)
    async with announcing(directory):
        await asyncio.sleep(100 + TIMING.period + TIMING.patience)
        assert await directory.read(RECORD.model)


@in_virtual_time
async def test_withdrawn_peer_reads_as_offline() -> None:
    directory = Weather()
    async with announcing(directory) as announcer:
        await asyncio.sleep(1)
    await announcer.withdraw()
    (record,) = await directory.read(RECORD.model)
    assert record.state is PeerState.OFFLINE


@in_virtual_time
async def test_farewell_to_a_dead_directory_takes_a_few_seconds_at_most() -> None:
    directory = Weather(hang_until=10_000)
    async with announcing(directory) as announcer:
        pass
    before = asyncio.get_running_loop().time()
    await announcer.withdraw()
    assert asyncio.get_running_loop().time() - before <= TIMING.farewell


@in_virtual_time
async def test_later_announcements_win_when_the_clock_is_set_back_a_little() -> None:
    clock = iter([EPOCH + 3, EPOCH + 1, EPOCH + 2])
    directory = Weather()
    announcer = Announcer(directory, RECORD, lambda: Load(0, 0), timing=TIMING, clock=lambda: next(clock))
    for _ in range(3):
        await announcer.announce()
    issued = [record.issued for record in directory.taken]
    assert issued == sorted(set(issued))
    assert directory.taken[-1] == replace(RECORD, issued=issued[-1], expires=issued[-1] + TIMING.lifetime)


@in_virtual_time
async def test_clock_that_is_set_back_an_hour_is_followed() -> None:
    clock = iter([EPOCH + 3600, EPOCH])
    directory = Weather(inner=MemoryDirectory({}, clock=lambda: EPOCH + 3600))
    announcer = Announcer(directory, RECORD, lambda: Load(0, 0), timing=TIMING, clock=lambda: next(clock))
    await announcer.announce()
    directory.inner = MemoryDirectory({}, clock=lambda: EPOCH)
    await announcer.announce()
    assert directory.taken[-1].issued == EPOCH


@in_virtual_time
async def test_waiting_for_an_announcement_ends_when_it_was_made_or_takes_too_long() -> None:
    directory = Weather()
    async with announcing(directory) as announcer:
        announcer.change(state=PeerState.ONLINE)
        assert await announcer.announced()
        assert directory.taken[-1].state is PeerState.ONLINE
        directory.storm_until = float("inf")
        announcer.change(state=PeerState.JOINING)
        assert not await announcer.announced()


def test_a_machine_that_slept_announces_itself_as_soon_as_it_wakes() -> None:
    async def play() -> None:
        directory, asleep = Weather(), 0.0
        announcer = Announcer(
            directory, RECORD, lambda: Load(cache_left=1000, queue=0), timing=TIMING, clock=lambda: unix_time() + asleep
        )
        directory.inner = MemoryDirectory({}, clock=lambda: unix_time() + asleep)
        task = asyncio.create_task(announcer.run())
        await asyncio.sleep(7.0)
        assert len(directory.taken) == 1
        asleep = 3600.0
        await asyncio.sleep(5.1)
        assert len(directory.taken) == 2
        task.cancel()

    run_virtual(play())
