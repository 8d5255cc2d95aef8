"""Peers that leave in good order: sessions move while they are still served, and nothing has failed."""

import asyncio

import pytest
import torch
from torch import Tensor

from clients.events import ChainChanged, PeerLost, Step, Waiting
from clients.session import Session
from swarm.checkpoint import Checkpoint
from swarm.ids import PeerId, Span
from tests.clients.test_session import PROMPT
from tests.memory_swarm import MemorySwarm, Reference, feed, in_swarm, same

LONG = 60.0


async def generate(session: Session, reference: Reference, tokens: Tensor, *, first: int = 5) -> bool:
    """Whether all outputs are what one piece computes: a prompt, and then one token after the other."""
    row, expected = session.new_row(), reference.outputs(tokens)
    good = same(await feed(session, reference, {row: tokens[:first]}), expected[:first])
    for at in range(first, len(tokens)):
        good &= same(await feed(session, reference, {row: tokens[at : at + 1]}), expected[at : at + 1])
    return good


def failures(swarm: MemorySwarm) -> list[object]:
    return [e for e in swarm.events if isinstance(e, PeerLost | Waiting) or (isinstance(e, ChainChanged) and e.lost)]


def changes(swarm: MemorySwarm) -> list[ChainChanged]:
    return [event for event in swarm.events if isinstance(event, ChainChanged)]


def holds(swarm: MemorySwarm, name: str) -> tuple[int, int]:
    """Sessions and tokens."""
    member = swarm.members[name]
    stats = member.engine.stats()
    return member.node.sessions, stats.kv_tokens - stats.kv_tokens_free


@pytest.mark.parametrize("leaver", ["a", "b", "c"])
def test_a_session_moves_off_a_peer_that_leaves_and_nothing_fails(
    checkpoint: Checkpoint, reference: Reference, leaver: str
) -> None:
    async def play(swarm: MemorySwarm) -> None:
        spans = {"a": Span(0, 1), "b": Span(1, 3), "c": Span(3, 4)}
        for name, blocks in spans.items():
            await swarm.add(name, blocks)
        session = await swarm.session(await swarm.client(), reference)
        row, expected = session.new_row(), reference.outputs(PROMPT)
        await feed(session, reference, {row: PROMPT[:5]})
        await swarm.add("spare", spans[leaver])
        before = {name: member.engine.stats().tokens_done for name, member in swarm.members.items()}
        assert await swarm.members[leaver].node.drain(LONG) == 0
        for at in range(5, 8):
            assert same(await feed(session, reference, {row: PROMPT[at : at + 1]}), expected[at : at + 1])
        assert failures(swarm) == []
        assert changes(swarm)[-1].left == (PeerId(leaver),)
        done = {name: member.engine.stats().tokens_done - before[name] for name, member in swarm.members.items()}
        assert done == {**dict.fromkeys(spans, 3), leaver: 0, "spare": 8}, "nobody who stays computes again"
        assert holds(swarm, leaver) == (0, 0)
        await session.close()

    in_swarm(checkpoint, play, delay=0.01)


def test_eight_streams_over_four_peers_hear_nothing_of_one_that_leaves(
    checkpoint: Checkpoint, reference: Reference
) -> None:
    async def play(swarm: MemorySwarm) -> None:
        for name, blocks in {"a": Span(0, 2), "b": Span(0, 2), "c": Span(2, 4), "d": Span(2, 4)}.items():
            await swarm.add(name, blocks)
        clients = [await swarm.client(f"client{number}") for number in range(4)]
        sessions = [await swarm.session(client, reference) for client in clients for _ in range(2)]
        tokens = [torch.randint(0, 100, (20,), generator=torch.Generator().manual_seed(i)) for i in range(8)]
        leaver = changes(swarm)[0].hops[1].peer
        running = [
            asyncio.create_task(generate(session, reference, own))
            for session, own in zip(sessions, tokens, strict=True)
        ]
        await asyncio.sleep(0.2)
        assert await swarm.members[leaver].node.drain(LONG) == 0
        assert not any(task.done() for task in running), "it was not in mid-answer"
        assert holds(swarm, leaver) == (0, 0)
        await swarm.kill(leaver)
        assert all(await asyncio.gather(*running))
        assert failures(swarm) == []
        for session in sessions:
            await session.close()
        await asyncio.sleep(0.1)
        assert {holds(swarm, name) for name in swarm.members} == {(0, 0)}

    in_swarm(checkpoint, play, delay=0.01)


def test_a_session_that_nobody_else_can_take_is_served_to_the_limit_and_then_mended_as_ever(
    checkpoint: Checkpoint, reference: Reference
) -> None:
    async def play(swarm: MemorySwarm) -> None:
        await swarm.add("a", Span(0, 2))
        await swarm.add("b", Span(2, 4))
        session = await swarm.session(await swarm.client(), reference)
        row, expected = session.new_row(), reference.outputs(PROMPT)
        await feed(session, reference, {row: PROMPT[:5]})
        leaving = asyncio.create_task(swarm.members["b"].node.drain(20.0))
        await asyncio.sleep(19.0)
        assert same(await feed(session, reference, {row: PROMPT[5:6]}), expected[5:6])
        assert failures(swarm) == []
        assert await leaving == 1
        await swarm.kill("b")
        going_on = asyncio.create_task(feed(session, reference, {row: PROMPT[6:]}))
        await swarm.until(Waiting)
        await swarm.add("late", Span(2, 4))
        assert same(await going_on, expected[6:])
        await session.close()

    in_swarm(checkpoint, play, delay=0.01)


def test_a_session_moves_as_soon_as_somebody_can_take_it(checkpoint: Checkpoint, reference: Reference) -> None:
    async def play(swarm: MemorySwarm) -> None:
        await swarm.add("a", Span(0, 2))
        await swarm.add("b", Span(2, 4))
        session = await swarm.session(await swarm.client(), reference)
        row, expected = session.new_row(), reference.outputs(PROMPT)
        await feed(session, reference, {row: PROMPT[:5]})
        leaving = asyncio.create_task(swarm.members["b"].node.drain(LONG))
        await asyncio.sleep(5.0)
        assert not leaving.done()
        await swarm.add("late", Span(1, 3))
        await swarm.add("later", Span(3, 4))
        assert await leaving == 0
        assert same(await feed(session, reference, {row: PROMPT[5:]}), expected[5:])
        assert [hop.peer for hop in changes(swarm)[-1].hops] == ["a", "late", "later"]
        assert failures(swarm) == []
        await session.close()

    in_swarm(checkpoint, play, delay=0.01)


def test_of_two_that_leave_the_one_who_can_be_replaced_is(checkpoint: Checkpoint, reference: Reference) -> None:
    async def play(swarm: MemorySwarm) -> None:
        await swarm.add("a", Span(0, 2))
        await swarm.add("b", Span(2, 4))
        session = await swarm.session(await swarm.client(), reference)
        row, expected = session.new_row(), reference.outputs(PROMPT)
        await feed(session, reference, {row: PROMPT[:5]})
        leaving = [asyncio.create_task(swarm.members[name].node.drain(LONG)) for name in "ab"]
        await swarm.add("other", Span(2, 4))
        assert await leaving[1] == 0
        assert same(await feed(session, reference, {row: PROMPT[5:]}), expected[5:])
        assert [hop.peer for hop in changes(swarm)[-1].hops] == ["a", "other"]
        assert failures(swarm) == []
        assert not leaving[0].done()
        await session.close()
        assert await leaving[0] == 0

    in_swarm(checkpoint, play, delay=0.01)


@pytest.mark.parametrize("leaver", ["a", "b"])
def test_nobody_waits_while_the_replacement_computes_what_was_said(
    checkpoint: Checkpoint, reference: Reference, leaver: str
) -> None:
    async def play(swarm: MemorySwarm) -> None:
        spans = {"a": Span(0, 2), "b": Span(2, 4)}
        for name, blocks in spans.items():
            await swarm.add(name, blocks)
        client = await swarm.client()
        session = await swarm.session(client, reference, lease=128)
        running = asyncio.create_task(generate(session, reference, torch.arange(70), first=40))
        await asyncio.sleep(0.2)
        await swarm.add("slow", spans[leaver], step_seconds=0.5)
        await client.refresh()
        told = len(swarm.events)
        assert await swarm.members[leaver].node.drain(LONG) == 0
        moved = swarm.events.index(changes(swarm)[-1])
        steps = [event.seconds for event in swarm.events[told:moved] if isinstance(event, Step)]
        assert len(steps) > 5, "it went on for as long as a turn of the slow one takes"
        assert max(steps) < 0.2
        assert await running
        assert failures(swarm) == []
        await session.close()

    in_swarm(checkpoint, play, delay=0.01)


def test_whoever_asks_a_peer_that_leaves_for_a_session_goes_elsewhere_in_silence(
    checkpoint: Checkpoint, reference: Reference
) -> None:
    async def play(swarm: MemorySwarm) -> None:
        await swarm.add("leaver", Span(0, 4))
        await swarm.add("a", Span(0, 2))
        await swarm.add("b", Span(2, 4))
        assert await swarm.members["leaver"].node.drain(LONG) == 0
        session = await swarm.session(await swarm.client(), reference)  # its record still says that it serves
        assert await generate(session, reference, PROMPT)
        assert [hop.peer for hop in changes(swarm)[-1].hops] == ["a", "b"]
        assert failures(swarm) == []
        await session.close()

    in_swarm(checkpoint, play)


def test_rows_that_are_cut_and_copied_while_a_peer_leaves_stay_whole(
    checkpoint: Checkpoint, reference: Reference
) -> None:
    """As beams and guessed tokens do: every few tokens the row is copied, and one of the copies is cut."""

    async def play(swarm: MemorySwarm) -> None:
        for name, blocks in {"a": Span(0, 2), "b": Span(2, 4), "spare": Span(2, 4)}.items():
            await swarm.add(name, blocks)
        session = await swarm.session(await swarm.client(), reference)
        leaver = changes(swarm)[-1].hops[1].peer
        tokens = torch.arange(30)
        expected, row = reference.outputs(tokens), session.new_row()
        await feed(session, reference, {row: tokens[:20]})
        leaving = asyncio.create_task(swarm.members[leaver].node.drain(LONG))
        for at in range(20, 29):
            guessed = torch.tensor([int(tokens[at]), 99])
            assert same((await feed(session, reference, {row: guessed}))[:1], expected[at : at + 1])
            other, row = await session.fork([(row, at), (row, at + 1)])
            assert same(await feed(session, reference, {other: tokens[at : at + 1]}), expected[at : at + 1])
        assert await leaving == 0
        assert failures(swarm) == []
        assert same(await feed(session, reference, {row: tokens[29:]}), expected[29:])
        await session.close()
        await asyncio.sleep(0.1)
        assert {holds(swarm, name) for name in swarm.members} == {(0, 0)}

    in_swarm(checkpoint, play, delay=0.01)


def test_a_replacement_that_dies_before_it_is_used_is_replaced_in_silence(
    checkpoint: Checkpoint, reference: Reference
) -> None:
    async def play(swarm: MemorySwarm) -> None:
        await swarm.add("a", Span(0, 2))
        await swarm.add("b", Span(2, 4))
        client = await swarm.client()
        session = await swarm.session(client, reference, lease=512)
        running = asyncio.create_task(generate(session, reference, torch.arange(220) % 100, first=200))
        await asyncio.sleep(0.5)
        await swarm.add("frail", Span(2, 4), step_seconds=60.0)
        await client.refresh()
        leaving = asyncio.create_task(swarm.members["b"].node.drain(LONG))
        await asyncio.sleep(0.2)
        assert swarm.members["frail"].node.sessions == 1
        await swarm.kill("frail")
        await swarm.add("spare", Span(2, 4))
        assert await leaving == 0
        assert await running
        assert changes(swarm)[-1].hops[1].peer == "spare"
        assert [event for event in swarm.events if isinstance(event, PeerLost) and event.peer == "b"] == []
        await session.close()

    in_swarm(checkpoint, play, delay=0.01)


def test_a_session_closed_while_it_moves_leaves_nothing_behind(checkpoint: Checkpoint, reference: Reference) -> None:
    async def play(swarm: MemorySwarm) -> None:
        await swarm.add("a", Span(0, 2))
        await swarm.add("b", Span(2, 4))
        client = await swarm.client()
        session = await swarm.session(client, reference)
        await feed(session, reference, {session.new_row(): PROMPT})
        await swarm.add("spare", Span(2, 4), step_seconds=60.0)
        await client.refresh()
        leaving = asyncio.create_task(swarm.members["b"].node.drain(LONG))
        await asyncio.sleep(0.2)
        assert swarm.members["spare"].node.sessions == 1
        await session.close()
        assert await leaving == 0
        await asyncio.sleep(0.1)
        assert {holds(swarm, name) for name in swarm.members} == {(0, 0)}

    in_swarm(checkpoint, play, delay=0.01)
