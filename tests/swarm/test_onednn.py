"""Packed weights give what plain ones give, and stand where they stood."""

import pytest
import torch
from torch import Tensor, nn

from swarm.onednn import PackedLinear, pack_linears, packs

needs_packing = pytest.mark.skipif(not packs(torch.empty(1)), reason="torch has no oneDNN for this processor")


@needs_packing
@pytest.mark.parametrize("shape", [(1, 24), (5, 24), (2, 3, 24), (0, 24)], ids=str)
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
def test_product_is_that_of_the_linear(shape: tuple[int, ...], bias: bool) -> None:
    linear, x = nn.Linear(24, 40, bias=bias), torch.randn(shape)
    with torch.inference_mode():
        torch.testing.assert_close(PackedLinear(linear)(x), linear(x))


@needs_packing
def test_rows_with_gaps_between_them_are_read_right() -> None:
    linear, x = nn.Linear(24, 40), torch.randn(6, 48)[::2, 12:36]
    with torch.inference_mode():
        torch.testing.assert_close(PackedLinear(linear)(x), linear(x))


@needs_packing
def test_weight_can_be_had_back_to_the_last_bit() -> None:
    linear = nn.Linear(23, 41)
    assert torch.equal(PackedLinear(linear).weight, linear.weight)


@needs_packing
def test_all_linears_of_a_module_are_replaced_and_nothing_else() -> None:
    module = nn.Sequential(nn.Linear(24, 24), nn.Sequential(nn.LayerNorm(24), nn.Linear(24, 8)), nn.Embedding(3, 24))
    x = torch.randn(2, 24)
    with torch.inference_mode():
        expected = module[1](module[0](x))
        pack_linears(module)
        torch.testing.assert_close(module[1](module[0](x)), expected)
    assert [type(m).__name__ for m in module.modules() if not list(m.children())] == [
        "PackedLinear",
        "LayerNorm",
        "PackedLinear",
        "Embedding",
    ]


def test_what_cannot_be_packed_is_left_as_it_is() -> None:
    linear = nn.Sequential(nn.Linear(24, 8, dtype=torch.float64))
    pack_linears(linear)
    assert type(linear[0]) is nn.Linear
    with pytest.raises(ValueError, match=r"pack torch\.float64"):
        PackedLinear(linear[0])


class OwnLinear(nn.Linear):
    """What a library may have made of it: its forward is its own."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * 2


def test_linears_with_a_forward_of_their_own_are_left_alone() -> None:
    module = nn.Sequential(OwnLinear(24, 8))
    pack_linears(module)
    assert type(module[0]) is OwnLinear
