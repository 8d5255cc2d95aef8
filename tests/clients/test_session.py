"""Sessions over a swarm in memory: the same outputs as one piece, whatever happens to the peers."""

import asyncio

import pytest
import torch

from clients.events import ChainChanged, PeerLost, Waiting
from peers.link import InlineLink
from swarm.checkpoint import Checkpoint
from swarm.errors import Busy, MissingBlocks
from swarm.ids import PeerId, Span
from swarm.record import PeerState
from tests.memory_swarm import MemorySwarm, Reference, feed, in_swarm, same

PROMPT = torch.tensor([5, 9, 17, 33, 2, 64, 101, 7])


@pytest.mark.parametrize("cuts", [(4,), (1, 4), (1, 2, 4), (2, 3, 4)])
def test_a_chain_computes_what_one_piece_computes(
    checkpoint: Checkpoint, reference: Reference, cuts: tuple[int, ...]
) -> None:
    async def play(swarm: MemorySwarm) -> None:
        for start, end in zip((0, *cuts), cuts, strict=False):
            await swarm.add(f"peer{start}", Span(start, end))
        session = await swarm.session(await swarm.client(), reference)
        row, expected = session.new_row(), reference.outputs(PROMPT)
        assert same(await feed(session, reference, {row: PROMPT[:5]}), expected[:5])
        for at in range(5, 8):
            assert same(await feed(session, reference, {row: PROMPT[at : at + 1]}), expected[at : at + 1])
        await session.close()

    in_swarm(checkpoint, play, delay=0.01)


@pytest.mark.parametrize("victim", ["a", "b", "c"])
def test_a_killed_hop_leaves_outputs_identical(checkpoint: Checkpoint, reference: Reference, victim: str) -> None:
    async def play(swarm: MemorySwarm) -> None:
        spans = {"a": Span(0, 1), "b": Span(1, 3), "c": Span(3, 4)}
        for name, blocks in spans.items():
            await swarm.add(name, blocks)
        session = await swarm.session(await swarm.client(), reference)
        row, expected = session.new_row(), reference.outputs(PROMPT)
        await feed(session, reference, {row: PROMPT[:5]})
        await swarm.add("spare", spans[victim])
        before = {name: member.engine.stats().tokens_done for name, member in swarm.members.items()}
        await swarm.kill(victim)
        for at in range(5, 8):
            assert same(await feed(session, reference, {row: PROMPT[at : at + 1]}), expected[at : at + 1])
        change = swarm.events[-1] if isinstance(swarm.events[-1], ChainChanged) else None
        changes = [event for event in swarm.events if isinstance(event, ChainChanged)]
        assert changes[-1].lost == (PeerId(victim),), change
        for name, member in swarm.members.items():
            if name != "spare":
                assert member.engine.stats().tokens_done - before[name] == 3, "no hop that lived computes again"
        await session.close()

    in_swarm(checkpoint, play, delay=0.01)


def test_blocks_that_nobody_holds_are_named_when_patience_ends(checkpoint: Checkpoint, reference: Reference) -> None:
    async def play(swarm: MemorySwarm) -> None:
        await swarm.add("a", Span(0, 2))
        with pytest.raises(MissingBlocks) as caught:
            await swarm.session(await swarm.client(), reference, patience=5.0)
        assert caught.value.blocks == (2, 3)

    in_swarm(checkpoint, play)


def test_a_generation_goes_on_when_missing_blocks_join(checkpoint: Checkpoint, reference: Reference) -> None:
    async def play(swarm: MemorySwarm) -> None:
        await swarm.add("a", Span(0, 2))
        await swarm.add("b", Span(2, 4))
        session = await swarm.session(await swarm.client(), reference, patience=60.0)
        row, expected = session.new_row(), reference.outputs(PROMPT)
        await feed(session, reference, {row: PROMPT[:5]})
        await swarm.kill("b")
        going_on = asyncio.create_task(feed(session, reference, {row: PROMPT[5:]}))
        await swarm.until(Waiting)
        await swarm.add("late", Span(1, 4))
        assert same(await going_on, expected[5:])
        await session.close()

    in_swarm(checkpoint, play, delay=0.01)


def test_a_hop_that_hangs_is_replaced(checkpoint: Checkpoint, reference: Reference) -> None:
    async def play(swarm: MemorySwarm) -> None:
        await swarm.add("a", Span(0, 2))
        await swarm.add("b", Span(2, 4))
        session = await swarm.session(await swarm.client(), reference)
        row, expected = session.new_row(), reference.outputs(PROMPT)
        await feed(session, reference, {row: PROMPT[:5]})
        await swarm.add("spare", Span(0, 2))
        swarm.network.hang(PeerId("a"))
        assert same(await feed(session, reference, {row: PROMPT[5:]}), expected[5:])
        assert [hop.peer for hop in session.chain.hops] == ["spare", "b"]
        await session.close()

    in_swarm(checkpoint, play, delay=0.01)


def test_who_alone_has_blocks_is_used_again_seconds_after_a_long_silence(
    checkpoint: Checkpoint, reference: Reference
) -> None:
    async def play(swarm: MemorySwarm) -> None:
        await swarm.add("a", Span(0, 2))
        await swarm.add("b", Span(2, 4))
        session = await swarm.session(await swarm.client(), reference, patience=3600.0)
        row, expected = session.new_row(), reference.outputs(PROMPT)
        await feed(session, reference, {row: PROMPT[:5]})
        swarm.network.hang(PeerId("b"))
        going_on = asyncio.create_task(feed(session, reference, {row: PROMPT[5:]}))
        await asyncio.sleep(600.0)
        swarm.network.resume(PeerId("b"))
        async with asyncio.timeout(20.0):
            assert same(await going_on, expected[5:])
        await session.close()

    in_swarm(checkpoint, play, delay=0.01)


def test_who_comes_online_anew_is_forgiven(checkpoint: Checkpoint) -> None:
    async def play(swarm: MemorySwarm) -> None:
        await swarm.add("a", Span(0, 4))
        client = await swarm.client()
        client.backoff.fail(PeerId("a"))
        await client.refresh()
        assert client.backoff.avoided() == {"a"}
        swarm.announce("a", Span(0, 4), state=PeerState.JOINING)
        await client.refresh()
        assert client.backoff.avoided() == {"a"}
        swarm.announce("a", Span(0, 4))
        await client.refresh()
        assert client.backoff.avoided() == set()

    in_swarm(checkpoint, play)


def test_hops_that_cannot_reach_each_other_meet_at_the_client(checkpoint: Checkpoint, reference: Reference) -> None:
    async def play(swarm: MemorySwarm) -> None:
        await swarm.add("a", Span(0, 2))
        await swarm.add("b", Span(2, 4))
        swarm.network.partition(PeerId("a"), PeerId("b"))
        session = await swarm.session(await swarm.client(), reference)
        row, expected = session.new_row(), reference.outputs(PROMPT)
        assert same(await feed(session, reference, {row: PROMPT[:5]}), expected[:5])
        (row,) = await session.fork([(row, 3)])
        assert same(await feed(session, reference, {row: PROMPT[3:]}), expected[3:])
        assert [hop.peer for hop in session.chain.hops] == ["a", "b"], "nobody was replaced"
        assert swarm.network.bytes[PeerId("client"), PeerId("b")] > PROMPT.numel() * checkpoint.hidden_size * 4
        await session.close()

    in_swarm(checkpoint, play, delay=0.01)


def test_hop_that_reaches_none_of_the_next_ones_any_more_meets_one_at_the_client(
    checkpoint: Checkpoint, reference: Reference
) -> None:
    """Its streams stay open and what it sends is lost, so nobody but the client can notice."""

    async def play(swarm: MemorySwarm) -> None:
        await swarm.add("a", Span(0, 2))
        for name in ("b", "c"):
            await swarm.add(name, Span(2, 4))
        session = await swarm.session(await swarm.client(), reference)
        row, expected = session.new_row(), reference.outputs(PROMPT)
        assert same(await feed(session, reference, {row: PROMPT[:5]}), expected[:5])
        for name in ("b", "c"):
            swarm.network.partition(PeerId("a"), PeerId(name))
        began = asyncio.get_running_loop().time()
        assert same(await feed(session, reference, {row: PROMPT[5:]}), expected[5:])
        assert asyncio.get_running_loop().time() - began < 10
        assert not any(isinstance(event, PeerLost) for event in swarm.events), "nobody is to blame"
        await session.close()

    in_swarm(checkpoint, play, delay=0.01)


def test_one_peer_may_be_two_hops_of_a_chain(checkpoint: Checkpoint, reference: Reference) -> None:
    async def play(swarm: MemorySwarm) -> None:
        await swarm.add("whole", Span(0, 4))
        swarm.announce("whole", Span(0, 2))  # the rest of what it holds is announced later
        await swarm.add("b", Span(2, 4))
        session = await swarm.session(await swarm.client(), reference)
        row, expected = session.new_row(), reference.outputs(PROMPT)
        await feed(session, reference, {row: PROMPT[:5]})
        swarm.announce("whole", Span(0, 4))
        await swarm.kill("b")
        assert same(await feed(session, reference, {row: PROMPT[5:]}), expected[5:])
        assert [str(hop.span) for hop in session.chain.hops] == ["0:2", "2:4"]
        assert {hop.peer for hop in session.chain.hops} == {"whole"}
        await session.close()

    in_swarm(checkpoint, play, delay=0.01)


def test_a_full_peer_is_asked_again_until_there_is_room(checkpoint: Checkpoint, reference: Reference) -> None:
    async def play(swarm: MemorySwarm) -> None:
        await swarm.add("small", Span(0, 4), kv_tokens=128)
        client = await swarm.client()
        first = await swarm.session(client, reference, lease=100)
        waiting = asyncio.create_task(swarm.session(client, reference, lease=100, patience=60.0))
        await swarm.until(Waiting)
        await first.close()
        second = await waiting
        row = second.new_row()
        assert same(await feed(second, reference, {row: PROMPT}), reference.outputs(PROMPT))
        await second.close()

    in_swarm(checkpoint, play, delay=0.01)


def test_a_peer_that_stays_full_is_named(checkpoint: Checkpoint, reference: Reference) -> None:
    async def play(swarm: MemorySwarm) -> None:
        await swarm.add("small", Span(0, 4), kv_tokens=128)
        client = await swarm.client()
        first = await swarm.session(client, reference, lease=100)
        with pytest.raises(Busy, match="full"):
            await swarm.session(client, reference, lease=100, patience=5.0)
        await first.close()

    in_swarm(checkpoint, play, delay=0.01)


def test_an_executor_that_is_lost_costs_only_its_hop(checkpoint: Checkpoint, reference: Reference) -> None:
    async def play(swarm: MemorySwarm) -> None:
        await swarm.add("a", Span(0, 2))
        await swarm.add("b", Span(2, 4))
        session = await swarm.session(await swarm.client(), reference)
        row, expected = session.new_row(), reference.outputs(PROMPT)
        await feed(session, reference, {row: PROMPT[:5]})
        await swarm.add("spare", Span(2, 4))
        link = swarm.members["b"].link
        assert isinstance(link, InlineLink)
        link.kill()
        assert same(await feed(session, reference, {row: PROMPT[5:]}), expected[5:])
        assert [hop.peer for hop in session.chain.hops] == ["a", "spare"]
        await session.close()

    in_swarm(checkpoint, play, delay=0.01)


def test_forks_that_are_said_again_speak_against_nobody(checkpoint: Checkpoint, reference: Reference) -> None:
    async def play(swarm: MemorySwarm) -> None:
        for name, blocks in {"a": Span(0, 1), "b": Span(1, 3), "c": Span(3, 4), "spare": Span(1, 3)}.items():
            await swarm.add(name, blocks)
        session = await swarm.session(await swarm.client(), reference)
        first = session.new_row()
        await feed(session, reference, {first: PROMPT[:5]})
        middle = str(session.chain.hops[1].peer)
        (second,) = await session.fork([(first, 4)])
        (third,) = await session.fork([(second, 3)])
        await swarm.kill(middle)
        assert same(await feed(session, reference, {third: PROMPT[3:]}), reference.outputs(PROMPT)[3:])
        assert [event.peer for event in swarm.events if isinstance(event, PeerLost)] == [middle]
        await session.close()

    in_swarm(checkpoint, play, delay=0.01)


def test_two_hundred_sessions_finish_on_room_for_twenty(checkpoint: Checkpoint, reference: Reference) -> None:
    expected = reference.outputs(PROMPT)

    async def play(swarm: MemorySwarm) -> None:
        await swarm.add("a", Span(0, 2), kv_tokens=20 * 16)
        await swarm.add("b", Span(2, 4), kv_tokens=20 * 16)
        client = await swarm.client()

        async def generate() -> None:
            session = await swarm.session(client, reference, lease=16, patience=3600.0)
            row = session.new_row()
            assert same(await feed(session, reference, {row: PROMPT[:6]}), expected[:6])
            for at in range(6, 8):
                assert same(await feed(session, reference, {row: PROMPT[at : at + 1]}), expected[at : at + 1])
            await session.close()

        await asyncio.gather(*(generate() for _ in range(200)))
        assert any(isinstance(event, Waiting) for event in swarm.events), "there was never room for all"
        await asyncio.sleep(1)
        for member in swarm.members.values():
            stats = member.engine.stats()
            assert stats.busy > 0
            assert (stats.sessions, stats.kv_tokens_free) == (0, stats.kv_tokens)

    in_swarm(checkpoint, play, delay=0.01)


@pytest.mark.parametrize("share", [True, False])
def test_a_client_says_whether_peers_may_use_its_beginnings_for_others(
    checkpoint: Checkpoint, reference: Reference, share: bool
) -> None:
    async def play(swarm: MemorySwarm) -> None:
        await swarm.add("a", Span(0, 2), page_size=4)
        await swarm.add("b", Span(2, 4), page_size=4)
        for name in ("first", "second"):
            session = await swarm.session(await swarm.client(name, share_prefixes=share), reference)
            assert same(await feed(session, reference, {session.new_row(): PROMPT}), reference.outputs(PROMPT))
            await session.close()
        shared = [member.engine.stats().tokens_shared for member in swarm.members.values()]
        assert shared == [len(PROMPT) // 4 * 4 if share else 0] * 2

    in_swarm(checkpoint, play, delay=0.01)


def test_a_long_prompt_keeps_all_hops_at_work(checkpoint: Checkpoint, reference: Reference) -> None:
    """It goes down in pieces, of which only the last has an output that is wanted."""

    async def play(swarm: MemorySwarm) -> None:
        await swarm.add("a", Span(0, 2))
        await swarm.add("b", Span(2, 4))
        session = await swarm.session(await swarm.client(), reference, lease=256)
        prompt = torch.arange(200) % 100 + 3
        output = await feed(session, reference, {session.new_row(): prompt}, want=1)
        assert same(output, reference.outputs(prompt)[-1:])
        stats = [member.engine.stats() for member in swarm.members.values()]
        assert all(each.batches > 1 for each in stats)
        await session.close()

    in_swarm(checkpoint, play, delay=0.01)
