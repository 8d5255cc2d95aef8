import torch
from torch import nn

from swarm.layout import store_by_columns


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
