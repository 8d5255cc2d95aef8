"""Pages: no page is lost, none is in two rows by accident, rows keep what was written, and stay in one piece."""

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, multiple, rule

from peers.pages import OutOfPages, PagePool, PageTable


def test_row_takes_pages_as_it_grows() -> None:
    pool = PagePool(pages=8, page_size=4)
    row = PageTable(pool)
    row.extend(3)
    assert (row.length, len(row.pages), pool.free) == (3, 1, 7)
    row.extend(1)
    assert (row.length, len(row.pages), pool.free) == (4, 1, 7)
    row.extend(9)
    assert (row.length, len(row.pages), pool.free) == (13, 4, 4)


def test_row_that_does_not_fit_is_unchanged() -> None:
    pool = PagePool(pages=2, page_size=4)
    row = PageTable(pool)
    row.extend(5)
    with pytest.raises(OutOfPages, match="need 1 pages of 4 tokens; 0 are free"):
        row.extend(4)
    assert (row.length, pool.free) == (5, 0)
    row.extend(3)


def test_rows_that_grow_in_turns_stay_contiguous_within_their_hints() -> None:
    pool = PagePool(pages=64, page_size=4)
    rows = [PageTable(pool, hint=60) for _ in range(4)]
    for _ in range(60):
        for row in rows:
            row.extend(1)
    assert all(row.contiguous and row.first_slot == row.pages[0] * 4 for row in rows)


def test_pages_kept_for_a_row_are_given_to_others_when_none_else_are_left() -> None:
    pool = PagePool(pages=8, page_size=4)
    first, second = PageTable(pool, hint=32), PageTable(pool, hint=32)
    first.extend(4)
    second.extend(28)
    assert pool.free == 0
    second.release()
    first.extend(28)
    assert first.contiguous


def test_row_without_a_hint_breaks_seldom() -> None:
    pool = PagePool(pages=256, page_size=1)
    rows = [PageTable(pool), PageTable(pool)]
    for _ in range(64):
        for row in rows:
            row.extend(1)
    breaks = sum(after != before + 1 for row in rows for before, after in zip(row.pages, row.pages[1:], strict=False))
    assert breaks <= 12


def test_fork_shares_full_pages_and_asks_to_copy_the_last() -> None:
    pool = PagePool(pages=8, page_size=4)
    row = PageTable(pool)
    row.extend(11)
    fork, copies = row.fork(10)
    assert fork.pages[:2] == row.pages[:2]
    assert copies == [(row.pages[2], fork.pages[2])]
    assert fork.pages[2] not in row.pages
    assert pool.free == 4


def test_fork_at_a_page_boundary_copies_nothing() -> None:
    pool = PagePool(pages=8, page_size=4)
    row = PageTable(pool)
    row.extend(8)
    fork, copies = row.fork(8)
    assert (fork.pages, copies, pool.free) == (row.pages, [], 6)


def test_fork_without_a_free_page_changes_nothing() -> None:
    pool = PagePool(pages=2, page_size=4)
    row = PageTable(pool)
    row.extend(7)
    with pytest.raises(OutOfPages):
        row.fork(6)
    row.release()
    assert pool.free == 2


def test_cropped_row_copies_a_page_only_when_it_is_shared() -> None:
    pool = PagePool(pages=8, page_size=4)
    row = PageTable(pool)
    row.extend(8)
    assert row.crop(6) == []
    row.extend(2)
    fork, _ = row.fork(8)
    [(source, target)] = fork.crop(6)
    assert source == row.pages[1]
    assert fork.pages == [row.pages[0], target]


def test_cut_beyond_the_row_is_refused() -> None:
    row = PageTable(PagePool(pages=2, page_size=4))
    row.extend(3)
    with pytest.raises(ValueError, match="can't be cut at 4"):
        row.fork(4)


def test_released_twice_is_released_once() -> None:
    pool = PagePool(pages=2, page_size=4)
    row = PageTable(pool)
    row.extend(3)
    row.release()
    row.release()
    assert (pool.free, row.length) == (2, 0)


def filled(pool: PagePool, tokens: int, forgotten: list[int]) -> PageTable:
    """A row all of whose pages are remembered."""
    row = PageTable(pool)
    row.extend(tokens)
    for page in row.pages:
        pool.remember(page, forgotten.append)
    return row


def test_a_remembered_page_is_free_and_can_be_adopted() -> None:
    pool, forgotten = PagePool(pages=4, page_size=4), list[int]()
    row = filled(pool, 8, forgotten)
    pages = list(row.pages)
    row.release()
    assert pool.free == 4
    other = PageTable(pool)
    other.adopt(pages)
    other.extend(5)
    assert (other.length, other.pages[:2], pool.free, forgotten) == (13, pages, 0, [])
    with pytest.raises(ValueError, match="within a page"):
        other.adopt(pages)


def test_remembered_pages_are_taken_when_no_others_are_left_the_least_recently_used_first() -> None:
    pool, forgotten = PagePool(pages=6, page_size=4), list[int]()
    first, second = filled(pool, 8, forgotten), filled(pool, 8, forgotten)
    old, recent = list(first.pages), list(second.pages)
    first.release()
    second.release()
    row = PageTable(pool)
    row.extend(8)
    assert forgotten == []
    row.extend(4)
    assert forgotten == [old[1], old[0]], "the end of the older row goes first"
    row.extend(12)
    assert forgotten == [old[1], old[0], recent[1], recent[0]]


def test_a_page_that_is_cut_through_is_forgotten_since_its_row_writes_on_there() -> None:
    pool, forgotten = PagePool(pages=4, page_size=4), list[int]()
    row = filled(pool, 8, forgotten)
    cut = row.pages[1]
    row.crop(6)
    assert forgotten == [cut]
    row.extend(2)
    fork, _ = row.fork(8)
    pool.remember(cut, forgotten.append)
    fork.crop(5)
    assert forgotten == [cut], "a copy was written to, the page is as it was"


class PagesMachine(RuleBasedStateMachine):
    """Rows in a small pool, with a model of what each of them should read."""

    rows = Bundle("rows")

    @initialize(pages=st.integers(1, 24), page_size=st.integers(1, 5))
    def start(self, pages: int, page_size: int) -> None:
        self.pool = PagePool(pages, page_size)
        self.memory: list[int | None] = [None] * self.pool.tokens
        self.written: dict[int, list[int]] = {}
        self.tables: dict[int, PageTable] = {}
        self.remembered: dict[int, list[int]] = {}
        self.count = 0

    def _add(self, table: PageTable, content: list[int]) -> int:
        self.count += 1
        self.tables[self.count], self.written[self.count] = table, content
        return self.count

    def _copy(self, copies: list[tuple[int, int]]) -> None:
        size = self.pool.page_size
        for source, target in copies:
            self.memory[target * size : (target + 1) * size] = self.memory[source * size : (source + 1) * size]

    @rule(target=rows, hint=st.integers(0, 40))
    def begin(self, hint: int) -> int:
        return self._add(PageTable(self.pool, hint), [])

    @rule(row=rows, n=st.integers(1, 12))
    def extend(self, row: int, n: int) -> None:
        table, before = self.tables[row], list(self.tables[row].pages)
        at = table.length
        if table.pages_needed(n) > self.pool.free:
            with pytest.raises(OutOfPages):
                table.extend(n)
            assert (table.length, table.pages) == (at, before)
            return
        table.extend(n)
        for token in range(at, at + n):
            self.count += 1
            self.memory[table.slot(token)] = self.count
            self.written[row].append(self.count)

    @rule(target=rows, row=rows, share=st.floats(0, 1))
    def fork(self, row: int, share: float) -> object:
        table = self.tables[row]
        at = round(share * table.length)
        free = self.pool.free
        try:
            fork, copies = table.fork(at)
        except OutOfPages:
            assert free == self.pool.free == 0
            return multiple()
        self._copy(copies)
        return self._add(fork, self.written[row][:at])

    @rule(row=rows, share=st.floats(0, 1))
    def crop(self, row: int, share: float) -> None:
        table = self.tables[row]
        at = round(share * table.length)
        try:
            copies = table.crop(at)
        except OutOfPages:
            assert self.pool.free == 0
            return
        self._copy(copies)
        del self.written[row][at:]

    @rule(row=rows, which=st.integers(0, 5))
    def remember(self, row: int, which: int) -> None:
        table, size = self.tables[row], self.pool.page_size
        if which < table.length // size:
            self.remembered[table.pages[which]] = self.written[row][which * size : (which + 1) * size]
            self.pool.remember(table.pages[which], self.remembered.__delitem__)

    @rule(row=rows, which=st.integers(0, 5))
    def adopt(self, row: int, which: int) -> None:
        table = self.tables[row]
        if self.remembered and table.length % self.pool.page_size == 0:
            page = sorted(self.remembered)[which % len(self.remembered)]
            table.adopt([page])
            self.written[row] += self.remembered[page]

    @invariant()
    def remembered_pages_hold_what_they_held(self) -> None:
        for page, content in getattr(self, "remembered", {}).items():
            size = self.pool.page_size
            assert self.memory[page * size : (page + 1) * size] == content

    @rule(row=consumes(rows))
    def release(self, row: int) -> None:
        self.tables.pop(row).release()
        del self.written[row]

    @invariant()
    def rows_read_what_was_written(self) -> None:
        for row, table in getattr(self, "tables", {}).items():
            assert table.length == len(self.written[row])
            assert [self.memory[table.slot(token)] for token in range(table.length)] == self.written[row]
            if table.contiguous:
                first = table.first_slot or 0
                assert self.memory[first : first + table.length] == self.written[row]

    @invariant()
    def references_are_exact(self) -> None:
        if not hasattr(self, "pool"):
            return
        held = [page for table in self.tables.values() for page in table.pages]
        assert all(self.pool.references(page) == held.count(page) for page in range(self.pool.pages))
        assert self.pool.free == self.pool.pages - len(set(held))

    def teardown(self) -> None:
        for table in getattr(self, "tables", {}).values():
            table.release()
        if hasattr(self, "pool"):
            assert self.pool.free == self.pool.pages
            assert len(self.pool.find_run(self.pool.pages)) == self.pool.pages, (
                "pages stayed kept for rows that are gone"
            )


PagesMachine.TestCase.settings = settings(max_examples=150, stateful_step_count=30)
TestPages = PagesMachine.TestCase
