"""What a hop has sent on, kept so that it can send it again.

A shelf holds the rows of one session. Shelves share one budget of tokens; when it is spent, the least recently used
shelf is given up as a whole and for good: half a row would be of no use to a recovery. The session itself goes on.
"""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor

from peers.kv import PagedRows
from peers.pages import PageTable
from swarm.ids import RowId, SessionId

__all__ = ["Outbox"]


@dataclass(slots=True)
class Shelf:
    kept: bool = True
    rows: dict[RowId, PageTable] = field(default_factory=dict)


class Outbox:
    def __init__(self, store: PagedRows) -> None:
        self.dropped = 0  # shelves given up so far
        self._store = store
        self._shelves: OrderedDict[SessionId, Shelf] = OrderedDict()  # least recently used first

    @property
    def free_tokens(self) -> int:
        return self._store.pool.free_tokens

    def keeps(self, session: SessionId) -> bool:
        """Whether everything the session has sent is still here; an unused session has sent nothing."""
        shelf = self._shelves.get(session)
        return shelf is None or shelf.kept

    def length(self, session: SessionId, row: RowId) -> int:
        """How many tokens of the row are kept."""
        shelf = self._shelves.get(session)
        table = shelf.rows.get(row) if shelf else None
        return table.length if table else 0

    def append(self, session: SessionId, row: RowId, outputs: Tensor) -> None:
        """Stores `outputs` `[n, hidden]` at the row's end, if the session's shelf is kept; makes room as needed."""
        shelf = self._touch(session)
        if not shelf.kept:
            return
        table = shelf.rows.setdefault(row, PageTable(self._store.pool))
        if self._make_room(session, table.pages_needed(len(outputs))):
            self._store.append(table, outputs)

    def adopt(self, session: SessionId, row: RowId, at: int, pages: Sequence[int]) -> None:
        """The row goes on from `at` with full pages that are here already, if all of it up to there is kept."""
        shelf = self._touch(session)
        if shelf.kept:
            table = shelf.rows.setdefault(row, PageTable(self._store.pool))
            if table.length == at:
                table.adopt(pages)

    def page(self, session: SessionId, row: RowId, index: int) -> int | None:
        """Where a full page of a row is kept."""
        shelf = self._shelves.get(session)
        table = shelf.rows.get(row) if shelf else None
        if table is None or (index + 1) * self._store.pool.page_size > table.length:
            return None
        return table.pages[index]

    def read_pages(self, pages: Sequence[int]) -> Tensor:
        """What full pages hold that are in use or remembered, `[tokens, hidden]`."""
        table = PageTable(self._store.pool)
        table.adopt(pages)
        outputs = self._store.read(table, 0, table.length)
        table.release()
        return outputs

    def fork(self, session: SessionId, src: RowId, at: int, dst: RowId) -> None:
        """`dst` becomes the first `at` kept tokens of `src`; full pages are shared."""
        shelf = self._touch(session)
        source = shelf.rows.get(src)
        if not shelf.kept or source is None or not self._make_room(session, 1):
            return
        shelf.rows[dst], copies = source.fork(at)  # takes one page at most
        for page, copy in copies:
            self._store.copy_page(page, copy)

    def read(self, session: SessionId, row: RowId, start: int, stop: int) -> Tensor:
        """Tokens `[start, stop)` of a kept row, `[n, hidden]`. The caller has asked `keeps` and `length`."""
        return self._store.read(self._touch(session).rows[row], start, stop)

    def forget_row(self, session: SessionId, row: RowId) -> None:
        shelf = self._shelves.get(session)
        table = shelf.rows.pop(row, None) if shelf else None
        if table:
            table.release()

    def forget(self, session: SessionId) -> None:
        """The session is over."""
        shelf = self._shelves.pop(session, None)
        for table in shelf.rows.values() if shelf else ():
            table.release()

    def _touch(self, session: SessionId) -> Shelf:
        shelf = self._shelves.setdefault(session, Shelf())
        self._shelves.move_to_end(session)
        return shelf

    def _make_room(self, session: SessionId, pages: int) -> bool:
        """Gives up shelves, the session's own last, until `pages` are free; False when its own had to go."""
        pool = self._store.pool
        for other in [s for s, shelf in self._shelves.items() if shelf.rows]:
            if pool.free >= pages:
                break
            self._give_up(other)
        if pool.free < pages:
            self._give_up(session)
        return self._shelves[session].kept

    def _give_up(self, session: SessionId) -> None:
        shelf = self._shelves[session]
        for table in shelf.rows.values():
            table.release()
        shelf.rows.clear()
        self.dropped += shelf.kept
        shelf.kept = False
