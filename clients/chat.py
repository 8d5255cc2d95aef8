"""From what a person types to token ids, and from token ids to what a person reads."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from swarm.errors import UsageError

__all__ = ["TextStream", "encode_chat", "encode_text"]

Tokenizer = Any  # transformers' tokenizers share no type that says what we use


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
    """Text as tokens come: a character is shown when it is whole."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._ids: list[int] = []
        self._shown = 0

    def push(self, token: int) -> str:
        """What `token` adds to the text; empty while a character is incomplete."""
        self._ids.append(token)
        text: str = self._tokenizer.decode(self._ids, skip_special_tokens=True)
        if text.endswith("\N{REPLACEMENT CHARACTER}"):
            return ""
        new, self._shown = text[self._shown :], len(text)
        if text.endswith("\n"):
            self._ids, self._shown = [], 0  # so that a long answer is not decoded again and again
        return new
