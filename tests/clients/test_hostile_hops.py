"""Hops that answer nonsense are dropped, and the session goes on elsewhere with the right outputs."""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from typing import Any

import pytest
import torch

from clients.chain import MAX_EVENT_BYTES
from clients.events import ChainChanged, PeerLost
from peers.link import ExecutorLink, ExecutorLost
from peers.node import PeerNode
from swarm.checkpoint import Checkpoint
from swarm.codecs import decode, encode
from swarm.errors import HopError
from swarm.ids import PeerId, RowId, Span
from swarm.memory import MemoryNetwork
from swarm.messages import PROTOCOL, Fault, FaultCode, Message, Open, Out, Ready, Step, StepRow, parse
from swarm.transport import Stream
from tests.memory_swarm import MemorySwarm, Reference, feed
from tests.virtual import run_virtual

PROMPT = torch.tensor([5, 9, 17, 33, 2, 64, 101, 7])
LIAR = PeerId("liar")
SPANS = {"first": Span(0, 1), "middle": Span(1, 3), "last": Span(3, 4)}

Lie = Callable[[Any, int], Message]


def not_a_number(message: Step | Out, hidden: int) -> Message:
    values = decode(message.body, message.codec, hidden)
    values[0, 0] = float("nan")
    return replace(message, body=encode(values, message.codec))


def too_few_values(message: Step | Out, hidden: int) -> Message:
    return replace(message, body=memoryview(message.body)[:-4])


def too_many_tokens(message: Step | Out, hidden: int) -> Message:
    return replace(message, body=bytes(message.body) * 2)


def wrong_positions(message: Step | Out, hidden: int) -> Message:
    return replace(message, rows=tuple(replace(row, at=row.at + 3, want=row.want + 3) for row in message.rows))


class LyingLink(ExecutorLink):
    """What an honest engine says, changed on the way out once the lie begins."""

    def __init__(
        self, link: ExecutorLink, lie: Lie, hidden: int, about: tuple[type[Message], ...] = (Step, Out)
    ) -> None:
        self.link = link
        self.about = about
        self.lie = lie
        self.hidden = hidden
        self.lying = False

    async def send(self, sender: PeerId, frame: bytes) -> None:
        await self.link.send(sender, frame)

    async def gone(self, peer: PeerId) -> None:
        await self.link.gone(peer)

    async def receive(self) -> tuple[PeerId, bytes]:
        peer, frame = await self.link.receive()
        message = parse(frame)
        if self.lying and isinstance(message, self.about):
            frame = self.lie(message, self.hidden).pack()
        return peer, frame

    async def restart(self) -> None:
        await self.link.restart()

    async def close(self) -> None:
        await self.link.close()

    @property
    def stats(self):  # type: ignore[no-untyped-def]
        return self.link.stats


async def add_liar(swarm: MemorySwarm, blocks: Span, lie: Lie) -> LyingLink:
    """A member of the swarm whose node is given a lying link in place of its own."""
    await swarm.add(LIAR, blocks)
    return await turn_liar(swarm, LIAR, lie, (Step, Out))


async def turn_liar(swarm: MemorySwarm, name: str, lie: Lie, about: tuple[type[Message], ...]) -> LyingLink:
    """The same with a member to whom nobody has spoken yet."""
    member = swarm.members[name]
    member.task.cancel()
    with suppress(asyncio.CancelledError):
        await member.task
    link = LyingLink(member.link, lie, swarm.checkpoint.hidden_size, about)
    node = PeerNode(member.transport, link)
    await node.start()

    async def serve() -> None:
        with suppress(ExecutorLost):
            await node.run()

    member.node, member.link, member.task = node, link, asyncio.create_task(serve())
    return link


@pytest.mark.parametrize("place", ["first", "middle", "last"])
@pytest.mark.parametrize("lie", [not_a_number, too_few_values, too_many_tokens, wrong_positions])
def test_a_hop_that_answers_nonsense_is_replaced(
    checkpoint: Checkpoint, reference: Reference, lie: Lie, place: str
) -> None:
    async def main() -> None:
        async with MemorySwarm(checkpoint, MemoryNetwork(delay=0.01)) as swarm:
            for name, blocks in SPANS.items():
                if name != place:
                    await swarm.add(name, blocks)
            link = await add_liar(swarm, SPANS[place], lie)
            session = await swarm.session(await swarm.client(), reference)
            row, expected = session.new_row(), reference.outputs(PROMPT)
            await feed(session, reference, {row: PROMPT[:5]})
            await swarm.add("honest", SPANS[place])
            link.lying = True
            for at in range(5, 8):
                got = await feed(session, reference, {row: PROMPT[at : at + 1]})
                torch.testing.assert_close(got, expected[at : at + 1], atol=1e-4, rtol=1e-4)
            lost = [event.peer for event in swarm.events if isinstance(event, PeerLost)]
            assert lost == [LIAR]
            changes = [event for event in swarm.events if isinstance(event, ChainChanged)]
            assert changes[-1].lost == (LIAR,)
            await session.close()

    run_virtual(main())


def refuses(message: Message, _: int) -> Message:
    return Fault(message.session, FaultCode.REFUSED, "I would rather not")


def test_a_hop_that_refuses_in_the_middle_of_it_ends_nothing_while_others_would_not(
    checkpoint: Checkpoint, reference: Reference
) -> None:
    async def main() -> None:
        async with MemorySwarm(checkpoint, MemoryNetwork(delay=0.01)) as swarm:
            link = await add_liar(swarm, Span(0, 4), refuses)
            client = await swarm.client()
            session = await swarm.session(client, reference)
            row, expected = session.new_row(), reference.outputs(PROMPT)
            await feed(session, reference, {row: PROMPT[:5]})
            await swarm.add("honest", Span(0, 4))
            await client.refresh()
            link.lying = True
            got = await feed(session, reference, {row: PROMPT[5:6]})
            torch.testing.assert_close(got, expected[5:6], atol=1e-4, rtol=1e-4)
            await session.close()

    run_virtual(main())


def test_what_the_only_hop_refuses_is_said_at_once(checkpoint: Checkpoint, reference: Reference) -> None:
    async def main() -> None:
        async with MemorySwarm(checkpoint, MemoryNetwork(delay=0.01)) as swarm:
            link = await add_liar(swarm, Span(0, 4), refuses)
            session = await swarm.session(await swarm.client(), reference)
            link.lying = True
            with pytest.raises(HopError, match="I would rather not"):
                await feed(session, reference, {session.new_row(): PROMPT})
            await session.close()

    run_virtual(main())


def test_a_hop_that_floods_a_session_with_outputs_is_cut_off_before_they_take_the_memory(
    checkpoint: Checkpoint, reference: Reference
) -> None:
    """Nobody listens between steps; what comes then waits."""
    sent = 0

    async def flood(stream: Stream) -> None:
        nonlocal sent
        opening = parse(await stream.receive())
        await stream.send(Ready(opening.session).pack())
        body = bytes(32 << 20)
        tokens = len(body) // (4 * checkpoint.hidden_size)
        frame = Out(opening.session, (StepRow(RowId(1), 0, tokens, 0),), "fp32", body).pack()
        while True:
            await stream.send(frame)
            sent += 1

    async def main() -> None:
        async with MemorySwarm(checkpoint, MemoryNetwork(delay=0.01)) as swarm:
            await swarm.network.transport(LIAR).serve(PROTOCOL, flood)
            swarm.announce(LIAR, Span(0, 4))
            session = await swarm.session(await swarm.client(), reference)
            await asyncio.sleep(5)
            assert sent <= MAX_EVENT_BYTES // (32 << 20) + 2
            await session.close()

    run_virtual(main())


@pytest.mark.parametrize("garbage", [b"\x08\0\0\0\x04\0\0\0\xc1\xc1\xc1\xc1", b"\xff\xff\xff\xff", b"\x01\0\0\0\0"])
def test_a_peer_that_sends_what_is_no_frame_is_replaced(
    checkpoint: Checkpoint, reference: Reference, garbage: bytes
) -> None:
    async def babble(stream: Stream) -> None:
        opening = parse(await stream.receive())
        assert isinstance(opening, Open)
        await stream.send(Ready(opening.session).pack())
        await stream.receive()
        await stream.send(garbage)
        await stream.receive()

    async def main() -> None:
        async with MemorySwarm(checkpoint, MemoryNetwork(delay=0.01)) as swarm:
            await swarm.network.transport(LIAR).serve(PROTOCOL, babble)
            swarm.announce(LIAR, Span(0, 4))
            client = await swarm.client()
            session = await swarm.session(client, reference)
            await swarm.add("honest", Span(0, 4))
            row = session.new_row()
            got = await feed(session, reference, {row: PROMPT})
            torch.testing.assert_close(got, reference.outputs(PROMPT), atol=1e-4, rtol=1e-4)
            assert client.backoff.avoided() == {LIAR}
            await session.close()

    run_virtual(main())
