"""Our own product with 4-bit weights: what it promises of its outputs, with each kind of instruction that is here."""

import platform
from collections.abc import Iterator
from itertools import product

import pytest
import torch
from torch import Tensor

from swarm.packed.int4 import Int4Linear
from swarm.packed.kernel import Kernel, kernel
from swarm.packed.layout import in_tiles, out_of_tiles
from swarm.packed.levels import GROUP, quantized
from swarm.packed.tiles import Int4Tiles

if kernel() is None:
    pytest.skip(f"there is no such kernel for {platform.machine()} here", allow_module_level=True)

from llvmlite.binding import get_host_cpu_features

from swarm.packed.code import INSTRUCTIONS

HERE = [name for name in INSTRUCTIONS if get_host_cpu_features().get(name)]
# AVX-512 has all that AVX-VNNI has, in another encoding.
USABLE = HERE if "avx512vnni" not in HERE else list(INSTRUCTIONS)
SHAPES = [(16, 32), (80, 64), (192, 160), (576, 288)]  # outputs, inputs
NEAR = {torch.float32: 1e-6, torch.bfloat16: 4e-3}


@pytest.fixture(scope="module", params=USABLE)
def multiply(request: pytest.FixtureRequest) -> Kernel:
    return Kernel(request.param)


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def weight(shape: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """As tiles, and plain `[out, in]`."""
    torch.manual_seed(sum(shape))
    levels, scales = quantized(torch.randn(shape) * 0.02, few=False)
    grouped = levels.double().view(shape[0], -1, GROUP) - 8
    scale, zero = scales.double().permute(2, 1, 0)[..., None]
    return in_tiles(levels, scales), (zero + scale * grouped).flatten(1)


def in_8_bits(x: Tensor) -> Tensor:
    """As the kernel rounds activations."""
    groups = x.float().view(len(x), -1, GROUP)
    greatest = groups.abs().amax(dim=2, keepdim=True)
    return ((groups * (127 / greatest)).round().double() * (greatest.double() / 127)).flatten(1)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", NEAR, ids=str)
def test_outputs_are_those_of_activations_in_8_bits(
    multiply: Kernel, shape: tuple[int, int], dtype: torch.dtype
) -> None:
    tiles, plain = weight(shape)
    for rows in (1, 2, 3, 4, 5, 11):
        x = torch.randn(rows, shape[1]).to(dtype)
        x[0, :4] = 20_000.0  # as the first tokens have them
        y, expected = multiply(x, tiles), in_8_bits(x) @ plain.t()
        assert y.dtype == dtype
        assert float((y - expected).norm() / expected.norm()) < NEAR[dtype]
    assert multiply(x[:0], tiles).shape == (0, shape[0])


def test_a_row_gives_the_same_with_any_others_on_any_number_of_threads(multiply: Kernel, threads: None) -> None:
    tiles, _ = weight((576, 288))
    x = torch.randn(64, 288)
    alone = torch.cat([multiply(row[None], tiles) for row in x])
    for count, rows in product((1, 2, 3), (2, 3, 7, 64)):
        torch.set_num_threads(count)
        assert torch.equal(multiply(x[:rows], tiles), alone[:rows])
        assert torch.equal(
            multiply(x[:rows].to(torch.bfloat16), tiles)[-1:], multiply(x[rows - 1 : rows].bfloat16(), tiles)
        )


@pytest.mark.parametrize("dtype", NEAR, ids=str)
def test_rows_are_normed_before_where_a_norm_is_given(multiply: Kernel, dtype: torch.dtype) -> None:
    tiles, plain = weight((80, 96))
    x = (torch.randn(5, 96) * torch.tensor([[1e-3], [1.0], [1e3], [0.0], [1.0]])).to(dtype)
    factors, eps = torch.randn(96), 1e-5
    y = multiply(x, tiles, norm=torch.cat([factors, torch.tensor([eps])])).double()
    normed = torch.nn.functional.rms_norm(x.float(), (96,), factors, eps)
    expected = in_8_bits(normed).nan_to_num() @ plain.t()
    distances = (y - expected).norm(dim=1) / expected.norm(dim=1).clamp_min(1e-9)
    assert float(distances.max()) < NEAR[dtype] + 1e-3  # a value between two levels may fall to the other one


@pytest.mark.parametrize("dtype", NEAR, ids=str)
def test_outputs_are_added_where_they_are_told(multiply: Kernel, dtype: torch.dtype) -> None:
    tiles, _ = weight((80, 96))
    x, before = torch.randn(5, 96).to(dtype), torch.randn(5, 80).to(dtype)
    expected = multiply(x.float(), tiles) + before.float()
    into = before.clone()
    assert multiply(x, tiles, into=into) is into
    torch.testing.assert_close(into, expected.to(dtype), rtol=0, atol=0)


@pytest.mark.parametrize("dtype", NEAR, ids=str)
def test_a_bias_is_added_once(multiply: Kernel, dtype: torch.dtype) -> None:
    tiles, _ = weight((80, 96))
    x, bias, before = torch.randn(7, 96).to(dtype), torch.randn(80), torch.randn(7, 80).to(dtype)
    plain = multiply(x.float(), tiles)
    torch.testing.assert_close(multiply(x, tiles, bias=bias), (plain + bias).to(dtype), rtol=0, atol=0)
    expected = (before.float() + plain + bias).to(dtype)
    torch.testing.assert_close(multiply(x, tiles, into=before, bias=bias), expected, rtol=0, atol=0)
    layer = Int4Tiles(tiles, bias)
    torch.testing.assert_close(layer(x.view(7, 1, 96))[:, 0], (plain + bias).to(dtype), rtol=0, atol=0)


def test_what_is_no_number_does_not_become_harmless(multiply: Kernel) -> None:
    tiles, _ = weight((80, 64))
    for wrong, dtype in product((torch.nan, torch.inf, -torch.inf), NEAR):
        x = torch.ones(3, 64, dtype=dtype)
        x[1, 40] = wrong
        y = multiply(x, tiles)
        assert bool(y[1].isnan().all())
        assert bool(y[[0, 2]].isfinite().all())


def test_nothing_and_almost_nothing_are_zeros(multiply: Kernel) -> None:
    tiles, plain = weight((80, 64))
    assert not multiply(torch.zeros(2, 64), tiles).any()
    assert not multiply(torch.full((2, 64), 1e-38), tiles).any()
    small = torch.full((1, 64), 1e-20)
    expected = small.double() @ plain.t()
    assert float((multiply(small, tiles) - expected).norm() / expected.norm()) < 1e-5


def test_rows_that_lie_apart_are_read_right(multiply: Kernel) -> None:
    tiles, _ = weight((80, 64))
    x = torch.randn(4, 128)
    assert torch.equal(multiply(x[:, ::2], tiles), multiply(x[:, ::2].clone(), tiles))
    assert torch.equal(multiply(x.view(8, 64)[1:2], tiles), multiply(x.view(8, 64)[1:2].clone(), tiles))


def test_levels_and_scales_come_out_of_tiles_as_they_went_in() -> None:
    levels, scales = quantized(torch.randn(80, 64), few=False)
    again = out_of_tiles(in_tiles(levels, scales))
    assert torch.equal(again[0], levels.to(torch.uint8))
    assert torch.equal(again[1], scales)


def test_outputs_in_another_order_are_the_same_outputs() -> None:
    layer = Int4Tiles.of(torch.randn(80, 64), torch.randn(80))
    order, x = torch.randperm(80), torch.randn(3, 64)
    assert torch.equal(layer.ordered(order)(x), layer(x)[:, order])


@pytest.mark.parametrize("rows", [1, 100])
def test_torch_s_kernel_and_ours_have_the_same_weights(rows: int) -> None:
    plain = torch.randn(128, 64)
    x = torch.randn(rows, 64)
    ours, other = Int4Tiles.of(plain, None)(x), Int4Linear.of(plain, None)(x)
    assert float((ours - other).norm() / other.norm()) < 0.012


@pytest.mark.parametrize("dtype", NEAR, ids=str)
def test_gated_rows_are_the_silu_of_one_half_times_the_other(multiply: Kernel, dtype: torch.dtype) -> None:
    tiles, plain = weight((80, 96))
    gate, up = (
        (torch.randn(4, 96) * torch.tensor([[1e-3], [1.0], [1e2], [0.0]])).to(dtype),
        torch.randn(4, 96).to(dtype),
    )
    y = multiply(torch.cat([gate, up], dim=1), tiles, gated=True).double()
    acted = torch.nn.functional.silu(gate.float()) * up.float()
    expected = in_8_bits(acted).nan_to_num() @ plain.t()
    distances = (y - expected).norm(dim=1) / expected.norm(dim=1).clamp_min(1e-9)
    assert float(distances.max()) < NEAR[dtype] + 1e-3  # a value between two levels may fall to the other one
    assert not y[3].any()
    wrong = torch.ones(1, 192)
    wrong[0, 100] = torch.nan
    assert bool(multiply(wrong, tiles, gated=True).isnan().all())
