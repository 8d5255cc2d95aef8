"""Lines of a log that a stranger could have written without end: one now and then, and how many were left out."""

import logging
from collections.abc import Callable

__all__ = ["Seldom"]


class Seldom:
    """`every`: seconds between two lines; `clock`: seconds that only grow."""

    def __init__(self, logger: logging.Logger, clock: Callable[[], float], every: float = 10.0) -> None:
        self._logger = logger
        self._clock = clock
        self._every = every
        self._next: float | None = None
        self._left_out = 0

    def warning(self, text: str, *values: object) -> None:
        now = self._clock()
        if self._next is not None and now < self._next:
            self._left_out += 1
            return
        more = f" (and {self._left_out} such events before)" if self._left_out else ""
        self._logger.warning(text + "%s", *values, more)
        self._next, self._left_out = now + self._every, 0
