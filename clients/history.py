"""What the client remembers of a session: the token ids of every row, enough to start over at the first hop.

Rows that began as raw embeddings (soft prompts) keep those, since no token could give them back.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from swarm.ids import RowId

__all__ = ["Embed", "History"]

Embed = Callable[[Tensor, int], Tensor]  # tokens [n] that start at a position -> hidden states [n, hidden]


@dataclass(frozen=True, slots=True)
class _Chunk:
    """`data`: token ids [n] int64, or embeddings [n, hidden]."""

    data: Tensor

    def __len__(self) -> int:
        return int(self.data.shape[0])


class History:
    def __init__(self, embed: Embed) -> None:
        self._embed = embed
        self._rows: dict[RowId, list[_Chunk]] = {}

    @property
    def lengths(self) -> dict[RowId, int]:
        return {row: sum(map(len, chunks)) for row, chunks in self._rows.items()}

    def append(self, row: RowId, data: Tensor) -> None:
        """Token ids [n], or embeddings [n, hidden], that follow what `row` already has."""
        self._rows.setdefault(row, []).append(_Chunk(data.detach().to("cpu", copy=True)))

    def fork(self, src: RowId, at: int, dst: RowId) -> None:
        chunks, left = [], at
        for chunk in self._rows[src]:
            if left <= 0:
                break
            chunks.append(_Chunk(chunk.data[:left]))
            left -= len(chunk)
        self._rows[dst] = _merged(chunks)

    def keep(self, rows: set[RowId]) -> None:
        self._rows = {row: chunks for row, chunks in self._rows.items() if row in rows}

    def hidden(self, row: RowId, start: int, stop: int) -> Tensor:
        """The first hop's input for tokens `[start, stop)` of `row`: [stop - start, hidden]."""
        parts, at = [], 0
        for chunk in self._rows[row]:
            low, high = max(start - at, 0), min(stop - at, len(chunk))
            if low < high:
                piece = chunk.data[low:high]
                parts.append(self._embed(piece, at + low) if piece.dim() == 1 else piece)
            at += len(chunk)
        return torch.cat(parts)


def _merged(chunks: list[_Chunk]) -> list[_Chunk]:
    """One chunk where all hold token ids, so that a row forked at every step does not become a list of ones."""
    if len(chunks) > 1 and all(chunk.data.dim() == 1 for chunk in chunks):
        return [_Chunk(torch.cat([chunk.data for chunk in chunks]))]
    return chunks
