"""Responses as OpenAI's own client sees them."""

import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, Literal

import openai
import pytest
from pydantic import BaseModel
from transformers import PreTrainedTokenizerFast

from clients.gateway.errors import ApiError
from clients.gateway.fields import Fields
from clients.gateway.responses_request import read_responses
from clients.gateway.served import Served
from swarm.errors import MissingBlocks
from tests.clients.gateway.bytes_tokenizer import END, VOCAB
from tests.clients.gateway.drawn import DrawnCompleter
from tests.clients.gateway.live import LiveGateway
from tests.clients.gateway.played import PlayedCompleter

CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Rome"}}\n</tool_call>'
WEATHER: Any = {
    "type": "function",
    "name": "weather",
    "description": "How it is outside",
    "strict": True,
    "parameters": {
        "type": "object",
        "properties": {"city": {"enum": ["Rome", "Oslo"]}},
        "required": ["city"],
        "additionalProperties": False,
    },
}


class City(BaseModel):
    name: Literal["Rome", "Oslo"]


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


def test_an_answer_in_one_piece(
    client: openai.OpenAI, completer: PlayedCompleter, tokenizer: PreTrainedTokenizerFast
) -> None:
    answer = client.responses.create(
        model="tiny", input="Hi", instructions="Be brief.", max_output_tokens=50, top_p=0.5
    )
    assert (answer.output_text, answer.status, answer.error) == ("Hello there.", "completed", None)
    assert (answer.instructions, answer.top_p, answer.max_output_tokens) == ("Be brief.", 0.5, 50)
    request = completer.answers[-1].request
    assert request.sampling.top_p == 0.5
    assert answer.usage is not None
    assert (answer.usage.input_tokens, answer.usage.output_tokens) == (len(request.prompt), 13)
    assert answer.usage.input_tokens_details.cached_tokens == 0
    assert tokenizer.decode(request.prompt).startswith("<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi")


def test_a_stream_keeps_the_order_of_events(client: openai.OpenAI) -> None:
    events = list(client.responses.create(model="tiny", input="Hi", stream=True))
    kinds = [event.type.removeprefix("response.") for event in events]
    deltas = kinds.count("output_text.delta")
    assert deltas > 1
    assert kinds == [
        "created",
        "in_progress",
        "output_item.added",
        "content_part.added",
        *["output_text.delta"] * deltas,
        "output_text.done",
        "content_part.done",
        "output_item.done",
        "completed",
    ]
    assert [event.sequence_number for event in events] == list(range(len(events)))


def test_calls_go_out_and_results_come_back(
    client: openai.OpenAI, completer: PlayedCompleter, tokenizer: PreTrainedTokenizerFast
) -> None:
    completer.tokens = [*tokenizer.encode(f"So:\n{CALL}{CALL}"), END]
    with client.responses.stream(model="tiny", input="Hi", tools=[WEATHER]) as stream:
        kinds = [event.type for event in stream]
        answer = stream.get_final_response()
    assert kinds.count("response.function_call_arguments.done") == 2
    text, first, second = answer.output
    assert (text.type, answer.output_text) == ("message", "So:")
    assert first.type == second.type == "function_call"
    assert first.parsed_arguments == {"city": "Rome"}
    assert first.call_id != second.call_id
    results: Any = [{"type": "function_call_output", "call_id": c.call_id, "output": "rain"} for c in (first, second)]
    whole: Any = [{"role": "user", "content": "Hi"}, *(item.to_dict() for item in answer.output), *results]
    client.responses.create(model="tiny", input=whole, tools=[WEATHER])
    sent = completer.answers[-1].request.prompt
    client.responses.create(model="tiny", input=results, previous_response_id=answer.id, tools=[WEATHER])
    assert completer.answers[-1].request.prompt == sent
    prompt = tokenizer.decode(sent)
    assert f"assistant\nSo:\n{CALL}\n{CALL}<|im_end|>" in prompt
    assert "<tool_response>\nrain\n</tool_response>\n<tool_response>\nrain\n</tool_response>" in prompt


def test_a_limit_leaves_a_response_incomplete(client: openai.OpenAI) -> None:
    answer = client.responses.create(model="tiny", input="Hi", max_output_tokens=3)
    assert (answer.output_text, answer.status) == ("Hel", "incomplete")
    assert answer.incomplete_details is not None
    assert answer.incomplete_details.reason == "max_output_tokens"
    events = list(client.responses.create(model="tiny", input="Hi", max_output_tokens=3, stream=True))
    assert events[-1].type == "response.incomplete"


def test_noise_is_parsed_as_the_type_that_is_asked_for(noise: openai.OpenAI) -> None:
    answer = noise.responses.parse(model="tiny", input="Hi", text_format=City)
    assert answer.output_parsed is not None
    assert answer.output_parsed.name in ("Rome", "Oslo")


def test_noise_calls_the_tool_it_must(noise: openai.OpenAI) -> None:
    for choice in ("required", {"type": "function", "name": "weather"}):
        answer = noise.responses.create(
            model="tiny",
            input="Hi",
            tools=[WEATHER],
            tool_choice=choice,
            parallel_tool_calls=False,  # type: ignore[call-overload]
        )
        (call,) = answer.output
        assert json.loads(call.arguments)["city"] in ("Rome", "Oslo")


def test_what_is_stored_can_be_read_gone_on_from_and_deleted(
    client: openai.OpenAI, completer: PlayedCompleter, tokenizer: PreTrainedTokenizerFast
) -> None:
    first = client.responses.create(model="tiny", input="Hi", instructions="Be brief.")
    assert client.responses.retrieve(first.id).output_text == "Hello there."
    second = client.responses.create(model="tiny", input="And?", previous_response_id=first.id)
    assert second.previous_response_id == first.id
    prompt = tokenizer.decode(completer.answers[-1].request.prompt)
    assert "user\nHi<|im_end|>\n<|im_start|>assistant\nHello there.<|im_end|>\n<|im_start|>user\nAnd?" in prompt
    assert "Be brief." not in prompt
    client.responses.create(model="tiny", input="So?", previous_response_id=second.id)
    assert tokenizer.decode(completer.answers[-1].request.prompt).startswith(prompt)
    client.responses.delete(first.id)
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(first.id)
    with pytest.raises(openai.BadRequestError) as caught:
        client.responses.create(model="tiny", input="And?", previous_response_id=first.id)
    assert (caught.value.code, caught.value.param) == ("previous_response_not_found", "previous_response_id")
    unkept = client.responses.create(model="tiny", input="Hi", store=False)
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(unkept.id)


def test_a_failure_in_mid_stream_is_an_error(client: openai.OpenAI, completer: PlayedCompleter) -> None:
    completer.tokens = completer.tokens[:4]
    completer.error = MissingBlocks([1], "no peer serves block 1")
    with (
        pytest.raises(openai.APIError, match="no peer serves"),
        client.responses.stream(model="tiny", input="Hi") as stream,
    ):
        stream.until_done()


def test_who_goes_away_is_not_answered_any_more(
    live: LiveGateway, client: openai.OpenAI, completer: PlayedCompleter
) -> None:
    completer.tokens = [70] * 100_000
    with client.responses.create(model="tiny", input="Hi", stream=True) as stream:
        next(iter(stream))
    live.wait_for(lambda: completer.answers[-1].closed)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"input": None}, "input"),
        ({"input": []}, "input"),
        ({"input": 3}, "input"),
        ({"input": [{"role": "robot", "content": "x"}]}, "input[0].role"),
        ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "input[0].content[0].type"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input[0].type"),
        ({"input": [{"type": "function_call", "name": "x", "arguments": "{}"}]}, "input[0].call_id"),
        ({"input": [{"type": "function_call_output", "call_id": "x"}]}, "input[0].output"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
        ({"tools": [WEATHER], "tool_choice": {"type": "file_search"}}, "tool_choice.type"),
        ({"tools": [WEATHER], "tool_choice": {"type": "function", "name": "x"}}, "tool_choice"),
        ({"text": {"format": {"type": "xml"}}}, "text.format.type"),
        ({"text": {"format": {"type": "json_schema"}}}, "text.format.schema"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"background": True}, "background"),
        ({"conversation": "conv_1"}, "conversation"),
    ],
)
def test_what_can_not_be_is_refused(played: Served, fields: dict[str, Any], param: str) -> None:
    with pytest.raises(ApiError) as caught:
        read_responses(Fields({"input": "Hi"} | fields), played, ())
    assert (caught.value.status, caught.value.param) == (400, param)
