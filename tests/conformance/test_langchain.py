"""LangChain's ChatOpenAI."""

from typing import Literal

import pytest
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from langchain_openai import ChatOpenAI
from pydantic import BaseModel

from tests.conformance.conftest import KEY, MODEL, QUESTION, Local

NEW = 12


class Weather(BaseModel):
    """The weather of a town."""

    town: Literal["Paris", "Lyon"]
    days: Literal[1, 2, 3]


@pytest.fixture(scope="module")
def chat(base_url: str) -> ChatOpenAI:
    return ChatOpenAI(
        base_url=base_url, api_key=KEY, model=MODEL, temperature=0, max_completion_tokens=NEW, max_retries=0
    )


def test_chat_is_invoked_streamed_and_batched(chat: ChatOpenAI, local: Local) -> None:
    expected = local.answer(QUESTION, new=NEW)
    answer = chat.invoke(QUESTION)
    assert answer.content == expected
    assert answer.usage_metadata is not None
    assert answer.usage_metadata["input_tokens"] == local.prompt(QUESTION).shape[1]
    assert "".join(str(chunk.content) for chunk in chat.stream(QUESTION)) == expected
    other = "What is the capital of Italy?"
    assert [one.content for one in chat.batch([QUESTION, other])] == [expected, local.answer(other, new=NEW)]


def test_tools_are_bound_and_their_results_answered(chat: ChatOpenAI) -> None:
    calling = chat.bind_tools([Weather], tool_choice="any", strict=True, parallel_tool_calls=False).bind(
        max_completion_tokens=60
    )
    message = calling.invoke(QUESTION)
    assert isinstance(message, AIMessage)
    call = message.tool_calls[0]
    assert call["name"] == "Weather"
    Weather.model_validate(call["args"])
    turns = [HumanMessage(QUESTION), message, ToolMessage("21 degrees", tool_call_id=call["id"])]
    assert chat.invoke(turns).content


def test_answer_has_the_structure_that_is_asked_for(chat: ChatOpenAI) -> None:
    longer = chat.model_copy(update={"max_tokens": 60})
    assert isinstance(longer.with_structured_output(Weather, method="json_schema").invoke(QUESTION), Weather)
