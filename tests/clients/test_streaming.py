"""`model.stream`: tokens as they come, and an end whenever the reader wants one."""

import asyncio

import anyio
import pytest
import torch
from transformers import PreTrainedModel

from clients.model import SwarmModelForCausalLM
from clients.streaming import AHEAD
from swarm.errors import UsageError
from tests.clients.local_session import LocalConnection

pytestmark = pytest.mark.anyio
PROMPT = torch.tensor([[5, 6, 7, 8, 9]])
LONG = {"max_new_tokens": 500, "eos_token_id": None}


async def test_gives_the_tokens_of_generate(
    model: SwarmModelForCausalLM, local: PreTrainedModel, connection: LocalConnection
) -> None:
    tokens = [token async for token in model.stream(PROMPT[0], max_new_tokens=9, eos_token_id=None)]
    assert tokens == local.generate(PROMPT, max_new_tokens=9, eos_token_id=None)[0, 5:].tolist()
    assert connection.open_sessions == 0


async def test_closing_it_stops_the_generation(model: SwarmModelForCausalLM, connection: LocalConnection) -> None:
    stream = model.stream(PROMPT, **LONG)
    await anext(stream)
    await stream.aclose()
    assert connection.open_sessions == 0
    assert len(connection.sent) <= AHEAD + 2


async def test_cancelling_the_reader_stops_a_step_that_hangs(
    model: SwarmModelForCausalLM, connection: LocalConnection
) -> None:
    stream = model.stream(PROMPT, **LONG)
    await anext(stream)
    connection.gate.clear()

    async def read() -> None:
        async for _ in stream:
            pass

    async with anyio.create_task_group() as readers:
        readers.start_soon(read)
        await anyio.to_thread.run_sync(connection.waiting.wait)
        readers.cancel_scope.cancel()
    assert await anyio.to_thread.run_sync(connection.sessions[0].gone.wait, 10)


async def test_a_slow_reader_makes_the_generation_wait(
    model: SwarmModelForCausalLM, connection: LocalConnection
) -> None:
    stream = model.stream(PROMPT, **LONG)
    for _ in range(200):
        await anext(stream)
    assert len(connection.sent) <= 200 + AHEAD + 2
    await stream.aclose()


async def test_a_chat_streams_from_its_cache(
    model: SwarmModelForCausalLM, local: PreTrainedModel, connection: LocalConnection
) -> None:
    with model.new_cache() as cache:
        first = [
            token async for token in model.stream(PROMPT, max_new_tokens=4, eos_token_id=None, past_key_values=cache)
        ]
        longer = torch.cat([PROMPT, torch.tensor([[*first, 40, 41]])], dim=1)
        connection.sent.clear()
        second = [
            token async for token in model.stream(longer, max_new_tokens=4, eos_token_id=None, past_key_values=cache)
        ]
        assert connection.open_sessions == 1
    assert connection.sent[0] == (3, 1)
    assert second == local.generate(longer, max_new_tokens=4, eos_token_id=None)[0, longer.shape[1] :].tolist()


async def test_a_cache_outlives_a_stream_that_was_closed(model: SwarmModelForCausalLM, local: PreTrainedModel) -> None:
    with model.new_cache() as cache:
        stream = model.stream(PROMPT, past_key_values=cache, **LONG)
        begun = [await anext(stream) for _ in range(3)]
        await stream.aclose()
        cache.crop(PROMPT.shape[1] + 2 - cache.get_seq_length())
        longer = torch.cat([PROMPT, torch.tensor([begun])], dim=1)
        ours = model.generate(longer, max_new_tokens=3, eos_token_id=None, past_key_values=cache)
    assert ours.tolist() == local.generate(longer, max_new_tokens=3, eos_token_id=None).tolist()


async def test_what_goes_wrong_is_raised_where_tokens_are_read(model: SwarmModelForCausalLM) -> None:
    with pytest.raises(UsageError, match="one sequence, not of 2"):
        await anext(model.stream(PROMPT.repeat(2, 1), max_new_tokens=2))
    with pytest.raises(UsageError, match="tokens of prompt"):
        await anext(model.stream(PROMPT, max_new_tokens=5000))


async def test_many_streams_at_once(model: SwarmModelForCausalLM, local: PreTrainedModel) -> None:
    async def read(n: int) -> list[int]:
        return [token async for token in model.stream(PROMPT[:, :n], max_new_tokens=6, eos_token_id=None)]

    ours = await asyncio.gather(*(read(n) for n in range(1, 6)))
    theirs = [local.generate(PROMPT[:, :n], max_new_tokens=6, eos_token_id=None)[0, n:].tolist() for n in range(1, 6)]
    assert ours == theirs
