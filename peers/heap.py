"""Returning memory: what long prompts and trainers took for a while does not stay with the process for good."""

from collections.abc import Callable

from swarm.layout import give_back_memory

__all__ = ["Heap"]

SECONDS = 60.0  # between two times: it takes milliseconds, and what is used again has to be fetched again


class Heap:
    """`look` now and then; `used` says that something was computed since."""

    def __init__(self, clock: Callable[[], float], give_back: Callable[[], None] = give_back_memory) -> None:
        self._clock = clock
        self._give_back = give_back
        self._due = clock() + SECONDS
        self._used = False

    def used(self) -> None:
        self._used = True

    def look(self) -> None:
        if self._used and self._clock() >= self._due:
            self._give_back()
            self._due, self._used = self._clock() + SECONDS, False
