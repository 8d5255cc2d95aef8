"""One session on this hop: whose it is, who comes before and after, where its rows stand."""

from collections import Counter, deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice

from torch import Tensor

from peers.changes import Change, Fit
from peers.inbox import Inbox
from peers.kv import KVCache
from peers.pages import PageTable
from peers.prefixes import RowKeys, root_key, token_digests
from peers.work import Work
from swarm.errors import HopError
from swarm.ids import PeerId, RowId, SessionId, Span
from swarm.messages import (
    MAX_ROWS,
    Contact,
    FaultCode,
    Fork,
    ForkEntry,
    Open,
    Pong,
    Relink,
    Resend,
    Step,
    StepRow,
)
from swarm.training import AdapterKeys

__all__ = ["Aside", "HopSession"]


@dataclass(slots=True)
class Aside:
    """Whoever is to take over from the next hop, its id of the session, and what it is still to be sent."""

    to: Contact
    session: SessionId
    resends: deque[Resend]


@dataclass(slots=True, eq=False)
class HopSession:
    """`held` are the pages of the KV pool that its rows hold, and how many of the rows hold each: what another session
    holds as well counts for both, so that it is promised to whoever stays longer. `root`: what the keys of its rows
    begin with, None when they are no one else's business. `sent` is where sending on begins, row by row. `fits` are
    `adapters` on its blocks, and `changes` all that they do."""

    id: SessionId
    owner: PeerId
    hop: Span
    codec: str
    prev: PeerId
    next: Contact | None
    next_session: SessionId
    lease: int
    kv: KVCache
    inbox: Inbox
    heard: float  # when a peer with a say in it last spoke, seconds
    worked: float  # when it was last computed for, or opened
    root: bytes | None = None
    adapters: AdapterKeys = ()
    fits: tuple[Fit, ...] = ()
    changes: tuple[Change, ...] = ()
    sent: dict[RowId, int] = field(default_factory=dict)
    rows: dict[RowId, PageTable] = field(default_factory=dict)
    work: Work | None = None
    resends: deque[Resend] = field(default_factory=deque)
    aside: Aside | None = None
    held: Counter[int] = field(default_factory=Counter)
    keys: dict[RowId, RowKeys] = field(default_factory=dict)

    @classmethod
    def opened(
        cls,
        owner: PeerId,
        message: Open,
        adapters: AdapterKeys,
        fits: tuple[Fit, ...],
        kv: KVCache,
        inbox: Inbox,
        now: float,
    ) -> "HopSession":
        return cls(
            id=message.session,
            owner=owner,
            hop=message.hop,
            codec=message.codec,
            prev=message.prev,
            next=message.next,
            next_session=message.next_session or message.session,
            lease=message.lease,
            kv=kv,
            inbox=inbox,
            heard=now,
            worked=now,
            root=root_key(message.model, message.hop, message.codec, adapters) if message.share else None,
            adapters=adapters,
            fits=fits,
            changes=tuple(change for fit in fits for change in fit.changes),
            sent=dict(message.sent),
        )

    # --- who and where ----------------------------------------------------------------------------------------------

    @property
    def sends_as(self) -> SessionId:
        """The id on frames to the next hop; what goes to the client bears this hop's own."""
        return self.id if self.next is None or self.next.peer == self.owner else self.next_session

    @property
    def apart(self) -> bool:
        """Whether its rows can't be in a pass with those of other adapters."""
        return any(fit.apart for fit in self.fits)

    @property
    def pages(self) -> int:
        """What its rows take of the KV pool."""
        return len(self.held)

    @property
    def waits(self) -> bool:
        """Whether anything is left to do."""
        return bool(self.inbox) or self.work is not None or bool(self.resends) or self.aside is not None

    @property
    def waits_to_begin(self) -> bool:
        """Whether what comes next is not being computed yet."""
        return self.work is None and (bool(self.inbox) or bool(self.resends))

    @property
    def queue_tokens(self) -> int:
        return self.inbox.tokens + (self.work.tokens if self.work else 0)

    def position(self, row: RowId) -> int:
        """How many tokens this hop has of a row, 0 of an unknown one."""
        table = self.rows.get(row)
        return table.length if table else 0

    def pong(self, nonce: int, queue: int) -> Pong:
        return Pong(self.id, nonce, {row: table.length for row, table in self.rows.items()}, queue)

    def relink(self, message: Relink) -> None:
        """A new next hop, and from where on it is sent each row; `prev` has changed on arrival. Raises HopError."""
        named = {resend.row for resend in message.resend}
        if len(self.sent.keys() | named) > 2 * MAX_ROWS:
            raise HopError(FaultCode.REFUSED, f"a session may name {2 * MAX_ROWS} rows to be sent from a position on")
        if message.aside:
            self._go_aside(message)
            return
        if message.to_next:
            self.aside = None
            self.next = message.next
            self.next_session = message.next_session or self.id
        for resend in message.resend:
            self.sent[resend.row] = resend.start
            if resend.start < self.position(resend.row):
                self.resends.append(resend)

    def _go_aside(self, message: Relink) -> None:
        """One at a time: whoever is named last."""
        wanted = deque(resend for resend in message.resend if resend.start < self.position(resend.row))
        to = message.next
        self.aside = Aside(to, message.next_session or self.id, wanted) if to is not None and wanted else None

    # --- rows -------------------------------------------------------------------------------------------------------

    def new_tokens(self, step: Step, max_positions: int) -> tuple[list[StepRow], list[slice]]:
        """The rows of a step without what is known already, and where the rest lies in its body. Raises HopError."""
        rows: list[StepRow] = []
        parts: list[slice] = []
        begin = 0
        for row in step.rows:
            position = self.position(row.row)
            if row.at > position:
                raise HopError(FaultCode.GAP, f"row {row.row} stands at {position}; a step begins at {row.at}")
            if row.at + row.n > max_positions:
                raise HopError(
                    FaultCode.REFUSED,
                    f"row {row.row} would have {row.at + row.n} tokens; this model has {max_positions} positions",
                )
            known = min(position - row.at, row.n)
            if known < row.n:
                rows.append(replace(row, at=row.at + known, n=row.n - known))
                parts.append(slice(begin + known, begin + row.n))
            begin += row.n
        return rows, parts

    def begin(self, rows: Sequence[StepRow], step: Step, hidden: Tensor, sender: PeerId) -> None:
        """Makes the unknown rows, still empty, and the keys of what is new in a step: `rows` and `hidden`, packed."""
        for row in rows:
            if row.row not in self.rows:
                self.rows[row.row] = PageTable(self.kv.pool, hint=self.lease // len(rows))
            if self.root is not None and row.row not in self.keys:
                self.keys[row.row] = RowKeys(self.root, self.kv.pool.page_size)
        if self.root is not None and sender == self.owner and not step.page_size:
            digests = iter(token_digests(hidden))
            for row in rows:
                self.keys[row.row].extend(row.at, islice(digests, row.n))
        elif self.root is not None and step.page_size == self.kv.pool.page_size:
            named = {pages.row: pages for pages in step.pages}
            for row in rows:
                if row.row in named:
                    self.keys[row.row].name(sender, named[row.row], row.at, row.n)

    def pages_for(self, rows: Sequence[StepRow]) -> int:
        """How many more pages `rows` take."""
        pool = self.kv.pool
        tables = ((self.rows.get(row.row), row.n) for row in rows)
        return sum(table.pages_needed(n) if table else pool.pages_for(n) for table, n in tables)

    def extend(self, row: StepRow) -> PageTable:
        """Room for the tokens of `row`, which begin where the row ends. Its pages have been promised."""
        table = self.rows[row.row]
        known = len(table.pages)
        table.extend(row.n)
        self.held.update(table.pages[known:])
        return table

    def adopt(self, row: RowId, pages: Sequence[int]) -> None:
        """Lets a row go on with full pages that are there already, promised like all others."""
        self.rows[row].adopt(pages)
        self.held.update(pages)

    def coming_keys(self, row: RowId, at: int) -> Sequence[bytes]:
        """The keys of the full pages that are known to come from `at` on; none unless a page begins there."""
        size, keys = self.kv.pool.page_size, self.keys.get(row)
        return keys.pages(at // size) if keys is not None and not at % size else ()

    def check_fork(self, message: Fork) -> int:
        """How many rows a Fork leaves. Raises HopError when it copies what is not here."""
        lengths = {row: table.length for row, table in self.rows.items()}
        for fork in message.forks:
            if fork.dst in lengths:
                continue
            if lengths.get(fork.src, -1) < fork.at:
                raise HopError(FaultCode.GAP, f"row {fork.src} is to be copied up to {fork.at}; it is shorter here")
            lengths[fork.dst] = fork.at
        return len(lengths.keys() - set(message.drop))

    def new_forks(self, message: Fork) -> list[tuple[ForkEntry, bool]]:
        """The copies that are not here yet; and whether each is the last of its source, which is dropped after it."""
        dropped = set(message.drop)
        uses = {entry.src: index for index, entry in enumerate(message.forks)}
        known = set(self.rows)
        new: list[tuple[ForkEntry, bool]] = []
        for index, entry in enumerate(message.forks):
            if entry.dst not in known:
                known.add(entry.dst)
                new.append((entry, entry.src in dropped and uses[entry.src] == index))
        return new

    def fork_pages(self, message: Fork) -> int:
        """How many more pages a Fork takes, at most, before it drops anything."""
        size = self.kv.pool.page_size
        return sum(entry.at % size != 0 and not (last and self._owns(entry)) for entry, last in self.new_forks(message))

    def _owns(self, entry: ForkEntry) -> bool:
        """Whether no other row shares the page that a cut of the source goes through."""
        table = self.rows.get(entry.src)
        if table is None:
            return False
        pool = self.kv.pool
        return pool.references(table.pages[entry.at // pool.page_size]) == 1

    def fork(self, entry: ForkEntry, *, last: bool) -> None:
        """Copies a row, or cuts and renames it when this is the `last` use of it. Takes at most one page."""
        if last:
            table = self.rows.pop(entry.src)
            self._let_go(table.pages)
            copies = table.crop(entry.at)
        else:
            table, copies = self.rows[entry.src].fork(entry.at)
        self.rows[entry.dst] = table
        self.held.update(table.pages)
        for page, copy in copies:
            self.kv.copy_page(page, copy)
        if entry.src in self.keys:
            self.keys[entry.dst] = self.keys[entry.src].fork(entry.at)

    def drop(self, row: RowId) -> None:
        """Forgets a row; unknown ones too."""
        table = self.rows.pop(row, None)
        if table is not None:
            self._let_go(table.pages)
            table.release()
        self.sent.pop(row, None)
        self.keys.pop(row, None)

    def _let_go(self, pages: Iterable[int]) -> None:
        for page in pages:
            self.held[page] -= 1
            if not self.held[page]:
                del self.held[page]

    def release(self) -> None:
        """Gives all pages back: the session is over."""
        for row in list(self.rows):
            self.drop(row)
