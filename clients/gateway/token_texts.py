"""What single tokens stand for, as the log probabilities of an answer name them: often not whole characters."""

import json
import re
from functools import cache
from typing import Any

from transformers.convert_slow_tokenizer import bytes_to_unicode

from clients.chat import Tokenizer

__all__ = ["LEAST_LOGPROB", "TokenTexts"]

LEAST_LOGPROB = -9999.0  # is told for what can't be: JSON has no infinity

_BYTE = re.compile(r"<0x([0-9A-F]{2})>")
_SPACE = "▁"  # as SentencePiece writes it


class TokenTexts:
    """The bytes of each token of a tokenizer."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._decoders = _decoders(tokenizer)
        self._added = tokenizer.added_tokens_decoder

    def of(self, token: int) -> bytes:
        if token in self._added:
            return str(self._added[token]).encode()
        name: str | None = self._tokenizer.convert_ids_to_tokens(token)
        if name is None:  # a row of the head that the tokenizer does not know
            return b""
        if "ByteLevel" in self._decoders:
            return bytes(_bytes_of_characters()[character] for character in name)
        if "ByteFallback" in self._decoders and (byte := _BYTE.fullmatch(name)):
            return bytes([int(byte[1], 16)])
        if self._decoders & {"Metaspace", "Replace"}:
            return name.replace(_SPACE, " ").encode()
        text: str = self._tokenizer.decode([token], clean_up_tokenization_spaces=False)
        return text.encode()

    def text(self, token: int) -> str:
        """With a replacement character for what is no whole one."""
        return self.of(token).decode(errors="replace")


def _decoders(tokenizer: Tokenizer) -> frozenset[str]:
    """The kinds that the tokenizer's decoder is made of; none for a tokenizer that is not the library's fast one."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None or backend.decoder is None:
        return frozenset()
    state: dict[str, Any] = json.loads(backend.decoder.__getstate__())
    return frozenset(part["type"] for part in (state, *state.get("decoders", ())))


@cache
def _bytes_of_characters() -> dict[str, int]:
    characters: dict[int, str] = bytes_to_unicode()  # type: ignore[no-untyped-call]
    return {character: byte for byte, character in characters.items()}
