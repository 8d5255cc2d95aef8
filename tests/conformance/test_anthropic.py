"""Anthropic's own Python package, as agents use it, at `/v1/messages`."""

from collections.abc import Iterator
from contextlib import suppress

import anthropic
import pytest
from anthropic import Anthropic
from anthropic.types import ToolParam

from tests.conformance.conftest import KEY, MODEL, NOBODYS, QUESTION, SCARCE_KEY, Door, Local
from tests.conformance.waiting import wait_for

NEW = 12
GREEDY = {"temperature": 0}  # a field of the API that this client does not name any more
ASKED = {
    "model": MODEL,
    "messages": [{"role": "user", "content": QUESTION}],
    "max_tokens": NEW,
    "extra_body": GREEDY,
}
WEATHER: ToolParam = {
    "name": "get_weather",
    "description": "The weather of a town.",
    "input_schema": {
        "type": "object",
        "properties": {"town": {"enum": ["Paris", "Lyon"]}},
        "required": ["town"],
        "additionalProperties": False,
    },
}
CALLING = ASKED | {
    "tools": [WEATHER],
    "tool_choice": {"type": "any", "disable_parallel_tool_use": True},
    "max_tokens": 60,
}


def client_of(gateway: Door, key: str) -> Anthropic:
    return Anthropic(base_url=gateway.url, api_key=key, max_retries=0)


@pytest.fixture(scope="module")
def client(gateway: Door) -> Iterator[Anthropic]:
    with client_of(gateway, KEY) as client:
        yield client


def test_message_is_that_of_one_process(client: Anthropic, local: Local) -> None:
    message = client.messages.create(**ASKED)
    assert message.content[0].type == "text"
    assert message.content[0].text == local.answer(QUESTION, new=NEW)
    prompt = local.prompt(QUESTION).shape[1]
    assert message.usage.input_tokens + (message.usage.cache_read_input_tokens or 0) == prompt
    assert message.usage.output_tokens == len(local.tokens(local.prompt(QUESTION), NEW))
    counted = client.messages.count_tokens(model=MODEL, messages=ASKED["messages"])
    assert counted.input_tokens == prompt


def test_streamed_message_is_the_same(client: Anthropic, local: Local) -> None:
    with client.messages.stream(**ASKED) as stream:
        text = "".join(stream.text_stream)
        message = stream.get_final_message()
    assert text == local.answer(QUESTION, new=NEW)
    assert message.usage.output_tokens == len(local.tokens(local.prompt(QUESTION), NEW))
    assert message.stop_reason in ("end_turn", "max_tokens")


def test_message_ends_before_a_stop_sequence(client: Anthropic, local: Local) -> None:
    whole = local.answer(QUESTION, new=NEW)
    stop = whole[len(whole) // 2 :][:3]
    message = client.messages.create(**ASKED, stop_sequences=[stop])
    assert (message.stop_reason, message.stop_sequence) == ("stop_sequence", stop)
    assert message.content[0].type == "text"
    assert message.content[0].text == whole.partition(stop)[0]


def test_tool_is_used_streamed_or_not_and_its_result_is_answered(client: Anthropic) -> None:
    plain = client.messages.create(**CALLING)
    with client.messages.stream(**CALLING) as stream:
        streamed = stream.get_final_message()
    for message in (plain, streamed):
        use = message.content[-1]
        assert message.stop_reason == "tool_use"
        assert use.type == "tool_use"
        assert use.name == "get_weather"
        assert use.input["town"] in ("Paris", "Lyon")  # type: ignore[index]
    result = {"type": "tool_result", "tool_use_id": plain.content[-1].id, "content": "21 degrees"}  # type: ignore[union-attr]
    turns = [*ASKED["messages"], {"role": "assistant", "content": plain.content}, {"role": "user", "content": [result]}]
    after = client.messages.create(**ASKED | {"messages": turns, "tools": [WEATHER], "tool_choice": {"type": "none"}})
    assert after.content[0].type == "text"


@pytest.mark.parametrize(
    ("key", "changes", "error", "status"),
    [
        ("sk-not-a-key-of-this-gateway", {}, anthropic.AuthenticationError, 401),
        (KEY, {"model": "claude-9"}, anthropic.NotFoundError, 404),
        (KEY, {"extra_body": {"temperature": 9}}, anthropic.BadRequestError, 400),
        (KEY, {"messages": [{"role": "user", "content": "word " * 9000}]}, anthropic.BadRequestError, 400),
        (KEY, {"model": NOBODYS}, anthropic.InternalServerError, 503),
    ],
)
def test_each_error_is_of_its_class(
    gateway: Door, key: str, changes: dict[str, object], error: type[anthropic.APIStatusError], status: int
) -> None:
    with client_of(gateway, key) as client, pytest.raises(error) as caught:
        client.messages.create(**ASKED | changes)
    assert caught.value.status_code == status
    assert isinstance(caught.value.body, dict)
    assert caught.value.body["type"] == "error"


def test_more_than_a_key_is_good_for_is_a_rate_limit_error(gateway: Door) -> None:
    one = ASKED | {"max_tokens": 1}
    with client_of(gateway, SCARCE_KEY) as scarce:
        with suppress(anthropic.RateLimitError):  # another test may have used up this minute's request
            scarce.messages.create(**one)
        with pytest.raises(anthropic.RateLimitError):
            scarce.messages.create(**one)


def test_client_that_leaves_ends_its_message(client: Anthropic, gateway: Door) -> None:
    def aborted() -> float:
        return gateway.metric("swarm:request_success_total", model_name=MODEL, finished_reason="abort")

    before = aborted()
    with client.messages.stream(**ASKED | {"max_tokens": 4000}) as stream:
        next(iter(stream.text_stream))
    wait_for(lambda: aborted() == before + 1)
    assert gateway.metric("swarm:num_requests_running", model_name=MODEL) == 0
