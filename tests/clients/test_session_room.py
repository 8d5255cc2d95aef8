"""What peers keep room for, and what a session does without when a peer is lost."""

import asyncio

import torch

from clients.session import Session
from swarm.checkpoint import Checkpoint
from swarm.ids import RowId, Span
from tests.memory_swarm import MemorySwarm, Reference, feed, in_swarm, same

SPANS = {"a": Span(0, 2), "b": Span(2, 4)}
TOKENS = torch.arange(3, 43)


async def begin(swarm: MemorySwarm, reference: Reference, **kv_tokens: int) -> Session:
    for name, blocks in SPANS.items():
        await swarm.add(name, blocks, kv_tokens=kv_tokens.get(name, 4096))
    return await swarm.session(await swarm.client(), reference, lease=64)


def free(swarm: MemorySwarm) -> list[int]:
    return [swarm.members[name].engine.stats().kv_tokens_free for name in SPANS]


def test_lease_goes_up_and_down_on_every_hop(checkpoint: Checkpoint, reference: Reference) -> None:
    async def play(swarm: MemorySwarm) -> None:
        session = await begin(swarm, reference)
        assert free(swarm) == [4096 - 64] * 2
        assert await session.reserve(1024)
        assert free(swarm) == [4096 - 1024] * 2
        begun = asyncio.get_running_loop().time()
        await feed(session, reference, {session.new_row(): TOKENS})
        assert asyncio.get_running_loop().time() - begun < 1.0  # each hop still knows the next one
        assert await session.reserve(16)
        assert free(swarm) == [4096 - 48] * 2  # what is used stays promised
        await session.close()

    in_swarm(checkpoint, play, delay=0.01)


def test_lease_that_one_hop_has_no_room_for_changes_nowhere(checkpoint: Checkpoint, reference: Reference) -> None:
    async def play(swarm: MemorySwarm) -> None:
        session = await begin(swarm, reference, b=512)
        assert not await session.reserve(1024)
        assert free(swarm) == [4096 - 64, 512 - 64]
        row = session.new_row()
        assert same(await feed(session, reference, {row: TOKENS}), reference.outputs(TOKENS))
        await session.close()

    in_swarm(checkpoint, play, delay=0.01)


def test_lease_of_a_chain_with_a_dead_hop_is_refused_and_the_next_step_mends(
    checkpoint: Checkpoint, reference: Reference
) -> None:
    async def play(swarm: MemorySwarm) -> None:
        session = await begin(swarm, reference)
        row = session.new_row()
        await feed(session, reference, {row: TOKENS[:30]})
        await swarm.add("spare", SPANS["b"])
        await swarm.kill("b")
        assert not await session.reserve(1024)
        assert same(await feed(session, reference, {row: TOKENS[30:]}), reference.outputs(TOKENS)[30:])
        await session.close()

    in_swarm(checkpoint, play, delay=0.01)


def test_spare_rows_are_not_computed_again_for_a_hop_that_is_lost(checkpoint: Checkpoint, reference: Reference) -> None:
    async def play(swarm: MemorySwarm) -> None:
        session = await begin(swarm, reference)
        needed, *spare = (session.new_row() for _ in range(4))
        await feed(session, reference, dict.fromkeys((needed, *spare), TOKENS[:30]))
        session.spare(spare[:2])
        await swarm.add("spare", SPANS["b"])
        await swarm.kill("b")
        assert same(await feed(session, reference, {needed: TOKENS[30:]}), reference.outputs(TOKENS)[30:])
        assert session.positions == {needed: 40, spare[2]: 30}
        await asyncio.sleep(1.0)
        assert [swarm.members[name].engine.stats().rows for name in ("a", "spare")] == [2, 2]
        assert swarm.members["spare"].engine.stats().tokens_done == 30 + 10 + 30
        both: dict[RowId, torch.Tensor] = {needed: TOKENS[:1], spare[2]: TOKENS[30:31]}
        outputs = await feed(session, reference, both)
        assert same(outputs[1:], reference.outputs(TOKENS)[30:31])
        await session.close()

    in_swarm(checkpoint, play, delay=0.01)


def test_spare_rows_stay_while_nothing_is_lost(checkpoint: Checkpoint, reference: Reference) -> None:
    async def play(swarm: MemorySwarm) -> None:
        session = await begin(swarm, reference)
        one, other = session.new_row(), session.new_row()
        await feed(session, reference, {one: TOKENS[:30], other: TOKENS[:30]})
        session.spare([other])
        await feed(session, reference, {one: TOKENS[30:]})
        assert session.positions == {one: 40, other: 30}
        await session.close()

    in_swarm(checkpoint, play, delay=0.01)
