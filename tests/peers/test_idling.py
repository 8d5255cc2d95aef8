"""Hours of a peer that nobody asks for anything, in virtual time: a real engine, its link, its watch, its record."""

import asyncio
import gc
from contextlib import suppress
from pathlib import Path

import pytest
import torch

from peers.announce import Load, Timing
from peers.choosing import Room
from peers.engine import Engine
from peers.lifecycle import Lifecycle, Offer, Pace, Patience, Served
from peers.link import ExecutorLost, InlineLink
from peers.moment import Moment
from peers.ready import Ready
from peers.span import BlockSpan
from peers.thanks import ThanksBook
from peers.watch import Watch
from swarm.checkpoint import Checkpoint, resolve
from swarm.ids import Digest, PeerId, Span
from swarm.memory import MemoryDirectory, MemoryNetwork, Shelf
from swarm.record import PeerRecord, PeerState
from tests.models import tiny_model
from tests.peers.moments import a_ready
from tests.virtual import run_virtual

EPOCH = 1_700_000_000.0
HOUR = 3600.0
SETTLED = 1.0  # hours
READS_AN_HOUR = 120  # at most: a look at the others every half minute
GROWTH = 200  # objects of Python: threads and caches that come late; one for each announcement would be hundreds more


class Diligent(MemoryDirectory):
    """Counts what is asked of it."""

    def __init__(self, shelf: Shelf) -> None:
        super().__init__(shelf, clock=lambda: EPOCH + asyncio.get_running_loop().time())
        self.announced = 0
        self.reads = 0

    async def announce(self, record: PeerRecord) -> None:
        self.announced += 1
        await super().announce(record)

    async def read(self, model: Digest | None = None) -> tuple[PeerRecord, ...]:
        self.reads += 1
        return await super().read(model)


class InlineExecutor:
    """An engine in this process, as a life needs it."""

    streaming = None
    adapters: tuple[tuple[str, str], ...] = ()
    kv_tokens = 256
    pace = Pace(30.0, 300.0)

    def __init__(self, link: InlineLink) -> None:
        self.link = link

    def load(self) -> Load:
        stats = self.link.stats.engine
        return Load(stats.kv_tokens_free, stats.queue_tokens)

    async def restart(self) -> None:
        raise ExecutorLost("it was not to fail")

    async def close(self) -> None:
        await self.link.close()


class Last:
    """A view that keeps the latest moment alone."""

    moment: Moment | None = None

    def begin(self, ready: Ready) -> None: ...

    def show(self, moment: Moment) -> None:
        self.moment = moment

    def end(self) -> None: ...


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    folder = tmp_path_factory.mktemp("idling")
    return resolve(str(tiny_model("llama", folder / "llama")), cache=folder / "cache")


def life_of(checkpoint: Checkpoint, directory: Diligent, served: asyncio.Future[Served]) -> Lifecycle:
    clock = asyncio.get_running_loop().time

    def engine() -> Engine:
        span = BlockSpan.load(
            checkpoint, Span(0, checkpoint.num_blocks), dtype=torch.float32, device=torch.device("cpu"), kv_tokens=256
        )
        return Engine(
            span, model=checkpoint.digest, max_positions=checkpoint.max_positions, outbox_tokens=256, clock=clock
        )

    async def start(span: Span) -> InlineExecutor:
        return InlineExecutor(InlineLink(engine))

    return Lifecycle(
        MemoryNetwork().transport(PeerId("idle")),
        directory,
        Offer(checkpoint.digest, "tiny", checkpoint.num_blocks, Room(checkpoint.num_blocks), "fp32"),
        start,
        served.set_result,
        patience=Patience(timing=Timing()),
        clock=lambda: EPOCH + clock(),
    )


def objects() -> int:
    gc.collect()
    return len(gc.get_objects())


@pytest.mark.parametrize("hours", [3, pytest.param(48, marks=pytest.mark.soak)])
def test_idling_leaves_nothing_behind(tiny: Checkpoint, tmp_path: Path, hours: int) -> None:
    async def main() -> None:
        loop, directory = asyncio.get_running_loop(), Diligent({})
        served: asyncio.Future[Served] = loop.create_future()
        living = asyncio.create_task(life_of(tiny, directory, served).run())
        view = Last()
        watch = Watch(view, ThanksBook.open(tmp_path / "thanks.json", loop.time), loop.time)
        watching = asyncio.create_task(watch.run())
        watch.begin(a_ready(), await served)
        await asyncio.sleep(SETTLED * HOUR - loop.time())
        announced, reads, before = directory.announced, directory.reads, objects()
        await asyncio.sleep((hours - SETTLED) * HOUR)
        grown = objects() - before
        assert directory.announced - announced == pytest.approx((hours - SETTLED) * HOUR / Timing().period, abs=2)
        assert directory.reads - reads <= READS_AN_HOUR * (hours - SETTLED)
        assert grown < GROWTH
        assert view.moment is not None
        assert (view.moment.state, view.moment.tokens) == (PeerState.ONLINE, 0)
        for task in (watching, living):
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task

    run_virtual(main())
