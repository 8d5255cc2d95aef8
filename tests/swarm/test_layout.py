import gc
import platform
import sys
from pathlib import Path

import psutil
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from swarm.layout import give_back_memory, let_go_of_files, store_by_columns


def test_values_stay_the_same_and_lie_by_columns() -> None:
    linear = nn.Linear(24, 40)
    before = linear.weight.detach().clone()
    store_by_columns(nn.Sequential(linear))
    assert torch.equal(linear.weight, before)
    assert linear.weight.stride() == (1, 40)


def test_a_tied_embedding_stays_tied_and_looks_up_the_same() -> None:
    embedding, head = nn.Embedding(40, 24), nn.Linear(24, 40, bias=False)
    head.weight = embedding.weight
    tokens = torch.tensor([3, 39, 0])
    before = embedding(tokens).detach().clone()
    store_by_columns(head)
    assert embedding.weight is head.weight
    assert torch.equal(embedding(tokens), before)


def test_other_types_are_left_alone() -> None:
    linear = nn.Linear(24, 40, dtype=torch.bfloat16)
    store_by_columns(linear)
    assert linear.weight.is_contiguous()


@pytest.mark.skipif(sys.platform != "linux", reason="asks Linux what is mapped")
def test_files_that_weights_came_from_are_let_go(tmp_path: Path) -> None:
    file = tmp_path / "weights.safetensors"
    save_file({"weight": torch.randn(8, 8), "bias": torch.randn(8)}, file)
    linear = nn.Linear(8, 8)
    with safe_open(file, framework="pt") as shard:
        linear.weight.data, linear.bias.data = shard.get_tensor("weight"), shard.get_tensor("bias")
    before = [linear.weight.detach().clone(), linear.bias.detach().clone()]
    gc.collect()
    assert str(file) in Path("/proc/self/maps").read_text()
    store_by_columns(linear)
    let_go_of_files(linear)
    gc.collect()
    assert str(file) not in Path("/proc/self/maps").read_text()
    assert [torch.equal(a, b) for a, b in zip(before, (linear.weight, linear.bias), strict=True)] == [True, True]


def test_what_takes_no_memory_still_takes_none() -> None:
    norm = nn.LayerNorm(1024)
    norm.weight.data = torch.zeros(()).expand(1024)
    let_go_of_files(norm)
    assert norm.weight.stride() == (0,)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries have no call for it")
def test_what_was_freed_between_what_is_kept_goes_back_to_the_system() -> None:
    """Each of them so small that it comes from the heap."""
    kept, freed, process = [], [], psutil.Process()
    for _ in range(2000):
        freed.append(torch.ones(25_000))
        kept.append(torch.ones(8))
    size = freed[0].nbytes * len(freed)
    freed.clear()
    before = process.memory_info().rss
    give_back_memory()
    assert before - process.memory_info().rss > size // 2
