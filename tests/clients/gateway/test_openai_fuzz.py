"""Whatever a body has in it, it is answered, or refused in a sentence that names what is wrong."""

from typing import Any

import httpx2
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.clients.gateway.live import LiveGateway

SCALARS = (
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5)
)
ODD: st.SearchStrategy[Any] = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
)
PARTS = st.fixed_dictionaries({"type": st.sampled_from(["text", "image_url"]) | ODD, "text": ODD})
MESSAGES = st.lists(
    st.fixed_dictionaries(
        {"role": st.sampled_from(["system", "developer", "user", "assistant", "tool"]) | ODD},
        optional={
            "content": st.text(max_size=9) | st.lists(PARTS, max_size=2) | ODD,
            "name": ODD,
            "tool_call_id": st.text(max_size=3) | ODD,
            "tool_calls": st.lists(st.fixed_dictionaries({"id": ODD, "function": ODD}), max_size=2) | ODD,
        },
    ),
    max_size=3,
)
COMMON = {
    "stream": st.booleans() | ODD,
    "stream_options": st.fixed_dictionaries({"include_usage": st.booleans() | ODD}) | ODD,
    "temperature": st.floats(0, 2) | ODD,
    "top_p": st.floats(0, 1) | ODD,
    "top_k": st.integers(-1, 9) | ODD,
    "min_p": st.floats(0, 1) | ODD,
    "repetition_penalty": st.floats(0.5, 2) | ODD,
    "presence_penalty": st.floats(-2, 2) | ODD,
    "logit_bias": st.dictionaries(st.integers(0, 300).map(str), st.integers(-100, 100), max_size=2) | ODD,
    "seed": st.integers() | ODD,
    "n": st.integers(1, 3) | ODD,
    "stop": st.text(max_size=3) | st.lists(st.text(max_size=3), max_size=3) | ODD,
    "max_tokens": st.integers(1, 20) | ODD,
    "user": ODD,
}
CHAT = COMMON | {
    "logprobs": st.booleans() | ODD,
    "top_logprobs": st.integers(0, 20) | ODD,
    "max_completion_tokens": st.integers(1, 20) | ODD,
    "chat_template_kwargs": st.dictionaries(st.text(max_size=5), SCALARS, max_size=2) | ODD,
    "response_format": st.sampled_from([{"type": "text"}, {"type": "json_object"}]) | ODD,
    "tools": ODD,
    "tool_choice": ODD,
}
COMPLETION = COMMON | {"logprobs": st.integers(0, 5) | ODD, "echo": st.booleans() | ODD, "suffix": ODD, "best_of": ODD}
PROMPT = (
    st.text(max_size=5) | st.lists(st.text(max_size=3), max_size=3) | st.lists(st.integers(0, 300), max_size=3) | ODD
)


def few(fields: dict[str, st.SearchStrategy[Any]]) -> st.SearchStrategy[dict[str, Any]]:
    """Some of `fields`."""
    names = st.lists(st.sampled_from(sorted(fields)), max_size=4, unique=True)
    return names.flatmap(lambda chosen: st.fixed_dictionaries({name: fields[name] for name in chosen}))


def check(response: httpx2.Response) -> None:
    if response.status_code != 200:
        error = response.json()["error"]
        assert response.status_code == 400, error
        assert error["message"]
        assert error["type"] == "invalid_request_error"
    elif response.headers["content-type"].startswith("text/event-stream"):
        assert response.text.endswith("data: [DONE]\n\n")
    else:
        assert response.json()["choices"]


@pytest.fixture
def client(standing: LiveGateway) -> Any:
    with httpx2.Client(base_url=standing.base_url) as client:
        yield client


ONE_GATEWAY = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])


@ONE_GATEWAY
@given(messages=MESSAGES | ODD, more=few(CHAT))
def test_any_chat_is_answered_or_refused(client: httpx2.Client, messages: Any, more: dict[str, Any]) -> None:
    check(client.post("chat/completions", json={"model": "tiny", "messages": messages} | more))


@ONE_GATEWAY
@given(more=few(CHAT))
def test_any_field_of_a_chat_is_taken_or_refused(client: httpx2.Client, more: dict[str, Any]) -> None:
    check(
        client.post("chat/completions", json={"model": "tiny", "messages": [{"role": "user", "content": "a"}]} | more)
    )


@ONE_GATEWAY
@given(prompt=PROMPT, more=few(COMPLETION))
def test_any_completion_is_answered_or_refused(client: httpx2.Client, prompt: Any, more: dict[str, Any]) -> None:
    check(client.post("completions", json={"model": "tiny", "prompt": prompt} | more))
