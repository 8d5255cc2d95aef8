"""Sessions tell slow peers from dead ones, in virtual time; seconds here are those of the loop."""

import asyncio

import torch

from clients.client import Client
from clients.events import PeerLost
from clients.session import Session
from peers.link import InlineLink
from swarm.checkpoint import Checkpoint
from swarm.ids import PeerId, Span
from tests.memory_swarm import MemorySwarm, Reference, feed, in_swarm, same
from tests.virtual import VirtualLoop

PROMPT = torch.arange(3, 43)
FIXED = Client.stall_floor + Client.answer_bounds.cold_floor  # until silence is noticed, where nothing was measured


async def decode(session: Session, reference: Reference, steps: int) -> float:
    """Some steps of a token each; the longest of them in seconds."""
    loop = asyncio.get_running_loop()
    longest = 0.0
    (row,) = session.positions or (session.new_row(),)
    for at in range(steps):
        began = loop.time()
        await feed(session, reference, {row: PROMPT[at : at + 1]})
        longest = max(longest, loop.time() - began)
    return longest


def test_a_peer_that_says_nothing_is_given_up_much_sooner_once_its_pace_is_known(
    checkpoint: Checkpoint, reference: Reference
) -> None:
    async def play(swarm: MemorySwarm) -> None:
        await swarm.add("a", Span(0, 2), step_seconds=0.02)
        await swarm.add("b", Span(2, 4), step_seconds=0.02)
        client = await swarm.client()
        session = await swarm.session(client, reference)
        await decode(session, reference, 20)
        await swarm.add("spare", Span(0, 2), step_seconds=0.02)
        await client.refresh()
        swarm.network.hang(PeerId("a"))
        assert await decode(session, reference, 1) < FIXED / 2
        assert [event.peer for event in swarm.events if isinstance(event, PeerLost)] == ["a"]
        await session.close()

    in_swarm(checkpoint, play, delay=0.01)


def test_a_peer_ten_times_slower_than_it_says_is_not_given_up(checkpoint: Checkpoint, reference: Reference) -> None:
    async def play(swarm: MemorySwarm) -> None:
        # they announce 1 000 prompt tokens a second, so that a batch of 512 takes half a second; here it is five
        await swarm.add("a", Span(0, 2), step_seconds=5.0)
        await swarm.add("b", Span(2, 4))
        await swarm.add("spare", Span(0, 2))
        client = await swarm.client()
        client.failed(PeerId("spare"))
        session = await swarm.session(client, reference)
        assert session.chain.hops[0].peer == "a"
        row = session.new_row()
        outputs = await feed(session, reference, {row: PROMPT})
        assert same(outputs, reference.outputs(PROMPT))
        await decode(session, reference, 5)
        assert not [event for event in swarm.events if isinstance(event, PeerLost)]
        assert session.chain.hops[0].peer == "a"
        await session.close()

    in_swarm(checkpoint, play, delay=0.01)


def test_a_peer_that_becomes_slow_in_the_middle_is_not_given_up(checkpoint: Checkpoint, reference: Reference) -> None:
    async def play(swarm: MemorySwarm) -> None:
        await swarm.add("a", Span(0, 4), step_seconds=0.03)
        session = await swarm.session(await swarm.client(), reference)
        await decode(session, reference, 20)
        await swarm.add("spare", Span(0, 4))
        link = swarm.members["a"].link
        assert isinstance(link, InlineLink)
        link.step_seconds = 0.8
        await decode(session, reference, 20)
        assert not [event for event in swarm.events if isinstance(event, PeerLost)]
        await session.close()

    in_swarm(checkpoint, play, delay=0.01)


def test_a_peer_that_was_given_up_and_speaks_again_on_the_same_stream_is_given_more_time(
    checkpoint: Checkpoint, reference: Reference
) -> None:
    async def play(swarm: MemorySwarm) -> None:
        await swarm.add("a", Span(0, 4), step_seconds=0.03)
        client = await swarm.client()
        session = await swarm.session(client, reference)
        await decode(session, reference, 20)
        before = client.answer_limit(session.chain.hops[0])
        hop = session.chain.hops[0]
        await swarm.add("spare", Span(0, 4), step_seconds=0.03)
        swarm.network.hang(PeerId("a"))
        await decode(session, reference, 1)
        assert session.chain.hops[0].peer == "spare"
        swarm.network.resume(PeerId("a"))
        client.exclude(PeerId("spare"), "is not to be used")
        await decode(session, reference, 1)
        assert session.chain.hops[0].peer == "a"
        assert client.answer_limit(hop) > 1.9 * before
        await session.close()

    in_swarm(checkpoint, play, delay=0.01)


def test_new_chains_pass_by_a_peer_that_died_as_long_as_its_record_is_older(
    checkpoint: Checkpoint, reference: Reference
) -> None:
    async def play(swarm: MemorySwarm) -> None:
        await swarm.add("a", Span(0, 4))
        client = await swarm.client()
        session = await swarm.session(client, reference)
        await swarm.add("spare", Span(0, 4))
        await swarm.kill("a")
        await decode(session, reference, 1)
        await asyncio.sleep(60.0)  # by which it may be asked again, as far as its failure goes
        assert PeerId("a") not in client.backoff.avoided()
        plans = {client.plan(Span(0, 4), source=client.me.peer, sink=client.me.peer)[0].peer for _ in range(3)}
        assert plans == {"spare"}
        client.exclude(PeerId("spare"), "is not to be used")
        assert client.plan(Span(0, 4), source=client.me.peer, sink=client.me.peer)[0].peer == "a", (
            "nobody else is there"
        )
        await session.close()

    in_swarm(checkpoint, play, delay=0.01)


def test_a_newer_record_brings_a_peer_back(checkpoint: Checkpoint, reference: Reference) -> None:
    async def play(swarm: MemorySwarm) -> None:
        await swarm.add("a", Span(0, 4))
        await swarm.add("b", Span(0, 2))
        await swarm.add("c", Span(2, 4))
        client = await swarm.client()
        client.failed(PeerId("a"))
        await asyncio.sleep(10.0)
        assert len(client.plan(Span(0, 4), source=client.me.peer, sink=client.me.peer)) == 2
        swarm.announce("a", Span(0, 4))
        await client.refresh()
        assert len(client.plan(Span(0, 4), source=client.me.peer, sink=client.me.peer)) == 1

    in_swarm(checkpoint, play, delay=0.01)


def test_what_comes_while_a_client_was_stopped_is_looked_at_before_anybody_is_given_up(
    checkpoint: Checkpoint, reference: Reference
) -> None:
    async def play(swarm: MemorySwarm) -> None:
        await swarm.add("a", Span(0, 4), step_seconds=0.03)
        session = await swarm.session(await swarm.client(), reference)
        await decode(session, reference, 20)
        await swarm.add("spare", Span(0, 4), step_seconds=0.03)
        swarm.network.hang(PeerId("client"))  # it asks into nothing, and then its clock jumps
        going_on = asyncio.create_task(decode(session, reference, 1))
        await asyncio.sleep(0.5)
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualLoop)
        loop.sleep_through(3600.0)
        swarm.network.resume(PeerId("client"))
        await going_on
        assert not [event for event in swarm.events if isinstance(event, PeerLost)]
        await session.close()

    in_swarm(checkpoint, play, delay=0.01)


HOUR = 3600.0


def test_a_client_that_slept_for_an_hour_goes_on_with_the_same_outputs(
    checkpoint: Checkpoint, reference: Reference
) -> None:
    async def play(swarm: MemorySwarm) -> None:
        await swarm.add("a", Span(0, 2))
        await swarm.add("b", Span(2, 4))
        client = await swarm.client()
        session = await swarm.session(client, reference)
        row, expected = session.new_row(), reference.outputs(PROMPT)
        await feed(session, reference, {row: PROMPT[:30]})
        swarm.network.hang(PeerId("client"))
        await asyncio.sleep(HOUR)
        assert [member.engine.stats().sessions for member in swarm.members.values()] == [0, 0], "peers keep nothing"
        swarm.network.resume(PeerId("client"))
        outputs = await feed(session, reference, {row: PROMPT[30:]})
        assert same(outputs, expected[30:])
        assert not client.backoff.avoided(), "nobody is blamed"
        await session.close()

    in_swarm(checkpoint, play, delay=0.01)


def test_a_peer_that_sleeps_for_an_hour_is_gone_around_and_keeps_no_session(
    checkpoint: Checkpoint, reference: Reference
) -> None:
    async def play(swarm: MemorySwarm) -> None:
        await swarm.add("a", Span(0, 4))
        client = await swarm.client()
        session = await swarm.session(client, reference)
        row, expected = session.new_row(), reference.outputs(PROMPT)
        await feed(session, reference, {row: PROMPT[:30]})
        await swarm.add("spare", Span(0, 4))
        swarm.network.hang(PeerId("a"))
        outputs = await feed(session, reference, {row: PROMPT[30:]})
        assert same(outputs, expected[30:])
        await asyncio.sleep(HOUR)
        swarm.network.resume(PeerId("a"))
        await asyncio.sleep(1.0)
        assert swarm.members["a"].engine.stats().sessions == 0
        swarm.announce("a", Span(0, 4))
        client.exclude(PeerId("spare"), "is not to be used")
        await client.refresh()
        assert client.plan(Span(0, 4), source=client.me.peer, sink=client.me.peer)[0].peer == "a"
        await session.close()

    in_swarm(checkpoint, play, delay=0.01)
