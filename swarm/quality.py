"""How well a model predicts a text: what a change of precision costs, in one figure."""

import math
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

__all__ = ["perplexity", "prose"]


def prose() -> str:
    """About 2 000 tokens of English that no model has been trained on: a story, facts, a recipe and a letter."""
    return Path(__file__).with_name("prose.txt").read_text("utf-8")


@torch.no_grad()
def perplexity(logits_of: Callable[[Tensor], Tensor], tokens: Tensor, *, window: int = 512) -> float:
    """Of `tokens` `[n]`, each predicted from those before it in its window.

    `logits_of`: int64 `[t]` with t up to `window` -> `[t, vocabulary]`. Raises ValueError for fewer than two tokens.
    """
    if len(tokens) < 2 or window < 2:
        raise ValueError(f"{len(tokens)} tokens in windows of {window} leave nothing to predict")
    loss, count = 0.0, 0
    for start in range(0, len(tokens) - 1, window - 1):  # the last of a window is the first of the next
        part = tokens[start : start + window]
        logits = logits_of(part)[:-1].float()
        loss += float(cross_entropy(logits, part[1:].to(logits.device), reduction="sum"))
        count += len(part) - 1
    return math.exp(loss / count)
