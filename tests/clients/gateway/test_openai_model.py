"""OpenAI's own clients against a gateway with a real model, though tiny: they get what one process computes."""

import asyncio
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import openai
import pytest
import torch
from openai.types.chat import ChatCompletionMessageParam
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from clients.completion.handle import Handle
from clients.completion.limits import Limits
from clients.completion.request import Request
from clients.completion.shared import SharedModel
from clients.gateway.served import Served
from clients.model import SwarmModelForCausalLM
from tests.clients.completion.asking import greedy
from tests.clients.gateway.bytes_tokenizer import VOCAB, save_tokenizer
from tests.clients.gateway.live import LiveGateway
from tests.clients.local_session import LocalConnection
from tests.models import tiny_model

EXTREMES: list[dict[str, object]] = [
    {"temperature": 5e-324},
    {"temperature": 1e-6},
    {"top_p": 0},
    {"top_p": 5e-324},
    {"top_k": 1 << 20},
    {"min_p": 1},
    {"repetition_penalty": 0.01},
    {"repetition_penalty": 10, "temperature": 0},
    {"presence_penalty": -2, "frequency_penalty": 2, "logit_bias": {str(t): -100 for t in range(VOCAB)}},
    {"seed": -(1 << 63)},
    {"seed": (1 << 64) - 1},
    {"logprobs": 20, "n": 16},
]
HI: list[ChatCompletionMessageParam] = [{"role": "user", "content": "Hi"}]


class Remembering(SharedModel):
    """Knows what it was asked."""

    handles: tuple[Handle, ...] = ()

    def submit(self, request: Request) -> Handle:
        self.handles += (super().submit(request),)
        return self.handles[-1]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama that reads and writes bytes."""
    folder = tiny_model("llama", tmp_path_factory.mktemp("bytes"), vocab_size=VOCAB)
    save_tokenizer(folder)
    return folder


@pytest.fixture
def shared(model: SwarmModelForCausalLM) -> Iterator["Remembering"]:
    shared = Remembering(model, Limits(lanes=1))
    yield shared
    shared.close()


@pytest.fixture
def live(played: Served, shared: SharedModel) -> Iterator[LiveGateway]:
    with LiveGateway([replace(played, completer=shared)]) as gateway:
        yield gateway


@pytest.fixture
def client(live: LiveGateway) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=live.base_url, api_key="none", max_retries=0) as client:
        yield client


def prompt_of(tokenizer: PreTrainedTokenizerFast, text: str) -> tuple[int, ...]:
    chat = [{"role": "user", "content": text}]
    return tuple(tokenizer.apply_chat_template(chat, add_generation_prompt=True)["input_ids"])


def test_a_chat_is_answered_with_the_likeliest_tokens(
    client: openai.OpenAI, local: PreTrainedModel, tokenizer: PreTrainedTokenizerFast
) -> None:
    answer = client.chat.completions.create(model="tiny", messages=HI, temperature=0, max_tokens=8)
    expected = greedy(local, prompt_of(tokenizer, "Hi"), 8)
    assert answer.choices[0].message.content == tokenizer.decode(expected, skip_special_tokens=True)
    assert answer.choices[0].finish_reason == "length"


def test_a_stream_and_one_piece_are_alike_and_a_seed_makes_them_the_same_twice(client: openai.OpenAI) -> None:
    def once(seed: int) -> list[str]:
        answer = client.chat.completions.create(model="tiny", messages=HI, seed=seed, max_tokens=12, n=2)
        return [choice.message.content or "" for choice in answer.choices]

    def streamed(seed: int) -> list[str]:
        texts = ["", ""]
        for chunk in client.chat.completions.create(
            model="tiny", messages=HI, seed=seed, max_tokens=12, n=2, stream=True
        ):
            texts[chunk.choices[0].index] += chunk.choices[0].delta.content or ""
        return texts

    assert once(7) == once(7) == streamed(7)
    assert len({*once(7), *once(8)}) == 4


def test_log_probabilities_are_the_models_own(
    client: openai.OpenAI, local: PreTrainedModel, tokenizer: PreTrainedTokenizerFast
) -> None:
    logprobs = (
        client.completions.create(model="tiny", prompt="Say", max_tokens=3, temperature=0, logprobs=2)
        .choices[0]
        .logprobs
    )
    prompt = tuple(tokenizer.encode("Say"))
    tokens = torch.tensor([[*prompt, *greedy(local, prompt, 3)]])
    with torch.no_grad():
        scores = local(tokens).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
    assert logprobs is not None
    assert logprobs.token_logprobs == pytest.approx(scores.max(-1).values.tolist(), abs=1e-3)
    assert logprobs.top_logprobs is not None
    assert all(len(top) in (1, 2) for top in logprobs.top_logprobs)  # two tokens may be shown alike


def test_a_bias_rules_a_token_out_and_another_in(client: openai.OpenAI, tokenizer: PreTrainedTokenizerFast) -> None:
    (x,) = tokenizer.encode("x")
    answer = client.completions.create(model="tiny", prompt="a", max_tokens=4, temperature=0, logit_bias={str(x): 100})
    assert answer.choices[0].text == "xxxx"
    (without,) = client.completions.create(
        model="tiny", prompt="a", max_tokens=4, temperature=0, logit_bias={str(x): -100}
    ).choices
    assert "x" not in without.text


def test_a_grammar_holds_what_is_computed(client: openai.OpenAI) -> None:
    schema = {
        "type": "object",
        "properties": {"n": {"enum": [1, 23]}},
        "required": ["n"],
        "additionalProperties": False,
    }
    tool = {"type": "function", "function": {"name": "count", "parameters": schema}}
    called = client.chat.completions.create(
        model="tiny", messages=HI, tools=[tool], tool_choice="required", parallel_tool_calls=False, n=2, seed=1
    )
    for choice in called.choices:
        (call,) = choice.message.tool_calls
        assert (choice.finish_reason, call.function.name) == ("tool_calls", "count")
        assert json.loads(call.function.arguments) in ({"n": 1}, {"n": 23})
    form = {"type": "json_schema", "json_schema": {"name": "count", "strict": True, "schema": schema}}
    held = client.chat.completions.create(model="tiny", messages=HI, response_format=form, temperature=0)
    assert json.loads(held.choices[0].message.content) in ({"n": 1}, {"n": 23})
    assert held.choices[0].finish_reason == "stop"


def test_extremes_of_sampling_are_answered(client: openai.OpenAI) -> None:
    for extreme in EXTREMES:
        answer = client.completions.create(model="tiny", prompt="a", max_tokens=3, extra_body=extreme)
        assert all(choice.finish_reason in ("length", "stop") for choice in answer.choices), extreme


def test_a_stop_string_ends_what_is_computed(
    client: openai.OpenAI, connection: LocalConnection, tokenizer: PreTrainedTokenizerFast
) -> None:
    (x,) = tokenizer.encode("x")
    answer = client.completions.create(
        model="tiny", prompt="a", max_tokens=500, temperature=0, logit_bias={str(x): 100}, stop="xxx"
    )
    assert (answer.choices[0].text, answer.choices[0].finish_reason) == ("", "stop")
    assert len(connection.sent) <= 8  # of 500


def test_a_client_that_goes_away_ends_its_answer_within_one_step(
    client: openai.OpenAI, live: LiveGateway, connection: LocalConnection, shared: Remembering
) -> None:
    with client.chat.completions.create(model="tiny", messages=HI, max_tokens=900, stream=True) as chunks:
        next(chunks)
        connection.gate.clear()
        connection.waiting.clear()
        assert connection.waiting.wait(30)
    steps = len(connection.sent)
    live.wait_for(lambda: shared.handles[0].closed)
    connection.gate.set()
    live.wait_for(lambda: shared.running == 0)
    assert len(connection.sent) == steps + 1  # the one that was on its way


@pytest.mark.anyio
async def test_many_at_once_get_what_each_gets_alone(
    live: LiveGateway, local: PreTrainedModel, tokenizer: PreTrainedTokenizerFast
) -> None:
    async with openai.AsyncOpenAI(base_url=live.base_url, api_key="none", max_retries=0) as client:

        async def ask(text: str) -> str:
            chunks = await client.completions.create(
                model="tiny", prompt=text, max_tokens=6, temperature=0, stream=True
            )
            return "".join([chunk.choices[0].text async for chunk in chunks])

        texts = [f"question {number}" for number in range(6)]
        answers = await asyncio.gather(*map(ask, texts))
    alone = [greedy(local, tuple(tokenizer.encode(text)), 6) for text in texts]
    assert answers == [tokenizer.decode(tokens, skip_special_tokens=True) for tokens in alone]
