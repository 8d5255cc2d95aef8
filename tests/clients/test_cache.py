"""A cache agrees with plain lists of tokens, whatever is stepped, padded, copied or cut; its session has no more."""

import asyncio
import threading
from collections.abc import Coroutine, Iterator, Mapping, Sequence
from concurrent.futures import CancelledError, Future
from typing import Any, TypeVar

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from clients.cache import SwarmCache
from clients.history import Embed
from clients.session import RowChunk
from swarm.errors import UsageError
from swarm.ids import RowId

T = TypeVar("T")


class Sums:
    """A session and its connection: a row's output at a position is the sum of what the row has up to there."""

    def __init__(self) -> None:
        self.rows: dict[RowId, list[float]] = {}
        self.steps: list[list[RowChunk]] = []
        self.forks = 0
        self.closed = False
        self.fails = False
        self.free = asyncio.Event()
        self.free.set()
        self._next = 0
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()

    def submit(self, work: Coroutine[Any, Any, T]) -> "Future[T]":
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    async def session(self, *, embed: Embed, lease_tokens: int, **_: object) -> "Sums":
        return self

    @property
    def positions(self) -> Mapping[RowId, int]:
        return {row: len(has) for row, has in self.rows.items()}

    def new_row(self) -> RowId:
        self._next += 1
        return RowId(self._next)

    async def step(self, rows: Sequence[RowChunk], hidden: Tensor) -> Tensor:
        outputs, offset = [], 0
        for chunk in rows:
            has = self.rows.setdefault(chunk.row, [])
            has += hidden[offset : offset + chunk.n, 0].tolist()
            offset += chunk.n
            outputs.append(torch.tensor(has).cumsum(0)[len(has) - chunk.want :, None])
        await self.free.wait()
        if self.fails:
            raise UsageError("this session fails")
        self.steps.append(list(rows))
        return torch.cat(outputs)

    async def fork(self, forks: Sequence[tuple[RowId, int]]) -> list[RowId]:
        self.forks += 1
        self.rows = {self.new_row(): self.rows[src][:at] for src, at in forks}
        return list(self.rows)

    async def close(self) -> None:
        self.closed = True

    def __enter__(self) -> "Sums":
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


@pytest.fixture
def session() -> Iterator[Sums]:
    with Sums() as session:
        yield session


def cache_over(session: Sums) -> SwarmCache:
    return SwarmCache(session, lambda tokens, start: tokens[:, None].float(), max_positions=1000)


def advance(cache: SwarmCache, tokens: list[list[int]], *, keep: int | None = None) -> list[list[float]]:
    """Token 0 is padding."""
    ids = torch.tensor(tokens)
    mask, _ = cache.next_columns((ids != 0).long(), *ids.shape)
    return cache.advance(ids[..., None].float(), ids, mask, ids.shape[1] if keep is None else keep)[..., 0].tolist()


def begin(cache: SwarmCache, tokens: list[int]) -> None:
    ids = torch.tensor(tokens)[:, None]
    cache.begin(ids[..., None].float(), ids)


class Lists:
    """The same with lists: each row's columns, padding as 0."""

    def __init__(self) -> None:
        self.rows: list[list[int]] = []

    def advance(self, tokens: list[list[int]], keep: int) -> list[list[float]]:
        self.rows = [has + new for has, new in zip(self.rows or [[]] * len(tokens), tokens, strict=True)]
        first = len(self.rows[0]) - keep
        return [[float(sum(has[: at + 1]) if has[at] else 0) for at in range(first, len(has))] for has in self.rows]


@st.composite
def stories(draw: st.DrawFn) -> list[tuple[str, Any]]:
    """Steps with padding anywhere, some begun before they are asked for, copies and cuts, in any order."""
    batch, columns = draw(st.integers(1, 4)), 0
    story: list[tuple[str, Any]] = []
    for _ in range(draw(st.integers(1, 8))):
        kind = draw(st.sampled_from(["step", "step", "begin", "select", "crop", "repeat"])) if columns else "step"
        if kind == "begin":
            story.append((kind, draw(st.lists(st.integers(1, 2), min_size=batch, max_size=batch))))
        elif kind == "step":
            n = draw(st.integers(1, 4))
            row = st.lists(st.integers(0, 2), min_size=n, max_size=n)
            story.append((kind, (draw(st.lists(row, min_size=batch, max_size=batch)), draw(st.integers(1, n)))))
            columns += n
        elif kind == "select":
            indices = draw(st.lists(st.integers(0, batch - 1), min_size=1, max_size=4))
            story.append((kind, indices))
            batch = len(indices)
        elif kind == "crop":
            left = draw(st.integers(0, columns))
            story.append((kind, left - columns))
            columns = left
        else:
            story.append((kind, 2))
            batch *= 2
    return story


@settings(max_examples=200)
@given(stories())
def test_a_cache_agrees_with_lists(story: list[tuple[str, Any]]) -> None:
    lists = Lists()
    with Sums() as session, cache_over(session) as cache:
        for kind, value in story:
            if kind == "step":
                tokens, keep = value
                assert advance(cache, tokens, keep=keep) == lists.advance(tokens, keep)
                if any(map(any, tokens)):  # a step of padding alone sends nothing
                    real = {tuple(t for t in has if t) for has in lists.rows} - {()}
                    assert {tuple(map(int, has)) for has in session.rows.values()} == real
            elif kind == "begin":
                begin(cache, value)
            elif kind == "select":
                cache.batch_select_indices(torch.tensor(value))
                lists.rows = [lists.rows[index] for index in value]
            elif kind == "crop":
                cache.crop(value)
                lists.rows = [has[: len(has) + value] for has in lists.rows]
            else:
                cache.batch_repeat_interleave(value)
                lists.rows = [has for has in lists.rows for _ in range(value)]
            assert cache.get_seq_length() == len(lists.rows[0])
            assert cache.batch_size == len(lists.rows)
        cache.close()
        assert session.closed or not session.steps


def test_equal_rows_share_a_row_of_the_session_until_they_differ(session: Sums) -> None:
    with cache_over(session) as cache:
        advance(cache, [[5, 6, 7]] * 3)
        assert [[chunk.n for chunk in step] for step in session.steps] == [[3]]
        advance(cache, [[8], [8], [9]])
        assert [chunk.n for chunk in session.steps[1]] == [1, 1]
        assert list(session.rows.values()) == [[5, 6, 7, 8], [5, 6, 7, 9]]


def test_rows_that_stay_are_not_forked(session: Sums) -> None:
    with cache_over(session) as cache:
        advance(cache, [[5, 6], [7, 8]])
        cache.reorder_cache(torch.tensor([0, 1]))
        cache.crop(0)
        advance(cache, [[1], [2]])
        assert session.forks == 0
        cache.reorder_cache(torch.tensor([1, 0]))
        assert advance(cache, [[1], [2]]) == [[18], [14]]


def test_a_step_that_was_begun_is_not_computed_again(session: Sums) -> None:
    with cache_over(session) as cache:
        begin(cache, [7])  # there is no session yet
        advance(cache, [[5], [6]])
        begin(cache, [7, 8])
        begin(cache, [9, 9])  # one is enough
        assert advance(cache, [[7], [8]]) == [[12], [14]]
        assert len(session.steps) == 2
        assert session.forks == 0
        begin(cache, [1, 2])
        assert advance(cache, [[1], [3]]) == [[13], [17]]
        assert {tuple(map(int, has)) for has in session.rows.values()} == {(5, 7, 1), (6, 8, 3)}


def test_a_step_that_was_begun_does_not_take_the_row_of_another(session: Sums) -> None:
    with cache_over(session) as cache:
        advance(cache, [[5]])
        begin(cache, [6])
        cache.batch_repeat_interleave(2)
        assert advance(cache, [[6], [0]]) == [[11], [0]]
        assert [list(map(int, has)) for has in session.rows.values()] == [[5, 6], [5]]


def test_nothing_is_begun_beyond_the_longest_row(session: Sums) -> None:
    with cache_over(session) as cache:
        advance(cache, [[1] * 1000])
        begin(cache, [1])
        assert cache._begun is None


def test_a_step_that_was_begun_and_failed_leaves_the_cache_where_it_was(session: Sums) -> None:
    with cache_over(session) as cache:
        advance(cache, [[5, 6]])
        session.fails = True
        begin(cache, [7])
        with pytest.raises(UsageError, match="this session fails"):
            advance(cache, [[7]])
        session.fails = False
        assert advance(cache, [[7]]) == [[18]]


def test_a_step_that_was_begun_can_be_interrupted(session: Sums) -> None:
    with cache_over(session) as cache:
        advance(cache, [[5]])
        for asked in (True, False):
            session.free.clear()
            with cache.interruptible():
                begin(cache, [6])
                cache.interrupt()
                if asked:
                    with pytest.raises(CancelledError):
                        advance(cache, [[6]])
            session.free.set()
            assert advance(cache, [[6]]) == [[11]]
            cache.crop(-1)


def test_a_step_that_fails_leaves_the_cache_where_it_was(session: Sums) -> None:
    with cache_over(session) as cache:
        advance(cache, [[5, 6]])
        session.fails = True
        with pytest.raises(UsageError, match="this session fails"):
            advance(cache, [[7]])
        session.fails = False
        assert cache.get_seq_length() == 2
        assert advance(cache, [[7]]) == [[18]]


def test_an_interrupted_cache_refuses_until_the_block_ends(session: Sums) -> None:
    with cache_over(session) as cache:
        with cache.interruptible():
            cache.interrupt()
            with pytest.raises(CancelledError):
                advance(cache, [[5]])
        assert advance(cache, [[5]]) == [[5]]


def test_a_closed_cache_says_so(session: Sums) -> None:
    cache = cache_over(session)
    advance(cache, [[5]])
    cache.close()
    cache.close()
    assert session.closed
    assert repr(cache) == "SwarmCache(closed)"
    with pytest.raises(UsageError, match="this cache is closed"):
        advance(cache, [[6]])


def test_inputs_that_contradict_the_cache_are_refused(session: Sums) -> None:
    with cache_over(session) as cache:
        advance(cache, [[0, 5], [6, 7]])
        with pytest.raises(UsageError, match="the cache holds 2 rows, the input has 1"):
            cache.next_columns(None, 1, 1)
        with pytest.raises(UsageError, match="shows or hides"):
            cache.next_columns(torch.ones(2, 3), 2, 1)
        with pytest.raises(UsageError, match="crop takes 0 or a negative number"):
            cache.crop(1)
        mask, positions = cache.next_columns(torch.tensor([[0, 1, 1, 1], [1, 1, 0, 1]]), 2, 2)
        assert mask is not None
        assert positions.tolist() == [[1, 2], [0, 2]]
