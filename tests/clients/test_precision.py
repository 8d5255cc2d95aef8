"""Which precisions a client takes, and what replaces a lost peer."""

import pytest
import torch

from clients.events import ChainChanged
from swarm.checkpoint import Checkpoint
from swarm.errors import MissingBlocks
from swarm.ids import Span
from tests.memory_swarm import MemorySwarm, Reference, feed, in_swarm

PROMPT = torch.tensor([5, 9, 17, 33])
ALL = Span(0, 4)


def hops(swarm: MemorySwarm) -> list[str]:
    """Of the last chain."""
    return [hop.peer for hop in [event for event in swarm.events if isinstance(event, ChainChanged)][-1].hops]


@pytest.mark.parametrize("precision", ["fp32", "int4"])
def test_only_peers_of_the_precisions_asked_for_are_used(
    checkpoint: Checkpoint, reference: Reference, precision: str
) -> None:
    async def play(swarm: MemorySwarm) -> None:
        for name in ("fp32", "int4"):
            await swarm.add(name, ALL, precision=name)
        session = await swarm.session(await swarm.client(precisions=[precision]), reference)
        assert hops(swarm) == [precision]
        await session.close()

    in_swarm(checkpoint, play, delay=0.01)


def test_peers_in_other_precisions_count_as_missing_and_the_error_says_why(
    checkpoint: Checkpoint, reference: Reference
) -> None:
    async def play(swarm: MemorySwarm) -> None:
        await swarm.add("b", Span(2, 4), precision="int4")
        with pytest.raises(MissingBlocks, match=r"no peer of this swarm serves llama .* in bf16; start one"):
            await swarm.session(await swarm.client("other", precisions=["bf16"]), reference, patience=1.0)
        await swarm.add("a", Span(0, 2), precision="fp32")
        client = await swarm.client(precisions=["bf16", "fp32"])
        with pytest.raises(MissingBlocks, match="takes only peers that compute in bf16 or fp32"):
            await swarm.session(client, reference, patience=1.0)

    in_swarm(checkpoint, play, delay=0.01)


@pytest.mark.parametrize("precision", ["fp32", "int4"])
def test_a_lost_peer_is_replaced_by_one_that_computes_alike(
    checkpoint: Checkpoint, reference: Reference, precision: str
) -> None:
    async def play(swarm: MemorySwarm) -> None:
        await swarm.add("first", Span(0, 2))
        await swarm.add("second", Span(2, 4), precision=precision)
        session = await swarm.session(await swarm.client(), reference)
        row = session.new_row()
        await feed(session, reference, {row: PROMPT})
        for name in ("fp32", "int4"):
            await swarm.add(name, Span(2, 4), precision=name)
        await swarm.kill("second")
        await feed(session, reference, {row: PROMPT})
        assert hops(swarm) == ["first", precision]
        await session.close()

    in_swarm(checkpoint, play, delay=0.01)
