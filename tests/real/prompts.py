"""Prompts of natural text and any length, and how two models' answers are compared."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import BatchEncoding, PreTrainedTokenizerBase, set_seed

__all__ = ["Text", "answers", "options"]

LICENSE = Path(__file__).parents[2] / "LICENSE"


class Text:
    """A long text as tokens; prompts are pieces of it."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self.ids: list[int] = tokenizer(LICENSE.read_text())["input_ids"]

    def prompt(self, length: int, start: int = 0) -> dict[str, Tensor]:
        return {"input_ids": torch.tensor([self.piece(length, start)]), "attention_mask": torch.ones(1, length).long()}

    def batch(self, lengths: Sequence[int], start: int = 0) -> dict[str, Tensor]:
        """Rows of different lengths, padded on the left."""
        rows = [self.piece(length, start + 97 * index) for index, length in enumerate(lengths)]
        padded: BatchEncoding = self._tokenizer.pad(
            {"input_ids": rows}, padding=True, padding_side="left", return_tensors="pt"
        )
        return {"input_ids": padded["input_ids"], "attention_mask": padded["attention_mask"]}

    def piece(self, length: int, start: int = 0) -> list[int]:
        assert length <= len(self.ids)
        return [self.ids[(start + offset) % len(self.ids)] for offset in range(length)]


def options(mode: str, tokens: int) -> dict[str, Any]:
    """Options of `generate` for exactly `tokens` new ones: greedy, sampling or beams."""
    modes: dict[str, dict[str, Any]] = {
        "greedy": {"do_sample": False},
        "sampling": {"do_sample": True, "temperature": 0.9, "top_k": 0, "top_p": 0.95},
        "beams": {"do_sample": False, "num_beams": 3},
    }
    return {**modes[mode], "max_new_tokens": tokens, "min_new_tokens": tokens}


def answers(model: Any, prompt: dict[str, Tensor], seed: int = 7, **options: Any) -> list[list[int]]:
    """New tokens of every row; sampling begins at the same random state each time."""
    set_seed(seed)
    output = model.generate(**prompt, **options)
    new: list[list[int]] = output[:, prompt["input_ids"].shape[1] :].tolist()
    return new
