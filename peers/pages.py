"""Who owns which page of memory: page tables with reference counts, and an allocator that keeps a row in one piece.

A page holds `page_size` tokens. This file hands out page numbers and knows nothing of what is stored in them. A row
whose pages are neighbours can be read in place, without a gather; therefore the first page of a row is put at the start
of a free run, the run is kept for it while there is room elsewhere, and the next pages follow the last one.

What a page holds may be worth remembering after the last row has let go of it. Such a page is free all the same: it is
given away when no other is left, the least recently used first.
"""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import islice, pairwise

from swarm.errors import SwarmError

__all__ = ["OutOfPages", "PagePool", "PageTable", "RowSlice"]

FREE, KEPT, USED, IDLE = 0, 1, 2, 3  # KEPT: free, but meant for the row before it; IDLE: free, but remembered


class OutOfPages(SwarmError):
    """The pool has too few free pages. Nothing was changed."""


class PagePool:
    """`pages` pages of `page_size` tokens each, handed out to page tables.

    Kept pages and idle ones, which nobody uses but somebody remembers, count as free: they are taken when no others are
    left.
    """

    def __init__(self, pages: int, page_size: int) -> None:
        if pages < 1 or page_size < 1:
            raise ValueError(f"a pool has at least one page of one token, not {pages} of {page_size}")
        self.pages = pages
        self.page_size = page_size
        self.free = pages  # pages in no table
        self._state = bytearray(pages)
        self._tables = [0] * pages  # how many tables hold the page
        self._remembered: dict[int, Callable[[int], None]] = {}  # pages, and who is told that one is forgotten
        self._idle: OrderedDict[int, None] = OrderedDict()  # the least recently used first

    @property
    def tokens(self) -> int:
        """How many tokens the whole pool holds."""
        return self.pages * self.page_size

    @property
    def free_tokens(self) -> int:
        return self.free * self.page_size

    def pages_for(self, tokens: int) -> int:
        return -(-tokens // self.page_size)

    def references(self, page: int) -> int:
        return self._tables[page]

    def allocate(self, page: int) -> None:
        """Takes a page that is in no table."""
        if self._state[page] == USED:
            raise ValueError(f"page {page} is in use")
        self.forget(page)
        self._state[page] = USED
        self._tables[page] = 1
        self.free -= 1

    def share(self, page: int) -> None:
        """One more table holds a page that is in use, or remembered."""
        if self._state[page] == IDLE:
            del self._idle[page]
            self._state[page] = USED
            self.free -= 1
        elif self._state[page] != USED:
            raise ValueError(f"page {page} is not in use")
        self._tables[page] += 1

    def release(self, page: int) -> None:
        """One table less holds the page; it is free when none is left."""
        if self._state[page] != USED:
            raise ValueError(f"page {page} is not in use")
        self._tables[page] -= 1
        if self._tables[page]:
            return
        self.free += 1
        if page in self._remembered:
            self._state[page] = IDLE
            self._idle[page] = None
        else:
            self._state[page] = FREE

    def remember(self, page: int, forgotten: Callable[[int], None]) -> None:
        """Keeps what a page in use holds until the page is needed for something else; then `forgotten` is told."""
        if self._state[page] != USED:
            raise ValueError(f"page {page} is not in use")
        self._remembered[page] = forgotten

    def forget(self, page: int) -> None:
        """What the page holds is not remembered any more, and whoever asked for that is told; safe to repeat."""
        forgotten = self._remembered.pop(page, None)
        if self._state[page] == IDLE:
            del self._idle[page]
            self._state[page] = FREE
        if forgotten is not None:
            forgotten(page)

    def allows(self, page: int, kept: range) -> bool:
        """Whether a row for which `kept` was kept may take this page without taking it from another row."""
        return page < self.pages and (self._state[page] == FREE or (page in kept and self._state[page] == KEPT))

    def find_run(self, wanted: int) -> range:
        """The first free run of `wanted` pages, or of half as many, and so on; a kept page when none is free.

        Where there is no such run, up to `wanted` idle pages are forgotten first: they often lie side by side."""
        if self._state.find(bytes(wanted)) < 0:
            for page in list(islice(self._idle, wanted)):
                self.forget(page)
        while wanted:
            start = self._state.find(bytes(wanted))
            if start >= 0:
                return range(start, start + wanted)
            wanted //= 2
        start = self._state.rfind(KEPT)  # the far end of what is kept hurts its row last
        if start < 0:
            raise OutOfPages(f"all {self.pages} pages of {self.page_size} tokens are in use")
        return range(start, start + 1)

    def keep(self, pages: range) -> None:
        """Leaves free pages to the row that asked for them, as long as there are others."""
        for page in pages:
            if self._state[page] == FREE:
                self._state[page] = KEPT

    def unkeep(self, pages: range) -> None:
        for page in pages:
            if self._state[page] == KEPT:
                self._state[page] = FREE


@dataclass(eq=False)
class PageTable:
    """Where the tokens of one row are: token `i` is in page `pages[i // page_size]`.

    `hint`: how many tokens the row is expected to grow to; it decides where the row is put, and reserves nothing.
    """

    pool: PagePool
    hint: int = 0
    length: int = 0  # tokens
    pages: list[int] = field(default_factory=list)
    _kept: range = range(0)
    _unbroken: bool = True

    @property
    def first_slot(self) -> int | None:
        """The slot of token 0 when all tokens lie behind each other in the pool, else None. 0 for an empty row."""
        if not self._unbroken:
            return None
        return self.pages[0] * self.pool.page_size if self.pages else 0

    @property
    def contiguous(self) -> bool:
        return self._unbroken

    def slot(self, token: int) -> int:
        """The place of a token in the pool, counted in tokens."""
        page, offset = divmod(token, self.pool.page_size)
        return self.pages[page] * self.pool.page_size + offset

    def pages_needed(self, tokens: int) -> int:
        """How many pages `extend(tokens)` would take."""
        return self.pool.pages_for(self.length + tokens) - len(self.pages)

    def extend(self, tokens: int) -> None:
        """Makes room for `tokens` more. Raises OutOfPages, and is unchanged, when the pool cannot give it."""
        needed = self.pages_needed(tokens)
        if needed > self.pool.free:
            raise OutOfPages(
                f"{tokens} more tokens need {needed} pages of {self.pool.page_size} tokens; {self.pool.free} are free"
            )
        for left in range(needed, 0, -1):
            self._append(self._next_page(left))
        self.length += tokens

    def adopt(self, pages: Sequence[int]) -> None:
        """Goes on with full pages that are in use or remembered; the row has a whole number of pages so far."""
        if self.length % self.pool.page_size:
            raise ValueError(f"a row of {self.length} tokens ends within a page of {self.pool.page_size}")
        for page in pages:
            self.pool.share(page)
            self.pages.append(page)
        self.length += len(pages) * self.pool.page_size
        self._unbroken = _is_run(self.pages)

    def fork(self, at: int, hint: int = 0) -> tuple["PageTable", list[tuple[int, int]]]:
        """A new row that begins with the first `at` tokens of this one, and the pages to copy, as `(from, to)`.

        Full pages are shared, since nobody writes to them again; of a partly filled last one a copy is due. Raises
        OutOfPages.
        """
        full, rest = self._split(at)
        fork = PageTable(self.pool, hint or self.hint, full * self.pool.page_size)
        for page in self.pages[:full]:
            self.pool.share(page)
            fork.pages.append(page)
        fork._unbroken = _is_run(fork.pages)
        if not rest:
            return fork, []
        try:
            fork.extend(rest)
        except OutOfPages:
            fork.release()
            raise
        return fork, [(self.pages[full], fork.pages[full])]

    def crop(self, at: int) -> list[tuple[int, int]]:
        """Cuts this row back to its first `at` tokens; returns the pages to copy, as `(from, to)`. Raises OutOfPages.

        A page is copied when the cut goes through one that other rows share, since this row will write behind the cut.
        One that is only remembered is forgotten.
        """
        full, rest = self._split(at)
        kept_pages = full + bool(rest)
        copies: list[tuple[int, int]] = []
        if rest and self.pool.references(self.pages[full]) > 1:
            old = self.pages[full]
            if not self.pool.free:
                raise OutOfPages("a cut through a shared page needs one free page, and there is none")
            new = self.pool.find_run(1)[0]
            self.pool.allocate(new)
            copies.append((old, new))
            self.pages[full] = new
            self.pool.release(old)
        elif rest:
            self.pool.forget(self.pages[full])
        for page in reversed(self.pages[kept_pages:]):
            self.pool.release(page)
        del self.pages[kept_pages:]
        self.length = at
        self._unbroken = _is_run(self.pages)
        return copies

    def release(self) -> None:
        """Gives all pages back, the last first: of a remembered row, the beginning is worth most. The table is empty
        then, and can be used again."""
        for page in reversed(self.pages):
            self.pool.release(page)
        self.pages.clear()
        self.length = 0
        self._unbroken = True
        self._unkeep()

    def _split(self, at: int) -> tuple[int, int]:
        if not 0 <= at <= self.length:
            raise ValueError(f"a row of {self.length} tokens can't be cut at {at}")
        return divmod(at, self.pool.page_size)

    def _append(self, page: int) -> None:
        if self.pages and page != self.pages[-1] + 1:
            self._unbroken = False
        self.pool.allocate(page)
        self.pages.append(page)

    def _next_page(self, left: int) -> int:
        """The page behind the last one where possible, else the start of a new run of at least `left` pages."""
        if self.pages:
            following = self.pages[-1] + 1
            if self.pool.allows(following, self._kept):
                return following
        self._unkeep()
        # Room for as much again as the row has, so that a row of unknown length breaks few times.
        run = self.pool.find_run(max(left, self.pool.pages_for(self.hint) - len(self.pages), len(self.pages), 1))
        self._kept = run
        self.pool.keep(run[1:])
        return run[0]

    def _unkeep(self) -> None:
        self.pool.unkeep(self._kept)
        self._kept = range(0)


@dataclass(frozen=True, slots=True)
class RowSlice:
    """Tokens `[at, at + n)` of a row whose table already has room for them."""

    table: PageTable
    at: int
    n: int


def _is_run(pages: list[int]) -> bool:
    return all(after == before + 1 for before, after in pairwise(pages))
