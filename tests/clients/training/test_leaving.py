"""Peers that leave in good order while they train: what they are asked is answered, what comes next goes elsewhere."""

import asyncio

import pytest
import torch

from clients.training.chains import INPUTS, TrainingChains
from swarm.checkpoint import Checkpoint
from swarm.ids import PeerId, Span
from swarm.training import MicroBatch
from tests.clients.test_session import PROMPT
from tests.memory_swarm import MemorySwarm, Reference, in_swarm, same

LONG = 60.0
BATCH = MicroBatch(0, (len(PROMPT),), (), None)
TURN = 0.5  # s


@pytest.mark.parametrize("moment", [-1.0, 0.2, 0.7, 2.5], ids=["before", "asked first", "asked second", "between"])
def test_a_peer_that_leaves_at_any_moment_leaves_results_the_same(
    checkpoint: Checkpoint, reference: Reference, moment: float
) -> None:
    async def play(swarm: MemorySwarm) -> None:
        await swarm.add("a", Span(0, 2), step_seconds=TURN)
        await swarm.add("b", Span(2, 4), step_seconds=TURN)
        client = await swarm.client()
        chains = TrainingChains(client, patience=30.0)
        leaving: list[asyncio.Task[int]] = []

        async def leave() -> None:
            await asyncio.sleep(max(moment, 0.0))
            for name, blocks in {"c": Span(0, 2), "d": Span(2, 4)}.items():
                await swarm.add(name, blocks, step_seconds=TURN)
            leaving.extend(asyncio.create_task(swarm.members[name].node.drain(LONG)) for name in "ab")

        hurting = asyncio.create_task(leave())
        if moment < 0:
            await hurting
        legs, output = await chains.forward(BATCH, reference.embed(PROMPT, 0), {}, first=INPUTS)
        assert same(output, reference.outputs(PROMPT))
        await hurting
        back, _ = await chains.backward(legs, torch.ones_like(output), {}, first=INPUTS)
        assert back is not None
        assert [await task for task in leaving] == [0, 0]
        again, _ = await chains.forward(BATCH, reference.embed(PROMPT, 0), {}, first=INPUTS)
        expected, _ = await chains.backward(again, torch.ones_like(output), {}, first=INPUTS)
        assert {leg.hop.hop.peer for leg in again} == {"c", "d"}
        assert expected is not None
        assert same(back, expected)
        assert not any(client.backoff.failures(PeerId(name)) for name in "abcd")
        await chains.close()

    in_swarm(checkpoint, play)
