"""What single tokens stand for."""

from tokenizers import Tokenizer, decoders
from tokenizers.models import BPE, WordLevel
from transformers import PreTrainedTokenizerFast

from clients.gateway.token_texts import TokenTexts
from tests.clients.gateway.bytes_tokenizer import END, bytes_tokenizer


def test_byte_level_tokens_are_their_bytes() -> None:
    tokenizer = bytes_tokenizer()
    texts = TokenTexts(tokenizer)
    assert b"".join(map(texts.of, tokenizer.encode("é 😀"))) == "é 😀".encode()
    assert texts.text(tokenizer.encode("é")[0]) == "\N{REPLACEMENT CHARACTER}"
    assert texts.text(END) == "<|im_end|>"


def test_added_tokens_are_what_they_are_called() -> None:
    tokenizer = bytes_tokenizer()
    tokenizer.add_tokens(["<｜end｜>"])
    assert TokenTexts(tokenizer).text(len(tokenizer) - 1) == "<｜end｜>"


def test_tokens_of_sentencepiece_have_their_spaces_and_bytes() -> None:
    tokenizer = Tokenizer(BPE(vocab={"<unk>": 0, "▁Hello": 1, "<0xE2>": 2, "a": 3}, merges=[], byte_fallback=True))
    tokenizer.decoder = decoders.Sequence(  # type: ignore[assignment]
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    texts = TokenTexts(PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>"))
    assert [texts.of(token) for token in (1, 2, 3)] == [b" Hello", b"\xe2", b"a"]


def test_tokens_of_other_kinds_are_what_they_decode_to() -> None:
    tokenizer = Tokenizer(WordLevel({"<unk>": 0, "one": 1}, unk_token="<unk>"))
    assert TokenTexts(PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>")).of(1) == b"one"


def test_a_row_of_the_head_that_no_token_has_is_nothing() -> None:
    assert TokenTexts(bytes_tokenizer()).of(100_000) == b""
