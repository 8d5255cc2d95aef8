"""From what a person types to token ids, and from token ids to what a person reads."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from swarm.errors import UsageError

__all__ = ["TextStream", "encode_chat", "encode_text"]

Tokenizer = Any  # transformers' tokenizers share no type that says what we use

INCOMPLETE = "\N{REPLACEMENT CHARACTER}"  # what bytes decode to that are no character, or not yet
BYTES_HELD = 3  # bytes of UTF-8 that can begin a character without ending it, each perhaps a token
MOST_HELD = 16  # tokens that are kept waiting for a character to become whole


def encode_text(tokenizer: Tokenizer, text: str) -> Tensor:
    """Token ids [1, n] of plain text."""
    ids: Tensor = tokenizer(text, return_tensors="pt").input_ids
    if ids.shape[1] == 0:
        raise UsageError("the prompt is empty: give some text")
    return ids


def encode_chat(tokenizer: Tokenizer, turns: Sequence[tuple[str, str]]) -> Tensor:
    """Token ids [1, n] of a chat, given as (role, content), up to where the answer begins; plain text where the model
    has no chat template."""
    if not tokenizer.chat_template:
        return encode_text(tokenizer, turns[-1][1])
    messages = [{"role": role, "content": content} for role, content in turns]
    encoded = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True, return_tensors="pt")
    ids: Tensor = encoded["input_ids"]
    return ids


class TextStream:
    """Text as tokens come: a character is shown when it is whole. The pieces joined are the text of all tokens decoded
    at once, and each token costs as much as the few before it, however long the answer is."""

    def __init__(self, tokenizer: Tokenizer, *, skip_special_tokens: bool = True, before: Sequence[int] = ()) -> None:
        """The text goes on from that of the tokens `before` it, which is not shown: some tokenizers leave out a space
        at the begin of a text."""
        self._tokenizer = tokenizer
        self._skip_special_tokens = skip_special_tokens
        whole = not self._decode(list(before)).endswith(INCOMPLETE)
        self._before = list(before) if whole else []  # the last that were shown: what follows may depend on them
        self._ids: list[int] = []  # those not shown yet

    def push(self, token: int) -> str:
        """What `token` adds to the text; empty while a character is incomplete."""
        self._ids.append(token)
        text = self._text(self._ids)
        if len(self._ids) >= MOST_HELD:
            return self._show_some(text)
        if not text or text.endswith(INCOMPLETE):
            return ""
        return self._show(len(self._ids), text)

    def end(self) -> str:
        """What is left when no more tokens come: a character that stays incomplete."""
        return self._show(len(self._ids), self._text(self._ids))

    def _text(self, ids: list[int]) -> str:
        """What `ids` add to those before them."""
        return self._decode(self._before + ids)[len(self._decode(self._before)) :]

    def _decode(self, ids: list[int]) -> str:
        if not ids:
            return ""
        text: str = self._tokenizer.decode(
            ids, skip_special_tokens=self._skip_special_tokens, clean_up_tokenization_spaces=False
        )
        return text

    def _show(self, count: int, text: str) -> str:
        if text:  # what shows nothing, such as special tokens, says nothing of what follows either
            self._before = self._ids[:count]
        self._ids = self._ids[count:]
        return text

    def _show_some(self, whole: str) -> str:
        """Many tokens without a whole character at their end: bytes that are no text, or tokens that show nothing. A
        character may still begin in the last ones, so the cut is where both sides read as they do together."""
        for held in range(BYTES_HELD, len(self._ids)):
            text = self._text(self._ids[:-held])
            if text + self._decode(self._ids[-held:]) == whole:
                return self._show(len(self._ids) - held, text)
        return self._show(len(self._ids), whole)
