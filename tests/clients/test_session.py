"""Sessions over a swarm in memory: the same outputs as one piece, whatever happens to the peers."""

from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
import torch

from clients.events import ChainChanged
from swarm.checkpoint import Checkpoint, resolve
from swarm.errors import MissingBlocks
from swarm.ids import PeerId, Span
from swarm.memory import MemoryNetwork
from tests.memory_swarm import MemorySwarm, Reference, feed
from tests.models import tiny_model
from tests.virtual import run_virtual

PROMPT = torch.tensor([5, 9, 17, 33, 2, 64, 101, 7])


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    folder = tmp_path_factory.mktemp("models")
    return resolve(str(tiny_model("llama", folder / "llama")), cache=folder / "cache")


@pytest.fixture(scope="module")
def reference(checkpoint: Checkpoint) -> Reference:
    return Reference(checkpoint)


def in_swarm(checkpoint: Checkpoint, play: Callable[[MemorySwarm], Awaitable[None]], **network: float) -> None:
    async def main() -> None:
        async with MemorySwarm(checkpoint, MemoryNetwork(**network)) as swarm:
            await play(swarm)

    run_virtual(main())


def same(one: torch.Tensor, other: torch.Tensor) -> bool:
    return torch.allclose(one, other, atol=1e-4, rtol=1e-4)


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
                assert member.engine.stats().tokens_done - before[name] == 3, "no hop that lived computes anything again"
        await session.close()

    in_swarm(checkpoint, play, delay=0.01)


def test_blocks_that_nobody_holds_are_named_when_patience_ends(checkpoint: Checkpoint, reference: Reference) -> None:
    async def play(swarm: MemorySwarm) -> None:
        await swarm.add("a", Span(0, 2))
        with pytest.raises(MissingBlocks) as caught:
            await swarm.session(await swarm.client(), reference, patience=5.0)
        assert caught.value.blocks == (2, 3)

    in_swarm(checkpoint, play)
