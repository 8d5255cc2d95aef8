"""Anthropic's messages as its own client sees them."""

import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import anthropic
import httpx2
import pytest
from anthropic.types import MessageParam, ToolParam
from transformers import PreTrainedTokenizerFast

from clients.events import Waiting
from clients.gateway.errors import ApiError
from clients.gateway.fields import Fields
from clients.gateway.messages_request import read_messages_request
from clients.gateway.served import Served
from swarm.errors import MissingBlocks
from tests.clients.gateway.bytes_tokenizer import END, VOCAB
from tests.clients.gateway.drawn import DrawnCompleter
from tests.clients.gateway.live import LiveGateway
from tests.clients.gateway.played import PlayedCompleter

HI: list[MessageParam] = [{"role": "user", "content": "Hi"}]
WEATHER: ToolParam = {
    "name": "weather",
    "description": "How it is outside",
    "input_schema": {
        "type": "object",
        "properties": {"city": {"enum": ["Rome", "Oslo"]}},
        "required": ["city"],
        "additionalProperties": False,
    },
}
CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Rome"}}\n</tool_call>'


@pytest.fixture
def client(live: LiveGateway) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(base_url=live.url, api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture
def noise(played: Served) -> Iterator[anthropic.Anthropic]:
    """A client of a gateway whose model is noise."""
    with (
        LiveGateway([replace(played, completer=DrawnCompleter(VOCAB))]) as live,
        anthropic.Anthropic(base_url=live.url, api_key="none", max_retries=0) as client,
    ):
        yield client


def asked(completer: PlayedCompleter, tokenizer: PreTrainedTokenizerFast) -> str:
    """The text of the last prompt."""
    return str(tokenizer.decode(completer.answers[-1].request.prompt))


def test_an_answer_in_one_piece(
    client: anthropic.Anthropic, completer: PlayedCompleter, tokenizer: PreTrainedTokenizerFast
) -> None:
    answer = client.messages.create(
        model="tiny", max_tokens=50, system="Be brief.", messages=HI, extra_body={"temperature": 0.5, "top_k": 7}
    )
    (block,) = answer.content
    assert block.type == "text"
    assert block.text == "Hello there."
    assert (answer.stop_reason, answer.stop_sequence, answer.role, answer.model) == (
        "end_turn",
        None,
        "assistant",
        "tiny",
    )
    request = completer.answers[-1].request
    assert (answer.usage.input_tokens, answer.usage.output_tokens) == (len(request.prompt), 13)
    assert (request.max_new_tokens, request.sampling.temperature, request.sampling.top_k) == (50, 0.5, 7)
    assert "system\nBe brief.<|im_end|>" in asked(completer, tokenizer)


def test_a_stream_is_the_same_answer(client: anthropic.Anthropic) -> None:
    with client.messages.stream(model="tiny", max_tokens=50, messages=HI) as stream:
        assert "".join(stream.text_stream) == "Hello there."
        message = stream.get_final_message()
    assert message.stop_reason == "end_turn"
    assert message.usage.output_tokens == 13
    assert message.usage.input_tokens > 0


def test_a_stream_keeps_the_order_of_events(live: LiveGateway, completer: PlayedCompleter) -> None:
    completer.before = [Waiting("all are busy", 1.0)]
    body = {"model": "tiny", "max_tokens": 50, "messages": HI, "stream": True}
    text = httpx2.post(f"{live.base_url}/messages", json=body).text
    assert ': swarm {"event":"waiting"' in text
    events = [part.split("\ndata: ") for part in text.split("\n\n") if part.startswith("event: ")]
    assert all(json.loads(data)["type"] == name.removeprefix("event: ") for name, data in events)
    names = [name.removeprefix("event: ") for name, _ in events]
    assert names[:3] == ["message_start", "ping", "content_block_start"]
    assert names[-3:] == ["content_block_stop", "message_delta", "message_stop"]
    assert set(names[3:-3]) == {"content_block_delta"}


def test_limits_and_stop_sequences_end_an_answer(client: anthropic.Anthropic) -> None:
    short = client.messages.create(model="tiny", max_tokens=3, messages=HI)
    assert (short.stop_reason, short.content[0].text) == ("max_tokens", "Hel")  # type: ignore[union-attr]
    cut = client.messages.create(model="tiny", max_tokens=50, messages=HI, stop_sequences=["the", "o th"])
    assert (cut.stop_reason, cut.stop_sequence, cut.content[0].text) == ("stop_sequence", "o th", "Hell")  # type: ignore[union-attr]


def test_calls_go_out_and_results_come_back(
    client: anthropic.Anthropic, completer: PlayedCompleter, tokenizer: PreTrainedTokenizerFast
) -> None:
    completer.tokens = [*tokenizer.encode(f"Let me see.\n{CALL}\n{CALL}"), END]
    answer = client.messages.create(model="tiny", max_tokens=500, messages=HI, tools=[WEATHER])
    text, first, second = answer.content
    assert answer.stop_reason == "tool_use"
    assert text.type == "text"
    assert text.text == "Let me see."
    assert first.type == second.type == "tool_use"
    assert (first.name, first.input) == ("weather", {"city": "Rome"})
    assert first.id != second.id
    assert '"How it is outside"' in asked(completer, tokenizer)
    results: MessageParam = {
        "role": "user",
        "content": [
            {"type": "tool_result", "tool_use_id": first.id, "content": [{"type": "text", "text": "rain"}]},
            {"type": "tool_result", "tool_use_id": second.id, "content": "no idea", "is_error": True},
            {"type": "text", "text": "Well?"},
        ],
    }
    history = [*HI, {"role": "assistant", "content": answer.content}, results]
    client.messages.create(model="tiny", max_tokens=500, messages=history, tools=[WEATHER])  # type: ignore[arg-type]
    prompt = asked(completer, tokenizer)
    assert f"assistant\nLet me see.\n{CALL}\n{CALL}<|im_end|>" in prompt
    assert "<tool_response>\nrain\n</tool_response>\n<tool_response>\nError: no idea\n</tool_response>\nWell?" in prompt


def test_streamed_calls_come_as_blocks(
    client: anthropic.Anthropic, completer: PlayedCompleter, tokenizer: PreTrainedTokenizerFast
) -> None:
    completer.tokens = [*tokenizer.encode(f"So:{CALL}{CALL}"), END]
    with client.messages.stream(model="tiny", max_tokens=500, messages=HI, tools=[WEATHER]) as stream:
        parts = [event.partial_json for event in stream if event.type == "input_json"]
        message = stream.get_final_message()
    assert len(parts) > 2
    assert [block.type for block in message.content] == ["text", "tool_use", "tool_use"]
    assert [block.input for block in message.content if block.type == "tool_use"] == [{"city": "Rome"}] * 2
    assert message.stop_reason == "tool_use"


@pytest.mark.parametrize("choice", [{"type": "any"}, {"type": "tool", "name": "weather"}])
def test_noise_calls_the_tool_it_must(noise: anthropic.Anthropic, choice: Any) -> None:
    choice = {**choice, "disable_parallel_tool_use": True}
    for streamed in (False, True):
        asked: Any = {"model": "tiny", "max_tokens": 500, "messages": HI, "tools": [WEATHER], "tool_choice": choice}
        if streamed:
            with noise.messages.stream(**asked) as stream:
                answer = stream.get_final_message()
        else:
            answer = noise.messages.create(**asked)
        (block,) = answer.content
        assert (answer.stop_reason, block.type) == ("tool_use", "tool_use")
        assert block.input in ({"city": "Rome"}, {"city": "Oslo"})
        usage = answer.usage
        assert usage.cache_read_input_tokens == (usage.input_tokens + usage.cache_read_input_tokens) // 2


def test_noise_answers_in_the_form_that_is_asked_for(noise: anthropic.Anthropic) -> None:
    schema = {"type": "object", "properties": {"n": {"type": "integer", "minimum": 1, "maximum": 9}}} | {
        "required": ["n"],
        "additionalProperties": False,
    }
    config: Any = {"format": {"type": "json_schema", "schema": schema}}
    answer = noise.messages.create(model="tiny", max_tokens=500, messages=HI, output_config=config)
    assert json.loads(answer.content[0].text)["n"] in range(1, 10)  # type: ignore[union-attr]


def test_tokens_are_counted_as_they_are_read(client: anthropic.Anthropic, completer: PlayedCompleter) -> None:
    asked: Any = {
        "model": "tiny",
        "messages": HI,
        "system": [{"type": "text", "text": "Be brief."}],
        "tools": [WEATHER],
    }
    counted = client.messages.count_tokens(**asked)
    assert completer.answers == []
    client.messages.create(max_tokens=5, **asked)
    assert counted.input_tokens == len(completer.answers[-1].request.prompt)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"max_tokens": None}, "'max_tokens' is missing"),
        ({"max_tokens": 0}, "'max_tokens' is between"),
        ({"messages": []}, "'messages' is empty"),
        ({"messages": [{"role": "user", "content": []}]}, "'messages' is empty"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "'messages[0].role' is one of user, assistant"),
        ({"messages": [*HI, {"role": "assistant", "content": "Well"}]}, "the last of 'messages' is the assistant's"),
        ({"messages": [{"role": "user", "content": [{"type": "image", "source": {}}]}]}, "reads text alone"),
        ({"messages": [{"role": "user", "content": [{"type": "tool_use"}]}]}, "reads text alone"),
        ({"messages": [{"role": "user", "content": 3}]}, "'messages[0].content' is a string or a list of blocks"),
        ({"system": [{"type": "image"}]}, "reads text alone"),
        ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "'tools[0].type'"),
        ({"tools": [{"name": "x", "input_schema": {"type": "array"}}]}, "'tools[0].input_schema'"),
        ({"tool_choice": {"type": "any"}}, "no 'tools'"),
        ({"tools": [WEATHER], "tool_choice": {"type": "tool", "name": "time"}}, "names 'time'"),
        ({"temperature": 9}, "'temperature' is between"),
    ],
)
def test_what_can_not_be_is_refused(played: Served, fields: dict[str, Any], said: str) -> None:
    with pytest.raises(ApiError) as caught:
        read_messages_request(Fields({"max_tokens": 5, "messages": HI} | fields), played)
    assert caught.value.status == 400
    assert said in caught.value.message


def test_other_errors_have_their_own_classes(client: anthropic.Anthropic, completer: PlayedCompleter) -> None:
    with pytest.raises(anthropic.NotFoundError) as caught:
        client.messages.create(model="other", max_tokens=5, messages=HI)
    assert caught.value.body["type"] == "error"  # type: ignore[index]
    with pytest.raises(anthropic.BadRequestError, match="'max_tokens' is between") as refused:
        client.messages.create(model="tiny", max_tokens=0, messages=HI)
    assert refused.value.body["error"]["type"] == "invalid_request_error"  # type: ignore[index]
    completer.refusal = MissingBlocks([1], "no peer serves block 1")
    with pytest.raises(anthropic.InternalServerError, match="no peer serves"):
        client.messages.create(model="tiny", max_tokens=5, messages=HI)


def test_a_failure_in_mid_stream_is_an_error_event(
    client: anthropic.Anthropic, completer: PlayedCompleter, live: LiveGateway
) -> None:
    completer.tokens = completer.tokens[:4]
    completer.error = MissingBlocks([1], "no peer serves block 1")
    got = []
    with (
        pytest.raises(anthropic.APIStatusError, match="no peer serves"),
        client.messages.stream(model="tiny", max_tokens=50, messages=HI) as stream,
    ):
        got += list(stream.text_stream)
    live.wait_for(lambda: completer.answers[-1].closed)


def test_who_goes_away_is_not_answered_any_more(
    live: LiveGateway, client: anthropic.Anthropic, completer: PlayedCompleter
) -> None:
    completer.tokens = [*completer.tokens[:-1], *[70] * 100_000]
    with client.messages.stream(model="tiny", max_tokens=900, messages=HI) as stream:
        next(iter(stream.text_stream))
    live.wait_for(lambda: completer.answers[-1].closed)
