"""Text that comes token by token."""

from hypothesis import given
from hypothesis import strategies as st

from clients.chat import MOST_HELD, TextStream
from tests.clients.gateway.texts import byte_tokenizer

TOKENIZER = byte_tokenizer()
ANY_TOKENS = st.lists(st.integers(0, len(TOKENIZER) - 1), max_size=80)
BROKEN_BYTES = st.lists(st.sampled_from([3 + 0xE2, 3 + 0x82, 3 + 0xAC, 3 + 0xFF, 3 + 0xF0]), max_size=80)


def pieces(tokens: list[int]) -> list[str]:
    stream = TextStream(TOKENIZER)
    return [stream.push(token) for token in tokens] + [stream.end()]


@given(ANY_TOKENS | BROKEN_BYTES)
def test_pieces_joined_are_the_text_of_all_tokens(tokens: list[int]) -> None:
    assert "".join(pieces(tokens)) == TOKENIZER.decode(tokens, skip_special_tokens=True)


@given(st.text(max_size=30))
def test_half_a_character_is_never_shown(text: str) -> None:
    tokens = [3 + byte for byte in text.encode()]
    shown = pieces(tokens)
    assert "".join(shown) == text
    assert all(piece in text for piece in shown)
    assert all(len(piece) <= 1 for piece in shown) or "\N{REPLACEMENT CHARACTER}" in text


def test_bytes_that_are_no_text_are_shown_after_a_while() -> None:
    assert "".join(pieces([3 + 0xFF] * MOST_HELD)[:-1])


def test_special_tokens_without_end_are_not_kept() -> None:
    stream = TextStream(TOKENIZER)
    for _ in range(10 * MOST_HELD):
        assert stream.push(1) == ""
    assert stream.push(3 + ord("a")) == "a"
