"""Tools go into prompts, and calls that a grammar holds to come out of answers, in the format of each family."""

import json
from dataclasses import replace

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from clients.gateway.conversation import ToolCall, Turn, encode
from clients.gateway.dialect import Dialect
from clients.gateway.errors import ApiError
from clients.gateway.fields import Fields
from clients.gateway.grammar import Grammar, Grammars
from clients.gateway.response_format import read_response_format
from clients.gateway.served import Served
from clients.gateway.tool_calls import Arguments, Called, Said
from clients.gateway.tool_formats import HERMES, LLAMA, MISTRAL, MISTRAL_NAMED, Format, format_of
from clients.gateway.tools import Tool, Tools, read_tools
from tests.clients.gateway.bytes_tokenizer import CHAT_TEMPLATE, END, bytes_tokenizer
from tests.clients.gateway.drawn import draw
from tests.clients.gateway.spoken import TEMPLATES, spoken

CITY = {"type": "object", "properties": {"city": {"$ref": "#/$defs/c"}}, "required": ["city"]} | {
    "additionalProperties": False,
    "$defs": {"c": {"enum": ["Rome", "Oslo"]}},
}
EMPTY = {"type": "object", "additionalProperties": False}
WEATHER = Tool("weather", "How it is outside", CITY)
TIME = Tool("time", "", EMPTY)


async def noise(
    served: Served, tokenizer: PreTrainedTokenizerFast, tools: Tools, *, seed: int, answer: Grammar | None = None
) -> str:
    """The text of an answer by a model that is nothing but noise."""
    dialect = Dialect(tokenizer)
    make = await Grammars().compile(replace(served, tokenizer=tokenizer), dialect.grammar(tools, answer))
    assert make is not None
    constraint, generator = make(), torch.Generator().manual_seed(seed)
    tokens = [draw(constraint, len(tokenizer), generator)]
    while tokens[-1] != END and len(tokens) < 3000:
        tokens.append(draw(constraint, len(tokenizer), generator))
    return str(tokenizer.decode(tokens[:-1], skip_special_tokens=not dialect.shows_special_tokens))


def read(tokenizer: PreTrainedTokenizerFast, tools: Tools, text: str) -> tuple[str, list[tuple[str, str]]]:
    reader = Dialect(tokenizer).reader(tools)
    pieces = reader.feed(text) + reader.close()
    calls = [
        (one.name, "".join(more.text for more in pieces if isinstance(more, Arguments) and more.index == one.index))
        for one in pieces
        if isinstance(one, Called)
    ]
    return "".join(piece.text for piece in pieces if isinstance(piece, Said)), calls


@pytest.mark.anyio
@pytest.mark.parametrize("special", [False, True])
@pytest.mark.parametrize("form", TEMPLATES, ids=lambda form: form.way.value)
async def test_noise_calls_what_must_be_called(played: Served, form: Format, special: bool) -> None:
    tokenizer = spoken(form, special=special)
    tools = Tools((WEATHER, TIME), required=True)
    called = set()
    for seed in range(4):
        content, calls = read(tokenizer, tools, await noise(played, tokenizer, tools, seed=seed))
        assert content == ""
        assert 1 <= len(calls) <= 8
        for name, arguments in calls:
            called.add(name)
            assert json.loads(arguments) in ([{}] if name == "time" else [{"city": "Rome"}, {"city": "Oslo"}])
    assert called == {"weather", "time"}


@pytest.mark.anyio
@pytest.mark.parametrize("form", TEMPLATES, ids=lambda form: form.way.value)
async def test_one_call_where_several_are_not_wanted(played: Served, form: Format) -> None:
    tools = Tools((TIME,), required=True, parallel=False)
    tokenizer = spoken(form)
    content, ((name, arguments),) = read(tokenizer, tools, await noise(played, tokenizer, tools, seed=1))
    assert (content, name, json.loads(arguments)) == ("", "time", {})


@pytest.mark.anyio
@pytest.mark.parametrize("special", [False, True])
@pytest.mark.parametrize("form", TEMPLATES, ids=lambda form: form.way.value)
async def test_strict_tools_hold_calls_in_free_text(played: Served, form: Format, special: bool) -> None:
    """The model may say what it likes; once it calls, only a valid call comes."""
    tokenizer = spoken(form, special=special)
    tools = Tools((replace(WEATHER, strict=True),))
    make = await Grammars().compile(replace(played, tokenizer=tokenizer), Dialect(tokenizer).grammar(tools, None))
    assert make is not None
    said = "" if form is LLAMA else "Let me {see} [1] <b>:"
    begun = {
        HERMES: '<tool_call>\n{"name": "weather", "arguments": ',
        LLAMA: '{"name": "weather", "parameters": ',
        MISTRAL: '[TOOL_CALLS] [{"name": "weather", "arguments": ',
        MISTRAL_NAMED: "[TOOL_CALLS]weather[ARGS]",
    }[form]
    tokens = tokenizer.encode(said + begun)
    free = make()
    for token in [*tokenizer.encode('Hello {"a": [1]}\n'), END]:
        logits = torch.zeros(len(tokenizer))
        free.mask(logits)
        assert logits[token] == 0
        free.accept(token)
    held, generator = make(), torch.Generator().manual_seed(0)
    for token in tokens:
        logits = torch.zeros(len(tokenizer))
        held.mask(logits)
        assert logits[token] == 0
        held.accept(token)
    while tokens[-1] != END and len(tokens) < 3000:
        tokens.append(draw(held, len(tokenizer), generator))
    text = tokenizer.decode(tokens[:-1], skip_special_tokens=not Dialect(tokenizer).shows_special_tokens)
    content, calls = read(tokenizer, tools, text)
    assert content.startswith(said)
    assert [name for name, _ in calls] == ["weather"] * len(calls)
    assert json.loads(calls[0][1]) in ({"city": "Rome"}, {"city": "Oslo"})


@pytest.mark.anyio
async def test_a_form_of_answers_goes_with_tools(played: Served) -> None:
    tokenizer = spoken(HERMES)
    answer = read_response_format(Fields({"guided_choice": ["yes", "no"]}))
    seen = set()
    for seed in range(8):
        content, calls = read(
            tokenizer, Tools((TIME,)), await noise(played, tokenizer, Tools((TIME,)), seed=seed, answer=answer)
        )
        assert content in ("yes", "no") if not calls else (content, calls[0][0]) == ("", "time")
        seen.add(content)
    assert len(seen) > 1


@pytest.mark.anyio
async def test_wrong_schema_of_a_tool_is_named(played: Served) -> None:
    body = {
        "tools": [
            {"type": "function", "function": {"name": "a"}},
            {"type": "function", "function": {"name": "b", "parameters": {"properties": {"x": {"type": "odd"}}}}},
        ],
        "tool_choice": "required",
    }
    tokenizer = spoken(HERMES)
    with pytest.raises(ApiError) as caught:
        await noise(played, tokenizer, read_tools(Fields(body)), seed=0)
    assert (caught.value.status, caught.value.param) == (400, "tools[1].function.parameters")


@pytest.mark.parametrize("form", TEMPLATES, ids=lambda form: form.way.value)
def test_templates_that_show_tools_get_them(form: Format) -> None:
    tokenizer = spoken(form)
    call = ToolCall("call_0123456789", "time", "{}")
    turns = [Turn("user", "Hi"), Turn("assistant", calls=(call,)), Turn("tool", "noon", call_id=call.id)]
    prompt = Dialect(tokenizer).prompt(turns, Tools((WEATHER,)))
    assert [turn.role for turn in prompt.turns] == ["user", "assistant", "tool"]
    assert prompt.turns[2].name == "time"
    (made,) = prompt.turns[1].calls
    assert made.id == prompt.turns[2].call_id
    assert form.id_length in (None, len(made.id))
    assert '"How it is outside"' in tokenizer.decode(encode(tokenizer, prompt.turns, tools=prompt.tools))


def test_other_templates_get_tools_as_text(tokenizer: PreTrainedTokenizerFast) -> None:
    call = ToolCall("call_1", "time", '{"zone": 1}')
    turns = [
        Turn("system", "Be brief."),
        Turn("user", "Hi"),
        Turn("assistant", "Let me see.", calls=(call, call)),
        Turn("tool", "noon", call_id=call.id),
        Turn("tool", "late", call_id=call.id),
        Turn("user", "So?"),
    ]
    prompt = Dialect(tokenizer).prompt(turns, Tools((WEATHER,)))
    assert prompt.tools is None
    text = tokenizer.decode(encode(tokenizer, prompt.turns))
    assert text.startswith("<|im_start|>system\nBe brief.\n\nYou can call functions.")
    assert '"How it is outside"' in text
    written = '<tool_call>\n{"name": "time", "arguments": {"zone": 1}}\n</tool_call>'
    assert f"assistant\nLet me see.\n{written}\n{written}<|im_end|>" in text
    assert (
        "user\n<tool_response>\nnoon\n</tool_response>\n<tool_response>\nlate\n</tool_response>\nSo?<|im_end|>" in text
    )


def test_template_that_only_mentions_tools_gets_them_as_text() -> None:
    tokenizer = bytes_tokenizer()
    tokenizer.chat_template = CHAT_TEMPLATE.replace("tools", "xml_tools") + "{# tools <tool_call> #}"
    prompt = Dialect(tokenizer).prompt([Turn("user", "Hi")], Tools((WEATHER,)))
    assert prompt.tools is None
    assert "How it is outside" in prompt.turns[0].text


def test_no_tools_leave_a_chat_as_it_is(tokenizer: PreTrainedTokenizerFast) -> None:
    turns = (Turn("user", "Hi"), Turn("assistant", "Yes?"), Turn("user", "Bye"))
    assert Dialect(tokenizer).prompt(turns, Tools()).turns == turns


@pytest.mark.parametrize(
    ("template", "form"),
    [
        ("{{ tools }}<tool_call>", HERMES),
        ("{{ tools }}<tool_call><function=x>", None),
        ("{{ tools }}<tool_call>x<arg_key>", None),
        ('{{ tools }}ipython {"name": x, "parameters": y}', LLAMA),
        ("{{ tools }}[TOOL_CALLS][", MISTRAL),
        ("{{ tools }}[TOOL_CALLS]f[ARGS]", MISTRAL_NAMED),
        ("{{ tools }}", None),
    ],
)
def test_format_is_told_from_the_template(template: str, form: Format | None) -> None:
    assert format_of(template) is form
