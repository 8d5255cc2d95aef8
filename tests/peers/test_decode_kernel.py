"""Rows that decode, all in one call, are attended to as torch does it one by one."""

import platform

import pytest
import torch
from torch import Tensor

from peers.decode_kernel import DecodeKernel, Runs, decode_kernel
from peers.fused import Norm
from peers.turns import Pairs

if decode_kernel(64, 3) is None:
    pytest.skip(f"there is no such kernel for {platform.machine()} here", allow_module_level=True)

SLOTS = 400
HEADS = [(64, 3, 3), (16, 2, 1), (128, 2, 4), (128, 1, 7), (256, 1, 2)]
ROWS = [[(3, 1)], [(0, 200)], [(250, 15), (20, 33), (300, 64)], [(100, 16)], [(399, 1), (0, 30)]]


def plain(query: Tensor, keys: Tensor, values: Tensor, scaling: float) -> Tensor:
    group = query.shape[1] // keys.shape[0]
    outputs = []
    for row, runs in zip(query.double(), ROWS, strict=True):
        slots = torch.cat([torch.arange(slot, slot + n) for slot, n in runs])
        k, v = (tensor[:, slots].double().repeat_interleave(group, dim=0) for tensor in (keys, values))
        weights = torch.softmax(torch.einsum("hw,htw->ht", row, k) * scaling, dim=1)
        outputs.append(torch.einsum("ht,htw->hw", weights, v))
    return torch.stack(outputs)


@pytest.mark.parametrize(("width", "kv_heads", "group"), HEADS)
@pytest.mark.parametrize("scale", [0.1, 30.0])
def test_rows_are_attended_to_as_one_by_one(width: int, kv_heads: int, group: int, scale: float) -> None:
    torch.manual_seed(0)
    kernel = DecodeKernel(width, group)
    both = torch.randn(2 * kv_heads, SLOTS, width)
    joined = torch.randn(len(ROWS), kv_heads * (group + 2), width)
    query, keys, values = joined[:, : kv_heads * group], both[:kv_heads], both[kv_heads:]
    expected = plain(query, keys, values, scale)
    got = kernel(query, keys, values, Runs(ROWS), scale)
    torch.testing.assert_close(got.double(), expected, rtol=2e-4, atol=2e-5)
    swapped = query.transpose(0, 1).contiguous().transpose(0, 1)
    assert torch.equal(kernel(swapped, keys, values, Runs(ROWS), scale), got)
    for row, runs in enumerate(ROWS):
        assert torch.equal(kernel(query[row : row + 1], keys, values, Runs([runs]), scale)[0], got[row])


def test_it_gives_the_same_on_several_threads() -> None:
    kernel, rows = DecodeKernel(64, 3), [[(0, 390)]] * 8
    both, query = torch.randn(6, SLOTS, 64), torch.randn(8, 9, 64)
    before = torch.get_num_threads()
    try:
        outputs = []
        for threads in (1, 3):
            torch.set_num_threads(threads)
            outputs.append(kernel(query, both[:3], both[3:], Runs(rows), 0.125))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(*outputs)


def test_what_is_no_number_is_not_hidden() -> None:
    kernel = DecodeKernel(16, 1)
    both, query = torch.randn(2, 40, 16), torch.randn(2, 1, 16)
    both[0, 5, 3] = torch.nan
    got = kernel(query, both[:1], both[1:], Runs([[(0, 10)], [(10, 20)]]), 1.0)
    assert bool(got[0].isnan().all())
    assert bool(got[1].isfinite().all())


@pytest.mark.parametrize(("width", "kv_heads", "group"), HEADS)
@pytest.mark.parametrize("each_head", [True, False])
@pytest.mark.parametrize("tokens", [1, 40])
def test_new_tokens_are_turned_and_put_where_they_belong(
    width: int, kv_heads: int, group: int, each_head: bool, tokens: int
) -> None:
    torch.manual_seed(0)
    kernel, queries = DecodeKernel(width, group), kv_heads * group
    joined, slots = torch.randn(tokens, queries + 2 * kv_heads, width), torch.randperm(SLOTS)[:tokens]
    for turned in {16, width}:
        pairs = torch.randn(tokens, queries + kv_heads if each_head else 1, turned // 2, dtype=torch.complex64)
        assert kernel.turns(pairs)
        both, expected = torch.zeros(2 * kv_heads, SLOTS, width), torch.zeros(2 * kv_heads, SLOTS, width)
        plain, own = joined.clone(), joined.clone()
        Pairs(pairs).turn(plain[:, : queries + kv_heads])
        expected[:, slots] = plain[:, queries:].transpose(0, 1)
        kernel.store(own, pairs, both[:kv_heads], both[kv_heads:], slots)
        torch.testing.assert_close(own[:, :queries], plain[:, :queries])
        torch.testing.assert_close(both, expected)
        untouched = torch.ones(SLOTS, dtype=torch.bool).index_fill(0, slots, False)
        assert not both[:, untouched].any()


@pytest.mark.parametrize(("width", "kv_heads", "group"), HEADS)
def test_heads_are_normed_before_they_are_turned(width: int, kv_heads: int, group: int) -> None:
    torch.manual_seed(0)
    kernel, queries = DecodeKernel(width, group), kv_heads * group
    joined, slots = torch.randn(3, queries + 2 * kv_heads, width), torch.tensor([5, 0, 9])
    joined[1] *= 1e3
    joined[2] *= 1e-3
    norm = Norm(torch.randn(2, width), 1e-6, (queries, kv_heads))
    pairs = torch.randn(3, 1, width // 2, dtype=torch.complex64)
    plain, both = joined.clone(), torch.zeros(2 * kv_heads, SLOTS, width)
    turned = plain[:, : queries + kv_heads]
    turned.copy_(norm(turned))
    Pairs(pairs).turn(turned)
    kernel.store(joined, pairs, both[:kv_heads], both[kv_heads:], slots, norm.with_eps)
    torch.testing.assert_close(joined[:, :queries], plain[:, :queries])
    torch.testing.assert_close(both[:, slots], plain[:, queries:].transpose(0, 1))


def test_pairs_that_fill_no_vector_are_left_to_torch() -> None:
    assert not DecodeKernel(64, 3).turns(torch.ones(1, 1, 12, dtype=torch.complex64))
