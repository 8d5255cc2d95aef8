"""What every transport promises: the same tests for libp2p on loopback and for its twin in memory."""

import asyncio
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, replace

import pytest

from swarm.door import Door, GatedTransport
from swarm.errors import NetworkError, StreamClosed, Unreachable, WireError
from swarm.identity import Identity
from swarm.ids import PeerId
from swarm.invites import Invite
from swarm.libp2p import Libp2pHost
from swarm.memory import MemoryNetwork
from swarm.transport import Stream, Transport
from swarm.wire import encode

pytestmark = pytest.mark.anyio

PATIENCE = 10.0  # seconds until a test that hangs fails
SMALL = encode({"n": 1}, b"body")
LARGE = encode({"n": 2}, bytes(range(256)) * (3 << 12))  # 3 MiB: more than any buffer on the way


@dataclass(frozen=True)
class Joined:
    transport: Transport
    kill: Callable[[], None]  # as SIGKILL


class World(ABC):
    """A network with two peers that outlive the tests; more join when a test wants to end them."""

    here: Transport
    there: Transport

    @abstractmethod
    async def join(self) -> Joined: ...

    @abstractmethod
    async def close(self) -> None: ...


class MemoryWorld(World):
    def __init__(self) -> None:
        self.network = MemoryNetwork(open_timeout=PATIENCE)

    async def join(self) -> Joined:
        peer = Identity.ephemeral().peer_id
        return Joined(self.network.transport(peer), lambda: self.network.kill(peer))

    async def close(self) -> None:
        await self.here.close()
        await self.there.close()


class PrivateWorld(MemoryWorld):
    """Everybody is a member of a private swarm, and shows so."""

    def __init__(self) -> None:
        super().__init__()
        self.owner = Invite.found()

    async def join(self) -> Joined:
        joined = await super().join()
        return replace(joined, transport=GatedTransport(joined.transport, Door(self.owner, joined.transport.peer_id)))


class Libp2pWorld(World):
    def __init__(self) -> None:
        self.hosts: list[Libp2pHost] = []

    async def join(self) -> Joined:
        host = await Libp2pHost.start(Identity.ephemeral(), open_timeout=PATIENCE)
        self.hosts.append(host)
        return Joined(host.transport, host.p2p._child.kill)

    async def close(self) -> None:
        for host in self.hosts:
            await host.close()


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(params=[MemoryWorld, PrivateWorld, Libp2pWorld], scope="module")
async def world(request: pytest.FixtureRequest) -> AsyncIterator[World]:
    world: World = request.param()
    world.here = (await world.join()).transport
    world.there = (await world.join()).transport
    yield world
    await world.close()


async def echo(stream: Stream) -> None:
    while True:
        await stream.send(await stream.receive())


async def connected(world: World, there: Transport | None = None) -> tuple[Stream, Stream]:
    """Both ends of a new stream; the handler at the far end waits until it is told to end."""
    arrived: asyncio.Queue[Stream] = asyncio.Queue()

    async def keep(stream: Stream) -> None:
        arrived.put_nowait(stream)
        await asyncio.Event().wait()

    there = there or world.there
    await there.serve("/test/keep", keep)
    near = await world.here.open(there.peer_id, "/test/keep", await there.addresses())
    return near, await arrived.get()


async def test_both_ends_know_who_is_there(world: World) -> None:
    near, far = await connected(world)
    assert (near.remote, far.remote) == (world.there.peer_id, world.here.peer_id)
    near.close()


async def test_frames_come_whole_and_in_order_both_ways(world: World) -> None:
    near, far = await connected(world)
    frames = [SMALL, LARGE, SMALL, encode({}), LARGE]

    async def send_all(stream: Stream) -> None:
        for frame in frames:
            await stream.send(frame)

    async with asyncio.timeout(PATIENCE), asyncio.TaskGroup() as group:
        group.create_task(send_all(near))
        group.create_task(send_all(far))
        received = [group.create_task(receive(stream, len(frames))) for stream in (near, far)]
    assert [task.result() for task in received] == [frames, frames]
    near.close()


async def receive(stream: Stream, count: int) -> list[bytes]:
    return [await stream.receive() for _ in range(count)]


async def test_frames_of_many_senders_do_not_mix(world: World) -> None:
    near, far = await connected(world)
    frames = [encode({"n": n}, bytes([n]) * 700_000) for n in range(8)]
    async with asyncio.timeout(PATIENCE), asyncio.TaskGroup() as group:
        for frame in frames:
            group.create_task(near.send(frame))
        received = group.create_task(receive(far, len(frames)))
    assert sorted(received.result()) == sorted(frames)
    near.close()


async def test_sender_waits_for_a_receiver_that_does_not_read(world: World) -> None:
    near, far = await connected(world)
    sent = 0

    async def flood() -> None:
        nonlocal sent
        while sent < 200:
            await near.send(LARGE)
            sent += 1

    flooding = asyncio.create_task(flood())
    await asyncio.wait({flooding}, timeout=0.3)
    assert not flooding.done()
    assert sent * len(LARGE) < 64 << 20  # what fits into the buffers on the way
    near.close()
    with pytest.raises(StreamClosed):
        await flooding
    far.close()


async def test_receiving_can_be_given_up_and_begun_again(world: World) -> None:
    near, far = await connected(world)
    pending = asyncio.create_task(far.receive())
    await asyncio.sleep(0)
    pending.cancel()
    sending = asyncio.create_task(near.send(LARGE))
    received = None
    async with asyncio.timeout(PATIENCE):
        while received is None:  # gives up in the middle of the frame, many times
            receiving = asyncio.create_task(far.receive())
            for _ in range(3):
                await asyncio.sleep(0)
            if receiving.done():
                received = receiving.result()
            receiving.cancel()
    await sending
    assert received == LARGE
    near.close()


@pytest.mark.parametrize("end", [0, 1])
async def test_closing_either_end_ends_both(world: World, end: int) -> None:
    streams = await connected(world)
    closer, other = streams[end], streams[1 - end]
    pending = [asyncio.create_task(stream.receive()) for stream in streams]
    await asyncio.sleep(0)
    closer.close()
    closer.close()
    async with asyncio.timeout(PATIENCE):
        for task in pending:
            with pytest.raises(StreamClosed):
                await task
    for stream in streams:
        with pytest.raises(StreamClosed):
            await stream.send(SMALL)
        with pytest.raises(StreamClosed):
            await stream.receive()
    other.close()


async def test_what_was_sent_before_closing_arrives(world: World) -> None:
    near, far = await connected(world)
    await near.send(SMALL)
    await near.send(SMALL)
    near.close()
    async with asyncio.timeout(PATIENCE):
        assert await receive(far, 2) == [SMALL, SMALL]
        with pytest.raises(StreamClosed):
            await far.receive()


async def test_who_has_gone_is_known_before_everything_is_read(world: World) -> None:
    near, far = await connected(world)
    await near.send(SMALL)
    await near.send(SMALL)
    assert not far.gone
    near.close()
    assert near.gone
    async with asyncio.timeout(PATIENCE):
        while not far.gone:  # noqa: ASYNC110 - nothing wakes who does not read
            await asyncio.sleep(0.001)
        assert await receive(far, 2) == [SMALL, SMALL]
    far.close()
    assert far.gone


async def test_stream_is_closed_when_its_handler_returns(world: World) -> None:
    async def answer_once(stream: Stream) -> None:
        await stream.send(await stream.receive())

    await world.there.serve("/test/once", answer_once)
    stream = await world.here.open(world.there.peer_id, "/test/once", await world.there.addresses())
    await stream.send(SMALL)
    async with asyncio.timeout(PATIENCE):
        assert await stream.receive() == SMALL
        with pytest.raises(StreamClosed):
            await stream.receive()


async def test_many_streams_to_one_peer_are_apart(world: World) -> None:
    await world.there.serve("/test/echo", echo)
    addresses = await world.there.addresses()
    streams = [await world.here.open(world.there.peer_id, "/test/echo", addresses) for _ in range(20)]
    frames = [encode({"n": n}) for n in range(20)]
    async with asyncio.timeout(PATIENCE):
        await asyncio.gather(*(stream.send(frame) for stream, frame in zip(streams, frames, strict=True)))
        assert await asyncio.gather(*(stream.receive() for stream in streams)) == frames
    for stream in streams:
        stream.close()


@pytest.mark.parametrize(
    "nonsense", [b"\xff" * 64, bytes(64), b"\x03\0\0\0" + bytes(3)], ids=["long", "empty", "short"]
)
async def test_nonsense_is_a_wire_error_and_the_end_of_the_stream(world: World, nonsense: bytes) -> None:
    near, far = await connected(world)
    await near.send(nonsense)
    async with asyncio.timeout(PATIENCE):
        with pytest.raises(WireError):
            await far.receive()
        with pytest.raises(StreamClosed):
            await near.receive()


async def test_later_handler_of_a_protocol_replaces_the_former(world: World) -> None:
    first, _ = await connected(world)
    await world.there.serve("/test/keep", echo)
    second = await world.here.open(world.there.peer_id, "/test/keep", await world.there.addresses())
    await second.send(SMALL)
    async with asyncio.timeout(PATIENCE):
        assert await second.receive() == SMALL
    first.close()
    second.close()


async def test_protocol_that_nobody_serves_is_unreachable(world: World) -> None:
    with pytest.raises(Unreachable, match="/test/unknown"):
        await world.here.open(world.there.peer_id, "/test/unknown", await world.there.addresses())


async def test_peer_that_nobody_knows_is_unreachable(world: World) -> None:
    stranger = Identity.ephemeral().peer_id
    with pytest.raises(Unreachable, match=stranger):
        await world.here.open(stranger, "/test/echo")
    with pytest.raises(Unreachable):
        await world.here.open(PeerId("no peer id at all"), "/test/echo")
    with pytest.raises(Unreachable):
        await world.here.open(world.here.peer_id, "/test/echo")


async def test_addresses_end_in_the_peers_id(world: World) -> None:
    addresses = await world.here.addresses()
    assert addresses
    assert all(address.endswith(f"/p2p/{world.here.peer_id}") for address in addresses)


async def test_killed_peer_ends_its_streams_and_is_unreachable(world: World) -> None:
    victim = await world.join()
    near, _ = await connected(world, victim.transport)
    addresses = await victim.transport.addresses()
    receiving = asyncio.create_task(near.receive())
    await asyncio.sleep(0)
    victim.kill()
    async with asyncio.timeout(PATIENCE):
        with pytest.raises(StreamClosed):
            await receiving
        with pytest.raises(Unreachable):
            await world.here.open(victim.transport.peer_id, "/test/keep", addresses)
        with pytest.raises(NetworkError):
            await victim.transport.open(world.there.peer_id, "/test/echo", await world.there.addresses())
    await victim.transport.close()


async def test_closed_transport_ends_its_streams_and_handlers(world: World) -> None:
    leaver = await world.join()
    waiting, ended = asyncio.Event(), asyncio.Event()

    async def wait(stream: Stream) -> None:
        waiting.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    await leaver.transport.serve("/test/wait", wait)
    near = await world.here.open(leaver.transport.peer_id, "/test/wait", await leaver.transport.addresses())
    await waiting.wait()
    await leaver.transport.close()
    await leaver.transport.close()
    async with asyncio.timeout(PATIENCE):
        with pytest.raises(StreamClosed):
            await near.receive()
    assert ended.is_set()
    with pytest.raises(NetworkError):
        await leaver.transport.open(world.there.peer_id, "/test/echo")
    with pytest.raises(NetworkError):
        await leaver.transport.serve("/test/wait", wait)
    with pytest.raises(NetworkError):
        await leaver.transport.addresses()
