"""Audits over a swarm in memory: honest peers are never accused, and who computes something else is found out."""

import asyncio
import random
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from clients.auditing import Auditor
from clients.client import Client
from clients.events import ChainChanged, Excluded
from clients.session import Session
from fault.audits import audits_to_notice
from peers.pages import RowSlice
from peers.span import BlockSpan
from swarm.checkpoint import Checkpoint
from swarm.ids import PeerId, Span
from swarm.memory import MemoryNetwork
from tests.memory_swarm import MemorySwarm, Reference, feed
from tests.virtual import run_virtual

PROMPT = torch.tensor([5, 9, 17, 33, 2, 64, 101, 7, 12, 40])
EVE = PeerId("eve")


class Liar(BlockSpan):
    """Adds half of what it should."""

    def forward(self, hidden: Tensor, rows: Sequence[RowSlice], *rest: Any, **named: Any) -> Tensor:
        honest = super().forward(hidden, rows, *rest, **named)
        return hidden + 0.5 * (honest - hidden) if self.lies(rows) else honest

    def lies(self, rows: Sequence[RowSlice]) -> bool:
        return True


class SlyLiar(Liar):
    """Lies where single tokens are computed, and never about prompts, which an audit looks like."""

    def lies(self, rows: Sequence[RowSlice]) -> bool:
        return all(row.n == 1 for row in rows)


class Audited:
    """A session of which every step is audited, and the chain of which goes through Eve if she is there."""

    def __init__(self, swarm: MemorySwarm, client: Client, auditor: Auditor, session: Session) -> None:
        self.swarm, self.client, self.auditor, self.session = swarm, client, auditor, session
        self.row = session.new_row()

    @classmethod
    async def open(
        cls,
        swarm: MemorySwarm,
        reference: Reference,
        client: Client,
        *,
        auditor: Auditor | None = None,
    ) -> "Audited":
        auditor = auditor or Auditor(client, 1.0, swarm.hear)
        swarm.stack.push_async_callback(auditor.close)
        session = Session(client, embed=reference.embed, lease=64, patience=30.0, observer=swarm.hear, auditor=auditor)
        await session.open()
        return cls(swarm, client, auditor, session)

    async def step(self, reference: Reference, tokens: Tensor) -> Tensor:
        outputs = await feed(self.session, reference, {self.row: tokens}, want=1)
        await self.auditor.settled()
        return outputs


async def with_eve(swarm: MemorySwarm, kind: type[BlockSpan], precision: str = "fp32") -> Client:
    """Eve is the only one in the second half when the client comes; two honest peers join later."""
    await swarm.add("ada", Span(0, 2))
    await swarm.add("eve", Span(2, 4), span_type=kind, precision=precision)
    return await swarm.client()


async def honest_ones(swarm: MemorySwarm, client: Client, precision: str = "fp32") -> None:
    """Those in the second half say that they compute in this precision."""
    for name, blocks in (("ann", Span(0, 2)), ("amy", Span(0, 2))):
        await swarm.add(name, blocks)
    for name in ("bob", "ben"):
        await swarm.add(name, Span(2, 4), precision=precision)
    await client.refresh()


def play(checkpoint: Checkpoint, scene: Callable[[MemorySwarm], Awaitable[None]]) -> None:
    async def main() -> None:
        async with MemorySwarm(checkpoint, MemoryNetwork(delay=0.001)) as swarm:
            await scene(swarm)

    run_virtual(main())


def accused(swarm: MemorySwarm) -> list[PeerId]:
    return [event.peer for event in swarm.events if isinstance(event, Excluded)]


def test_honest_peers_pass_every_audit(checkpoint: Checkpoint, reference: Reference) -> None:
    async def scene(swarm: MemorySwarm) -> None:
        client = await with_eve(swarm, BlockSpan)
        await honest_ones(swarm, client)
        audited = await Audited.open(swarm, reference, client)
        for begin, end in ((0, 5), (5, 6), (6, 7), (7, 8), (8, 9), (9, 10)):
            await audited.step(reference, PROMPT[begin:end])
        assert (audited.auditor.passed, audited.auditor.failed) == (6, 0)
        assert accused(swarm) == []
        await audited.session.close()
        await asyncio.sleep(1.0)  # of the loop's own time
        assert all(not member.node.sessions for member in swarm.members.values()), "audits leave nothing behind"

    play(checkpoint, scene)


def test_liar_is_found_out_left_out_and_its_tokens_are_computed_again(
    checkpoint: Checkpoint, reference: Reference
) -> None:
    async def scene(swarm: MemorySwarm) -> None:
        client = await with_eve(swarm, Liar)
        audited = await Audited.open(swarm, reference, client)
        await honest_ones(swarm, client)
        expected = reference.outputs(PROMPT)
        wrong = await audited.step(reference, PROMPT[:6])
        assert not torch.allclose(wrong, expected[5:6], atol=1e-2)
        assert accused(swarm) == [EVE]
        assert "blocks 2:4" in client.excluded[EVE]
        for at in range(6, 10):
            right = await audited.step(reference, PROMPT[at : at + 1])
            assert torch.allclose(right, expected[at : at + 1], atol=1e-4, rtol=1e-4)
        last = [event for event in swarm.events if isinstance(event, ChainChanged)][-1]
        assert EVE not in {hop.peer for hop in last.hops}
        await client.refresh()
        assert EVE not in {hop.peer for hop in client.plan(Span(0, 4), source=client.me.peer, sink=client.me.peer)}

    play(checkpoint, scene)


def test_liar_among_those_who_check_does_not_bring_down_who_is_honest(
    checkpoint: Checkpoint, reference: Reference
) -> None:
    async def scene(swarm: MemorySwarm) -> None:
        await swarm.add("ada", Span(0, 4))
        client = await swarm.client()
        audited = await Audited.open(swarm, reference, client)
        await swarm.add("eve", Span(0, 4), span_type=Liar)
        await client.refresh()
        await audited.step(reference, PROMPT[:6])
        assert (audited.auditor.failed, accused(swarm)) == (1, []), "one word against another"
        await swarm.add("bob", Span(0, 4))
        await client.refresh()
        for at in range(6, 10):
            await audited.step(reference, PROMPT[at : at + 1])
        assert set(accused(swarm)) <= {EVE}
        assert audited.auditor.passed

    play(checkpoint, scene)


def test_liar_that_is_honest_when_it_is_asked_alone_is_noticed_and_nobody_accused_for_it_at_random(
    checkpoint: Checkpoint, reference: Reference
) -> None:
    async def scene(swarm: MemorySwarm) -> None:
        client = await with_eve(swarm, SlyLiar)
        audited = await Audited.open(swarm, reference, client)
        await honest_ones(swarm, client)
        await audited.step(reference, PROMPT[:6])
        assert audited.auditor.passed, "she did nothing wrong so far"
        for at in range(6, 10):
            await audited.step(reference, PROMPT[at : at + 1])
        assert audited.auditor.failed == 4
        assert accused(swarm) == [], "one chain can't tell which of its peers it is; see Marks"
        assert client.backoff.avoided() & {EVE, PeerId("ada")}, "so that the next chain is another"

    play(checkpoint, scene)


@pytest.mark.parametrize(("hers", "theirs"), [("nf4", "fp32"), ("fp32", "int4"), ("nf4", "nf4")])
def test_what_four_bits_change_is_held_against_nobody_but_by_their_like(
    checkpoint: Checkpoint, reference: Reference, hers: str, theirs: str
) -> None:
    async def scene(swarm: MemorySwarm) -> None:
        client = await with_eve(swarm, Liar, hers)  # as far away as rounding may bring her
        audited = await Audited.open(swarm, reference, client)
        await honest_ones(swarm, client, theirs)
        for begin, end in ((0, 5), (5, 6), (6, 7), (7, 8)):
            await audited.step(reference, PROMPT[begin:end])
        if hers == theirs:
            assert accused(swarm) == [EVE]
        else:
            assert (audited.auditor.passed, audited.auditor.failed, accused(swarm)) == (0, 0, [])
            assert client.backoff.avoided() == frozenset()

    play(checkpoint, scene)


def test_who_lies_beside_four_bits_is_found_out_all_the_same(checkpoint: Checkpoint, reference: Reference) -> None:
    async def scene(swarm: MemorySwarm) -> None:
        await swarm.add("ada", Span(0, 2), precision="nf4")
        await swarm.add("eve", Span(2, 4), span_type=Liar)
        client = await swarm.client()
        audited = await Audited.open(swarm, reference, client)
        await honest_ones(swarm, client)
        await audited.step(reference, PROMPT[:6])
        assert accused(swarm) == [EVE]

    play(checkpoint, scene)


def test_what_nobody_else_holds_is_not_audited(checkpoint: Checkpoint, reference: Reference) -> None:
    async def scene(swarm: MemorySwarm) -> None:
        audited = await Audited.open(swarm, reference, await with_eve(swarm, Liar))
        await audited.step(reference, PROMPT[:6])
        assert (audited.auditor.passed, audited.auditor.failed, accused(swarm)) == (0, 0, [])

    play(checkpoint, scene)


@pytest.mark.parametrize("seed", [1, 2])
def test_liar_is_found_within_the_steps_that_are_said(checkpoint: Checkpoint, reference: Reference, seed: int) -> None:
    rate = 0.3

    async def scene(swarm: MemorySwarm) -> None:
        client = await with_eve(swarm, Liar)
        auditor = Auditor(client, rate, swarm.hear, random.Random(seed))
        audited = await Audited.open(swarm, reference, client, auditor=auditor)
        await honest_ones(swarm, client)
        await audited.step(reference, PROMPT[:5])
        steps = 0
        while not accused(swarm):
            await audited.step(reference, PROMPT[steps % 10][None])
            steps += 1
        assert steps <= audits_to_notice(rate, 1.0)

    play(checkpoint, scene)
