"""Rows whose answers are complete and which peers still have, so that a prompt that begins alike goes on from there."""

from collections.abc import Iterable, Sequence

from clients.completion.limits import Limits
from clients.completion.rows import Row

__all__ = ["Kept", "common"]

STRIDE = 64  # tokens that are compared at once


class Kept:
    """Within a lane's budgets of rows, tokens and seconds; the longest unused goes first. Other threads may look at
    `rows`, which is never changed in place."""

    def __init__(self, limits: Limits) -> None:
        self.rows: tuple[Row, ...] = ()  # the longest unused first
        self._limits = limits

    @property
    def tokens(self) -> int:
        return sum(row.own for row in self.rows)

    def add(self, row: Row, now: float) -> None:
        """`row` has nothing to compute any more, or was used again. Rows that it begins with are of no more use."""
        row.used = now
        tokens = row.tokens[: row.done]
        self.rows = (*(other for other in self.rows if common(tokens, other) < other.done), row)

    def take(self, row: Row) -> None:
        """Somebody goes on with it."""
        self.rows = tuple(other for other in self.rows if other is not row)

    def keep_only(self, rows: Iterable[Row]) -> None:
        kept = set(rows)
        self.rows = tuple(row for row in self.rows if row in kept)

    def forget_oldest(self) -> bool:
        """False when there is none."""
        had, self.rows = bool(self.rows), self.rows[1:]
        return had

    def shrink(self, now: float) -> bool:
        """Forget what is beyond the budgets; returns whether there was something."""
        before, tokens = len(self.rows), self.tokens
        oldest = now - self._limits.kept_seconds
        while self.rows and (
            self.rows[0].used < oldest or len(self.rows) > self._limits.kept_rows or tokens > self._limits.kept_tokens
        ):
            tokens -= self.rows[0].own
            self.rows = self.rows[1:]
        return len(self.rows) < before


def common(tokens: Sequence[int], row: Row) -> int:
    """How many of the first `tokens` are those that peers have of `row`. Any thread may ask."""
    most, at = min(len(tokens), row.done), 0
    known = row.tokens
    while at < most and tokens[at : at + STRIDE] == known[at : at + STRIDE] and at + STRIDE <= most:
        at += STRIDE
    while at < most and tokens[at] == known[at]:
        at += 1
    return at
