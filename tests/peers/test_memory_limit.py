"""An executor process with less memory than its span takes, beside one that has enough."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from peers.executor_settings import ExecutorSettings
from peers.link import Patience, ProcessLink
from swarm.checkpoint import resolve
from swarm.errors import UsageError
from swarm.ids import PeerId, Span
from swarm.mapping import LETS_GO
from swarm.messages import Out, Ready, parse
from tests.memory import rss_of
from tests.peers.ring import CLIENT, Chain, Model, Table, outputs

B, ALL = PeerId("B"), Span(0, 5)
MB = 10**6
LIMIT = 100 * MB  # for weights of 304 MB: one block takes 61, and 1024 tokens of KV and outbox 15
PROGRAM = 520 * MB  # an executor takes beside weights and KV: torch and transformers, and a batch in progress
STEPS = 12


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    """A random Llama whose fp32 weights are large enough to be seen beside the program."""
    folder = tmp_path_factory.mktemp("models") / "large"
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        "llama",
        vocab_size=64,
        hidden_size=1024,
        intermediate_size=4096,
        num_hidden_layers=len(ALL),
        num_attention_heads=16,
        num_key_value_heads=4,
        max_position_embeddings=2048,
    )
    AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(folder)
    return Model(resolve(str(folder), cache=folder.parent / "cache"), torch.nn.Identity())


@pytest.fixture
def settings(model: Model, tmp_path: Path) -> ExecutorSettings:
    folder = str(model.checkpoint.folder)
    return ExecutorSettings(model=folder, blocks=ALL, cache=str(tmp_path), kv_tokens=1024, threads=1)


@asynccontextmanager
async def executor(settings: ExecutorSettings) -> AsyncIterator[ProcessLink]:
    link = ProcessLink(settings, Patience(start=90.0))
    try:
        await link.start()
        yield link
    finally:
        await link.close()


async def run(link: ProcessLink, model: Model) -> tuple[Tensor, int]:
    """What comes out for a prompt and some tokens after it; and the most memory that was in use between steps."""
    assert link.pid is not None
    chain, found, most = Chain(Table(model, {}), [(B, ALL)]), [], 0
    await link.send(CLIENT, chain.opening(0).pack())
    assert isinstance(parse((await link.receive())[1]), Ready)
    at = 0
    for step in range(STEPS):
        hidden = model.row(1 if step else 64, seed=step)
        await link.send(CLIENT, chain.step((0, at, hidden)).pack())
        out = parse((await link.receive())[1])
        assert isinstance(out, Out)
        found += list(outputs([out], hidden.shape[1]).values())
        most = max(most, rss_of(link.pid))
        at += len(hidden)
    return torch.stack(found), most


@pytest.mark.anyio
@pytest.mark.skipif(not LETS_GO, reason="only Linux lets go of mapped pages at once")
async def test_less_memory_than_the_span_takes_gives_the_same_and_stays_within_it(
    model: Model, settings: ExecutorSettings
) -> None:
    async with executor(settings) as link:
        expected, whole = await run(link, model)
        assert link.ready.streaming is None
    async with executor(replace(settings, max_memory=LIMIT)) as link:
        found, most = await run(link, model)
        streaming = link.ready.streaming
    assert streaming is not None
    assert streaming.blocks >= len(ALL) - 1
    assert streaming.size > 200 * MB
    assert torch.equal(found, expected)
    assert most < LIMIT + PROGRAM < whole


@pytest.mark.anyio
async def test_memory_for_not_even_one_block_is_refused(settings: ExecutorSettings) -> None:
    link = ProcessLink(replace(settings, max_memory=40 * MB), Patience(start=90.0))
    with pytest.raises(UsageError, match="give a larger --max-memory"):
        await link.start()
