"""`past_key_values` of a model whose keys and values live on peers: a session, seen as the library sees a cache."""

import threading
import weakref
from collections.abc import Coroutine, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import CancelledError, Future
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Protocol, Self, TypeVar

import torch
from torch import Tensor
from transformers import Cache

from clients.events import Observer
from clients.history import Embed
from clients.rows import Part, Row, Rows
from clients.session import RowChunk
from clients.speculation import Speculation
from clients.training.chains import TrainingChains
from routing.hosting import Hosted
from swarm.errors import NetworkError, UsageError
from swarm.ids import RowId
from swarm.training import AdapterKey, PackedAdapter

__all__ = ["Opener", "SessionLike", "SwarmCache"]

T = TypeVar("T")


class SessionLike(Protocol):
    """What caches and lanes do with a `clients.session.Session`."""

    @property
    def positions(self) -> Mapping[RowId, int]: ...
    def new_row(self) -> RowId: ...
    async def step(self, rows: Sequence[RowChunk], hidden: Tensor) -> Tensor: ...
    async def fork(self, forks: Sequence[tuple[RowId, int]]) -> list[RowId]: ...
    def predict_step(self, tokens: int) -> float: ...
    async def reserve(self, tokens: int) -> bool: ...
    def spare(self, rows: Iterable[RowId]) -> None: ...
    async def close(self) -> None: ...


class Opener(Protocol):
    """What caches and lanes need of a `clients.connection.Connection`."""

    def submit(self, work: Coroutine[Any, Any, T]) -> Future[T]: ...
    async def session(
        self,
        *,
        embed: Embed,
        lease_tokens: int,
        observer: Observer | None = None,
        adapters: Mapping[int, PackedAdapter] | None = None,
        hosted: str | None = None,
    ) -> SessionLike: ...
    async def hosted(self, name: str) -> Hosted: ...
    async def training(self) -> TrainingChains: ...


class SwarmCache(Cache):
    """A context manager; whoever made it closes it. The session is opened by the first step.

    One thread at a time, except for `interrupt` and `close`. After a step that failed it stands where it stood before.
    """

    def __init__(
        self,
        connection: Opener,
        embed: Embed,
        *,
        max_positions: int | None,
        lease_tokens: int = 0,
        adapters: Mapping[int, PackedAdapter] | None = None,
    ) -> None:
        """`adapters`, by block, stay those of all its rows; without any, they are those that the model then has."""
        super().__init__(layers=[])
        self.speculation: Speculation | None = None  # what drafting has taught in this chat
        self._connection = connection
        self._embed = embed
        self._max_positions = max_positions
        self._lease = lease_tokens
        self._rows = Rows()
        self._adapters: Mapping[int, PackedAdapter] = dict(adapters or {})
        self._own_adapters = bool(adapters)
        self._hosted: str | None = None
        self.settled = False  # whether somebody sees to it that the adapters stay as they are
        self._session: SessionLike | None = None
        self._abandon: weakref.finalize[..., SwarmCache] | None = None
        self._lock = threading.Lock()
        self._running: Future[Any] | None = None
        self._begun: _Begun | None = None
        self._interrupted = False
        self._closed = False

    # --- what the library asks ---

    @property
    def batch_size(self) -> int:
        """Rows; -1 before the first step."""
        return len(self._rows) or -1

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Columns, padding included."""
        return self._rows.columns

    def get_max_length(self, layer_idx: int | None = None) -> int:
        return -1 if self._max_positions is None else self._max_positions

    def __len__(self) -> int:
        return 1  # a cache is true even when it is empty

    def __repr__(self) -> str:
        state = "closed" if self._closed else f"{len(self._rows)} rows, {self._rows.columns} columns"
        return f"{type(self).__name__}({state})"

    # --- copying and cutting: told to the peers by the next step, if there is one ---

    def reorder_cache(self, beam_idx: Tensor) -> None:
        self._rows.select(beam_idx.tolist())

    def batch_select_indices(self, indices: Tensor) -> None:
        """`indices`: numbers of rows, or a mask of them."""
        self._rows.select(torch.arange(len(self._rows))[indices.to("cpu")].tolist())

    def batch_repeat_interleave(self, repeats: int) -> None:
        self._rows.select([index for index in range(len(self._rows)) for _ in range(repeats)])

    def crop(self, tokens_to_remove: int) -> None:
        """Forget the last `-tokens_to_remove` columns; like the library's, it takes 0 or a negative number."""
        if tokens_to_remove > 0:
            raise UsageError("crop takes 0 or a negative number, which says how many of the last columns to forget")
        if tokens_to_remove:
            self._rows.cut(max(0, self._rows.columns + int(tokens_to_remove)))

    def reset(self) -> None:
        self._rows = Rows()

    # --- what the model asks ---

    def next_columns(self, attention_mask: Tensor | None, batch: int, columns: int) -> tuple[Tensor | None, Tensor]:
        """Which of the next columns are real (None: all), and the positions of all of them: [batch, columns] each.
        Raises UsageError when the mask contradicts what is here."""
        mask = self._rows.next_mask(attention_mask, batch, columns)
        return mask, self._rows.positions(batch, columns, mask)

    def reserve(self, tokens: int) -> None:
        """Ask peers for room for so many tokens over all rows; no effect once the session is open."""
        self._lease = max(self._lease, tokens)

    def predict_step(self, tokens: int) -> float | None:
        """Seconds that a step of `tokens` tokens of one row is predicted to take; None while no session is open."""
        session = self._session
        return None if session is None else session.predict_step(tokens)

    def adapt(self, adapters: Mapping[int, PackedAdapter], hosted: str | None = None) -> None:
        """With which adapters, by block, all rows are computed, or with which that peers have `hosted`, by its digest.
        Raises UsageError when rows are here with others, or when this has adapters of its own."""
        if self._own_adapters and not adapters and hosted is None:
            return
        if (_keys(adapters), hosted) == (_keys(self._adapters), self._hosted):
            return
        if self._session is not None or self._own_adapters:
            raise UsageError(
                "these past_key_values were made with another adapter, or without one: begin with new ones"
            )
        self._adapters, self._hosted = dict(adapters), hosted

    @contextmanager
    def adapted(self, adapters: Mapping[int, PackedAdapter], hosted: str | None = None) -> Iterator[None]:
        """Within, nobody needs to look what the adapters are. Raises UsageError as `adapt` does."""
        self.adapt(adapters, hosted)
        self.settled = True
        try:
            yield
        finally:
            self.settled = False

    def advance(self, hidden: Tensor, tokens: Tensor | None, mask: Tensor | None, keep: int) -> Tensor:
        """Run the next columns through all blocks.

        `hidden` [rows, columns, hidden], and the `tokens` [rows, columns] that it came from where there are any; `mask`
        as `next_columns` gives it. Returns the last `keep` columns [rows, keep, hidden], padding as zeros.
        """
        batch, columns, width = hidden.shape
        parts = self._parts(hidden, tokens, mask, keep)
        self._check_length(parts)
        ids, outputs = self._run(parts) if parts else ([], hidden[0, :0])
        self._rows.advance(parts, ids, mask, batch, columns)
        if mask is None and len(parts) == batch:
            return outputs.view(batch, keep, width).to(hidden.device)
        result = torch.zeros(batch, keep, width, dtype=outputs.dtype)
        for part, piece in zip(parts, torch.split(outputs, [part.want for part in parts]), strict=True):
            for user in part.users:
                result[user, slice(None) if mask is None else mask[user, columns - keep :]] = piece
        return result.to(hidden.device)

    def begin(self, hidden: Tensor, tokens: Tensor) -> None:
        """Begin the step that `advance` will probably be asked for next: one more column, as `hidden` [rows, 1, hidden]
        and the `tokens` [rows, 1] that it came from. If it is asked for another one instead, nothing has happened."""
        session, parts = self._session, self._parts(hidden, tokens, None, 1)
        if session is None or not _agree([part.row for part in parts], session.positions):
            return  # or rows have to be copied or cut first
        if self._max_positions is not None and max(part.row.at for part in parts) >= self._max_positions:
            return
        with self._lock:
            if not (self._closed or self._interrupted or self._begun):
                self._running = self._connection.submit(_send(session, parts))
                self._begun = _Begun(parts, self._running)

    # --- ending ---

    @property
    def closed(self) -> bool:
        return self._closed

    def interrupt(self) -> None:
        """Stop the step under way in another thread, which raises CancelledError there, and refuse further ones."""
        with self._lock:
            self._stop_running()

    @contextmanager
    def interruptible(self) -> Iterator[None]:
        """An `interrupt` holds until the end of the block; then the cache may go on."""
        try:
            yield
        finally:
            with self._lock:
                self._interrupted = False

    def close(self) -> None:
        """Free everything that peers hold for it; safe to repeat, from any thread but the connection's."""
        with self._lock:
            session, self._session, self._closed = self._session, None, True
            self._stop_running()
        if session is not None and self._abandon is not None:
            self._abandon.detach()
            with suppress(NetworkError):  # the connection is closed, and with it the session
                self._connection.submit(session.close()).result()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # --- inside ---

    def _stop_running(self) -> None:
        self._interrupted, self._begun = True, None
        if self._running is not None:
            self._running.cancel()

    def _parts(self, hidden: Tensor, tokens: Tensor | None, mask: Tensor | None, keep: int) -> list[Part]:
        return self._rows.parts(hidden.cpu(), None if tokens is None else tokens.cpu(), mask, keep)

    def _check_length(self, parts: Sequence[Part]) -> None:
        longest = max((part.row.at + len(part) for part in parts), default=0)
        if self._max_positions is not None and longest > self._max_positions:
            raise UsageError(
                f"a row of {longest} tokens is longer than this model's context of {self._max_positions}: "
                "shorten the prompt or ask for fewer new tokens"
            )

    def _run(self, parts: Sequence[Part]) -> tuple[list[RowId], Tensor]:
        """The session's row of each part, and the outputs [sum want, hidden]."""
        with self._lock:
            if self._closed:
                raise UsageError("this cache is closed, and what peers held for it is gone: make another one")
            if self._interrupted:
                raise CancelledError
            begun, self._begun = self._begun, None
            if begun is not None and begun.is_of(parts, self._rows.needed(parts)):
                running = begun.running
            else:
                if begun is not None:
                    begun.running.cancel()
                running = self._connection.submit(self._step(parts))
            self._running = running
        try:
            return running.result()
        except CancelledError:
            if self._closed:
                raise UsageError("this cache was closed while a step was under way") from None
            if self._interrupted:
                raise
            raise NetworkError("the connection to the swarm was closed while a step was under way") from None
        except BaseException:
            running.cancel()
            raise
        finally:
            self._running = None

    async def _step(self, parts: Sequence[Part]) -> tuple[list[RowId], Tensor]:
        """What `_run` gives; on the connection's loop."""
        session = self._session or await self._open()
        return await _send(session, await self._settle(session, parts))

    async def _open(self) -> SessionLike:
        session = await self._connection.session(
            embed=self._embed, lease_tokens=self._lease, adapters=self._adapters, hosted=self._hosted
        )
        with self._lock:
            if not self._closed:
                self._session = session
                self._abandon = weakref.finalize(self, _abandon, self._connection, session)
                self._abandon.atexit = False
                return session
        await session.close()
        raise CancelledError

    async def _settle(self, session: SessionLike, parts: Sequence[Part]) -> Sequence[Part]:
        """Make the session's rows what ours are, no more and no less."""
        needed = self._rows.needed(parts)
        if _agree(needed, session.positions):
            return parts
        return self._rows.moved(parts, await session.fork([(row.id, row.at) for row in needed if row.id is not None]))


@dataclass(frozen=True, slots=True)
class _Begun:
    """A step of `parts` that is under way before it was asked for."""

    parts: Sequence[Part]
    running: "Future[tuple[list[RowId], Tensor]]"

    def is_of(self, parts: Sequence[Part], needed: Sequence[Row]) -> bool:
        """Whether it is the step of `parts`, and leaves a session what it needs: it was begun without a copy."""
        return len(needed) == len(parts) == len(self.parts) and all(map(_same, parts, self.parts))


def _same(one: Part, other: Part) -> bool:
    if (one.row, one.want, one.users) != (other.row, other.want, other.users):
        return False
    if one.tokens is None or other.tokens is None or not torch.equal(one.tokens, other.tokens):
        return False
    return torch.equal(one.hidden, other.hidden)


def _agree(rows: Sequence[Row], positions: Mapping[RowId, int]) -> bool:
    """Whether a session's rows are these, no more and no less."""
    return len(rows) == len(positions) and {row.id: row.at for row in rows} == positions


async def _send(session: SessionLike, parts: Sequence[Part]) -> tuple[list[RowId], Tensor]:
    """The session's row of each part, and the outputs [sum want, hidden]."""
    ids = [session.new_row() if part.row.id is None else part.row.id for part in parts]
    chunks = [RowChunk(row, len(part), part.want, part.tokens) for row, part in zip(ids, parts, strict=True)]
    hidden = parts[0].hidden if len(parts) == 1 else torch.cat([part.hidden for part in parts])
    return ids, await session.step(chunks, hidden)


def _keys(adapters: Mapping[int, PackedAdapter]) -> dict[int, AdapterKey]:
    return {block: adapter.key for block, adapter in adapters.items()}


def _abandon(connection: Opener, session: SessionLike) -> None:
    """A cache that nobody closed is gone: free what peers hold for it, without waiting."""
    with suppress(NetworkError):  # the connection is closed, and with it the session
        connection.submit(session.close())
