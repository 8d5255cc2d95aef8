"""Where the time of a token goes, from what sessions tell their observer."""

import statistics
import threading
from collections.abc import Sequence
from dataclasses import dataclass

from clients.bench.answers import Answer
from clients.events import Event, Step

__all__ = ["Profile", "StepLog"]


@dataclass(frozen=True, slots=True)
class Profile:
    """Medians over the steps that decode; ms. `network` is what is left of a step, `client` what is left of a token:
    head, sampling, embedding, and with several sessions the wait for each other."""

    whole: float
    compute: float
    queue: float
    network: float
    client: float

    @classmethod
    def of(cls, steps: Sequence[Step], answers: Sequence[Answer]) -> "Profile":
        """Of the steps of `answers`."""
        compute = statistics.median(sum(c for _, c in step.trace) for step in steps)
        queue = statistics.median(sum(q for q, _ in step.trace) for step in steps)
        step_ms = statistics.median(step.seconds * 1000 for step in steps)
        gaps = [later - one for answer in answers for one, later in zip(answer.at, answer.at[1:], strict=False)]
        token_ms = statistics.median(gaps) * 1000
        return cls(token_ms, compute, queue, step_ms - compute - queue, token_ms - step_ms)


class StepLog:
    """An observer that keeps the steps of its time; on any thread."""

    def __init__(self) -> None:
        self._steps: list[Step] = []
        self._lock = threading.Lock()

    def hear(self, event: Event) -> None:
        if isinstance(event, Step):
            with self._lock:
                self._steps.append(event)

    def clear(self) -> None:
        with self._lock:
            self._steps = []

    def decoding(self, most: int) -> list[Step]:
        """The steps of at most `most` tokens since `clear`: those that decode, when prompts are longer."""
        with self._lock:
            return [step for step in self._steps if step.tokens <= most]
