"""The model over real engines: a connection with its thread, sessions, peers of a swarm in memory; real time."""

import asyncio
from collections.abc import Callable, Collection, Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel, set_seed
from transformers.generation.streamers import BaseStreamer

from clients.client import Client
from clients.connection import Connection
from clients.model import SwarmModelForCausalLM
from clients.training.compression import Compress
from peers.training.limits import TrainingLimits
from swarm.checkpoint import resolve
from swarm.errors import MissingBlocks
from swarm.ids import Span
from swarm.memory import MemoryNetwork
from tests.clients.test_generate import MASK, PADDED, PROMPT
from tests.memory_swarm import MemorySwarm
from tests.models import FAMILIES

NEW = {"max_new_tokens": 12, "eos_token_id": None}
LONG = torch.arange(3, 103)[None]
CUTS = [(2,), (1, 3)]


class Swarm:
    """Peers between the given cuts, each with a spare of the same blocks; `connect` from outside their loop. `idle`:
    who takes no part in training; `limits`: what the others give to it."""

    def __init__(
        self,
        folder: Path,
        cache: Path,
        cuts: tuple[int, ...],
        idle: Collection[str] = (),
        compress: Compress = Compress.NONE,
        limits: TrainingLimits | None = None,
    ) -> None:
        checkpoint = resolve(str(folder), cache=cache)
        self._bounds = (0, *cuts, checkpoint.num_blocks)
        self._idle, self._limits = idle, limits
        self.memory = MemorySwarm(checkpoint, MemoryNetwork())
        self.connection = Connection(self._enter, patience=1.0, compress=compress)

    async def _enter(self, stack: AsyncExitStack) -> Client:
        await stack.enter_async_context(self.memory)
        for start, end in zip(self._bounds, self._bounds[1:], strict=False):
            for name in ("peer", "spare"):
                training = TrainingLimits(share=0) if f"{name}{start}" in self._idle else self._limits
                await self.memory.add(f"{name}{start}", Span(start, end), training=training)
        return await self.memory.client()

    def kill(self, *starts: int) -> None:
        """Everyone who serves blocks from `starts` on; or whoever of them works, where a spare is left."""
        for start in starts:
            for name in (f"peer{start}", f"spare{start}"):
                self.connection.call(self.memory.kill(name))

    def kill_at_work(self, start: int) -> str:
        busy = max((f"peer{start}", f"spare{start}"), key=lambda n: self.memory.members[n].engine.stats().tokens_done)
        self.connection.call(self.memory.kill(busy))
        return busy


@pytest.fixture(params=CUTS, ids=lambda cuts: f"{len(cuts) + 1}hops")
def swarm(request: pytest.FixtureRequest, folder: Path, tmp_path: Path) -> Iterator[Swarm]:
    swarm = Swarm(folder, tmp_path, request.param)
    yield swarm
    swarm.connection.close()


@pytest.fixture
def model(swarm: Swarm, folder: Path, tmp_path: Path) -> Iterator[SwarmModelForCausalLM]:
    with SwarmModelForCausalLM.from_pretrained(folder, cache=tmp_path, connection=swarm.connection) as model:
        yield model


all_families = pytest.mark.parametrize("family", FAMILIES, indirect=True)


@all_families
def test_logits_equal_local_in_prefill_and_decode(model: SwarmModelForCausalLM, local: PreTrainedModel) -> None:
    begun = model(LONG[:, :90], use_cache=True)
    with begun.past_key_values as cache:
        steps = [model(LONG[:, at : at + 1], past_key_values=cache).logits for at in range(90, 100)]
    torch.testing.assert_close(torch.cat([begun.logits, *steps], dim=1), local(LONG).logits, atol=1e-4, rtol=1e-4)


@all_families
@pytest.mark.parametrize(
    ("ids", "options"),
    [
        (PROMPT, {}),
        (PROMPT, {"num_beams": 3}),
        (PROMPT, {"prompt_lookup_num_tokens": 3}),
        (PADDED, {"attention_mask": MASK, "do_sample": True}),
    ],
    ids=["greedy", "beams", "assisted", "padded-sampled"],
)
def test_generates_the_tokens_of_the_whole_model(
    model: SwarmModelForCausalLM, local: PreTrainedModel, ids: Tensor, options: dict[str, Any]
) -> None:
    results = []
    for each in (model, local):
        set_seed(3)
        results.append(each.generate(ids, **NEW, **options).tolist())
    assert results[0] == results[1]


class After(BaseStreamer):
    """Does something when so many tokens are out."""

    def __init__(self, tokens: int, action: Callable[[], object]) -> None:
        self._left = tokens + 1  # the prompt is put first
        self._action = action

    def put(self, value: Tensor) -> None:
        self._left -= 1
        if self._left == 0:
            self._action()

    def end(self) -> None: ...


@pytest.mark.parametrize("which", [0, -1], ids=["first", "last"])
def test_a_killed_hop_leaves_tokens_identical(
    swarm: Swarm, model: SwarmModelForCausalLM, local: PreTrainedModel, which: int
) -> None:
    victim = swarm._bounds[:-1][which]
    ours = model.generate(PROMPT, streamer=After(4, lambda: swarm.kill_at_work(victim)), **NEW)
    assert ours.tolist() == local.generate(PROMPT, **NEW).tolist()


@pytest.mark.parametrize("options", [{"num_beams": 3}, {"prompt_lookup_num_tokens": 3}], ids=["beams", "assisted"])
def test_a_killed_hop_leaves_forked_rows_identical(
    swarm: Swarm, model: SwarmModelForCausalLM, local: PreTrainedModel, options: dict[str, Any]
) -> None:
    class KillsOnce:
        calls = 0

        def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
            self.calls += 1
            if self.calls == 4:
                swarm.kill_at_work(0)
            return scores

    ours = model.generate(PROMPT, logits_processor=[KillsOnce()], **NEW, **options)
    assert ours.tolist() == local.generate(PROMPT, **NEW, **options).tolist()


def test_nobody_left_is_an_error_that_names_the_blocks(swarm: Swarm, model: SwarmModelForCausalLM) -> None:
    with pytest.raises(MissingBlocks) as caught:
        model.generate(PROMPT, streamer=After(4, lambda: swarm.kill(0)), **NEW)
    assert caught.value.blocks == tuple(range(swarm._bounds[1]))


def test_nothing_is_left_on_peers_afterwards(swarm: Swarm, model: SwarmModelForCausalLM) -> None:
    model.generate(PROMPT, num_beams=3, **NEW)
    model(LONG)

    async def settle() -> None:
        async with asyncio.timeout(10):
            while any(member.engine.stats().sessions for member in swarm.memory.members.values()):  # noqa: ASYNC110
                await asyncio.sleep(0)  # what ends it is that peers read their streams

    swarm.connection.call(settle())
