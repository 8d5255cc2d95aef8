"""Answers whose peers fail on the way: who fails when is drawn, and three remedies go on from there."""

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import pairwise
from statistics import median
from typing import Protocol

import torch
from torch import Tensor
from transformers.generation.streamers import BaseStreamer

__all__ = ["Dice", "Outcome", "Remedy", "Stage", "answer"]


class Remedy(StrEnum):
    """What becomes of an answer when a hop fails."""

    OURS = "ours"  # the session mends itself
    REPLAY = "replay"  # a new session is sent all tokens so far as one prompt
    RESTART = "restart"  # a new session, from the prompt on


class Stage(Protocol):
    """The swarm that answers, and how its peers are made to fail."""

    @property
    def hops(self) -> int: ...

    def generate(self, prompt: Tensor, new_tokens: int, streamer: BaseStreamer) -> None:
        """`new_tokens` after `prompt` [1, n], greedily, in a new session."""

    def fail(self, places: Sequence[int]) -> None:
        """The peers at these places of the session's chain lose whatever they hold."""


class Dice:
    """Before a step, each hop fails with `probability`; equal seeds fail alike."""

    def __init__(self, probability: float, seed: str) -> None:
        self._probability = probability
        self._draw = random.Random(seed)

    def failing(self, hops: int) -> list[int]:
        return [place for place in range(hops) if self._draw.random() < self._probability]


@dataclass(frozen=True, slots=True)
class Outcome:
    """`seconds`: from asking to the last token, or until it was given up; `tokens`: of the furthest attempt.

    `failures`: hops that failed. `step`: seconds of the median token; `recoveries`: what each that followed a failure
    took beyond it; none are told where answers are begun anew."""

    seconds: float
    tokens: tuple[int, ...]
    wanted: int
    failures: int
    step: float
    recoveries: tuple[float, ...]

    @property
    def rate(self) -> float | None:
        """Tokens of the whole answer per second; None when it was given up."""
        return self.wanted / self.seconds if len(self.tokens) == self.wanted else None


def answer(stage: Stage, remedy: Remedy, prompt: Tensor, new_tokens: int, dice: Dice, limit: float) -> Outcome:
    """The greedy answer to `prompt` [1, n]; given up `limit` seconds after it was begun."""
    run = _Run(stage, remedy, new_tokens, dice, limit)
    furthest: tuple[int, ...] = ()
    over = False
    while not over:
        so_far = torch.cat([prompt, torch.tensor([run.tokens], dtype=prompt.dtype)], dim=1)
        try:
            stage.generate(so_far, new_tokens - len(run.tokens), _Stream(run.take))
            over = True
        except _Failed:
            furthest = max(furthest, tuple(run.tokens), key=len)
            if remedy is Remedy.RESTART:
                run.forget()
        except _TimeIsUp:
            over = True
    furthest = max(furthest, tuple(run.tokens), key=len)
    return run.outcome(furthest)


class _Failed(Exception):
    """A peer has failed, and this remedy ends the session."""


class _TimeIsUp(Exception):
    pass


@dataclass
class _Run:
    """One answer on its way, through all its sessions."""

    stage: Stage
    remedy: Remedy
    wanted: int
    dice: Dice
    limit: float
    begun: float = field(default_factory=time.perf_counter)
    at: list[float] = field(default_factory=list)  # when tokens came, those that were forgotten among them
    tokens: list[int] = field(default_factory=list)
    failures: int = 0
    after_failure: list[int] = field(default_factory=list)  # places in `at` of the tokens that follow one

    def take(self, tokens: Sequence[int]) -> None:
        """The next have come: the moment before the next step. Raises what ends the session."""
        now = time.perf_counter()
        self.at += [now] * len(tokens)
        self.tokens += tokens
        if len(self.tokens) >= self.wanted:
            return
        if now > self.begun + self.limit:
            raise _TimeIsUp
        failing = self.dice.failing(self.stage.hops)
        if failing:
            self.failures += len(failing)
            self.after_failure.append(len(self.at))
            self.stage.fail(failing)
            if self.remedy is not Remedy.OURS:
                raise _Failed

    def forget(self) -> None:
        self.tokens.clear()

    def outcome(self, furthest: tuple[int, ...]) -> Outcome:
        gaps = [later - one for one, later in pairwise([self.begun, *self.at])]
        step = median(gaps[1:]) if len(gaps) > 1 else 0.0
        told = self.after_failure if self.remedy is not Remedy.RESTART else ()
        recoveries = tuple(gaps[place] - step for place in told if place < len(gaps))
        end = self.at[-1] if len(furthest) == self.wanted else time.perf_counter()
        return Outcome(end - self.begun, furthest, self.wanted, self.failures, step, recoveries)


class _Stream(BaseStreamer):
    """Tells of every token; the first thing that `generate` puts is the prompt."""

    def __init__(self, take: Callable[[Sequence[int]], None]) -> None:
        self._take = take
        self._begun = False

    def put(self, value: Tensor) -> None:
        if self._begun:
            self._take(value.flatten().tolist())
        self._begun = True

    def end(self) -> None:
        pass
