"""Packed layers: near what they were made of, alike for few and many rows, and the same again from their tensors."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from swarm.errors import UsageError
from swarm.packing import PACKED, fitting, pack, packed_bytes, relative_error, restore

KINDS = (*PACKED, "nf4")  # bitsandbytes computes on CPUs, too

# What packing may change of a weight drawn from a normal distribution, and what bf16 activations may change beside.
LOSS = {"bf16": 0.003, "int8": 0.012, "int4": 0.11, "nf4": 0.12}
BF16 = 0.004


def linear(inputs: int, outputs: int, *, bias: bool = False, seed: int = 0) -> nn.Linear:
    torch.manual_seed(seed)
    layer = nn.Linear(inputs, outputs, bias=bias).requires_grad_(False)
    layer.weight.normal_(std=inputs**-0.5)
    return layer


def distance(output: Tensor, expected: Tensor) -> float:
    return float((output - expected).norm() / expected.norm())


@pytest.mark.parametrize("precision", KINDS)
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize("shape", [(64, 128), (96, 48), (128, 80)], ids=str)
def test_output_is_within_the_stated_loss(precision: str, bias: bool, shape: tuple[int, int]) -> None:
    layer = linear(*shape, bias=bias)
    x = torch.randn(2, 3, shape[0])
    assert distance(pack(layer, precision)(x), layer(x)) < LOSS[precision] + BF16
    assert relative_error(layer.weight, precision) < LOSS[precision] + BF16


@pytest.mark.parametrize("precision", KINDS)
@pytest.mark.parametrize("shape", [(64, 128), (96, 48)], ids=str)
def test_few_rows_and_many_give_the_same(precision: str, shape: tuple[int, int]) -> None:
    packed = pack(linear(*shape), precision)
    x = torch.randn(200, shape[0])
    one_by_one = torch.cat([packed(row[None]) for row in x])
    assert distance(packed(x), one_by_one) < BF16


@pytest.mark.parametrize("precision", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_activations_come_out_as_they_went_in(precision: str, dtype: torch.dtype) -> None:
    packed = pack(linear(64, 128, bias=True), precision)
    for shape in [(64,), (1, 64), (2, 0, 64), (100, 64)]:
        y = packed(torch.randn(shape).to(dtype))
        assert y.shape == (*shape[:-1], 128)
        assert y.dtype == dtype


@pytest.mark.parametrize("precision", KINDS)
def test_gradients_reach_the_input(precision: str) -> None:
    layer = linear(64, 128)
    x = torch.randn(3, 64, requires_grad=True)
    pack(layer, precision)(x).square().sum().backward()
    packed, x.grad = x.grad, None
    layer(x).square().sum().backward()
    assert packed is not None
    assert x.grad is not None
    assert distance(packed, x.grad) < 3 * (LOSS[precision] + BF16)


@pytest.mark.parametrize("precision", KINDS)
def test_a_layer_comes_back_from_its_tensors(precision: str) -> None:
    packed = pack(linear(64, 128, bias=True), precision)
    x = torch.randn(3, 64)
    assert torch.equal(restore(packed.tensors())(x), packed(x))
    plain = {name: t for name, t in packed.tensors().items() if t.layout == torch.strided}
    askew = {name: torch.cat((t.view(-1)[:1], t.view(-1)))[1:].view(t.shape) for name, t in plain.items()}
    assert torch.equal(restore(packed.tensors() | askew)(x), packed(x))
    with pytest.raises(ValueError, match="no packed layer has the tensors bias"):
        restore({"bias": torch.zeros(3)})


@pytest.mark.parametrize("precision", KINDS)
@pytest.mark.parametrize("shape", [(64, 128), (96, 48), (33, 20), (64, 20)], ids=str)
def test_size_is_what_was_said(precision: str, shape: tuple[int, int]) -> None:
    packed = pack(linear(*shape), precision)
    assert sum(tensor.nbytes for tensor in packed.tensors().values()) == packed_bytes(precision, *shape)


def test_a_shape_that_no_kernel_takes_gets_the_next_precision() -> None:
    assert fitting("int4", 64, 128) == "int4"
    assert fitting("int4", 64, 20) == "int8"  # not a multiple of 16 outputs
    assert fitting("nf4", 64, 20) == "nf4"
    assert fitting("nf4", 96, 128) == "int8"  # not a multiple of 64 inputs
    assert fitting("int4", 33, 128) == fitting("int8", 33, 128) == "bf16"  # the kernel would read beyond the end
    layer = linear(33, 20)
    assert distance(pack(layer, "int4")(torch.ones(1, 33)), layer(torch.ones(1, 33))) < 2 * LOSS["bf16"] + BF16


def test_a_precision_that_does_not_exist_is_refused() -> None:
    with pytest.raises(UsageError, match="packed as bf16, int8, int4, not 'int3'"):
        pack(linear(64, 64), "int3")


def four_bit(levels: int, *, minimum: bool) -> Tensor:
    """A weight that was in blocks of 32 inputs with a 16-bit scale each, and a minimum or none, as in Q4_1 or Q4_0."""
    torch.manual_seed(levels)
    scales = (torch.rand(80, 6, 1) + 0.1).half().float()
    lowest = torch.randn(80, 6, 1).half().float() if minimum else -8 * scales
    return (torch.randint(0, levels, (80, 6, 32)) * scales + lowest).flatten(1)


@pytest.mark.parametrize("minimum", [True, False], ids=["with minimum", "scale alone"])
@pytest.mark.parametrize("levels", [16, 13, 9])
def test_weights_that_had_four_bits_survive_int4(levels: int, minimum: bool) -> None:
    assert relative_error(four_bit(levels, minimum=minimum), "int4") < 0.005


def test_a_few_weights_outside_of_the_levels_do_not_spoil_the_others() -> None:
    weight = four_bit(12, minimum=False)
    weight[::40, :32] = torch.randn(2, 32)
    assert relative_error(weight, "int4") < 0.02


@pytest.mark.parametrize("precision", KINDS)
def test_constant_and_empty_weights_are_kept(precision: str) -> None:
    for value in (0.0, 0.75, -3.0):
        layer = linear(64, 64)
        layer.weight.fill_(value)
        x = torch.ones(2, 64)
        torch.testing.assert_close(pack(layer, precision)(x), layer(x), rtol=0.02, atol=0)


@pytest.mark.parametrize("precision", KINDS)
def test_weights_that_are_no_numbers_do_not_become_harmless(precision: str) -> None:
    layer = linear(64, 64)
    layer.weight[3, 5] = torch.nan
    assert bool(pack(layer, precision)(torch.ones(1, 64)).isnan().any())


@settings(max_examples=25)
@given(st.integers(1, 8), st.integers(1, 8), st.floats(1e-6, 1e4), st.sampled_from(KINDS), st.integers(0, 2**32))
def test_loss_does_not_depend_on_shape_or_size(
    width: int, outputs: int, size: float, precision: str, seed: int
) -> None:
    weight = linear(32 * width, 16 * outputs, seed=seed).weight * size
    assert relative_error(weight, precision) < LOSS[precision] + BF16
