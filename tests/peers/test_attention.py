"""Paged attention equals attention written out plainly, for every kind of row, window, cap and sink."""

from dataclasses import dataclass, field
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AttentionInterface

from peers.attention import PAGED, Current
from peers.batch import LEAST_RUN, PagedBatch
from peers.kv import KVCache, runs
from peers.pages import PagePool, PageTable, RowSlice
from peers.scores import Rule, spelled_out
from swarm.errors import ModelError

KV_HEADS, GROUP, WIDTH, VALUES = 2, 3, 8, 4
HEADS = KV_HEADS * GROUP
CPU = torch.device("cpu")


def plainly(q: Tensor, k: Tensor, v: Tensor, at: int, rule: Rule) -> Tensor:
    """`q` `[heads, n, width]`; `k`, `v` `[kv heads, at + n, width]` → `[n, heads, values]`, token by token."""
    out = torch.empty(q.shape[1], HEADS, VALUES)
    for head, token in product(range(HEADS), range(q.shape[1])):
        own = at + token
        start = 0 if rule.window is None else max(0, own - rule.window + 1)
        scores = k[head // GROUP, start : own + 1] @ q[head, token] * rule.scaling
        if rule.softcap is not None:
            scores = rule.softcap * torch.tanh(scores / rule.softcap)
        if rule.sinks is not None:
            scores = torch.cat([scores, rule.sinks[head, None]])
        weights = torch.softmax(scores, dim=0)[: own + 1 - start]
        out[token, head] = weights @ v[head // GROUP, start : own + 1]
    return out


@dataclass
class Row:
    """A row with all its keys and values at hand, of which `length` tokens are in the pages."""

    table: PageTable
    keys: Tensor = field(default_factory=lambda: torch.randn(KV_HEADS, 64, WIDTH))
    values: Tensor = field(default_factory=lambda: torch.randn(KV_HEADS, 64, VALUES))


def step(cache: KVCache, rows: list[Row], news: list[int], rule: Rule, gather: bool = False) -> tuple[Tensor, Tensor]:
    """Adds `news` tokens to the rows in one batch: what paged attention gives, and what it should give."""
    slices, expected = [], []
    query = torch.randn(1, sum(news), HEADS, WIDTH).transpose(1, 2)
    keys, values = [], []
    begin = 0
    for row, n in zip(rows, news, strict=True):
        at = row.table.length
        row.table.extend(n)
        slices.append(RowSlice(row.table, at, n))
        keys.append(row.keys[:, at : at + n])
        values.append(row.values[:, at : at + n])
        own = query[0, :, begin : begin + n]
        expected.append(plainly(own, row.keys[:, : at + n], row.values[:, : at + n], at, rule))
        begin += n
    batch = PagedBatch(cache, slices, [rule.window], gather=gather)
    output = batch.attend(query, torch.cat(keys, dim=1)[None], torch.cat(values, dim=1)[None], rule)
    return output[0], torch.cat(expected)


RULES = {
    "plain": Rule(0.3, None, None, None),
    "window": Rule(0.3, 5, None, None),
    "softcap": Rule(0.9, None, 1.5, None),
    "softcap and window": Rule(0.9, 5, 1.5, None),
    "sinks": Rule(0.3, None, None, torch.linspace(-1, 3, HEADS)),
    "sinks and window": Rule(0.3, 5, None, torch.linspace(-1, 3, HEADS)),
}


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES.keys())
@pytest.mark.parametrize("page_size", [1, 4, 16])
@pytest.mark.parametrize("gather", [False, True], ids=["one by one", "gathered"])
def test_rows_attend_as_if_alone_and_in_one_piece(rule: Rule, page_size: int, gather: bool) -> None:
    torch.manual_seed(0)
    pool = PagePool(200 // page_size, page_size)
    cache = KVCache(1, pool, dtype=torch.float32, device=CPU)
    rows = [Row(PageTable(pool)) for _ in range(3)]  # without hints they get in each other's way
    for news in ([1, 1, 1], [7, 1, 12], [1, 1, 1], [1, 9, 1], [4, 4, 4], [1, 1, 1]):
        output, expected = step(cache, rows, news, rule, gather)
        torch.testing.assert_close(output, expected, atol=1e-5, rtol=1e-5)
    if page_size < 16:
        assert not all(row.table.contiguous for row in rows), "the test should see rows in pieces too"


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES.keys())
def test_long_row_in_pieces_is_read_where_it_lies(rule: Rule) -> None:
    torch.manual_seed(0)
    pool = PagePool(64, 4)
    cache = KVCache(1, pool, dtype=torch.float32, device=CPU)
    row, other = Row(PageTable(pool)), PageTable(pool)
    row.keys, row.values = torch.randn(KV_HEADS, 200, WIDTH), torch.randn(KV_HEADS, 200, VALUES)
    step(cache, [row], [LEAST_RUN], rule)
    other.extend(64)  # in the way
    step(cache, [row], [2 * LEAST_RUN], rule)
    assert 1 < len(runs(row.table, 0, row.table.length)) <= row.table.length / LEAST_RUN
    for _ in range(3):
        output, expected = step(cache, [row], [1], rule)
        torch.testing.assert_close(output, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES.keys())
def test_prompt_in_one_go_and_the_next_tokens(rule: Rule) -> None:
    torch.manual_seed(0)
    pool = PagePool(8, 16)
    cache = KVCache(1, pool, dtype=torch.float32, device=CPU)
    row = Row(PageTable(pool, hint=40))
    for n in (20, 1, 1, 8, 1):
        output, expected = step(cache, [row], [n], rule)
        torch.testing.assert_close(output, expected, atol=1e-5, rtol=1e-5)


def test_long_prompts_with_spelled_out_scores_go_piecewise() -> None:
    rule = RULES["softcap"]
    q, k, v = (
        torch.randn(KV_HEADS, GROUP, 9, WIDTH),
        torch.randn(KV_HEADS, 20, WIDTH),
        torch.randn(KV_HEADS, 20, VALUES),
    )
    mask = torch.rand(9, 20) < 0.7
    mask[:, 0] = True
    whole = spelled_out(q, k, v, mask, rule)
    pieces = spelled_out(q, k, v, mask, rule, most_scores=2 * HEADS * 20)
    torch.testing.assert_close(pieces, whole)


def attend(layer: torch.nn.Module, **kwargs: Any) -> object:
    states = torch.randn(1, HEADS, 1, WIDTH)
    return AttentionInterface()[PAGED](layer, states, states, states, None, **kwargs)


def test_attention_that_looks_ahead_is_refused() -> None:
    layer = torch.nn.Identity()
    cache = KVCache(1, PagePool(1, 4), dtype=torch.float32, device=CPU)
    Current([layer]).batch = PagedBatch(cache, [], [None])
    with pytest.raises(ModelError, match="looks ahead"):
        attend(layer, is_causal=False)


def test_attention_outside_a_step_is_refused() -> None:
    layer = torch.nn.Identity()
    with pytest.raises(ModelError, match="outside the steps of a span"):
        attend(layer)
    Current([layer])
    with pytest.raises(ModelError, match="outside the steps of a span"):
        attend(layer)
