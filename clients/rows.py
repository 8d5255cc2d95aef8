"""The rows of a cache: which tokens of which session row each of them stands for.

To the library a cache has columns, padding included. A session never sees padding: each of its rows holds real tokens,
at positions that count from 0. Rows that are equal share a row of the session until their tokens differ. What copies or
cuts rows is only noted here; whoever steps next makes the session agree.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from swarm.errors import UsageError
from swarm.ids import RowId

__all__ = ["Part", "Row", "Rows"]


@dataclass(frozen=True, slots=True)
class Row:
    """The first `at` tokens of the session's row `id`; None: no tokens yet."""

    id: RowId | None = None
    at: int = 0


@dataclass(frozen=True, slots=True)
class Part:
    """What one step adds to one row of the session, on behalf of the rows in `users`."""

    row: Row
    hidden: Tensor  # [n, hidden]
    tokens: Tensor | None  # [n]
    want: int  # outputs of the last so many are wanted
    users: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.hidden)


class Rows:
    """Empty before the first step, which decides how many rows there are."""

    def __init__(self) -> None:
        self.columns = 0
        self._rows: list[Row] = []
        self._mask: Tensor | None = None  # [rows, c] bool: which of the first c columns are real; later ones all are

    def __len__(self) -> int:
        return len(self._rows)

    # --- the next columns ---

    def positions(self, batch: int, columns: int, mask: Tensor | None) -> Tensor:
        """Where the next columns stand in their rows: [batch, columns] int64, 0 for padding."""
        start = torch.tensor([row.at for row in self._all(batch)])[:, None]
        if mask is None:
            return start + torch.arange(columns)
        return (start + mask.cumsum(1) - 1).masked_fill(~mask, 0)

    def next_mask(self, attention_mask: Tensor | None, batch: int, columns: int) -> Tensor | None:
        """Which of the next columns are real: [batch, columns] bool, or None when all are.

        `attention_mask`: of these columns alone, or of all. Raises UsageError when it contradicts what is here.
        """
        if self._rows and len(self._rows) != batch:
            raise UsageError(f"the cache holds {len(self._rows)} rows, the input has {batch}")
        if attention_mask is None:
            return None
        if attention_mask.dim() != 2 or attention_mask.shape[0] != batch:
            raise UsageError(f"an attention mask is [{batch}, columns], not {list(attention_mask.shape)}")
        real = attention_mask.to("cpu", torch.bool)
        past = real.shape[1] - columns
        if past not in (0, self.columns):
            raise UsageError(
                f"the attention mask has {real.shape[1]} columns, but the cache {self.columns} and the input {columns}"
            )
        if past and real[:, :past].sum(1).tolist() != [row.at for row in self._rows]:
            raise UsageError("the attention mask shows or hides columns which the cache has otherwise")
        new = real[:, past:]
        return None if bool(new.all()) else new

    def parts(self, hidden: Tensor, tokens: Tensor | None, mask: Tensor | None, keep: int) -> list[Part]:
        """The next columns `hidden` [batch, columns, hidden] as parts, one for each row that gets real tokens, or for
        each group of equal rows that get equal tokens."""
        batch, columns = hidden.shape[:2]
        parts: dict[object, Part] = {}
        for index, row in enumerate(self._all(batch)):
            part = Part(row, hidden[index], None if tokens is None else tokens[index], keep, (index,))
            if mask is not None:
                part = _without_padding(part, mask[index], columns - keep)
            if not len(part):
                continue
            comparable = batch > 1 and part.tokens is not None
            key = (row, part.want, tuple(part.tokens.tolist())) if comparable and part.tokens is not None else index
            twin = parts.get(key)
            parts[key] = part if twin is None else replace(twin, users=(*twin.users, index))
        return list(parts.values())

    # --- what a session should have ---

    def needed(self, parts: Sequence[Part]) -> list[Row]:
        """The rows that the session needs before a step of `parts`: first the parts', then those of other users."""
        busy = {user for part in parts for user in part.users}
        idle = dict.fromkeys(row for index, row in enumerate(self._rows) if index not in busy)
        return [row for row in (*(part.row for part in parts), *idle) if row.id is not None]

    def moved(self, parts: Sequence[Part], ids: Sequence[RowId]) -> list[Part]:
        """The session now has `needed(parts)` under `ids`; returns the parts with their rows so named."""
        busy = {user for part in parts for user in part.users}
        names = iter(ids)
        renamed = [replace(part, row=_renamed(part.row, names)) for part in parts]
        idle = dict.fromkeys(row for index, row in enumerate(self._rows) if index not in busy)
        others: Mapping[Row, Row] = {row: _renamed(row, names) for row in idle}
        self._rows = [others.get(row, row) for row in self._rows]
        for part in renamed:
            for user in part.users:
                self._rows[user] = part.row
        return renamed

    def advance(
        self, parts: Sequence[Part], ids: Sequence[RowId], mask: Tensor | None, batch: int, columns: int
    ) -> None:
        """A step of `parts` to the session's rows `ids` is done, and with it [batch, columns] are here."""
        self._rows = self._all(batch)
        for part, row in zip(parts, ids, strict=True):
            for user in part.users:
                self._rows[user] = Row(row, part.row.at + len(part))
        if mask is not None:
            known = torch.ones(batch, 0, dtype=torch.bool) if self._mask is None else self._mask
            self._mask = torch.cat([nn.functional.pad(known, (0, self.columns - known.shape[1]), value=True), mask], 1)
        self.columns += columns

    # --- copying and cutting ---

    def select(self, indices: Sequence[int]) -> None:
        self._rows = [self._rows[index] for index in indices]
        if self._mask is not None:
            self._mask = self._mask[list(indices)]

    def cut(self, columns: int) -> None:
        """Keep the first `columns` columns."""
        if self._mask is not None and columns < self._mask.shape[1]:
            self._mask = self._mask[:, :columns]
            lengths = self._mask.sum(1).tolist()
        else:
            lengths = [row.at - (self.columns - columns) for row in self._rows]
        self._rows = [Row(row.id, at) if at else Row() for row, at in zip(self._rows, lengths, strict=True)]
        self.columns = columns

    def _all(self, batch: int) -> list[Row]:
        return self._rows or [Row()] * batch


def _without_padding(part: Part, real: Tensor, first_kept: int) -> Part:
    """`real` [columns] bool; outputs are wanted of the real ones among the columns from `first_kept` on."""
    tokens = None if part.tokens is None else part.tokens[real]
    return replace(part, hidden=part.hidden[real], tokens=tokens, want=int(real[first_kept:].sum()))


def _renamed(row: Row, names: Iterator[RowId]) -> Row:
    return row if row.id is None else Row(next(names), row.at)
