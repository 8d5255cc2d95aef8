"""A Step while it is computed: its new tokens, handed out piece by piece."""

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from swarm.ids import RowId
from swarm.messages import HiddenStates, StepRow

__all__ = ["Passed", "Piece", "Work", "pick"]

MAX_TRACE = 256  # hops that a frame may tell of


@dataclass(frozen=True, slots=True)
class Passed:
    """What the hops that tokens have passed say of themselves: (queue ms, compute ms), and the tokens at the peer,
    None of one that does not say."""

    trace: tuple[tuple[float, float], ...] = ()
    depths: tuple[int | None, ...] = ()

    @classmethod
    def by(cls, message: HiddenStates) -> "Passed":
        return cls(message.trace, message.depths)

    def then(self, queue_ms: float, compute_ms: float, depth: int) -> "Passed":
        """And one more hop."""
        silent = (None,) * (len(self.trace) - len(self.depths))
        trace, depths = (*self.trace, (queue_ms, compute_ms)), (*self.depths, *silent, depth)
        return Passed(trace[-MAX_TRACE:], depths[-MAX_TRACE:])


@dataclass(frozen=True, slots=True)
class Piece:
    """Some rows and their hidden states `[sum n, hidden]`; tokens of one row lie in one entry."""

    rows: tuple[StepRow, ...]
    hidden: Tensor


class Work:
    def __init__(self, rows: Sequence[StepRow], hidden: Tensor, arrived: float, passed: Passed) -> None:
        """`hidden`: `[sum n, hidden]`, row after row; `arrived`: seconds, when the step came in."""
        self.arrived = arrived
        self.passed = passed
        self._rows = deque(rows)
        self._hidden = hidden

    @property
    def tokens(self) -> int:
        """How many are left."""
        return len(self._hidden)

    @property
    def longest(self) -> int:
        """The most tokens that are left of one row."""
        return max((row.n for row in self._rows), default=0)

    @property
    def rows(self) -> tuple[StepRow, ...]:
        """What is left of every row."""
        return tuple(self._rows)

    def skip(self, done: Mapping[RowId, int]) -> None:
        """So many of the next tokens of these rows need not be computed."""
        rows: list[StepRow] = []
        parts: list[slice] = []
        begin = 0
        for row in self._rows:
            skipped = done.get(row.row, 0)
            if skipped < row.n:
                rows.append(replace(row, at=row.at + skipped, n=row.n - skipped))
                parts.append(slice(begin + skipped, begin + row.n))
            begin += row.n
        self._rows, self._hidden = deque(rows), pick(self._hidden, parts)

    def take(self, tokens: int) -> Piece:
        """The next `tokens` tokens, or all that are left."""
        rows: list[StepRow] = []
        room = min(tokens, self.tokens)
        hidden, self._hidden = self._hidden[:room], self._hidden[room:]
        while room:
            row = self._rows.popleft()
            taken = min(row.n, room)
            rows.append(replace(row, n=taken))
            if taken < row.n:
                self._rows.appendleft(replace(row, at=row.at + taken, n=row.n - taken))
            room -= taken
        return Piece(tuple(rows), hidden)


def pick(hidden: Tensor, parts: Sequence[slice]) -> Tensor:
    """The wanted parts of `[T, hidden]`, one after another; no copy where that is one part, or all of it."""
    if not parts:
        return hidden[:0]
    if len(parts) == 1:
        return hidden[parts[0]]
    if sum(part.stop - part.start for part in parts) == len(hidden):
        return hidden
    return torch.cat([hidden[part] for part in parts])
