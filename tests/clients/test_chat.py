"""Text that comes token by token."""

from hypothesis import example, given
from hypothesis import strategies as st
from tokenizers import Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.decoders import Fuse, Replace, Sequence, Strip
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from transformers import PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import bytes_to_unicode

from clients.chat import MOST_HELD, TextStream

SPECIAL = 256
WORDS = (b" hello", b"\xa9\xe2", b"\xac\xff", b"\xe2\x82", b"\x9f\x98\x80x")  # some begin or end within a character


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """Ids are bytes, then one special token, then `WORDS`."""
    characters = bytes_to_unicode()
    words = ["".join(characters[byte] for byte in word) for word in WORDS]
    names = [*(characters[byte] for byte in range(SPECIAL)), "<|end|>", *words]
    tokenizer = Tokenizer(BPE(vocab={name: at for at, name in enumerate(names)}, merges=[]))
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False)  # type: ignore[assignment]
    tokenizer.decoder = ByteLevelDecoder()  # type: ignore[assignment]
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|end|>")


TOKENIZER = byte_tokenizer()
ANY_TOKENS = st.lists(st.integers(0, len(TOKENIZER) - 1), max_size=80)
BROKEN = st.lists(st.sampled_from([0xE2, 0x82, 0xAC, 0xFF, 0xF0, *range(SPECIAL, len(TOKENIZER))]), max_size=80)


def pieces(tokens: list[int]) -> list[str]:
    stream = TextStream(TOKENIZER)
    return [stream.push(token) for token in tokens] + [stream.end()]


@given(ANY_TOKENS | BROKEN)
def test_pieces_joined_are_the_text_of_all_tokens(tokens: list[int]) -> None:
    assert "".join(pieces(tokens)) == TOKENIZER.decode(tokens, skip_special_tokens=True)


@given(st.text(max_size=30))
def test_half_a_character_is_never_shown(text: str) -> None:
    tokens = list(text.encode())
    shown = pieces(tokens)
    assert "".join(shown) == text
    assert all(piece in text for piece in shown)
    assert all(len(piece) <= 1 for piece in shown) or "\N{REPLACEMENT CHARACTER}" in text


def test_bytes_that_are_no_text_are_shown_after_a_while() -> None:
    assert "".join(pieces([0xFF] * MOST_HELD)[:-1])


def test_special_tokens_without_end_are_not_kept() -> None:
    stream = TextStream(TOKENIZER)
    for _ in range(10 * MOST_HELD):
        assert stream.push(SPECIAL) == ""
    assert stream.push(ord("a")) == "a"


def spaced_tokenizer() -> PreTrainedTokenizerFast:
    """As SentencePiece has it: a space is part of the word behind it, and a text's first one is not shown."""
    tokenizer = Tokenizer(BPE(vocab={"<|end|>": 0, "▁one": 1, "▁two": 2, "s": 3}, merges=[]))
    tokenizer.decoder = Sequence([Replace("▁", " "), Fuse(), Strip(" ", 1, 0)])  # type: ignore[assignment]
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|end|>")


@given(st.lists(st.integers(0, 3), max_size=12))
@example([1] + [0] * MOST_HELD + [2])
def test_spaces_are_those_of_the_whole_text(tokens: list[int]) -> None:
    tokenizer = spaced_tokenizer()
    stream = TextStream(tokenizer)
    shown = "".join([stream.push(token) for token in tokens] + [stream.end()])
    assert shown == tokenizer.decode(tokens, skip_special_tokens=True)


def test_a_text_that_goes_on_from_another_keeps_its_first_space() -> None:
    assert TextStream(spaced_tokenizer()).push(2) == "two"
    assert TextStream(spaced_tokenizer(), before=[1, 3]).push(2) == " two"
