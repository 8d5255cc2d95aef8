"""`past_key_values` of a model whose keys and values live on peers: the rows of one session.

To the library a cache has `columns` (what `get_seq_length` says), padding included. Peers never see padding: each row of the
session holds the real tokens of its row, at positions that count from 0. What copies or cuts rows (beam search, assisted
decoding) is only noted here and told to the session with the next step, if there is one.
"""

import threading
import weakref
from collections.abc import Coroutine, Mapping, Sequence
from concurrent.futures import CancelledError, Future
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, Protocol, Self, TypeVar

import torch
from torch import Tensor, nn
from transformers import Cache

from clients.history import Embed
from clients.session import RowChunk
from swarm.errors import NetworkError, UsageError
from swarm.ids import RowId

__all__ = ["Opener", "SessionLike", "SwarmCache"]

T = TypeVar("T")


class SessionLike(Protocol):
    """What a cache does with a `clients.session.Session`."""

    @property
    def positions(self) -> Mapping[RowId, int]: ...
    def new_row(self) -> RowId: ...
    async def step(self, rows: Sequence[RowChunk], hidden: Tensor) -> Tensor: ...
    async def fork(self, forks: Sequence[tuple[RowId, int]]) -> list[RowId]: ...
    async def close(self) -> None: ...


class Opener(Protocol):
    """What a cache needs of a `clients.connection.Connection`."""

    def submit(self, coroutine: Coroutine[Any, Any, T]) -> Future[T]:
        """Run a coroutine on the connection's loop; from any thread."""

    async def session(self, *, embed: Embed, lease_tokens: int) -> SessionLike: ...


@dataclass(frozen=True, slots=True)
class _Row:
    """The first `at` tokens of the session's row `id` (None: a row that has no tokens yet)."""

    id: RowId | None
    at: int


@dataclass(frozen=True, slots=True)
class _Part:
    """What one step brings to one row of the session, on behalf of the cache's rows in `users`."""

    row: _Row
    tokens: Tensor | None  # [n]
    hidden: Tensor  # [n, hidden]
    want: int
    users: tuple[int, ...]


class SwarmCache(Cache):
    """A context manager; whoever made it closes it. One thread at a time, except for `interrupt` and `close`."""

    def __init__(self, connection: Opener, embed: Embed, *, max_positions: int | None, lease_tokens: int = 0) -> None:
        super().__init__(layers=[])
        self._connection = connection
        self._embed = embed
        self._max_positions = max_positions
        self._lease = lease_tokens
        self._session: SessionLike | None = None
        self._abandon: weakref.finalize[..., SwarmCache] | None = None
        self._rows: list[_Row] = []
        self._columns = 0
        self._mask: Tensor | None = None  # [rows, c] bool: which of the first c columns are real; later ones all are
        self._lock = threading.Lock()
        self._running: Future[Any] | None = None
        self._interrupted = False
        self._closed = False

    # --- what there is ---

    @property
    def closed(self) -> bool:
        return self._closed

    @property
    def batch_size(self) -> int:
        """Rows; -1 before the first step."""
        return len(self._rows) or -1

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self._columns

    def get_max_length(self, layer_idx: int | None = None) -> int:
        return -1 if self._max_positions is None else self._max_positions

    def __len__(self) -> int:
        return 1  # a cache is true even when empty

    def __repr__(self) -> str:
        state = "closed" if self._closed else f"{max(0, self.batch_size)} rows, {self._columns} columns"
        return f"{type(self).__name__}({state})"

    def positions(self, batch: int, columns: int, mask: Tensor | None) -> Tensor:
        """The position of each of the next `columns` columns in its row: [batch, columns] int64; 0 where it is padding."""
        rows = self._rows or [_Row(None, 0)] * batch
        start = torch.tensor([row.at for row in rows])[:, None]
        if mask is None:
            return start + torch.arange(columns)
        return (start + mask.cumsum(1) - 1).masked_fill(~mask, 0)

    def new_columns(self, attention_mask: Tensor | None, batch: int, columns: int) -> Tensor | None:
        """Which of the next `columns` columns are real: [batch, columns] bool, or None when all are.

        Raises UsageError when `attention_mask` [batch, past + columns] contradicts what the rows hold.
        """
        if self._rows and len(self._rows) != batch:
            raise UsageError(f"the cache holds {len(self._rows)} rows, the input has {batch}")
        if attention_mask is None:
            return None
        if attention_mask.dim() != 2 or attention_mask.shape[0] != batch:
            raise UsageError(f"an attention mask is [{batch}, columns], not {list(attention_mask.shape)}")
        real = attention_mask.to("cpu", torch.bool)
        past = real.shape[1] - columns
        if past not in (0, self._columns):
            raise UsageError(
                f"an attention mask for {columns} new columns after {self._columns} has {columns} or "
                f"{self._columns + columns} columns, not {real.shape[1]}"
            )
        if past and real[:, :past].sum(1).tolist() != [row.at for row in self._rows]:
            raise UsageError("the attention mask hides or shows columns which the cache holds otherwise")
        new = real[:, past:]
        return None if bool(new.all()) else new

    # --- what a model does ---

    def reserve(self, tokens: int) -> None:
        """Ask peers for room for so many tokens over all rows; no effect once the session is open."""
        self._lease = max(self._lease, tokens)

    def advance(self, hidden: Tensor, tokens: Tensor | None, mask: Tensor | None, keep: int) -> Tensor:
        """Run the next columns through all blocks.

        `hidden` [rows, columns, hidden] and the `tokens` [rows, columns] that it came from (None: there are none);
        `mask` as `new_columns` gives it. Returns the last `keep` columns [rows, keep, hidden], padding as zeros.
        """
        batch, columns, width = hidden.shape
        rows = self._rows or [_Row(None, 0)] * batch
        flat = hidden.detach().to("cpu")
        parts = self._parts(rows, flat, None if tokens is None else tokens.to("cpu"), mask, keep)
        self._check_length(parts)
        ids, outputs = self._run(parts) if parts else ([], flat[0, :0])
        self._note(parts, ids, batch, columns, mask)
        if mask is None and len(parts) == batch:
            return outputs.view(batch, keep, width).to(hidden.device)
        pieces = outputs.split([part.want for part in parts])
        result = torch.zeros(batch, keep, width, dtype=outputs.dtype)
        for part, piece in zip(parts, pieces, strict=True):
            for user in part.users:
                result[user, slice(None) if mask is None else mask[user, columns - keep :]] = piece
        return result.to(hidden.device)

    def reorder_cache(self, beam_idx: Tensor) -> None:
        self.batch_select_indices(beam_idx)

    def batch_select_indices(self, indices: Tensor) -> None:
        self._select(torch.arange(len(self._rows))[indices.to("cpu")].tolist())

    def batch_repeat_interleave(self, repeats: int) -> None:
        self._select([index for index in range(len(self._rows)) for _ in range(repeats)])

    def crop(self, tokens_to_remove: int) -> None:
        """Forget the last `-tokens_to_remove` columns; like the library's, it takes 0 or a negative number."""
        if tokens_to_remove > 0:
            raise ValueError("crop takes 0 or a negative number: how many of the last columns to forget")
        left = max(0, self._columns + int(tokens_to_remove))
        known = 0 if self._mask is None else self._mask.shape[1]
        if self._mask is None or left >= known:
            removed = self._columns - left
            kept = [row.at - removed for row in self._rows]
        else:
            self._mask = self._mask[:, :left]
            kept = self._mask.sum(1).tolist()
        self._rows = [_Row(row.id if at else None, at) for row, at in zip(self._rows, kept, strict=True)]
        self._columns = left

    def reset(self) -> None:
        """Back to no rows at all."""
        self._rows, self._columns, self._mask = [], 0, None

    # --- ending ---

    def interrupt(self) -> None:
        """Stop the step under way in another thread, and refuse further ones until `rearm`."""
        with self._lock:
            self._interrupted = True
            if self._running is not None:
                self._running.cancel()

    def rearm(self) -> None:
        with self._lock:
            self._interrupted = False

    def close(self) -> None:
        """Free everything that peers hold for it; safe to repeat, from any thread."""
        self.interrupt()
        with self._lock:
            session, self._session, self._closed = self._session, None, True
        if session is not None and self._abandon is not None:
            self._abandon.detach()
            with suppress(NetworkError):  # the whole connection is closed, and with it the session
                self._connection.submit(session.close()).result()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # --- inside ---

    def _select(self, indices: Sequence[int]) -> None:
        self._rows = [self._rows[index] for index in indices]
        if self._mask is not None:
            self._mask = self._mask[list(indices)]

    def _parts(
        self, rows: Sequence[_Row], hidden: Tensor, tokens: Tensor | None, mask: Tensor | None, keep: int
    ) -> list[_Part]:
        """One part for each row that has new tokens; rows which are equal, new tokens included, share one."""
        columns = hidden.shape[1]
        parts: dict[object, _Part] = {}
        for index, row in enumerate(rows):
            new_hidden, new_tokens = hidden[index], None if tokens is None else tokens[index]
            want = keep
            if mask is not None:
                real = mask[index]
                new_hidden, want = new_hidden[real], int(real[columns - keep :].sum())
                new_tokens = None if new_tokens is None else new_tokens[real]
            if not len(new_hidden):
                continue
            alone = len(rows) == 1 or new_tokens is None
            key = index if alone or new_tokens is None else (row, want, tuple(new_tokens.tolist()))
            if (twin := parts.get(key)) is not None:
                parts[key] = replace(twin, users=(*twin.users, index))
            else:
                parts[key] = _Part(row, new_tokens, new_hidden, want, (index,))
        return list(parts.values())

    def _check_length(self, parts: Sequence[_Part]) -> None:
        longest = max((part.row.at + len(part.hidden) for part in parts), default=0)
        if self._max_positions is not None and longest > self._max_positions:
            raise UsageError(
                f"a row of {longest} tokens is longer than this model's context of {self._max_positions}: "
                "shorten the prompt or ask for fewer new tokens"
            )

    def _run(self, parts: Sequence[_Part]) -> tuple[list[RowId], Tensor]:
        """The session's row of each part, and the outputs [sum want, hidden]."""
        with self._lock:
            if self._closed:
                raise UsageError("this cache is closed, and what peers held for it is gone: make another one")
            if self._interrupted:
                raise CancelledError
            running = self._running = self._connection.submit(self._step(parts))
        try:
            return running.result()
        except CancelledError:
            if self._interrupted:
                raise
            raise NetworkError("the connection to the swarm was closed while a step was under way") from None
        except BaseException:
            running.cancel()
            raise
        finally:
            self._running = None

    async def _step(self, parts: Sequence[_Part]) -> tuple[list[RowId], Tensor]:
        """What `_run` gives; on the connection's loop."""
        session = self._session
        if session is None:
            session = await self._connection.session(embed=self._embed, lease_tokens=self._lease)
            if not self._adopt(session):
                await session.close()
                raise CancelledError
        ids = await self._settle(session, parts)
        chunks = [RowChunk(row, len(part.hidden), part.want, part.tokens) for row, part in zip(ids, parts, strict=True)]
        hidden = parts[0].hidden if len(parts) == 1 else torch.cat([part.hidden for part in parts])
        return ids, await session.step(chunks, hidden)

    def _adopt(self, session: SessionLike) -> bool:
        with self._lock:
            if not self._closed:
                self._session = session
                self._abandon = weakref.finalize(self, _abandon, self._connection, session)
                self._abandon.atexit = False
            return not self._closed

    async def _settle(self, session: SessionLike, parts: Sequence[_Part]) -> list[RowId]:
        """Make the session's rows the ones that the cache's rows say; returns the row of each part."""
        busy = {user for part in parts for user in part.users}
        idle = dict.fromkeys(row for index, row in enumerate(self._rows) if index not in busy)
        needed = [row for row in (*(part.row for part in parts), *idle) if row.id is not None]
        if dict(session.positions) != {row.id: row.at for row in needed} or len(needed) != len(session.positions):
            forked = await session.fork([(row.id, row.at) for row in needed if row.id is not None])
            ids = iter(forked)
        else:
            ids = iter([row.id for row in needed if row.id is not None])
        rows = [None if part.row.id is None else next(ids) for part in parts]
        moved = {row: _Row(next(ids), row.at) for row in idle if row.id is not None}
        self._rows = [row if index in busy else moved.get(row, row) for index, row in enumerate(self._rows)]
        for part, row in zip(parts, rows, strict=True):
            for user in part.users if row is not None else ():
                self._rows[user] = _Row(row, part.row.at)
        return [session.new_row() if row is None else row for row in rows]

    def _note(self, parts: Sequence[_Part], ids: Sequence[RowId], batch: int, columns: int, mask: Tensor | None) -> None:
        """The step is done: its columns are in the cache."""
        rows = self._rows or [_Row(None, 0)] * batch
        for part, row in zip(parts, ids, strict=True):
            for user in part.users:
                rows[user] = _Row(row, part.row.at + len(part.hidden))
        self._rows = rows
        if mask is not None:
            known = torch.ones(batch, 0, dtype=torch.bool) if self._mask is None else self._mask
            known = nn.functional.pad(known, (0, self._columns - known.shape[1]), value=True)
            self._mask = torch.cat([known, mask], dim=1)
        self._columns += columns


def _abandon(connection: Opener, session: SessionLike) -> None:
    """A cache nobody closed is gone: free what peers hold for it."""
    with suppress(NetworkError):  # the whole connection is closed, and with it the session
        connection.submit(session.close())
