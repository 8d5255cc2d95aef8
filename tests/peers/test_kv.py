"""KV arenas and paged rows: what is written through a table is read through it, in place where that is possible."""

from collections.abc import Callable
from itertools import pairwise

import pytest
import torch

from peers.kv import KVCache, PagedRows, runs, slots
from peers.pages import OutOfPages, PagePool, PageTable

HEADS, WIDTH = 2, 3


def broken_row(pool: PagePool, tokens: int) -> PageTable:
    """A row that lies in the pool in more than one piece."""
    row, other = PageTable(pool), PageTable(pool)
    while row.length < tokens:
        row.extend(1)
        if not row.length % pool.page_size:
            other.extend(pool.page_size * (1 + len(row.pages)))
    other.release()
    assert not row.contiguous
    return row


def whole_row(pool: PagePool, tokens: int) -> PageTable:
    row = PageTable(pool)
    row.extend(tokens)
    return row


def cache_of(pool: PagePool) -> KVCache:
    return KVCache(2, pool, dtype=torch.float32, device=torch.device("cpu"))


@pytest.mark.parametrize("make", [whole_row, broken_row])
def test_slots_follow_the_pages(make: Callable[[PagePool, int], PageTable]) -> None:
    row = make(PagePool(64, 4), 11)
    assert slots(row, 2, 11).tolist() == [row.slot(token) for token in range(2, 11)]


@pytest.mark.parametrize("make", [whole_row, broken_row])
def test_runs_are_the_slots_in_as_few_pieces_as_can_be(make: Callable[[PagePool, int], PageTable]) -> None:
    row = make(PagePool(64, 4), 11)
    for start, stop in [(0, 11), (2, 11), (3, 4), (4, 8), (5, 9)]:
        pieces = runs(row, start, stop)
        each = [slot for first, n in pieces for slot in range(first, first + n)]
        assert each == slots(row, start, stop).tolist()
        assert all(first + n != following for (first, n), (following, _) in pairwise(pieces))


@pytest.mark.parametrize("make", [whole_row, broken_row])
def test_view_shows_the_row_that_was_written(make: Callable[[PagePool, int], PageTable]) -> None:
    pool = PagePool(64, 4)
    cache, row = cache_of(pool), make(pool, 11)
    keys, values = torch.randn(HEADS, 11, WIDTH), torch.randn(HEADS, 11, WIDTH + 2)
    cache.write(1, slots(row, 0, 7), keys[:, :7], values[:, :7])
    cache.write(1, slots(row, 7, 11), keys[:, 7:], values[:, 7:])
    seen_keys, seen_values = cache.view(1, row)
    assert torch.equal(seen_keys, keys)
    assert torch.equal(seen_values, values)


def test_contiguous_row_is_seen_in_place() -> None:
    pool = PagePool(8, 4)
    cache, row = cache_of(pool), whole_row(pool, 9)
    cache.write(0, slots(row, 0, 9), torch.randn(HEADS, 9, WIDTH), torch.randn(HEADS, 9, WIDTH))
    assert cache.view(0, row)[0].untyped_storage().data_ptr() == cache.place(0)[0].keys.untyped_storage().data_ptr()


def test_keys_and_values_written_as_one_are_those_written_apart() -> None:
    pool = PagePool(8, 4)
    cache, row = cache_of(pool), whole_row(pool, 5)
    keys, values = torch.randn(HEADS, 5, WIDTH), torch.randn(HEADS, 5, WIDTH)
    arenas, index = cache.joint(0, HEADS, WIDTH)
    assert arenas.both is not None
    arenas.both[index].index_copy_(1, slots(row, 0, 5), torch.cat([keys, values]))
    assert all(torch.equal(*pair) for pair in zip(cache.view(0, row), (keys, values), strict=True))


def test_layers_that_are_alike_are_made_as_one() -> None:
    pool = PagePool(8, 4)
    small, row = KVCache(3, pool, dtype=torch.float32, device=torch.device("cpu")), whole_row(pool, 1)
    for layer, width in enumerate((WIDTH, WIDTH + 1, WIDTH)):
        small.write(layer, slots(row, 0, 1), torch.randn(HEADS, 1, width), torch.randn(HEADS, 1, width))
    cache = KVCache(3, pool, dtype=torch.float32, device=torch.device("cpu"))
    cache.resemble(small)
    assert cache.place(0)[0] is cache.place(2)[0] is not cache.place(1)[0]
    assert cache.bytes_per_token == small.bytes_per_token


def test_layer_that_never_wrote_takes_no_memory_and_shows_nothing() -> None:
    pool = PagePool(8, 4)
    cache, row = cache_of(pool), whole_row(pool, 1)
    cache.write(0, slots(row, 0, 1), torch.randn(HEADS, 1, WIDTH), torch.randn(HEADS, 1, WIDTH))
    assert cache.bytes_per_token == 2 * HEADS * WIDTH * 4
    with pytest.raises(ValueError, match="layer 1 has not written"):
        cache.view(1, row)


def test_copied_page_lets_two_rows_go_their_own_ways() -> None:
    pool = PagePool(8, 4)
    cache, row = cache_of(pool), whole_row(pool, 6)
    keys, values = torch.randn(HEADS, 6, WIDTH), torch.randn(HEADS, 6, WIDTH)
    cache.write(0, slots(row, 0, 6), keys, values)
    fork, copies = row.fork(5)
    for source, target in copies:
        cache.copy_page(source, target)
    fork.extend(1)
    other = torch.randn(HEADS, 1, WIDTH)
    cache.write(0, slots(fork, 5, 6), other, other)
    assert torch.equal(cache.view(0, row)[0], keys)
    assert torch.equal(cache.view(0, fork)[0], torch.cat([keys[:, :5], other], dim=1))


@pytest.mark.parametrize("make", [whole_row, broken_row])
def test_paged_rows_read_any_part_of_what_was_written(make: Callable[[PagePool, int], PageTable]) -> None:
    pool = PagePool(64, 4)
    stored, row = PagedRows(pool, WIDTH, torch.bfloat16), make(pool, 11)
    content = torch.randn(11, WIDTH, dtype=torch.bfloat16)
    stored.write(row, 0, content[:6])
    stored.write(row, 6, content[6:])
    for start, stop in [(0, 11), (3, 9), (5, 5), (10, 11)]:
        assert torch.equal(stored.read(row, start, stop), content[start:stop])


def test_what_was_read_does_not_change_when_the_row_is_written_over() -> None:
    pool = PagePool(8, 4)
    stored, row = PagedRows(pool, WIDTH, torch.float32), PageTable(pool)
    stored.append(row, torch.ones(3, WIDTH))
    read = stored.read(row, 0, 3)
    stored.write(row, 0, torch.zeros(3, WIDTH))
    assert torch.equal(read, torch.ones(3, WIDTH))


def test_append_that_does_not_fit_changes_nothing() -> None:
    pool = PagePool(2, 4)
    stored, row = PagedRows(pool, WIDTH, torch.float32), PageTable(pool)
    stored.append(row, torch.ones(7, WIDTH))
    with pytest.raises(OutOfPages):
        stored.append(row, torch.zeros(2, WIDTH))
    assert torch.equal(stored.read(row, 0, row.length), torch.ones(7, WIDTH))


def test_forked_paged_row_keeps_its_past() -> None:
    pool = PagePool(8, 4)
    stored, row = PagedRows(pool, WIDTH, torch.float32), PageTable(pool)
    content = torch.randn(6, WIDTH)
    stored.append(row, content)
    fork, copies = row.fork(5)
    for source, target in copies:
        stored.copy_page(source, target)
    row.release()
    assert torch.equal(stored.read(fork, 0, 5), content[:5])


def test_reading_or_writing_beyond_the_row_is_refused() -> None:
    pool = PagePool(8, 4)
    stored, row = PagedRows(pool, WIDTH, torch.float32), whole_row(pool, 3)
    with pytest.raises(ValueError, match="has no tokens 2:4"):
        stored.read(row, 2, 4)
    with pytest.raises(ValueError, match="no room for 2 at 2"):
        stored.write(row, 2, torch.zeros(2, WIDTH))
