"""Completions as OpenAI's own client sees them, over an answer that is played."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import httpx2
import openai
import pytest

from clients.gateway.served import Served
from swarm.errors import MissingBlocks
from tests.clients.gateway.bytes_tokenizer import END, bytes_tokenizer
from tests.clients.gateway.live import LiveGateway
from tests.clients.gateway.played import PlayedCompleter
from tests.clients.test_chat import spaced_tokenizer


@pytest.fixture
def asking(standing: LiveGateway) -> Iterator[openai.OpenAI]:
    """For tests that change nothing at the gateway."""
    with openai.OpenAI(base_url=standing.base_url, api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture
def client(live: LiveGateway) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=live.base_url, api_key="none", max_retries=0) as client:
        yield client


def test_a_text_goes_on(client: openai.OpenAI, completer: PlayedCompleter) -> None:
    answer = client.completions.create(model="tiny", prompt="Say: ")
    (choice,) = answer.choices
    assert (choice.text, choice.finish_reason, choice.logprobs) == ("Hello there.", "stop", None)
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (5, 13)
    assert answer.id.startswith("cmpl-")
    assert completer.answers[0].request.prompt == tuple(bytes_tokenizer().encode("Say: "))


def test_an_answer_is_short_where_nothing_is_said(client: openai.OpenAI, completer: PlayedCompleter) -> None:
    client.completions.create(model="tiny", prompt="a")
    assert completer.answers[0].request.max_new_tokens == 16


def test_a_stream_is_the_same_answer(asking: openai.OpenAI) -> None:
    options = {"include_usage": True}
    *chunks, last = asking.completions.create(model="tiny", prompt="a", stream=True, stream_options=options)  # type: ignore[call-overload]
    assert "".join(chunk.choices[0].text for chunk in chunks) == "Hello there."
    assert chunks[-1].choices[0].finish_reason == "stop"
    assert (last.choices, last.usage.completion_tokens) == ([], 13)


@pytest.mark.parametrize("prompt", [["a", "b"], [[70, 71], [72]]])
def test_every_prompt_has_its_answers(
    client: openai.OpenAI, live: LiveGateway, prompt: Any, completer: PlayedCompleter
) -> None:
    answer = client.completions.create(model="tiny", prompt=prompt, n=2)
    assert [(c.index, c.text) for c in answer.choices] == [(index, "Hello there.") for index in range(4)]
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 4 * 13
    chunks = list(client.completions.create(model="tiny", prompt=prompt, n=2, stream=True))
    for index in range(4):
        assert "".join(c.choices[0].text for c in chunks if c.choices[0].index == index) == "Hello there."
    live.wait_for(lambda: all(played.closed for played in completer.answers))


def test_token_ids_are_a_prompt(client: openai.OpenAI, completer: PlayedCompleter) -> None:
    client.completions.create(model="tiny", prompt=[70, 71, 72])
    assert completer.answers[0].request.prompt == (70, 71, 72)


def test_a_text_goes_on_with_a_space_where_its_tokenizer_has_spaces_in_words(played: Served) -> None:
    served = replace(played, tokenizer=spaced_tokenizer(), completer=PlayedCompleter([2, 0]), end_tokens=frozenset({0}))
    with LiveGateway([served]) as live, openai.OpenAI(base_url=live.base_url, api_key="none") as client:
        assert client.completions.create(model="tiny", prompt=[1]).choices[0].text == " two"


@pytest.mark.parametrize("prompt", ["Say: ", bytes_tokenizer().encode("Say: ")])
def test_an_echo_has_the_prompt_first(asking: openai.OpenAI, prompt: Any) -> None:
    assert asking.completions.create(model="tiny", prompt=prompt, echo=True).choices[0].text == "Say: Hello there."
    chunks = asking.completions.create(model="tiny", prompt=prompt, echo=True, stream=True)
    assert [chunk.choices[0].text for chunk in chunks][:2] == ["Say: ", "H"]


def test_log_probabilities_have_the_older_shape(client: openai.OpenAI, completer: PlayedCompleter) -> None:
    completer.tokens = [*bytes_tokenizer().encode("a€b"), END]
    logprobs = client.completions.create(model="tiny", prompt="a", logprobs=1).choices[0].logprobs
    assert logprobs is not None
    assert logprobs.tokens is not None
    assert (logprobs.tokens[0], logprobs.tokens[-1]) == ("a", "b")
    assert logprobs.text_offset == [0, 1, 1, 1, 2]
    assert logprobs.token_logprobs == [-0.5] * 5
    assert logprobs.top_logprobs is not None
    assert logprobs.top_logprobs[0] == {"a": -0.5}


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"prompt": None}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": ""}, "prompt"),
        ({"prompt": [""]}, "prompt"),
        ({"prompt": {"a": 1}}, "prompt"),
        ({"prompt": ["a", 1]}, "prompt[1]"),
        ({"prompt": [1, "a"]}, "prompt"),
        ({"prompt": [[1, -1]]}, "prompt[0]"),
        ({"prompt": [1, 1 << 40]}, "prompt"),
        ({"prompt": ["a"] * 65}, "prompt"),
        ({"suffix": "end"}, "suffix"),
        ({"n": 2, "best_of": 4}, "best_of"),
        ({"echo": True, "logprobs": 1}, "echo"),
        ({"logprobs": 21}, "logprobs"),
        ({"logprobs": True}, "logprobs"),
    ],
)
def test_a_bad_field_is_refused_by_name(standing: LiveGateway, fields: dict[str, Any], param: str) -> None:
    with httpx2.Client() as client:
        response = client.post(f"{standing.base_url}/completions", json={"model": "tiny", "prompt": "a"} | fields)
    assert (response.status_code, response.json()["error"]["param"]) == (400, param)


def test_a_prompt_beyond_the_context_is_refused(asking: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        asking.completions.create(model="tiny", prompt="x" * 1024)
    assert (refused.value.code, refused.value.param) == ("context_length_exceeded", "prompt")


def test_a_failure_in_mid_stream_is_an_error_of_the_api(client: openai.OpenAI, completer: PlayedCompleter) -> None:
    completer.error = MissingBlocks([2], "nobody holds block 2")
    chunks = client.completions.create(model="tiny", prompt="a", stream=True)
    assert "".join(next(chunks).choices[0].text for _ in "Hello there.") == "Hello there."
    with pytest.raises(openai.APIError, match="nobody holds block 2"):
        next(chunks)


def test_a_client_that_goes_away_ends_all_its_answers(
    client: openai.OpenAI, live: LiveGateway, completer: PlayedCompleter
) -> None:
    live.call(completer.gate.clear)
    with client.completions.create(model="tiny", prompt=["a", "b"], stream=True):
        pass
    live.wait_for(lambda: len(completer.answers) == 2 and all(played.closed for played in completer.answers))
