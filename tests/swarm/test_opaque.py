"""Weights in oneDNN's order, there and back."""

import weakref

import pytest
import torch
from torch import nn

from swarm.onednn import PackedLinear, packs
from swarm.opaque import adopt, adopts, content, description

DTYPES = [dtype for dtype in (torch.float32, torch.bfloat16) if packs(torch.zeros(1, dtype=dtype))]
needed = pytest.mark.skipif(not adopts(), reason="this torch can't map weights in oneDNN's order")


def packed(dtype: torch.dtype) -> PackedLinear:
    torch.manual_seed(0)
    return PackedLinear(nn.Linear(96, 80, dtype=dtype))


def memory_of(layer: PackedLinear) -> torch.Tensor:
    """A copy of its bytes, at an address that kernels like."""
    bytes_ = torch.frombuffer(bytearray(content(layer.packed)), dtype=torch.uint8)
    return torch.empty_like(bytes_).copy_(bytes_)


@needed
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_product_with_adopted_bytes_is_the_same(dtype: torch.dtype) -> None:
    layer = packed(dtype)
    adopted = adopt(memory_of(layer), [80, 96], dtype, description(layer.packed))
    again = PackedLinear.restored(adopted, layer.bias)
    with torch.inference_mode():
        for rows in (1, 5, 40):
            x = torch.randn(rows, 96).to(dtype)
            assert torch.equal(again(x), layer(x))
    assert torch.equal(again.weight, layer.weight)


@needed
def test_the_bytes_live_as_long_as_the_layer_and_no_longer() -> None:
    layer = packed(torch.float32)
    memory = memory_of(layer)
    alive = weakref.ref(memory)
    again = PackedLinear.restored(adopt(memory, [80, 96], torch.float32, description(layer.packed)), None)
    del memory
    assert alive() is not None
    del again
    assert alive() is None
