"""OpenAI's own Python package."""

import json
from collections.abc import Iterator
from contextlib import suppress
from typing import Literal

import openai
import pytest
import torch
from openai import OpenAI
from openai.types.chat import ChatCompletionFunctionToolParam
from pydantic import BaseModel

from tests.conformance.conftest import KEY, KV_TOKENS, MODEL, NOBODYS, QUESTION, SCARCE_KEY, Door, Local
from tests.conformance.waiting import wait_for

NEW = 12
ASKED = {"model": MODEL, "messages": [{"role": "user", "content": QUESTION}], "max_tokens": NEW}
GREEDY = ASKED | {"temperature": 0}
WEATHER: ChatCompletionFunctionToolParam = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather of a town.",
        "strict": True,
        "parameters": {
            "type": "object",
            "properties": {"town": {"enum": ["Paris", "Lyon"]}},
            "required": ["town"],
            "additionalProperties": False,
        },
    },
}
CALLING = GREEDY | {"tools": [WEATHER], "tool_choice": "required", "parallel_tool_calls": False, "max_tokens": 60}


class Town(BaseModel):
    """What answers are made to fit."""

    capital: bool
    name: Literal["Paris", "Lyon"]


@pytest.fixture(scope="module")
def client(base_url: str) -> Iterator[OpenAI]:
    with OpenAI(base_url=base_url, api_key=KEY, max_retries=0) as client:
        yield client


# --- what is right ---


def test_models_are_listed_with_what_their_swarms_can_do(client: OpenAI) -> None:
    found = {model.id: model.model_extra for model in client.models.list()}
    assert found[MODEL]["swarm"]["ready"] is True
    assert found[MODEL]["swarm"]["peers"] == 3
    assert found[NOBODYS]["swarm"]["ready"] is False
    assert client.models.retrieve(MODEL).id == MODEL


def test_greedy_answer_is_that_of_one_process(client: OpenAI, local: Local) -> None:
    answer = client.chat.completions.create(**GREEDY)
    assert answer.choices[0].message.content == local.answer(QUESTION, new=NEW)
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == local.prompt(QUESTION).shape[1]
    assert answer.usage.completion_tokens == len(local.tokens(local.prompt(QUESTION), NEW))
    assert answer.model == MODEL


def test_streamed_answer_is_the_same_and_ends_with_usage(client: OpenAI, local: Local) -> None:
    chunks = list(client.chat.completions.create(**GREEDY, stream=True, stream_options={"include_usage": True}))
    *body, last = chunks
    assert "".join(chunk.choices[0].delta.content or "" for chunk in body) == local.answer(QUESTION, new=NEW)
    assert body[0].choices[0].delta.role == "assistant"
    assert body[-1].choices[0].finish_reason in ("stop", "length")
    assert last.choices == []
    assert last.usage is not None
    assert last.usage.prompt_tokens == local.prompt(QUESTION).shape[1]


def test_next_turn_goes_on_from_what_peers_kept(client: OpenAI, local: Local) -> None:
    first = client.chat.completions.create(**GREEDY).choices[0].message.content
    assert first is not None
    turns = (QUESTION, first, "And of Italy?")
    roles = ("user", "assistant", "user")
    messages = [{"role": role, "content": turn} for role, turn in zip(roles, turns, strict=True)]
    second = client.chat.completions.create(**GREEDY | {"messages": messages})
    assert second.choices[0].message.content == local.answer(*turns, new=NEW)
    assert second.usage is not None
    assert second.usage.prompt_tokens_details is not None
    assert second.usage.prompt_tokens_details.cached_tokens >= local.prompt(QUESTION).shape[1] - 1


def test_a_seed_gives_the_same_choices_twice(client: OpenAI) -> None:
    wanted = ASKED | {"seed": 7, "temperature": 1.5, "n": 2}
    once, again = (client.chat.completions.create(**wanted).choices for _ in range(2))
    assert [choice.index for choice in once] == [0, 1]
    assert [choice.message.content for choice in once] == [choice.message.content for choice in again]
    assert once[0].message.content != once[1].message.content


def test_answer_ends_before_a_stop_string(client: OpenAI, local: Local) -> None:
    whole = local.answer(QUESTION, new=NEW)
    stop = whole[len(whole) // 2 :][:3]
    answer = client.chat.completions.create(**GREEDY, stop=[stop])
    assert answer.choices[0].message.content == whole.partition(stop)[0]
    assert answer.choices[0].finish_reason == "stop"


def test_logprobs_are_those_of_the_model(client: OpenAI, local: Local) -> None:
    answer = client.chat.completions.create(**GREEDY, logprobs=True, top_logprobs=2)
    assert answer.choices[0].logprobs is not None
    content = answer.choices[0].logprobs.content
    assert content is not None
    prompt = local.prompt(QUESTION)
    tokens = local.tokens(prompt, NEW)
    with torch.no_grad():
        logits = local.model(torch.cat([prompt, torch.tensor([tokens])], dim=1)).logits[0, prompt.shape[1] - 1 : -1]
    expected = torch.log_softmax(logits, -1).topk(2).values
    assert [token.logprob for token in content] == pytest.approx(expected[: len(content), 0].tolist(), abs=1e-3)
    tops = [[top.logprob for top in token.top_logprobs] for token in content]
    torch.testing.assert_close(torch.tensor(tops), expected[: len(content)], atol=1e-3, rtol=0)


def test_text_goes_on_from_a_text(client: OpenAI, local: Local) -> None:
    answer = client.completions.create(model=MODEL, prompt="Once upon a time", max_tokens=NEW, temperature=0)
    prompt = local.tokenizer("Once upon a time", return_tensors="pt").input_ids
    assert answer.choices[0].text == local.tokenizer.decode(local.tokens(prompt, NEW))


# --- answers in a form ---


def test_required_tool_is_called_with_arguments_that_fit(client: OpenAI) -> None:
    choice = client.chat.completions.create(**CALLING).choices[0]
    assert choice.finish_reason == "tool_calls"
    assert choice.message.tool_calls is not None
    call = choice.message.tool_calls[0]
    assert call.type == "function"
    assert call.function.name == "get_weather"
    assert json.loads(call.function.arguments)["town"] in ("Paris", "Lyon")


def test_streamed_tool_call_is_the_same_and_its_result_is_answered(client: OpenAI) -> None:
    with client.chat.completions.stream(**CALLING) as stream:
        message = stream.get_final_completion().choices[0].message
    plain = client.chat.completions.create(**CALLING).choices[0].message
    assert message.tool_calls is not None
    assert plain.tool_calls is not None
    assert [call.function.arguments for call in message.tool_calls] == [
        call.function.arguments for call in plain.tool_calls if call.type == "function"
    ]
    result = {"role": "tool", "tool_call_id": plain.tool_calls[0].id, "content": '{"degrees": 21}'}
    messages = [*ASKED["messages"], plain.model_dump(exclude_none=True), result]
    after = client.chat.completions.create(**GREEDY | {"messages": messages, "tools": [WEATHER], "tool_choice": "none"})
    assert after.choices[0].message.content


def test_answer_fits_a_schema(client: OpenAI) -> None:
    answer = client.chat.completions.parse(**GREEDY | {"max_tokens": 60}, response_format=Town)
    assert isinstance(answer.choices[0].message.parsed, Town)


def test_responses_are_created_streamed_and_parsed(client: OpenAI, local: Local) -> None:
    wanted = {"model": MODEL, "input": QUESTION, "temperature": 0, "max_output_tokens": NEW}
    plain = client.responses.create(**wanted)
    assert plain.output_text == local.answer(QUESTION, new=NEW)
    with client.responses.stream(**wanted) as stream:
        deltas = [event.delta for event in stream if event.type == "response.output_text.delta"]
    assert "".join(deltas) == plain.output_text
    parsed = client.responses.parse(**wanted | {"max_output_tokens": 60}, text_format=Town)
    assert isinstance(parsed.output_parsed, Town)


# --- what goes wrong ---


def test_unknown_key_is_an_authentication_error(base_url: str) -> None:
    stranger = OpenAI(base_url=base_url, api_key="sk-not-a-key-of-this-gateway", max_retries=0)
    with stranger, pytest.raises(openai.AuthenticationError) as caught:
        stranger.models.list()
    assert caught.value.code == "invalid_api_key"


def test_unknown_model_is_not_found(client: OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        client.chat.completions.create(**GREEDY | {"model": "gpt-9"})
    assert (caught.value.code, caught.value.param) == ("model_not_found", "model")


@pytest.mark.parametrize(
    ("changes", "param"),
    [({"temperature": 9}, "temperature"), ({"messages": []}, "messages"), ({"n": 0}, "n")],
)
def test_wrong_field_is_a_bad_request_that_names_it(client: OpenAI, changes: dict[str, object], param: str) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(**GREEDY | changes)
    assert caught.value.param == param


@pytest.mark.parametrize("stream", [False, True])
def test_prompt_longer_than_the_context_is_a_bad_request(client: OpenAI, stream: bool) -> None:
    long = [{"role": "user", "content": "word " * 9000}]
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(**GREEDY | {"messages": long, "stream": stream})
    assert caught.value.code == "context_length_exceeded"


def test_more_than_a_key_is_good_for_is_a_rate_limit_error(base_url: str) -> None:
    with OpenAI(base_url=base_url, api_key=SCARCE_KEY, max_retries=0) as scarce:
        with suppress(openai.RateLimitError):  # another test may have used up this minute's request
            scarce.chat.completions.create(**GREEDY | {"max_tokens": 1})
        with pytest.raises(openai.RateLimitError) as caught:
            scarce.chat.completions.create(**GREEDY)
    assert 0 < int(caught.value.response.headers["retry-after"]) <= 60


@pytest.mark.parametrize("stream", [False, True])
def test_model_without_peers_is_unavailable(client: OpenAI, stream: bool) -> None:
    with pytest.raises(openai.InternalServerError) as caught:
        client.chat.completions.create(**GREEDY | {"model": NOBODYS, "stream": stream})
    assert caught.value.status_code == 503
    assert int(caught.value.response.headers["retry-after"]) > 0


def test_client_that_leaves_ends_its_answer(client: OpenAI, gateway: Door) -> None:
    def aborted() -> float:
        return gateway.metric("swarm:request_success_total", model_name=MODEL, finished_reason="abort")

    def generated() -> float:
        return gateway.metric("swarm:generation_tokens_total", model_name=MODEL)

    aborts, tokens, room = aborted(), generated(), KV_TOKENS // 4
    assert room > 20 * NEW
    story = [{"role": "user", "content": "Count from one to ten thousand, and leave nothing out."}]
    with client.chat.completions.create(**GREEDY | {"messages": story, "max_tokens": room}, stream=True) as stream:
        for _ in zip(range(4), stream, strict=False):
            pass
    wait_for(lambda: gateway.metric("swarm:num_requests_running", model_name=MODEL) == 0)
    wait_for(lambda: aborted() == aborts + 1)
    after = generated()
    assert after - tokens < room / 4  # it was not brought to its end
    client.chat.completions.create(**GREEDY | {"max_tokens": 2})
    assert generated() - after <= 2  # nobody computes on
