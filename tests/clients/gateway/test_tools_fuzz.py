"""Whatever tools, schemas and items a body has, it is answered, or refused in a sentence that names what is wrong."""

from typing import Any

import httpx2
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.clients.gateway.live import LiveGateway
from tests.clients.gateway.test_openai_fuzz import ODD, few

TYPES = ("object", "array", "string", "integer", "number", "boolean", "null")
SCHEMA: st.SearchStrategy[Any] = st.recursive(
    st.fixed_dictionaries({"type": st.sampled_from(TYPES) | ODD}) | ODD,
    lambda inner: st.fixed_dictionaries(
        {},
        optional={
            "type": st.sampled_from(TYPES) | st.lists(st.sampled_from(TYPES), max_size=2) | ODD,
            "properties": st.dictionaries(st.sampled_from("ab"), inner, max_size=2),
            "required": st.lists(st.sampled_from("abc"), max_size=2) | ODD,
            "items": inner,
            "anyOf": st.lists(inner, max_size=2),
            "enum": st.lists(ODD, max_size=2),
            "$ref": st.sampled_from(["#", "#/properties/a", "x"]),
            "pattern": st.sampled_from(["a*", "(", "^[ab]{2}$"]),
            "minItems": st.integers(-1, 9),
            "maximum": st.integers() | ODD,
            "additionalProperties": st.booleans() | inner,
            "x-guidance": ODD,
        },
    ),
    max_leaves=4,
)
NAME = st.sampled_from(["a", "b"]) | ODD
FUNCTION = {"name": NAME, "description": st.text(max_size=5) | ODD, "strict": st.booleans() | ODD}
FORM = st.fixed_dictionaries({"type": st.just("json_schema") | ODD, "strict": st.booleans() | ODD, "schema": SCHEMA})
CALLS = {"type": st.just("function") | ODD, "name": NAME}
CHAT = {
    "tools": st.lists(
        st.fixed_dictionaries(
            {"type": st.just("function"), "function": st.fixed_dictionaries({**FUNCTION, "parameters": SCHEMA})}
        ),
        max_size=2,
    ),
    "tool_choice": st.sampled_from(["auto", "none", "required"])
    | st.fixed_dictionaries({"type": st.just("function"), "function": st.fixed_dictionaries({"name": NAME}) | ODD}),
    "parallel_tool_calls": st.booleans(),
    "response_format": st.fixed_dictionaries({"type": st.just("json_schema"), "json_schema": FORM | ODD}),
    "guided_regex": st.text("ab()[]*{2}|\\^", max_size=6),
    "guided_choice": st.lists(st.text(max_size=3), max_size=3) | ODD,
}
ITEM = st.fixed_dictionaries(
    {"type": st.sampled_from(["message", "function_call", "function_call_output", "reasoning"]) | ODD},
    optional={
        "role": st.sampled_from(["user", "assistant", "developer"]) | ODD,
        "content": st.text(max_size=5) | ODD,
        "call_id": st.text(max_size=3) | ODD,
        "name": NAME,
        "arguments": st.sampled_from(["{}", "{", "3"]) | ODD,
        "output": st.text(max_size=3) | ODD,
    },
)
RESPONSES = {
    "input": st.lists(ITEM, max_size=3) | ODD,
    "instructions": st.text(max_size=5) | ODD,
    "tools": st.lists(
        st.fixed_dictionaries({"type": st.just("function"), **FUNCTION, "parameters": SCHEMA}), max_size=2
    )
    | ODD,
    "tool_choice": st.sampled_from(["auto", "none", "required"]) | st.fixed_dictionaries(CALLS) | ODD,
    "text": st.fixed_dictionaries({"format": FORM | ODD}) | ODD,
    "stream": st.booleans(),
    "store": st.booleans() | ODD,
    "previous_response_id": ODD,
    "reasoning": st.fixed_dictionaries({"effort": st.text(max_size=4)}) | ODD,
    "metadata": ODD,
}
BLOCK = st.fixed_dictionaries(
    {"type": st.sampled_from(["text", "tool_use", "tool_result", "thinking"]) | ODD},
    optional={
        "text": st.text(max_size=5) | ODD,
        "id": st.text(max_size=3) | ODD,
        "name": NAME,
        "input": st.dictionaries(st.text(max_size=2), ODD, max_size=2) | ODD,
        "tool_use_id": st.text(max_size=3) | ODD,
        "content": st.text(max_size=3) | ODD,
        "is_error": st.booleans() | ODD,
    },
)
MESSAGES = {
    "messages": st.lists(
        st.fixed_dictionaries(
            {
                "role": st.sampled_from(["user", "assistant", "system"]) | ODD,
                "content": st.lists(BLOCK, max_size=2) | st.text(max_size=4) | ODD,
            }
        ),
        max_size=3,
    )
    | ODD,
    "system": st.text(max_size=4) | st.lists(BLOCK, max_size=2) | ODD,
    "tools": st.lists(st.fixed_dictionaries({"name": NAME, "input_schema": SCHEMA}), max_size=2) | ODD,
    "tool_choice": st.fixed_dictionaries({"type": st.sampled_from(["auto", "any", "tool", "none"]) | ODD, "name": NAME})
    | ODD,
    "output_config": st.fixed_dictionaries({"format": FORM | ODD}) | ODD,
    "stop_sequences": st.lists(st.text(max_size=3), max_size=2) | ODD,
    "stream": st.booleans(),
    "max_tokens": st.integers(1, 20) | ODD,
}
ONE_GATEWAY = settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow], max_examples=60
)


@pytest.fixture
def client(live: LiveGateway) -> Any:
    with httpx2.Client(base_url=live.base_url) as client:
        yield client


def check(response: httpx2.Response, last: str) -> None:
    """`last` is how a stream's last event begins."""
    if response.status_code != 200:
        error = response.json()["error"]
        assert response.status_code == 400, error
        assert error["message"]
        assert error["type"] == "invalid_request_error"
    elif response.headers["content-type"].startswith("text/event-stream"):
        assert response.text.rstrip().split("\n\n")[-1].startswith(last)


@ONE_GATEWAY
@given(more=few(CHAT))
def test_any_tools_of_a_chat_are_taken_or_refused(client: httpx2.Client, more: dict[str, Any]) -> None:
    body = {"model": "tiny", "messages": [{"role": "user", "content": "a"}], "stream": True} | more
    check(client.post("chat/completions", json=body), "data: [DONE]")


@ONE_GATEWAY
@given(more=few(RESPONSES))
def test_any_response_is_given_or_refused(client: httpx2.Client, more: dict[str, Any]) -> None:
    check(client.post("responses", json={"model": "tiny", "input": "a"} | more), "event: response.completed")


@ONE_GATEWAY
@given(more=few(MESSAGES))
def test_any_message_is_answered_or_refused(client: httpx2.Client, more: dict[str, Any]) -> None:
    body = {"model": "tiny", "messages": [{"role": "user", "content": "a"}], "max_tokens": 20} | more
    check(client.post("messages", json=body), "event: message_stop")
