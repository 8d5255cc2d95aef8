"""Chat completions as OpenAI's own client sees them, over an answer that is played."""

import json
from collections.abc import Iterator
from typing import Any

import httpx2
import openai
import pytest
from openai.types.chat import ChatCompletionMessageParam

from clients.events import Step, Waiting
from swarm.errors import Busy, MissingBlocks
from tests.clients.gateway.bytes_tokenizer import END, bytes_tokenizer
from tests.clients.gateway.live import LiveGateway
from tests.clients.gateway.played import PlayedCompleter

HI: list[ChatCompletionMessageParam] = [{"role": "user", "content": "Hi"}]
PROMPT = len(bytes_tokenizer().apply_chat_template(HI, add_generation_prompt=True)["input_ids"])


@pytest.fixture
def asking(standing: LiveGateway) -> Iterator[openai.OpenAI]:
    """For tests that change nothing at the gateway."""
    with openai.OpenAI(base_url=standing.base_url, api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture
def client(live: LiveGateway) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=live.base_url, api_key="none", max_retries=0) as client:
        yield client


def raw(live: LiveGateway, **fields: Any) -> str:
    """The bytes of a stream."""
    with httpx2.Client() as client:
        body = {"model": "tiny", "messages": HI, "stream": True, **fields}
        response = client.post(f"{live.base_url}/chat/completions", json=body)
        assert response.status_code == 200
        assert response.headers["content-type"].startswith("text/event-stream")
        return response.text


def payloads(text: str) -> list[Any]:
    """Those of the `data:` lines but for the last, which must be the end."""
    *lines, last = [line.removeprefix("data: ") for line in text.split("\n\n") if line.startswith("data: ")]
    assert last == "[DONE]"
    return [json.loads(line) for line in lines]


def test_an_answer_in_one_piece(asking: openai.OpenAI) -> None:
    answer = asking.chat.completions.create(model="tiny", messages=HI)
    (choice,) = answer.choices
    assert choice.message.content == "Hello there."
    assert choice.message.role == "assistant"
    assert choice.finish_reason == "stop"
    assert choice.logprobs is None
    assert answer.model == "tiny"
    assert answer.id.startswith("chatcmpl-")
    assert answer.system_fingerprint
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (PROMPT, 13)
    assert answer.usage.total_tokens == PROMPT + 13


def test_a_stream_is_the_same_answer(asking: openai.OpenAI) -> None:
    chunks = list(asking.chat.completions.create(model="tiny", messages=HI, stream=True))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == "Hello there."
    assert [chunk.choices[0].delta.role for chunk in chunks] == ["assistant"] + [None] * (len(chunks) - 1)
    assert [chunk.choices[0].finish_reason for chunk in chunks][-2:] == [None, "stop"]
    assert all(chunk.usage is None for chunk in chunks)
    assert len({chunk.id for chunk in chunks}) == 1


def test_usage_is_the_last_chunk_of_those_who_ask(asking: openai.OpenAI) -> None:
    options = {"include_usage": True}
    chunks = list(asking.chat.completions.create(model="tiny", messages=HI, stream=True, stream_options=options))  # type: ignore[call-overload]
    assert chunks[-1].choices == []
    assert chunks[-1].usage.completion_tokens == 13
    assert chunks[-1].usage.prompt_tokens_details.cached_tokens == 0
    assert all(chunk.usage is None for chunk in chunks[:-1])


def test_a_stream_keeps_the_grammar_of_events(live: LiveGateway, completer: PlayedCompleter) -> None:
    completer.before = [Waiting("all are busy", 1.0), Step(0.01, 1, ((0.0, 5.0),))]
    text = raw(live)
    assert text.endswith("data: [DONE]\n\n")
    assert all(line.startswith(("data: ", ": swarm {")) for line in text.split("\n\n")[:-1])
    assert '"event":"waiting"' in text
    assert '"event":"step"' in text
    assert payloads(text)[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}


def test_choices_come_under_their_index(asking: openai.OpenAI) -> None:
    answer = asking.chat.completions.create(model="tiny", messages=HI, n=3)
    assert [(c.index, c.message.content) for c in answer.choices] == [(i, "Hello there.") for i in range(3)]
    chunks = list(asking.chat.completions.create(model="tiny", messages=HI, n=3, stream=True))
    for index in range(3):
        own = [c.choices[0] for c in chunks if c.choices[0].index == index]
        assert "".join(c.delta.content or "" for c in own) == "Hello there."


def test_a_stop_string_ends_an_answer(client: openai.OpenAI, live: LiveGateway, completer: PlayedCompleter) -> None:
    answer = client.chat.completions.create(model="tiny", messages=HI, stop=["xyz", " the"])
    assert answer.choices[0].message.content == "Hello"
    assert answer.choices[0].finish_reason == "stop"
    chunks = list(client.chat.completions.create(model="tiny", messages=HI, stop=" the", stream=True))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == "Hello"
    live.wait_for(lambda: all(played.ended == {0} and played.closed for played in completer.answers))


@pytest.mark.parametrize("field", ["max_tokens", "max_completion_tokens"])
def test_a_limit_ends_an_answer_for_its_length(asking: openai.OpenAI, field: str) -> None:
    answer = asking.chat.completions.create(model="tiny", messages=HI, **{field: 4})  # type: ignore[call-overload]
    assert answer.choices[0].message.content == "Hell"
    assert answer.choices[0].finish_reason == "length"


def test_an_answer_has_what_the_context_leaves(client: openai.OpenAI, completer: PlayedCompleter) -> None:
    client.chat.completions.create(model="tiny", messages=HI)
    client.chat.completions.create(model="tiny", messages=HI, max_tokens=100_000)
    assert [played.request.max_new_tokens for played in completer.answers] == [1024 - PROMPT] * 2


def test_log_probabilities_name_tokens_and_their_bytes(client: openai.OpenAI, completer: PlayedCompleter) -> None:
    completer.tokens = [*bytes_tokenizer().encode("a€"), END]
    answer = client.chat.completions.create(model="tiny", messages=HI, logprobs=True, top_logprobs=1)
    assert answer.choices[0].logprobs is not None
    content = answer.choices[0].logprobs.content
    assert content is not None
    assert bytes(byte for token in content for byte in token.bytes or ()) == "a€".encode()
    assert content[0].token == "a"
    assert content[0].logprob == content[0].top_logprobs[0].logprob == -0.5
    chunks = list(client.chat.completions.create(model="tiny", messages=HI, logprobs=True, stream=True))
    streamed = [chunk.choices[0].logprobs.content for chunk in chunks if chunk.choices[0].logprobs]
    assert [len(tokens) for tokens in streamed if tokens] == [1, 3]


def test_how_tokens_are_chosen_reaches_the_model(client: openai.OpenAI, completer: PlayedCompleter) -> None:
    client.chat.completions.create(
        model="tiny",
        messages=HI,
        temperature=0.5,
        top_p=0.9,
        presence_penalty=1,
        frequency_penalty=-1,
        logit_bias={"7": -100},
        seed=12,
        extra_body={"top_k": 4, "min_p": 0.1, "repetition_penalty": 1.1, "something_else": 1},
        user="me",
        metadata={"a": "b"},
        store=False,
        service_tier="auto",
        parallel_tool_calls=True,
        reasoning_effort="low",
    )
    sampling = completer.answers[0].request.sampling
    assert (sampling.temperature, sampling.top_p, sampling.top_k, sampling.min_p) == (0.5, 0.9, 4, 0.1)
    assert (sampling.presence_penalty, sampling.frequency_penalty, sampling.repetition_penalty) == (1, -1, 1.1)
    assert (sampling.logit_bias, sampling.seed) == ({7: -100}, 12)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"messages": []}, "messages"),
        ({"messages": None}, "messages"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user"}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages[0].content[0].type"),
        ({"temperature": 2.1}, "temperature"),
        ({"temperature": "hot"}, "temperature"),
        ({"top_p": -1}, "top_p"),
        ({"n": 0}, "n"),
        ({"n": 1000}, "n"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"stop": 3}, "stop"),
        ({"stop": ["a"] * 17}, "stop"),
        ({"stop": ["a", 1]}, "stop[1]"),
        ({"logit_bias": {"hello": 1}}, "logit_bias"),
        ({"logit_bias": {"99999": 1}}, "logit_bias"),
        ({"logit_bias": {"5": 101}}, "logit_bias.5"),
        ({"top_logprobs": 3}, "top_logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"stream": "yes"}, "stream"),
        ({"functions": [{"name": "f"}]}, "functions"),
        ({"seed": 1.5}, "seed"),
    ],
)
def test_a_bad_field_is_refused_by_name(standing: LiveGateway, fields: dict[str, Any], param: str) -> None:
    with httpx2.Client() as client:
        body = {"model": "tiny", "messages": HI} | fields
        response = client.post(f"{standing.base_url}/chat/completions", json=body)
    error = response.json()["error"]
    assert response.status_code == 400
    assert (error["param"], error["type"]) == (param, "invalid_request_error")
    assert error["code"]


@pytest.mark.parametrize("length", [2000, 1_000_000])
def test_a_prompt_beyond_the_context_is_refused(asking: openai.OpenAI, length: int) -> None:
    with pytest.raises(openai.BadRequestError, match="at most 1024 tokens") as refused:
        asking.chat.completions.create(model="tiny", messages=[{"role": "user", "content": "x" * length}])
    assert refused.value.code == "context_length_exceeded"
    assert refused.value.param == "messages"


def test_an_unknown_model_is_not_found(asking: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as refused:
        asking.chat.completions.create(model="gpt-9", messages=HI)
    assert refused.value.code == "model_not_found"


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("error", [Busy("all peers are full", 3.0), MissingBlocks([2], "nobody holds block 2")])
def test_what_fails_before_an_answer_is_a_status(
    client: openai.OpenAI, completer: PlayedCompleter, error: Exception, stream: bool
) -> None:
    completer.refusal = error
    with pytest.raises(openai.InternalServerError) as failed:
        client.chat.completions.create(model="tiny", messages=HI, stream=stream)
    assert failed.value.status_code == 503
    assert int(failed.value.response.headers["retry-after"]) >= 1


def test_a_failure_in_mid_stream_is_an_error_of_the_api(client: openai.OpenAI, completer: PlayedCompleter) -> None:
    completer.error = MissingBlocks([2], "nobody holds block 2")
    chunks = client.chat.completions.create(model="tiny", messages=HI, stream=True)
    read = [next(chunks).choices[0].delta.content for _ in "_Hello there."]
    assert "".join(filter(None, read)) == "Hello there."
    with pytest.raises(openai.APIError, match="nobody holds block 2"):
        next(chunks)


def test_a_client_that_goes_away_ends_its_answer(
    client: openai.OpenAI, live: LiveGateway, completer: PlayedCompleter
) -> None:
    live.call(completer.gate.clear)
    with client.chat.completions.create(model="tiny", messages=HI, stream=True):
        pass
    live.wait_for(lambda: completer.answers[0].closed)
