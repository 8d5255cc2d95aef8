"""Tools and forms of answers in chat completions, as OpenAI's own client sees them."""

import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, Literal

import openai
import pytest
from openai.types.chat import ChatCompletionMessageParam
from pydantic import BaseModel
from transformers import PreTrainedTokenizerFast

from clients.gateway.served import Served
from clients.gateway.tool_formats import MISTRAL_NAMED
from tests.clients.gateway.bytes_tokenizer import END, VOCAB
from tests.clients.gateway.drawn import DrawnCompleter
from tests.clients.gateway.live import LiveGateway
from tests.clients.gateway.played import PlayedCompleter
from tests.clients.gateway.spoken import spoken

HI: list[ChatCompletionMessageParam] = [{"role": "user", "content": "Hi"}]
CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Rome"}}\n</tool_call>'
WEATHER: Any = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {
            "type": "object",
            "properties": {"city": {"enum": ["Rome", "Oslo"]}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}


class City(BaseModel):
    name: Literal["Rome", "Oslo"]
    days: list[Literal[1, 2]]


@pytest.fixture
def client(live: LiveGateway) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=live.base_url, api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture
def noise(played: Served) -> Iterator[openai.OpenAI]:
    """A client of a gateway whose model is noise."""
    with (
        LiveGateway([replace(played, completer=DrawnCompleter(VOCAB))]) as live,
        openai.OpenAI(base_url=live.base_url, api_key="none", max_retries=0) as client,
    ):
        yield client


def test_calls_go_out_and_results_come_back(
    client: openai.OpenAI, completer: PlayedCompleter, tokenizer: PreTrainedTokenizerFast
) -> None:
    completer.tokens = [*tokenizer.encode(f"So:\n{CALL}{CALL}"), END]
    answer = client.chat.completions.create(model="tiny", messages=HI, tools=[WEATHER])
    (choice,) = answer.choices
    assert choice.finish_reason == "tool_calls"
    assert choice.message.content == "So:"
    calls = choice.message.tool_calls or []
    assert [(call.function.name, call.function.arguments) for call in calls] == [("weather", '{"city": "Rome"}')] * 2  # type: ignore[union-attr]
    results: Any = [{"role": "tool", "tool_call_id": call.id, "content": f"rain {at}"} for at, call in enumerate(calls)]
    history = [*HI, choice.message.model_dump(exclude_none=True), *results]
    client.chat.completions.create(model="tiny", messages=history, tools=[WEATHER])  # type: ignore[arg-type]
    prompt = tokenizer.decode(completer.answers[-1].request.prompt)
    assert f"assistant\nSo:\n{CALL}\n{CALL}<|im_end|>" in prompt
    assert "<tool_response>\nrain 0\n</tool_response>\n<tool_response>\nrain 1\n</tool_response>" in prompt


def test_streamed_calls_have_one_id_and_a_stable_index(
    client: openai.OpenAI, completer: PlayedCompleter, tokenizer: PreTrainedTokenizerFast
) -> None:
    completer.tokens = [*tokenizer.encode(f"So:{CALL}{CALL}"), END]
    chunks = list(client.chat.completions.create(model="tiny", messages=HI, tools=[WEATHER], stream=True, n=2))
    assert {chunk.choices[0].finish_reason for chunk in chunks} == {None, "tool_calls"}
    for choice in (0, 1):
        deltas = [chunk.choices[0].delta for chunk in chunks if chunk.choices[0].index == choice]
        assert "".join(delta.content or "" for delta in deltas) == "So:"
        calls = [call for delta in deltas for call in delta.tool_calls or []]
        for index in (0, 1):
            own = [call for call in calls if call.index == index]
            assert [call.id is not None for call in own] == [True] + [False] * (len(own) - 1)
            assert [call.function and call.function.name for call in own] == ["weather"] + [None] * (len(own) - 1)
            assert len(own) > 3
            written = "".join(call.function.arguments or "" for call in own if call.function)
            assert json.loads(written) == {"city": "Rome"}


def test_marks_that_are_special_tokens_are_seen(completer: PlayedCompleter, played: Served) -> None:
    tokenizer = spoken(MISTRAL_NAMED, special=True)
    completer.tokens = [*tokenizer.encode('So[TOOL_CALLS]weather[ARGS]{"city": "Rome"}'), END]
    with (
        LiveGateway([replace(played, tokenizer=tokenizer)]) as live,
        openai.OpenAI(base_url=live.base_url, api_key="none", max_retries=0) as client,
    ):
        answer = client.chat.completions.create(model="tiny", messages=HI, tools=[WEATHER])
    (call,) = answer.choices[0].message.tool_calls or ()
    assert (answer.choices[0].message.content, call.function.arguments) == ("So", '{"city": "Rome"}')  # type: ignore[union-attr]


def test_no_tools_no_calls(
    client: openai.OpenAI, completer: PlayedCompleter, tokenizer: PreTrainedTokenizerFast
) -> None:
    completer.tokens = [*tokenizer.encode(CALL), END]
    for more in ({}, {"tools": [WEATHER], "tool_choice": "none"}):
        answer = client.chat.completions.create(model="tiny", messages=HI, **more)  # type: ignore[call-overload]
        assert answer.choices[0].message.content == CALL
        assert answer.choices[0].finish_reason == "stop"
        assert "weather" not in tokenizer.decode(completer.answers[-1].request.prompt)


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "weather"}}])
def test_noise_calls_the_tool_it_must(noise: openai.OpenAI, choice: Any) -> None:
    asked: Any = {"model": "tiny", "messages": HI, "tools": [WEATHER], "tool_choice": choice}
    answer = noise.chat.completions.create(**asked, n=3, max_tokens=3000)
    for one in answer.choices:
        assert one.finish_reason == "tool_calls"
        for call in one.message.tool_calls:
            assert json.loads(call.function.arguments)["city"] in ("Rome", "Oslo")
    with noise.chat.completions.stream(**asked, parallel_tool_calls=False) as stream:
        (call,) = stream.get_final_completion().choices[0].message.tool_calls or ()
    assert json.loads(call.function.arguments)["city"] in ("Rome", "Oslo")


def test_noise_is_parsed_as_the_type_that_is_asked_for(noise: openai.OpenAI) -> None:
    answer = noise.chat.completions.parse(model="tiny", messages=HI, response_format=City, max_tokens=3000, seed=5)
    city = answer.choices[0].message.parsed
    assert city is not None
    assert city.name in ("Rome", "Oslo")


def test_a_schema_that_is_none_is_refused_by_its_name(client: openai.OpenAI, completer: PlayedCompleter) -> None:
    bad: Any = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "odd"}}}
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model="tiny", messages=HI, response_format=bad)
    assert caught.value.param == "response_format.json_schema.schema"
    assert completer.answers == []
