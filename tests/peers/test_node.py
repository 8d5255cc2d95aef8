"""The network side of a serving peer: who is let in, who is told what, and that one client costs others nothing."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress

import pytest
import torch

from peers.link import InlineLink
from peers.node import Limits, PeerNode
from swarm.checkpoint import Checkpoint
from swarm.codecs import encode
from swarm.errors import StreamClosed
from swarm.ids import PeerId, RowId, SessionId, Span, new_session_id
from swarm.memory import MemoryNetwork, MemoryTransport
from swarm.messages import (
    PROTOCOL,
    Busy,
    Close,
    Contact,
    Fault,
    FaultCode,
    Message,
    Open,
    Out,
    Ping,
    Pong,
    Ready,
    Relink,
    Step,
    StepRow,
    parse,
)
from swarm.transport import Stream
from tests.memory_swarm import MemorySwarm
from tests.virtual import run_virtual

ROW = RowId(1)
HOST = PeerId("host")


class Client:
    """Speaks the protocol by hand."""

    def __init__(self, transport: MemoryTransport, stream: Stream, checkpoint: Checkpoint) -> None:
        self.me = transport.peer_id
        self.stream = stream
        self.checkpoint = checkpoint

    async def open(self, *, lease: int = 16, next_hop: Contact | None = None) -> tuple[SessionId, Message]:
        session = new_session_id()
        blocks = Span(0, self.checkpoint.num_blocks)
        opening = Open(session, self.checkpoint.digest, blocks, "fp32", self.me, next_hop, lease)
        return session, await self.ask(opening)

    async def ask(self, message: Message) -> Message:
        await self.stream.send(message.pack())
        return parse(await self.stream.receive())

    def step(self, session: SessionId, at: int = 0, n: int = 1) -> Step:
        body = encode(torch.randn(n, self.checkpoint.hidden_size), "fp32")
        return Step(session, (StepRow(ROW, at, n, at),), "fp32", body)


Play = Callable[[MemorySwarm, Callable[[str], Awaitable[Client]]], Awaitable[None]]


def with_host(checkpoint: Checkpoint, play: Play, limits: Limits | None = None) -> None:
    """`play` is given the swarm, whose one member is HOST, and a way to make clients that have a stream to it."""

    async def main() -> None:
        async with MemorySwarm(checkpoint, MemoryNetwork(delay=0.001, capacity=30_000)) as swarm:
            await swarm.add(HOST, Span(0, checkpoint.num_blocks), node_limits=limits)

            async def client(name: str) -> Client:
                transport = swarm.network.transport(PeerId(name))
                return Client(transport, await transport.open(HOST, PROTOCOL), checkpoint)

            await play(swarm, client)

    run_virtual(main())


def engine_sessions(swarm: MemorySwarm) -> int:
    return swarm.members[HOST].engine.stats().sessions


def test_a_client_that_goes_away_leaves_nothing_behind(checkpoint: Checkpoint) -> None:
    async def play(swarm: MemorySwarm, client: Callable[[str], Awaitable[Client]]) -> None:
        alice, bob = await client("alice"), await client("bob")
        session, _ = await alice.open()
        await alice.ask(alice.step(session))
        await bob.open()
        await alice.stream.send(alice.step(session, at=1).pack())
        await swarm.network.transport(PeerId("carol")).close()
        swarm.network.kill(PeerId("alice"))
        await asyncio.sleep(1)
        stats = swarm.members[HOST].engine.stats()
        assert (stats.sessions, swarm.members[HOST].node.sessions) == (1, 1), "only bob's is left"
        assert stats.kv_tokens - stats.kv_tokens_free == 16

    with_host(checkpoint, play)


def test_a_session_belongs_to_the_stream_that_opened_it(checkpoint: Checkpoint) -> None:
    async def play(swarm: MemorySwarm, client: Callable[[str], Awaitable[Client]]) -> None:
        alice, mallory = await client("alice"), await client("mallory")
        session, ready = await alice.open()
        assert ready == Ready(session)
        blocks = Span(0, checkpoint.num_blocks)
        stolen = await mallory.ask(Open(session, checkpoint.digest, blocks, "fp32", mallory.me, None, 16))
        assert isinstance(stolen, Fault)
        assert stolen.code is FaultCode.REFUSED
        for theft in (mallory.step(session), Ping(session, 1), Relink(session, to_next=True, next=Contact(mallory.me))):
            await mallory.stream.send(theft.pack())
        assert await alice.ask(Ping(session, 7)) == Pong(session, 7, {}), "nothing of it was taken"
        out = await alice.ask(alice.step(session))
        assert isinstance(out, Out), "and outputs still go to their owner"

    with_host(checkpoint, play)


def test_what_is_no_frame_ends_only_the_stream_it_came_by(checkpoint: Checkpoint) -> None:
    async def play(swarm: MemorySwarm, client: Callable[[str], Awaitable[Client]]) -> None:
        alice, mallory = await client("alice"), await client("mallory")
        session, _ = await alice.open()
        await mallory.stream.send(b"\x08\0\0\0\x04\0\0\0\xc1\xc1\xc1\xc1")
        with pytest.raises(StreamClosed):
            await mallory.stream.receive()
        assert isinstance(await alice.ask(alice.step(session)), Out)

    with_host(checkpoint, play)


def test_streams_beyond_the_limit_are_turned_away(checkpoint: Checkpoint) -> None:
    async def play(swarm: MemorySwarm, client: Callable[[str], Awaitable[Client]]) -> None:
        alice = await client("alice")
        session, _ = await alice.open()
        transport = swarm.network.transport(PeerId("mallory"))
        streams = [await transport.open(HOST, PROTOCOL) for _ in range(3)]
        with pytest.raises(StreamClosed):
            await streams[2].receive()
        assert isinstance(await alice.ask(alice.step(session)), Out)

    with_host(checkpoint, play, Limits(streams=2))


def test_sessions_beyond_the_limit_are_asked_to_wait(checkpoint: Checkpoint) -> None:
    async def play(swarm: MemorySwarm, client: Callable[[str], Awaitable[Client]]) -> None:
        mallory = await client("mallory")
        answers = [(await mallory.open(lease=0))[1] for _ in range(4)]
        assert [type(answer) for answer in answers] == [Ready, Ready, Busy, Busy]
        assert isinstance((await (await client("alice")).open())[1], Ready)

    with_host(checkpoint, play, Limits(sessions=2))


def test_a_flood_is_read_slowly_and_costs_others_nothing(checkpoint: Checkpoint) -> None:
    async def play(swarm: MemorySwarm, client: Callable[[str], Awaitable[Client]]) -> None:
        alice, mallory = await client("alice"), await client("mallory")
        session, _ = await alice.open()
        flooded, _ = await mallory.open()

        async def flood() -> None:
            with suppress(StreamClosed):
                while True:
                    await mallory.stream.send(Ping(flooded, 1).pack())

        flooding = asyncio.create_task(flood())
        began = asyncio.get_running_loop().time()
        for at in range(10):
            assert isinstance(await alice.ask(alice.step(session, at)), Out)
        seconds = asyncio.get_running_loop().time() - began
        pings = swarm.network.frames[PeerId("mallory"), HOST]
        flooding.cancel()
        assert seconds < 1.0
        waiting = swarm.network.capacity / len(Ping(flooded, 1).pack())
        assert pings <= 50 + 50 * (seconds + 1) + waiting

    with_host(checkpoint, play, Limits(frames_per_second=50.0))


def test_a_client_that_does_not_read_holds_up_nobody_and_is_cut_off(checkpoint: Checkpoint) -> None:
    async def play(swarm: MemorySwarm, client: Callable[[str], Awaitable[Client]]) -> None:
        alice, sleeper = await client("alice"), await client("sleeper")
        session, _ = await alice.open(lease=64)
        asleep, _ = await sleeper.open(lease=1024)
        with suppress(StreamClosed):
            for at in range(0, 1000, 100):
                await sleeper.stream.send(sleeper.step(asleep, at, 100).pack())  # 25 kB of answer each
        for at in range(10):
            assert isinstance(await alice.ask(alice.step(session, at)), Out)
        await asyncio.sleep(1)
        assert engine_sessions(swarm) == 1, "what waits for the sleeper has a limit"

    with_host(checkpoint, play, Limits(waiting_bytes=100_000))


def test_a_next_hop_that_nobody_can_dial_is_reported_to_the_owner(checkpoint: Checkpoint) -> None:
    async def play(swarm: MemorySwarm, client: Callable[[str], Awaitable[Client]]) -> None:
        alice = await client("alice")
        session, _ = await alice.open(next_hop=Contact(PeerId("nobody")))
        fault = await alice.ask(alice.step(session))
        assert isinstance(fault, Fault)
        assert (fault.session, fault.code, fault.peer) == (session, FaultCode.UNREACHABLE, PeerId("nobody"))

    with_host(checkpoint, play)


def test_a_lost_executor_is_reported_to_every_owner(checkpoint: Checkpoint) -> None:
    async def play(swarm: MemorySwarm, client: Callable[[str], Awaitable[Client]]) -> None:
        alice, bob = await client("alice"), await client("bob")
        sessions = [(await one.open())[0] for one in (alice, bob)]
        link = swarm.members[HOST].link
        assert isinstance(link, InlineLink)
        link.kill()
        for one, session in zip((alice, bob), sessions, strict=True):
            fault = parse(await one.stream.receive())
            assert isinstance(fault, Fault)
            assert (fault.session, fault.code) == (session, FaultCode.EXECUTOR)
        assert isinstance((await alice.open())[1], Busy), "it is starting again"

    with_host(checkpoint, play)


def test_a_peer_that_leaves_takes_no_new_session_and_keeps_the_old(checkpoint: Checkpoint) -> None:
    async def play(swarm: MemorySwarm, client: Callable[[str], Awaitable[Client]]) -> None:
        alice = await client("alice")
        session, _ = await alice.open()
        node: PeerNode = swarm.members[HOST].node
        draining = asyncio.create_task(node.drain(60.0))
        notice = parse(await alice.stream.receive())
        assert isinstance(notice, Fault)
        assert (notice.session, notice.code) == (session, FaultCode.DRAINING)
        refusal = (await alice.open())[1]
        assert isinstance(refusal, Fault)
        assert refusal.code is FaultCode.DRAINING
        assert isinstance(await alice.ask(alice.step(session)), Out)
        assert not draining.done()
        await alice.stream.send(Close(session).pack())
        assert await draining == 0
        node.resume()
        assert isinstance((await alice.open())[1], Ready)

    with_host(checkpoint, play)
