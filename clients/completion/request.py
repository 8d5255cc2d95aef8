"""What one user asks of a model: a prompt of token ids, and how to choose what follows it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from torch import Tensor

__all__ = ["MOST_LOGPROBS", "Constraint", "Request", "Sampling"]

MOST_LOGPROBS = 20  # alternatives that can be asked for beside each token


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How tokens are chosen. The neutral value of each field is its default."""

    temperature: float = 1.0  # 0: always the likeliest
    top_p: float = 1.0
    top_k: int = 0  # 0: all
    min_p: float = 0.0
    presence_penalty: float = 0.0  # subtracted once from what the answer already has
    frequency_penalty: float = 0.0  # subtracted for each time that the answer has it
    repetition_penalty: float = 1.0  # the library's: over prompt and answer
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    seed: int | None = None  # the same seed, request and weights give the same tokens, whoever else is served


class Constraint(Protocol):
    """What may come next in one choice, such as the state of a grammar. Used by one thread at a time."""

    def mask(self, logits: Tensor) -> None:
        """Sets `logits` [vocab] of what may not come next to -inf."""

    def accept(self, token: int) -> None:
        """The choice goes on with `token`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """`choices` answers to one prompt. An answer ends with one of `stop_tokens` (which is part of it), or when it has
    `max_new_tokens`."""

    prompt: tuple[int, ...]
    max_new_tokens: int
    stop_tokens: frozenset[int] = frozenset()
    choices: int = 1
    sampling: Sampling = field(default_factory=Sampling)
    logprobs: int | None = None  # alternatives to tell beside each token's own log probability; None tells neither
    constraint: Callable[[], Constraint] | None = None  # makes one for each choice
    keep: bool = (
        True  # the rows may stay at the peers for a while, so that a prompt that begins alike goes on from them
    )
