"""A lane's session as the lane's thread uses it: blocking calls, rows instead of ids."""

import threading
from collections.abc import Coroutine, Iterable, Mapping, Sequence
from concurrent.futures import CancelledError, Future
from contextlib import suppress
from typing import Any, TypeVar

import torch
from torch import Tensor

from clients.cache import Opener, SessionLike
from clients.completion.plan import Piece
from clients.completion.rows import Row
from clients.events import Observer
from clients.history import Embed
from clients.session import RowChunk
from swarm.errors import NetworkError
from swarm.training import PackedAdapter

__all__ = ["LaneSession"]

T = TypeVar("T")

LEASE_STEP = 512  # tokens: leases are asked for in multiples, so that not every token is a question


class LaneSession:
    """Opened by the first step, and anew after `close`. One thread at a time, but for `interrupt`."""

    def __init__(
        self,
        connection: Opener,
        embed: Embed,
        observer: Observer,
        adapters: Mapping[int, PackedAdapter],
        hosted: str | None,
    ) -> None:
        """`adapters`: by block, what all rows are computed with; or the digest of one that peers have `hosted`."""
        self._connection = connection
        self._hosted = hosted
        self._adapters = adapters
        self._embed = embed
        self._observer = observer
        self._lock = threading.Lock()
        self._running: Future[Any] | None = None
        self._interrupted = False
        self._session: SessionLike | None = None
        self._lease = 0
        self._stale = False

    @property
    def is_open(self) -> bool:
        return self._session is not None

    @property
    def stale(self) -> bool:
        """Peers have rows that are gone here, or lack copies."""
        return self._stale

    def changed(self) -> None:
        """Rows have gone, or are to be copied."""
        self._stale = True

    def agree(self, rows: Sequence[Row]) -> None:
        """Let peers have `rows` and no others, without a step."""
        if self._stale and self._session is not None:
            self._run(self._agree(self._session, rows))
        self._stale = False

    def step(
        self, pieces: Sequence[Piece], tokens: Tensor, hidden: Tensor, used: Sequence[Row], spare: Sequence[Row]
    ) -> Tensor:
        """Hidden states [w, hidden] behind the last block, one for each wanted piece; for the last piece where none is.
        Peers have `used` and `spare` afterwards, of which the latter may be lost when a peer is."""
        return self._run(self._step(pieces, tokens, hidden, used, spare))

    def here(self, rows: Iterable[Row]) -> list[Row]:
        """Those that peers have."""
        known = {} if self._session is None else self._session.positions
        return [row for row in rows if row.id in known]

    def reserve(self, tokens: int) -> bool:
        """Let peers keep room for `tokens` over all rows, and for not many more. False when one has none; then what was
        promised stays."""
        wanted = -(-tokens // LEASE_STEP) * LEASE_STEP
        if self._session is None or wanted == self._lease or self._lease - 2 * LEASE_STEP <= wanted < self._lease:
            self._lease = max(wanted, self._lease)
            return True
        if not self._run(self._session.reserve(wanted)):
            return False
        self._lease = wanted
        return True

    def close(self) -> None:
        """Give everything back; safe to repeat."""
        session, self._session = self._session, None
        self._lease, self._stale = 0, False
        if session is not None:
            with suppress(NetworkError, CancelledError):  # the connection is closed, and with it the session
                self._connection.submit(session.close()).result()

    def interrupt(self) -> None:
        """Whatever runs or is called later raises CancelledError. From any thread."""
        with self._lock:
            self._interrupted = True
            if self._running is not None:
                self._running.cancel()

    # --- inside; on the connection's loop, while the lane's thread waits ---

    async def _step(
        self, pieces: Sequence[Piece], tokens: Tensor, hidden: Tensor, used: Sequence[Row], spare: Sequence[Row]
    ) -> Tensor:
        session = self._session or await self._open()
        if self._stale:
            await self._agree(session, (*used, *spare))
        none = not any(piece.wanted for piece in pieces)
        chunks = []
        for piece, own in zip(pieces, torch.split(tokens, [piece.n for piece in pieces]), strict=True):
            if piece.row.id is None:
                piece.row.id = session.new_row()
            last = none and piece is pieces[-1]  # an answer to everything, so that no more than one step is on its way
            chunks.append(RowChunk(piece.row.id, piece.n, int(piece.wanted or last), own))
        session.spare(row.id for row in spare if row.id is not None)
        return await session.step(chunks, hidden)

    async def _open(self) -> SessionLike:
        session = await self._connection.session(
            embed=self._embed,
            lease_tokens=self._lease,
            observer=self._observer,
            adapters=self._adapters,
            hosted=self._hosted,
        )
        with self._lock:
            if not self._interrupted:
                self._session = session
                return session
        await session.close()
        raise CancelledError

    async def _agree(self, session: SessionLike, rows: Sequence[Row]) -> None:
        there = [row for row in rows if row.id is not None]
        copies = [row for row in rows if row.source is not None]
        forks = [(row.origin, row.done) for row in (*there, *copies)]
        names = await session.fork(forks)
        for row, name in zip((*there, *copies), names, strict=True):
            row.id = name
        for row in copies:
            row.source = None
        self._stale = False

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        with self._lock:
            if self._interrupted:
                work.close()
                raise CancelledError
            running: Future[T] = self._connection.submit(work)
            self._running = running
        try:
            return running.result()
        finally:
            self._running = None
