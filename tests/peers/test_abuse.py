"""What one remote peer can take from a serving peer, on the network's side: of each thing so much, and no more."""

import asyncio
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from itertools import count

import pytest

from peers.link import ExecutorLost
from peers.node import MOST_ADDRESSES, MOST_TRIED, PeerNode
from peers.remote import Limits
from swarm.checkpoint import Checkpoint
from swarm.errors import StreamClosed, Unreachable
from swarm.ids import PeerId, SessionId, Span
from swarm.memory import MemoryNetwork
from swarm.messages import PROTOCOL, Busy, Contact, Fault, FaultCode, Open, Out, Ping, Ready, Relink, parse
from swarm.transport import Handler, Stream, Transport
from tests.memory_swarm import MemorySwarm
from tests.peers.test_node import HOST, Client, with_host
from tests.virtual import run_virtual

Friends = Callable[[str], "asyncio.Future[Client]"]
SHORT = Limits(idle_seconds=60.0, short_seconds=5.0, all_streams=3)


async def ended(stream: Stream) -> bool:
    """Whether the host has ended it by now."""
    try:
        async with asyncio.timeout(0.1):
            await stream.receive()
    except StreamClosed:
        return True
    except TimeoutError:
        return False
    return False


def test_a_stream_that_says_nothing_is_ended_after_a_while(checkpoint: Checkpoint) -> None:
    async def play(swarm: MemorySwarm, client: Friends) -> None:
        alice, silent = await client("alice"), await client("silent")
        session, _ = await alice.open()
        await asyncio.sleep(59)
        assert not await ended(silent.stream)
        await asyncio.sleep(10)
        assert await ended(silent.stream)
        assert isinstance(await alice.ask(alice.step(session)), Out), "a session keeps its stream"

    with_host(checkpoint, play, SHORT)


def test_a_stream_that_feeds_anybody_s_session_stays(checkpoint: Checkpoint) -> None:
    async def play(swarm: MemorySwarm, client: Friends) -> None:
        alice, before = await client("alice"), await client("before")
        session, _ = await alice.open()
        await alice.stream.send(Relink(session, prev=before.me).pack())
        await asyncio.sleep(200)
        assert not await ended(before.stream)

    with_host(checkpoint, play, SHORT)


def test_streams_that_nobody_needs_give_way_to_those_who_come(checkpoint: Checkpoint) -> None:
    async def play(swarm: MemorySwarm, client: Friends) -> None:
        alice = await client("alice")
        session, _ = await alice.open()
        loris = [await client(f"loris{n}") for n in range(2)]
        refused = await client("carol")
        assert await ended(refused.stream), "they have only just come"
        await asyncio.sleep(6)
        bob = await client("bob")
        assert isinstance((await bob.open())[1], Ready)
        assert [await ended(each.stream) for each in loris] == [True, False]
        assert isinstance(await alice.ask(alice.step(session)), Out)

    with_host(checkpoint, play, SHORT)


def test_all_sessions_together_have_a_limit(checkpoint: Checkpoint) -> None:
    async def play(swarm: MemorySwarm, client: Friends) -> None:
        many = [await client(f"name{n}") for n in range(3)]
        answers = [(await each.open(lease=0))[1] for each in many for _ in range(2)]
        assert [type(answer) for answer in answers] == [Ready] * 4 + [Busy] * 2

    with_host(checkpoint, play, Limits(sessions=2, all_sessions=4))


def test_a_session_that_was_refused_takes_no_place(checkpoint: Checkpoint) -> None:
    async def play(swarm: MemorySwarm, client: Friends) -> None:
        alice = await client("alice")
        answers = [(await alice.open(lease=1 << 30))[1] for _ in range(4)]
        assert [answer.code for answer in answers if isinstance(answer, Fault)] == [FaultCode.REFUSED] * 4
        assert swarm.members[HOST].node.sessions == 0
        assert isinstance((await alice.open())[1], Ready)

    with_host(checkpoint, play, Limits(sessions=2))


def test_a_session_that_ended_for_want_of_life_is_forgotten(checkpoint: Checkpoint) -> None:
    async def play(swarm: MemorySwarm, client: Friends) -> None:
        alice = await client("alice")
        session, _ = await alice.open()
        fault = parse(await alice.stream.receive())
        assert isinstance(fault, Fault)
        assert (fault.session, fault.code) == (session, FaultCode.UNKNOWN_SESSION)
        assert swarm.members[HOST].node.sessions == 0

    with_host(checkpoint, play)


def test_headers_that_are_slow_to_read_slow_their_sender_alone(checkpoint: Checkpoint) -> None:
    """A clock by which each frame takes 50 ms to read: a quarter of the time is five frames a second."""
    ticks: Iterator[int] = count()

    async def main() -> None:
        async with MemorySwarm(checkpoint, MemoryNetwork(delay=0.001, capacity=1000)) as swarm:
            await swarm.add(HOST, Span(0, checkpoint.num_blocks))
            transport = swarm.network.transport(PeerId("slow"))
            await transport.serve(PROTOCOL, lambda stream: asyncio.sleep(0))
            node = PeerNode(transport, swarm.members[HOST].link, spent=lambda: 0.05 * next(ticks))
            await node.start()
            mallory = swarm.network.transport(PeerId("mallory"))
            stream = await mallory.open(PeerId("slow"), PROTOCOL)
            began = asyncio.get_running_loop().time()
            for nonce in range(60):
                await stream.send(Ping(SessionId(bytes(16)), nonce).pack())
            assert asyncio.get_running_loop().time() - began > 5.0
            await node.close()

    run_virtual(main())


@pytest.mark.parametrize("feeds", [False, True])
def test_what_somebody_left_behind_is_not_read_unless_it_feeds_another_s_session(
    checkpoint: Checkpoint, feeds: bool
) -> None:
    """A clock by which each frame takes 50 ms to read, as above: of a hundred a few have been read when it leaves."""
    ticks: Iterator[int] = count()

    async def main() -> None:
        async with MemorySwarm(checkpoint, MemoryNetwork(delay=0.001)) as swarm:
            await swarm.add(HOST, Span(0, checkpoint.num_blocks))
            transport = swarm.network.transport(PeerId("slow"))
            node = PeerNode(transport, swarm.members[HOST].link, spent=lambda: 0.05 * next(ticks))
            await node.start()
            mallory, alice = (swarm.network.transport(PeerId(name)) for name in ("mallory", "alice"))
            if feeds:
                owns, blocks = await alice.open(PeerId("slow"), PROTOCOL), Span(0, checkpoint.num_blocks)
                opening = Open(SessionId(bytes(16)), checkpoint.digest, blocks, "fp32", mallory.peer_id, None, 16)
                await owns.send(opening.pack())
                await asyncio.sleep(10)
            stream = await mallory.open(PeerId("slow"), PROTOCOL)
            before = next(ticks)
            for nonce in range(100):
                await stream.send(Ping(SessionId(bytes(16)), nonce).pack())
            stream.close()
            await asyncio.sleep(100)
            read = next(ticks) - before
            await transport.close()
            assert (read > 200) == feeds

    run_virtual(main())


def test_the_sessions_of_one_client_go_to_so_many_peers(checkpoint: Checkpoint) -> None:
    async def play(swarm: MemorySwarm, client: Friends) -> None:
        mallory, alice = await client("mallory"), await client("alice")
        answers = [(await mallory.open(lease=0, next_hop=Contact(PeerId(f"n{n}"))))[1] for n in range(4)]
        assert [type(answer) for answer in answers] == [Ready, Ready, Fault, Fault]
        session, _ = await mallory.open(lease=0)
        refused = await mallory.ask(Relink(session, to_next=True, next=Contact(PeerId("n9"))))
        assert isinstance(refused, Fault)
        assert refused.code is FaultCode.REFUSED
        assert isinstance((await alice.open(next_hop=Contact(PeerId("n9"))))[1], Ready)

    with_host(checkpoint, play, Limits(next_hops=2))


def test_a_peer_can_t_be_made_to_dial_the_world(checkpoint: Checkpoint) -> None:
    async def play(swarm: MemorySwarm, client: Friends) -> None:
        mallory = await client("mallory")
        session, _ = await mallory.open(lease=200)
        texts = []
        for at in range(100):
            await mallory.stream.send(Relink(session, to_next=True, next=Contact(PeerId(f"n{at}"))).pack())
            fault = await mallory.ask(mallory.step(session, at))
            assert isinstance(fault, Fault)
            texts.append(fault.message)
        dialled = sum("cannot be reached" in text for text in texts)
        assert 8 <= dialled < 16
        assert all("is not dialled" in text for text in texts if "cannot be reached" not in text)

    with_host(checkpoint, play, Limits(next_hops=8, dials_per_second=1.0))


class Astray(Transport):
    """Finds "next" at the address "right" alone; others are silent."""

    def __init__(self, inner: Transport) -> None:
        self.peer_id = inner.peer_id
        self.inner = inner
        self.tried: list[int] = []  # addresses, by each dial

    async def open(self, peer: PeerId, protocol: str, addresses: Sequence[str] = ()) -> Stream:
        self.tried.append(len(addresses))
        if "right" not in addresses:
            await asyncio.sleep(5)
            raise Unreachable("there is nobody there")
        return await self.inner.open(peer, protocol, addresses)

    async def serve(self, protocol: str, handler: Handler) -> None:
        await self.inner.serve(protocol, handler)

    async def addresses(self) -> tuple[str, ...]:
        return await self.inner.addresses()

    async def close(self) -> None:
        await self.inner.close()


def test_nobody_sends_the_sessions_of_others_astray(checkpoint: Checkpoint) -> None:
    """Two clients have the same next hop; one says that it is where it is not."""

    async def main() -> None:
        async with MemorySwarm(checkpoint, MemoryNetwork(delay=0.001)) as swarm:
            await swarm.add(HOST, Span(0, checkpoint.num_blocks))
            await swarm.add("next", Span(0, checkpoint.num_blocks))
            member = swarm.members[HOST]
            node = PeerNode(Astray(member.transport), member.link)
            member.task.cancel()
            await node.start()
            member.task = asyncio.create_task(run(node))
            for name, address in (("mallory", "wrong"), ("alice", "right")):
                transport = swarm.network.transport(PeerId(name))
                one = Client(transport, await transport.open(HOST, PROTOCOL), checkpoint)
                session, _ = await one.open(next_hop=Contact(PeerId("next"), (address,)))
                await one.stream.send(one.step(session).pack())
                await asyncio.sleep(0.5)
            assert swarm.network.frames[HOST, PeerId("next")] == 2, "alice knows the way for both"
            await node.close()

    run_virtual(main())


def test_of_many_addresses_some_are_tried(checkpoint: Checkpoint) -> None:
    async def main() -> None:
        async with MemorySwarm(checkpoint, MemoryNetwork(delay=0.001)) as swarm:
            await swarm.add(HOST, Span(0, checkpoint.num_blocks))
            member = swarm.members[HOST]
            astray = Astray(member.transport)
            node = PeerNode(astray, member.link)
            member.task.cancel()
            await node.start()
            member.task = asyncio.create_task(run(node))
            for number in range(20):
                transport = swarm.network.transport(PeerId(f"mallory{number}"))
                one = Client(transport, await transport.open(HOST, PROTOCOL), checkpoint)
                wrong = tuple(f"wrong {number}.{place}" for place in range(12))
                session, _ = await one.open(next_hop=Contact(PeerId("next"), wrong))
                await one.stream.send(one.step(session).pack())
                await asyncio.sleep(0.5)
            await asyncio.sleep(10)
            assert astray.tried[0] == MOST_ADDRESSES
            assert max(astray.tried) == MOST_TRIED
            await node.close()

    run_virtual(main())


async def run(node: PeerNode) -> None:
    with suppress(ExecutorLost):
        await node.run()


def test_a_way_that_nobody_uses_is_given_up(checkpoint: Checkpoint) -> None:
    async def play(swarm: MemorySwarm, client: Friends) -> None:
        await swarm.add("next", Span(0, checkpoint.num_blocks))
        alice = await client("alice")
        session, _ = await alice.open(next_hop=Contact(PeerId("next")))
        await alice.stream.send(alice.step(session).pack())
        await asyncio.sleep(1)
        node = swarm.members[HOST].node
        await asyncio.sleep(200)
        assert node.next_hops == 1
        await alice.stream.send(Relink(session, to_next=True).pack())
        await asyncio.sleep(130)
        assert node.next_hops == 0

    with_host(checkpoint, play)


@pytest.mark.parametrize("order", ["replayed", "reordered"])
def test_frames_again_and_out_of_order_change_nothing(checkpoint: Checkpoint, order: str) -> None:
    async def play(swarm: MemorySwarm, client: Friends) -> None:
        alice = await client("alice")
        session, _ = await alice.open(lease=64)
        steps = [alice.step(session, at) for at in range(4)]
        first = [await alice.ask(step) for step in steps]
        assert all(isinstance(out, Out) for out in first)
        again = steps if order == "replayed" else steps[::-1]
        for step in again:
            await alice.stream.send(step.pack())
        pong = await alice.ask(Ping(session, 9))
        assert dict(getattr(pong, "rows", {})) == {1: 4}, "nothing of them was answered before this"
        ahead = await alice.ask(alice.step(session, 9))
        assert isinstance(ahead, Fault)
        assert ahead.code is FaultCode.GAP
        await alice.stream.send(Open(session, *open_fields(alice)).pack())
        assert isinstance(parse(await alice.stream.receive()), Ready), "an Open again is answered, and the rows stay"
        assert dict(getattr(await alice.ask(Ping(session, 10)), "rows", {})) == {1: 4}

    with_host(checkpoint, play)


def open_fields(alice: Client) -> tuple[object, ...]:
    return alice.checkpoint.digest, Span(0, alice.checkpoint.num_blocks), "fp32", alice.me, None, 64
