"""A chat on its way to the tokens of a prompt."""

import pytest
from transformers import PreTrainedTokenizerFast

from clients.gateway.conversation import ToolCall, Turn, encode, ends_of_turns, read_content
from clients.gateway.errors import ApiError
from clients.gateway.fields import Fields
from tests.clients.gateway.bytes_tokenizer import END, bytes_tokenizer

CALLS = (
    "{% for message in messages %}{{ message.role }}:{{ message.content }}"
    "{% for call in message.tool_calls %}{{ call.function.name }}({{ call.function.arguments.city }}){% endfor %};"
    "{% endfor %}{% if thinking %}think{% endif %}"
)
NO_SYSTEM = "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}" + CALLS


def prompt(turns: list[Turn], template: str | None = None, **options: object) -> str:
    tokenizer = bytes_tokenizer()
    tokenizer.chat_template = template or tokenizer.chat_template
    text: str = tokenizer.decode(encode(tokenizer, turns, options=options))
    return text


def test_a_chat_becomes_a_prompt_by_the_models_own_template() -> None:
    turns = [Turn("system", "Be brief."), Turn("user", "Hi"), Turn("assistant", "Hello"), Turn("user", "Bye")]
    assert prompt(turns) == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"
        "<|im_start|>assistant\nHello<|im_end|>\n<|im_start|>user\nBye<|im_end|>\n<|im_start|>assistant\n"
    )


def test_several_systems_at_the_begin_are_one() -> None:
    assert prompt([Turn("system", "a"), Turn("system", "b"), Turn("user", "c")], CALLS) == "system:a\n\nb;user:c;"


def test_a_template_without_system_has_it_before_the_first_user() -> None:
    assert prompt([Turn("system", "a"), Turn("user", "b")], NO_SYSTEM) == "user:a\n\nb;"


def test_calls_of_tools_are_objects_to_a_template() -> None:
    call = ToolCall("call_1", "weather", '{"city": "Ulm"}')
    turns = [Turn("assistant", calls=(call,)), Turn("tool", "sunny", call_id="call_1")]
    assert prompt(turns, CALLS) == "assistant:weather(Ulm);tool:sunny;"


def test_options_reach_the_template() -> None:
    assert prompt([Turn("user", "a")], CALLS, thinking=True) == "user:a;think"


@pytest.mark.parametrize("name", ["chat_template", "tokenize", "messages"])
def test_options_that_are_none_of_a_template_are_refused(name: str) -> None:
    with pytest.raises(ApiError) as refused:
        prompt([Turn("user", "a")], CALLS, **{name: "x"})
    assert refused.value.status == 400


def test_a_model_without_chat_template_says_so(tokenizer: PreTrainedTokenizerFast) -> None:
    bare = bytes_tokenizer()
    bare.chat_template = None
    with pytest.raises(ApiError, match="no chat template") as refused:
        encode(bare, [Turn("user", "a")])
    assert refused.value.param == "messages"


def test_what_a_template_refuses_is_told_in_its_words() -> None:
    with pytest.raises(ApiError, match="no system"):
        prompt([Turn("system", "alone")], NO_SYSTEM)


def test_the_end_of_a_turn_is_read_off_the_template() -> None:
    tokenizer = bytes_tokenizer()
    assert ends_of_turns(tokenizer) == {END}
    tokenizer.chat_template = NO_SYSTEM  # ends turns with ";", which is no token of its own
    assert ends_of_turns(tokenizer) == frozenset()
    tokenizer.chat_template = "{{ raise_exception('no chats') }}"
    assert ends_of_turns(tokenizer) == frozenset()


def test_parts_of_text_are_joined() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    assert read_content(Fields({"content": parts})) == "a\nb"


def test_what_is_no_text_is_refused_by_name() -> None:
    message = Fields({"content": [{"type": "image_url", "image_url": {"url": "x"}}]}, "messages[1]")
    with pytest.raises(ApiError) as refused:
        read_content(message)
    assert refused.value.param == "messages[1].content[0].type"
    assert "'image_url'" in refused.value.message
