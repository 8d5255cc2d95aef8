"""What a peer has done since it began, and how fast it is now, from what its executors tell.

An executor counts from zero when it is started again; here the count goes on. What one had counted after it last spoke
is lost with it, a second's worth.
"""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

from peers.executor_settings import ExecutorStats

__all__ = ["Counts", "Gauge"]

KEPT_SECONDS = 60.0
NOW_SECONDS = 5.0  # over which what goes on now is averaged: stats come about every second, not quite evenly


@dataclass(frozen=True, slots=True)
class Counts:
    """`tokens`: that went through the span for others: computed, known already, or learned from. `rows`: in batches,
    as EngineStats.rows_done."""

    tokens: int = 0
    sessions: int = 0
    batches: int = 0
    rows: int = 0
    busy: float = 0.0  # seconds

    @classmethod
    def of(cls, stats: ExecutorStats) -> "Counts":
        engine = stats.engine
        tokens = engine.tokens_done + engine.tokens_shared + engine.tokens_trained
        return cls(tokens, engine.sessions_opened, engine.batches, engine.rows_done, engine.busy_seconds)

    def __add__(self, other: "Counts") -> "Counts":
        return Counts(
            self.tokens + other.tokens,
            self.sessions + other.sessions,
            self.batches + other.batches,
            self.rows + other.rows,
            self.busy + other.busy,
        )


class Gauge:
    def __init__(self) -> None:
        self._before = Counts()  # by executors that are gone
        self._latest = Counts()  # by this one
        self._pid = 0
        self._samples: deque[tuple[float, Counts]] = deque()

    @property
    def counts(self) -> Counts:
        """Since the peer began."""
        return self._before + self._latest

    def note(self, stats: ExecutorStats, now: float) -> None:
        """`now`: seconds that only grow."""
        if stats.pid:  # else it has not spoken yet
            if stats.pid != self._pid:
                self._before, self._pid = self.counts, stats.pid
            self._latest = Counts.of(stats)
        self._samples.append((now, self.counts))
        while self._samples[0][0] < now - KEPT_SECONDS:
            self._samples.popleft()

    @property
    def rate(self) -> float:
        """Tokens per second, now."""
        seconds, change = self._lately()
        return change.tokens / seconds if seconds else 0.0

    @property
    def batch(self) -> float | None:
        """Rows in a batch, now; None while nothing is computed."""
        _, change = self._lately()
        return change.rows / change.batches if change.batches else None

    @property
    def busy(self) -> float:
        """The share of time that batches take, now; 0 to 1."""
        seconds, change = self._lately()
        return min(1.0, change.busy / seconds) if seconds else 0.0

    @property
    def history(self) -> tuple[float, ...]:
        """Tokens per second between the samples of the last minute, oldest first."""
        return tuple(self._rates())

    def _rates(self) -> Iterator[float]:
        for (before, old), (after, new) in pairwise(self._samples):
            if after > before:
                yield (new.tokens - old.tokens) / (after - before)

    def _lately(self) -> tuple[float, Counts]:
        """How many seconds, and what was done in them."""
        if not self._samples:
            return 0.0, Counts()
        now, new = self._samples[-1]
        then, old = next((at, counts) for at, counts in self._samples if at >= now - NOW_SECONDS)
        negative = Counts(-old.tokens, -old.sessions, -old.batches, -old.rows, -old.busy)
        return now - then, new + negative
