"""The network's twin: what a test can do to frames and peers, in virtual time."""

import asyncio
from collections.abc import Callable, Coroutine
from functools import wraps
from typing import Any

import pytest

from swarm.errors import StreamClosed, Unreachable, UsageError
from swarm.ids import PeerId
from swarm.memory import MemoryNetwork
from swarm.transport import Stream
from swarm.wire import encode
from tests.virtual import Deadlock, run_virtual

A, B, C = PeerId("a"), PeerId("b"), PeerId("c")
kept: list[MemoryNetwork] = []  # nobody else holds the tasks that serve: collected, they would count as lost


def virtual(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    @wraps(test)
    def run(*args: Any, **kwargs: Any) -> None:
        run_virtual(test(*args, **kwargs))

    return run


def now() -> float:
    return asyncio.get_running_loop().time()


async def pair(network: MemoryNetwork, one: PeerId = A, other: PeerId = B) -> tuple[Stream, Stream]:
    """Both ends of a stream between two new peers."""
    arrived: asyncio.Queue[Stream] = asyncio.Queue()

    async def keep(stream: Stream) -> None:
        arrived.put_nowait(stream)
        await asyncio.Event().wait()

    kept.append(network)
    await network.transport(other).serve("/test", keep)
    return await network.transport(one).open(other, "/test"), await arrived.get()


@virtual
async def test_frame_takes_the_delay_of_its_link() -> None:
    near, far = await pair(MemoryNetwork(delay=lambda source, _: 0.1 if source == A else 0.3))
    start = now()
    assert start == pytest.approx(0.4)  # a dial is a round trip
    await near.send(encode({}))
    await far.receive()
    assert now() - start == pytest.approx(0.1)
    await far.send(encode({}))
    await near.receive()
    assert now() - start == pytest.approx(0.4)


@virtual
async def test_frames_take_their_time_on_a_line_and_wait_for_each_other() -> None:
    frame = encode({}, bytes(50))
    near, far = await pair(MemoryNetwork(delay=0.5, bandwidth=len(frame)))
    begun = now()
    for _ in range(2):
        await near.send(frame)
    for due in (1.5, 2.5):
        await far.receive()
        assert now() - begun == pytest.approx(due)


@virtual
async def test_frames_on_one_stream_never_overtake() -> None:
    delays = iter([0.0, 0.0, 5.0, 0.1, 3.0, 0.0])
    near, far = await pair(MemoryNetwork(delay=lambda *_: next(delays)))
    for n in range(4):
        await near.send(encode({"n": n}))
    assert [await far.receive() for _ in range(4)] == [encode({"n": n}) for n in range(4)]
    assert now() == pytest.approx(5.0)


@virtual
async def test_delayed_frames_travel_together() -> None:
    near, far = await pair(MemoryNetwork(delay=0.05))
    start = now()
    for _ in range(100):
        await near.send(encode({}))
    for _ in range(100):
        await far.receive()
    assert now() - start == pytest.approx(0.05)


@virtual
async def test_sender_waits_when_the_link_is_full() -> None:
    near, far = await pair(MemoryNetwork(capacity=1000, delay=1.0))
    for _ in range(2):
        await near.send(encode({}, bytes(450)))
    blocked = asyncio.create_task(near.send(encode({}, bytes(450))))
    await asyncio.sleep(100)
    assert not blocked.done()
    await far.receive()
    await blocked


@virtual
async def test_partition_holds_frames_and_dials_until_it_heals() -> None:
    network = MemoryNetwork(open_timeout=5)
    near, far = await pair(network)
    stranger = network.transport(C)
    network.partition(A, B)
    network.partition(C, B)
    await near.send(encode({"n": 1}))
    receiving = asyncio.create_task(far.receive())
    with pytest.raises(Unreachable, match="within 5 s"):
        await stranger.open(B, "/test")
    assert not receiving.done()
    network.heal(A, B)
    assert await receiving == encode({"n": 1})


@virtual
async def test_hung_peer_keeps_its_streams_and_wakes_up_with_what_was_sent() -> None:
    network = MemoryNetwork()
    near, far = await pair(network)
    network.hang(B)
    await near.send(encode({"n": 1}))
    await far.send(encode({"n": 2}))
    receiving = [asyncio.create_task(stream.receive()) for stream in (near, far)]
    await asyncio.sleep(1000)
    assert not any(task.done() for task in receiving)
    network.resume(B)
    assert [await task for task in receiving] == [encode({"n": 2}), encode({"n": 1})]


@virtual
async def test_what_was_on_its_way_to_a_killed_peer_is_lost() -> None:
    network = MemoryNetwork(delay=1.0)
    near, far = await pair(network)
    await near.send(encode({}))
    await far.send(encode({}))
    start = now()
    network.kill(B)
    for call in (near.receive(), near.send(encode({})), far.receive()):
        with pytest.raises(StreamClosed):
            await call
    assert now() == start


@virtual
async def test_killed_peer_may_come_back() -> None:
    network = MemoryNetwork()
    await pair(network)
    with pytest.raises(UsageError):
        network.transport(B)
    network.kill(B)
    again = network.transport(B)
    served = asyncio.Event()

    async def note(stream: Stream) -> None:
        served.set()

    await again.serve("/test", note)
    await network.transport(C).open(B, "/test")
    await served.wait()


@virtual
async def test_duplicates_follow_their_frame_and_the_seed() -> None:
    async def received(seed: int) -> list[bytes]:
        near, far = await pair(network := MemoryNetwork(duplicate=0.5, seed=seed))
        frames = [encode({"n": n}) for n in range(20)]
        for frame in frames:
            await near.send(frame)
        got = [await far.receive() for _ in range(network.frames[A, B])]
        assert 20 < len(got) < 40
        assert list(dict.fromkeys(got)) == frames
        assert got == sorted(got)
        return got

    assert await received(1) == await received(1)
    assert await received(1) != await received(2)


@virtual
async def test_network_counts_what_is_sent() -> None:
    network = MemoryNetwork()
    near, _ = await pair(network)
    await near.send(encode({}, bytes(91)))
    assert (network.frames[A, B], network.bytes[A, B], network.bytes[B, A]) == (1, 100, 0)


def test_waiting_for_nothing_is_a_deadlock() -> None:
    async def wait() -> None:
        near, _ = await pair(MemoryNetwork())
        await near.receive()

    with pytest.raises(Deadlock, match="nothing will ever happen again"):
        run_virtual(wait())


def test_handler_that_fails_fails_the_run() -> None:
    async def serve_badly() -> None:
        network = MemoryNetwork()

        async def fail(stream: Stream) -> None:
            raise ZeroDivisionError

        await network.transport(B).serve("/test", fail)
        stream = await network.transport(A).open(B, "/test")
        with pytest.raises(StreamClosed):
            await stream.receive()

    with pytest.raises(ZeroDivisionError):
        run_virtual(serve_badly())


@virtual
async def test_time_stands_still_while_a_thread_works() -> None:
    done = asyncio.Event()
    asyncio.get_running_loop().call_later(1, done.set)
    await asyncio.to_thread(sum, range(100_000))
    assert not done.is_set()
    await asyncio.sleep(3600)
    assert done.is_set()
