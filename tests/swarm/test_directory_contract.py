"""What every directory promises: the same tests for Kademlia on loopback and for its twin in memory."""

import asyncio
import hashlib
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import pytest

from swarm.directory import Directory
from swarm.errors import NetworkError, RecordError
from swarm.identity import Identity
from swarm.ids import Digest
from swarm.kademlia import KademliaDirectory
from swarm.libp2p import Libp2pHost
from swarm.memory import MemoryDirectory, Shelf
from swarm.record import PeerState
from tests.swarm.records import presence_of, record_of

pytestmark = pytest.mark.anyio

PATIENCE = 10.0  # seconds until a test that hangs fails


class World(ABC):
    """Two peers that announce, and a client that reads."""

    ada: Directory
    bob: Directory
    reader: Directory

    def __init__(self) -> None:
        self.ada_identity, self.bob_identity = Identity.ephemeral(), Identity.ephemeral()
        self.ada_id, self.bob_id = self.ada_identity.peer_id, self.bob_identity.peer_id
        self.stack = AsyncExitStack()

    @abstractmethod
    async def start(self) -> None: ...


class MemoryWorld(World):
    async def start(self) -> None:
        shelf: Shelf = {}
        self.ada, self.bob, self.reader = (MemoryDirectory(shelf) for _ in range(3))


class KademliaWorld(World):
    async def start(self) -> None:
        self.ada = await self.join(self.ada_identity)
        self.bob = await self.join(self.bob_identity)
        self.reader = await self.join(Identity.ephemeral(), client=True)

    async def join(self, identity: Identity, *, client: bool = False) -> Directory:
        initial = await self.first.transport.addresses() if hasattr(self, "first") else ()
        host = await Libp2pHost.start(identity, initial_peers=initial, client=client)
        self.stack.push_async_callback(host.close)
        if not initial:
            self.first = host
        directory = await KademliaDirectory.start(host, identity, initial, client_mode=client, new_swarm=not initial)
        self.stack.push_async_callback(directory.close)
        return directory


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(params=[MemoryWorld, KademliaWorld], scope="module")
async def world(request: pytest.FixtureRequest) -> AsyncIterator[World]:
    world: World = request.param()
    async with world.stack:
        await world.start()
        yield world


@pytest.fixture
def model(request: pytest.FixtureRequest) -> Digest:
    """A model of this test's own."""
    return Digest(hashlib.sha256(request.node.name.encode()).hexdigest())


async def test_announced_records_are_read_by_everyone(world: World, model: Digest) -> None:
    records = {record_of(peer, model=model) for peer in (world.ada_id, world.bob_id)}
    for directory, record in zip(
        (world.ada, world.bob), sorted(records, key=lambda r: r.peer != world.ada_id), strict=True
    ):
        await directory.announce(record)
    for directory in (world.ada, world.bob, world.reader):
        assert set(await directory.read(model)) == records


async def test_records_of_one_model_are_apart_from_those_of_others(world: World, model: Digest) -> None:
    other = Digest(model[::-1])
    mine, theirs = record_of(world.ada_id, model=model), record_of(world.bob_id, model=other)
    await world.ada.announce(mine)
    await world.bob.announce(theirs)
    assert await world.reader.read(model) == (mine,)
    assert await world.reader.read(other) == (theirs,)
    assert set(await world.reader.read()) == {mine, theirs}


async def test_model_that_nobody_serves_has_no_records(world: World, model: Digest) -> None:
    assert await world.reader.read(model) == ()


async def test_later_record_replaces_the_former(world: World, model: Digest) -> None:
    now = time.time()
    for second in range(3):
        record = record_of(world.ada_id, model=model, queue=second, issued=now - 3 + second, expires=now + 60)
        await world.ada.announce(record)
        assert await world.reader.read(model) == (record,)


async def test_later_record_replaces_the_former_though_it_expires_earlier(world: World, model: Digest) -> None:
    now = time.time()
    await world.ada.announce(record_of(world.ada_id, model=model, issued=now - 1, expires=now + 200))
    farewell = record_of(world.ada_id, model=model, state=PeerState.OFFLINE, issued=now, expires=now + 10)
    await world.ada.announce(farewell)
    assert await world.reader.read(model) == (farewell,)


async def test_earlier_record_changes_nothing(world: World, model: Digest) -> None:
    now = time.time()
    newer = record_of(world.ada_id, model=model, issued=now, expires=now + 60)
    older = record_of(world.ada_id, model=model, issued=now - 10, expires=now + 200)
    await world.ada.announce(newer)
    await world.ada.announce(older)
    await world.ada.announce(newer)
    assert await world.reader.read(model) == (newer,)


async def test_peer_that_changes_its_model_is_listed_once(world: World, model: Digest) -> None:
    now = time.time()
    later = record_of(world.ada_id, model=Digest(model[::-1]), issued=now)
    await world.ada.announce(record_of(world.ada_id, model=model, issued=now - 1))
    await world.ada.announce(later)
    assert [record for record in await world.reader.read() if record.peer == world.ada_id] == [later]


async def test_record_ends_when_it_expires(world: World, model: Digest) -> None:
    now = time.time()
    await world.ada.announce(record_of(world.ada_id, model=model, issued=now - 30, expires=now + 0.5))
    seen = []
    async with asyncio.timeout(PATIENCE):
        async for records in world.reader.watch(model, 0.05):
            seen.append(len(records))
            if not records:
                break
    assert seen[0] == 1
    assert seen == sorted(seen, reverse=True)


@pytest.mark.parametrize(
    "times", [(-60, -1), (0, 1000), (60, 120), (0, -1)], ids=["dead", "long", "future", "reversed"]
)
async def test_record_that_nobody_would_take_is_not_announced(
    world: World, model: Digest, times: tuple[float, float]
) -> None:
    now = time.time()
    with pytest.raises(RecordError):
        await world.ada.announce(record_of(world.ada_id, model=model, issued=now + times[0], expires=now + times[1]))
    assert await world.reader.read(model) == ()


async def test_watching_sees_what_changes(world: World, model: Digest) -> None:
    record = record_of(world.ada_id, model=model)
    async with asyncio.timeout(PATIENCE):
        async for records in world.reader.watch(model, 0.01):
            if records:
                break
            await world.ada.announce(record)
    assert records == (record,)


@pytest.fixture
def run(model: Digest) -> Identity:
    """The key of a run of this test's own."""
    return Identity.derived(bytes.fromhex(model))


async def test_members_of_a_run_are_seen_by_who_asks_for_it_and_not_among_peers(
    world: World, model: Digest, run: Identity
) -> None:
    other = Identity.ephemeral()
    mine, theirs = presence_of(world.ada_id, run.peer_id), presence_of(world.bob_id, run.peer_id)
    elsewhere = presence_of(world.ada_id, other.peer_id)
    await world.ada.appear(mine, run)
    await world.bob.appear(theirs, run)
    await world.ada.appear(elsewhere, other)
    for directory in (world.ada, world.bob, world.reader):
        assert set(await directory.present(run.peer_id)) == {mine, theirs}
        assert await directory.present(other.peer_id) == (elsewhere,)
        assert run.peer_id not in {record.peer for record in await directory.read()}


async def test_later_presence_replaces_the_former(world: World, run: Identity) -> None:
    now = time.time()
    early, late = (presence_of(world.ada_id, run.peer_id, issued=now - ago, expires=now + 60) for ago in (1, 0))
    for presence in (early, late, early):
        await world.ada.appear(presence, run)
    assert await world.reader.present(run.peer_id) == (late,)


async def test_who_is_no_member_can_not_appear(world: World, run: Identity) -> None:
    with pytest.raises(RecordError, match="signed by"):
        await world.ada.appear(presence_of(world.ada_id, run.peer_id), Identity.ephemeral())
    with pytest.raises(RecordError):
        await world.ada.appear(presence_of(world.ada_id, run.peer_id, expires=time.time() + 1000), run)
    assert await world.reader.present(run.peer_id) == ()


async def test_closed_directory_is_of_no_use(world: World, model: Digest) -> None:
    if isinstance(world, KademliaWorld):
        leaver: Directory = await world.join(world.bob_identity, client=True)
    else:
        leaver = MemoryDirectory({})
    await leaver.close()
    await leaver.close()
    with pytest.raises(NetworkError):
        await leaver.read(model)
    with pytest.raises(NetworkError):
        await leaver.announce(record_of(world.bob_id, model=model))
    with pytest.raises(NetworkError):
        await leaver.present(world.bob_id)
    with pytest.raises(NetworkError):
        await leaver.appear(presence_of(world.bob_id, world.bob_id), world.bob_identity)
    assert [records async for records in leaver.watch(model, 0.01)] == []
