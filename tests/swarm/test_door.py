"""Who gets through the door of a private swarm, and for how long; on transports in memory."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path

import pytest

from swarm.door import PROTOCOL as DOOR
from swarm.door import Door, GatedTransport, knock, serve_door, way_in
from swarm.errors import AccessError, NetworkError, StreamClosed, UsageError
from swarm.identity import Identity
from swarm.ids import PeerId
from swarm.invites import Invite, Role
from swarm.memory import MemoryNetwork, MemoryTransport
from swarm.revocations import Revocation
from swarm.transport import Stream
from swarm.wire import decode, encode
from tests.swarm.members import HOUR, invited, owner

pytestmark = pytest.mark.anyio

TALK = "/test/talk"
HELLO = encode({"kind": "hello"})
PATIENCE = 10.0  # seconds until a test that hangs fails


class Home:
    """A private swarm with one peer that says hello to whoever gets in, until they leave."""

    def __init__(self) -> None:
        self.network = MemoryNetwork()
        self.owner = owner()
        self.now = time.time()
        self.bare, self.door = self.member(self.owner)
        self.gated = GatedTransport(self.bare, self.door)

    def member(self, invite: Invite) -> tuple[MemoryTransport, Door]:
        peer = Identity.ephemeral().peer_id
        return self.network.transport(peer), Door(invite, peer, clock=lambda: self.now)

    async def begin(self) -> None:
        async def greet(stream: Stream) -> None:
            await stream.send(HELLO)
            with suppress(StreamClosed):
                await stream.receive()

        await self.gated.serve(TALK, greet)
        await serve_door(self.bare, self.door, self.gated.sweep)

    @property
    def peer(self) -> PeerId:
        return self.bare.peer_id

    async def talk(self, invite: Invite) -> Stream:
        """A stream on which hello was heard. Raises StreamClosed for who is not let in."""
        bare, door = self.member(invite)
        stream = await GatedTransport(bare, door).open(self.peer, TALK)
        assert await stream.receive() == HELLO
        return stream


@pytest.fixture
async def home() -> AsyncIterator[Home]:
    home = Home()
    await home.begin()
    async with asyncio.timeout(PATIENCE):
        yield home


@pytest.mark.parametrize("role", list(Role))
async def test_members_get_in(home: Home, role: Role) -> None:
    await home.talk(invited(home.owner, role))


async def test_strangers_do_not(home: Home) -> None:
    with pytest.raises(StreamClosed):
        await home.talk(owner())
    stranger = home.network.transport(Identity.ephemeral().peer_id)
    for first in (HELLO, encode({"kind": "pass", "pass": b"x" * 100}), encode({"kind": "pass", "pass": b"x" * 9000})):
        stream = await stranger.open(home.peer, TALK)
        await stream.send(first)
        with pytest.raises(StreamClosed):
            await stream.receive()


async def test_stolen_pass_opens_nothing(home: Home) -> None:
    _, door = home.member(invited(home.owner))
    thief = home.network.transport(Identity.ephemeral().peer_id)
    stream = await thief.open(home.peer, TALK)
    await stream.send(encode({"kind": "pass", "pass": door.own}))
    with pytest.raises(StreamClosed):
        await stream.receive()


async def test_streams_end_with_the_invite(home: Home) -> None:
    short, long = await home.talk(invited(home.owner)), await home.talk(invited(home.owner, lasting=100 * HOUR))
    home.now += 2 * HOUR
    home.gated.sweep()
    with pytest.raises(StreamClosed):
        await short.receive()
    await long.send(HELLO)


async def test_who_is_put_out_is_out_at_once_and_so_is_whom_they_invited(home: Home) -> None:
    admin = invited(home.owner, Role.ADMIN)
    friend = invited(admin)
    streams = [await home.talk(admin), await home.talk(friend)]
    other, door = home.member(invited(home.owner))
    door.revocations.learn([Revocation.make(home.owner, admin.key.peer_id, home.now + HOUR).sealed])
    await knock(other, home.peer, (), door)
    for stream in streams:
        with pytest.raises(StreamClosed):
            await stream.receive()
    for invite in (admin, friend):
        with pytest.raises(StreamClosed):
            await home.talk(invite)


async def test_who_knocks_is_told_why_they_may_not_enter(home: Home) -> None:
    with pytest.raises(AccessError, match="private: ask its owner for an invite"):
        await knock(home.network.transport(Identity.ephemeral().peer_id), home.peer, (), None)
    bare, door = home.member(invited(home.owner, lasting=-1.0))
    with pytest.raises(AccessError, match="invite has ended"):
        await knock(bare, home.peer, (), door)
    guest = invited(home.owner)
    home.door.revocations.learn([Revocation.make(home.owner, guest.key.peer_id, home.now + HOUR).sealed])
    bare, door = home.member(guest)
    with pytest.raises(AccessError, match="was taken back"):
        await knock(bare, home.peer, (), door)


async def test_who_knocks_learns_what_was_taken_back_and_strangers_do_not(home: Home) -> None:
    gone = invited(home.owner).key.peer_id
    home.door.revocations.learn([Revocation.make(home.owner, gone, home.now + HOUR).sealed])
    bare, door = home.member(invited(home.owner))
    assert await knock(bare, home.peer, (), door)
    assert gone in door.revocations
    stream = await home.network.transport(Identity.ephemeral().peer_id).open(home.peer, DOOR)
    await stream.send(encode({"kind": "knock", "pass": b""}))
    assert set(decode(await stream.receive()).header) == {"kind", "reason"}


async def test_public_peers_have_no_door(home: Home) -> None:
    public = home.network.transport(Identity.ephemeral().peer_id)
    bare, door = home.member(invited(home.owner))
    with pytest.raises(NetworkError):
        await knock(bare, public.peer_id, (), door)


def test_way_in_is_addresses_an_invite_or_a_file_with_one(tmp_path: Path) -> None:
    address = f"/ip4/203.0.113.7/tcp/31330/p2p/{Identity.ephemeral().peer_id}"
    assert way_in([address]) == ((address,), None)
    made = invited(owner())
    path = tmp_path / "invite"
    path.write_text(made.text() + "\n")
    path.chmod(0o644)
    with pytest.raises(UsageError, match="chmod 600"):
        way_in([f"@{path}"])
    path.chmod(0o600)
    addresses, found = way_in([address, f"@{path}"])
    assert (addresses, found and found.grants) == ((address,), made.grants)
    with pytest.raises(UsageError, match="one is enough"):
        way_in([made.text(), f"@{path}"])
    with pytest.raises(UsageError, match="can't be read"):
        way_in([f"@{tmp_path / 'none'}"])
    with pytest.raises(UsageError, match="has ended"):
        way_in([invited(owner(), lasting=-1.0).text()])
