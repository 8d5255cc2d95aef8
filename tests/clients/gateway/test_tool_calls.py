"""Tool calls are found in text, however it is cut."""

import json
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clients.gateway.tool_calls import Arguments, Called, CallReader, Piece, Said
from clients.gateway.tool_formats import FORMATS, HERMES, LLAMA, MISTRAL, MISTRAL_NAMED, Format

NAMES = ("weather", "time")
ONE = '{"name": "weather", "arguments": {"city": "Rome }\\" {", "days": [1, {"x": null}]}}'
ROME = '{"city": "Rome }\\" {", "days": [1, {"x": null}]}'


def read(way: Format, *texts: str) -> tuple[str, list[tuple[str, str]]]:
    """Content, and (name, arguments) of each call."""
    reader = CallReader(way, NAMES)
    pieces = [piece for text in texts for piece in reader.feed(text)] + reader.close()
    calls = [(piece.name, "".join(_arguments(pieces, piece.index))) for piece in pieces if isinstance(piece, Called)]
    assert reader.calls == len(calls)
    _check_order(pieces)
    return "".join(piece.text for piece in pieces if isinstance(piece, Said)), calls


def _arguments(pieces: Sequence[Piece], index: int) -> list[str]:
    return [piece.text for piece in pieces if isinstance(piece, Arguments) and piece.index == index]


def _check_order(pieces: Sequence[Piece]) -> None:
    """Calls count from 0; arguments follow the beginning of their own call."""
    begun = -1
    for piece in pieces:
        if isinstance(piece, Called):
            begun += 1
        assert isinstance(piece, Said) or piece.index == begun


@pytest.mark.parametrize(
    ("way", "text", "content", "calls"),
    [
        (HERMES, "just text, a < b", "just text, a < b", []),
        (HERMES, f"<tool_call>\n{ONE}\n</tool_call>", "", [("weather", ROME)]),
        (HERMES, f"Let me see.\n<tool_call>{ONE}</tool_call>\n", "Let me see.", [("weather", ROME)]),
        (HERMES, f"<tool_call>{ONE}</tool_call>\n<tool_call>{ONE}</tool_call> so", " so", [("weather", ROME)] * 2),
        (HERMES, f"<tool_call>{ONE}", "", [("weather", ROME)]),
        (HERMES, '<tool_call>{"arguments": {"a": 1}, "name": "time"}</tool_call>', "", [("time", '{"a": 1}')]),
        (HERMES, '<tool_call>{"name": "time"}</tool_call>', "", [("time", "{}")]),
        (HERMES, '<tool_call>{"name": "time", "arguments": null}</tool_call>', "", [("time", "{}")]),
        (HERMES, '<tool_call>{"name": "time", "arguments": "{\\"a\\": 1}"}</tool_call>', "", [("time", '{"a": 1}')]),
        (HERMES, '<tool_call>{"name": "time", "arguments": {"a": "cut', "", [("time", '{"a": "cut')]),
        (HERMES, "<tool_call>no call</tool_call>", "<tool_call>no call</tool_call>", []),
        (HERMES, '<tool_call>{"city": 1}</tool_call> x', '<tool_call>{"city": 1}</tool_call> x', []),
        (HERMES, "a <tool_cal", "a <tool_cal", []),
        (HERMES, f"<tool_call>{ONE}\n</tool> so", "\n</tool> so", [("weather", ROME)]),
        (HERMES, "  \n two  \n", "  \n two  \n", []),
        (LLAMA, '{"name": "time", "parameters": {"a": 1}}', "", [("time", '{"a": 1}')]),
        (LLAMA, ' <|python_tag|>{"type": "function", "name": "time", "parameters": {}}', "", [("time", "{}")]),
        (LLAMA, '{"name": "time", "parameters": {}}; {"name": "weather", "parameters": {}}', "", None),
        (LLAMA, '{"name": "Bob", "age": 3}', '{"name": "Bob", "age": 3}', []),
        (LLAMA, '{"city": {"name": "time"}}', '{"city": {"name": "time"}}', []),
        (LLAMA, 'So: {"name": "time", "parameters": {}}', 'So: {"name": "time", "parameters": {}}', []),
        (LLAMA, "Hello\n there ", "Hello\n there ", []),
        (MISTRAL, f"[TOOL_CALLS] [{ONE}, {ONE}]", "", [("weather", ROME)] * 2),
        (MISTRAL, f"Well [1]. [TOOL_CALLS][{ONE}]", "Well [1].", [("weather", ROME)]),
        (MISTRAL, "[TOOL_CALLS][1]", "[TOOL_CALLS][1]", []),
        (MISTRAL_NAMED, '[TOOL_CALLS]time[ARGS]{"a": 1}', "", [("time", '{"a": 1}')]),
        (MISTRAL_NAMED, '[TOOL_CALLS]time{"a": 1}[TOOL_CALLS]weather[CALL_ID]abc[ARGS]{}', "", None),
        (MISTRAL_NAMED, "[TOOL_CALLS]nothing", "[TOOL_CALLS]nothing", []),
    ],
)
def test_calls_are_found(way: Format, text: str, content: str, calls: list[tuple[str, str]] | None) -> None:
    found = read(way, text)
    assert found[0] == content
    assert [name for name, _ in found[1]] == ["time", "weather"] if calls is None else found[1] == calls


FRAGMENTS = (
    "<tool_call>", "</tool_call>", "[TOOL_CALLS]", "[ARGS]", "<|python_tag|>", '{"name": "time", ', '"arguments": ',
    '"parameters": ', "{}", '{"a": "}\\""}', "}", ONE, "[", "]", ", ", ";", " ", "\n", '"', "\\", "text", "<", "é",
)  # fmt: skip


@given(
    st.sampled_from(FORMATS),
    st.lists(st.sampled_from(FRAGMENTS) | st.text(max_size=5), max_size=12).map("".join),
    st.data(),
)
def test_any_cutting_gives_the_same(way: Format, text: str, data: st.DataObject) -> None:
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=8)))
    pieces = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    assert read(way, *pieces) == read(way, text) == read(way, *text)


@given(
    st.sampled_from(FORMATS),
    st.text(max_size=20).filter(lambda text: "[TOOL_CALLS]" not in text and "<tool" not in text),
)
def test_text_without_calls_is_unchanged(way: Format, text: str) -> None:
    assert read(way, text) == (text, [])


TEXT = st.text('ab"\\{}[]<>é\n', max_size=6)


@given(st.sampled_from(FORMATS), st.dictionaries(TEXT, TEXT | st.lists(TEXT, max_size=3), max_size=3))
def test_arguments_come_as_they_were_written(way: Format, arguments: dict[str, object]) -> None:
    written = json.dumps(arguments)
    body = f'{{"name": "time", "{way.key}": {written}}}'
    text = {
        HERMES: f"<tool_call>{body}</tool_call>",
        LLAMA: body,
        MISTRAL: f"[TOOL_CALLS][{body}]",
        MISTRAL_NAMED: f"[TOOL_CALLS]time[ARGS]{written}",
    }[way]
    assert read(way, text) == ("", [("time", written)])


def test_calls_are_told_as_they_come() -> None:
    reader = CallReader(HERMES, NAMES)
    texts = ["Well\n<tool", '_call>{"name": "ti', 'me", "argum', 'ents": {"a": "x', 'yz"}', "}</tool_call>"]
    assert [reader.feed(text) for text in texts] == [
        [Said("Well")],
        [],
        [Called(0, "time")],
        [Arguments(0, '{"a": "x')],
        [Arguments(0, 'yz"}')],
        [],
    ]
