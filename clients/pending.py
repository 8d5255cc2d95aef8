"""The outputs that one step waits for, collected from Out frames in whatever pieces they come."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from swarm.codecs import decode
from swarm.errors import WireError
from swarm.ids import RowId
from swarm.messages import Out

__all__ = ["Pending", "Wanted"]


@dataclass(frozen=True, slots=True)
class Wanted:
    """Positions `[start, stop)` of a row."""

    start: int
    stop: int


class Pending:
    """Rows in the order of the step; a position that came once is not taken again."""

    def __init__(self, wanted: Mapping[RowId, Wanted], hidden_size: int, dtype: torch.dtype) -> None:
        self._wanted = dict(wanted)
        self._hidden = hidden_size
        self._outputs = {row: torch.empty(w.stop - w.start, hidden_size, dtype=dtype) for row, w in wanted.items()}
        self._missing = {row: set(range(w.start, w.stop)) for row, w in wanted.items()}

    @property
    def done(self) -> bool:
        return not any(self._missing.values())

    def want(self, row: RowId) -> int | None:
        """The first position of `row` that is still missing."""
        return min(self._missing.get(row, ()), default=None)

    def take(self, out: Out) -> bool:
        """Store what `out` brings; returns whether anything was new. Raises WireError when it cannot be an answer."""
        hidden = decode(out.body, out.codec, self._hidden)
        if hidden.shape[0] != sum(row.n for row in out.rows):
            raise WireError(f"{hidden.shape[0]} outputs came where {sum(row.n for row in out.rows)} were announced")
        if not bool(torch.isfinite(hidden).all()):
            raise WireError("outputs that are not finite numbers came")
        offset, fresh = 0, False
        for entry in out.rows:
            piece = hidden[offset : offset + entry.n]
            offset += entry.n
            fresh |= self._store(entry.row, entry.at, piece)
        return fresh

    def _store(self, row: RowId, at: int, piece: Tensor) -> bool:
        wanted = self._wanted.get(row)
        if wanted is None:
            return False  # an answer to an earlier step, sent again
        if at + len(piece) > wanted.stop:
            raise WireError(f"outputs came for positions up to {at + len(piece)} of a row that has {wanted.stop}")
        new = sorted(self._missing[row].intersection(range(at, at + len(piece))))
        if new:
            positions = torch.tensor(new)
            self._outputs[row][positions - wanted.start] = piece[positions - at].to(self._outputs[row].dtype)
            self._missing[row].difference_update(new)
        return bool(new)

    def result(self) -> Tensor:
        """[all wanted positions, hidden], rows in the order of the step."""
        return torch.cat(list(self._outputs.values())) if self._outputs else torch.empty(0, self._hidden)
