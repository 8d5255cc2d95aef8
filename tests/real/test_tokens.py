"""The real model over real peers gives the tokens of the same model in one process."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache, GenerationConfig, PreTrainedModel

from clients.model import SwarmModelForCausalLM
from tests.real.prompts import Text, answers, options

NEW = 8
LENGTHS = (3, 41, 17, 1)  # of the rows of a batch


@pytest.mark.parametrize(
    ("length", "mode"),
    [(1, "greedy"), (1, "beams"), (17, "sampling"), (17, "beams"), (1000, "greedy"), (1000, "sampling")],
)
def test_one_prompt(model: SwarmModelForCausalLM, local: PreTrainedModel, text: Text, length: int, mode: str) -> None:
    prompt = text.prompt(length)
    assert answers(model, prompt, **options(mode, NEW)) == answers(local, prompt, **options(mode, NEW))


@pytest.mark.parametrize("mode", ["greedy", "sampling", "beams"])
def test_batch_with_padding_of_different_lengths(
    model: SwarmModelForCausalLM, local: PreTrainedModel, text: Text, mode: str
) -> None:
    batch = text.batch(LENGTHS)
    assert int(batch["attention_mask"].sum()) == sum(LENGTHS)
    assert answers(model, batch, **options(mode, NEW)) == answers(local, batch, **options(mode, NEW))


@pytest.mark.parametrize("mode", ["sampling", "beams"])
def test_several_sequences_for_one_prompt(
    model: SwarmModelForCausalLM, local: PreTrainedModel, text: Text, mode: str
) -> None:
    prompt, how = text.prompt(17), {**options(mode, NEW), "num_return_sequences": 3}
    ours = answers(model, prompt, **how)
    assert len(ours) == 3
    assert ours == answers(local, prompt, **how)


@pytest.mark.anyio
async def test_stream_gives_the_tokens_as_they_come(
    model: SwarmModelForCausalLM, local: PreTrainedModel, text: Text
) -> None:
    prompt = text.prompt(17)
    config = GenerationConfig(max_new_tokens=NEW, do_sample=False)
    streamed = [token async for token in model.stream(prompt["input_ids"], config)]
    assert [streamed] == answers(local, prompt, **options("greedy", NEW))


def test_chat_goes_on_from_what_peers_remember(
    model: SwarmModelForCausalLM, local: PreTrainedModel, text: Text
) -> None:
    def chat(asked: Any, memory: Any) -> list[list[int]]:
        said: list[list[int]] = []
        ids = torch.empty(1, 0, dtype=torch.int64)
        for turn in range(3):
            ids = torch.cat([ids, torch.tensor([text.piece(12, 200 * turn)])], dim=1)
            ids = grown(asked, ids, memory)
            said.append(ids[0].tolist())
        return said

    def grown(asked: Any, ids: Tensor, memory: Any) -> Tensor:
        mask = torch.ones_like(ids)
        output: Tensor = asked.generate(ids, attention_mask=mask, past_key_values=memory, **options("greedy", 5))
        return output

    with model.new_cache(128) as memory:
        ours = chat(model, memory)
    assert ours == chat(local, DynamicCache(config=local.config))


def test_threads_generate_at_once(model: SwarmModelForCausalLM, local: PreTrainedModel, text: Text) -> None:
    prompts = [text.prompt(30, 100 * start) for start in range(3)]
    with ThreadPoolExecutor(len(prompts)) as pool:
        ours = list(pool.map(lambda prompt: answers(model, prompt, **options("greedy", NEW)), prompts))
    assert ours == [answers(local, prompt, **options("greedy", NEW)) for prompt in prompts]


def test_forward_gives_logits_and_loss(model: SwarmModelForCausalLM, local: PreTrainedModel, text: Text) -> None:
    ids = text.prompt(60)["input_ids"]
    with torch.no_grad():
        ours, theirs = model(ids, labels=ids), local(ids, labels=ids)
    torch.testing.assert_close(ours.logits, theirs.logits, atol=2e-3, rtol=1e-4)
    torch.testing.assert_close(ours.loss, theirs.loss, atol=1e-4, rtol=1e-4)
