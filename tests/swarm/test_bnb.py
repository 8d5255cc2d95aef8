"""Layers of CUDA devices, on a CPU: what they have beside what all packed layers have (tests/swarm/test_packing.py)."""

import importlib.metadata
import subprocess
import sys

import pytest
import torch

from peers.quantized import check_kernels
from swarm.errors import UsageError
from swarm.packed.bnb import LlmInt8Linear
from swarm.packing import join, restore
from tests.swarm.test_packing import LOSS, distance, linear

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
ACTIVATIONS = 0.01  # what eight bits for activations without outliers may change


def int8(inputs: int, outputs: int, *, bias: bool = False) -> LlmInt8Linear:
    layer = linear(inputs, outputs, bias=bias)
    return LlmInt8Linear.of(layer.weight, layer.bias)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("loud", [1.0, 50.0, 1e5], ids=["without outliers", "with some", "beyond half precision"])
def test_int8_is_within_the_stated_loss_whatever_stands_out(dtype: torch.dtype, loud: float) -> None:
    layer = linear(128, 80, bias=True)
    x = torch.randn(9, 128)
    x[::2, 5] *= loud
    x = x.clamp(-6e4, 6e4).to(dtype) if dtype == torch.float16 else x.to(dtype)
    y = LlmInt8Linear.of(layer.weight, layer.bias)(x)
    assert y.dtype == dtype
    assert distance(y.float(), layer(x.float())) < LOSS["int8"] + ACTIVATIONS


def test_what_a_row_gives_does_not_depend_on_those_beside_it() -> None:
    packed, x = int8(128, 80), torch.randn(9, 128)
    x[3] *= 40
    together, alone = packed(x), torch.cat([packed(row[None]) for row in x])
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-5)


def test_it_gives_what_the_layer_of_bitsandbytes_gives_for_a_row() -> None:
    import bitsandbytes

    packed, x = int8(128, 80), torch.randn(1, 128).half()
    x[0, 3] = 20
    values, scales = packed.tensors()["values"], packed.tensors()["scales"]
    state = bitsandbytes.MatmulLtState()
    state.CB, state.SCB = values, scales.float() * 127
    state.has_fp16_weights = state.is_training = False
    expected = bitsandbytes.matmul(x, values, state=state, threshold=6.0)
    torch.testing.assert_close(packed(x), expected)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_activations_that_are_no_numbers_do_not_become_harmless(value: float) -> None:
    x = torch.ones(2, 64)
    x[1, 7] = value
    y = int8(64, 32)(x)
    assert y.isfinite().all(dim=1).tolist() == [True, False]


def test_gradients_no_rows_and_joined_layers_work() -> None:
    packed, x = int8(64, 32), torch.randn(3, 64, requires_grad=True)
    packed(x).sum().backward()
    assert x.grad is not None
    assert packed(torch.empty(2, 0, 64)).shape == (2, 0, 32)
    both = join([packed, int8(64, 48)])
    assert isinstance(both, LlmInt8Linear)
    assert torch.equal(both(x.detach())[:, :32], packed(x.detach()))


def test_tensors_are_those_of_the_cpu_s_layer() -> None:
    packed, x = int8(64, 32, bias=True), torch.randn(3, 64)
    assert distance(restore(packed.tensors())(x), packed(x)) < ACTIVATIONS


def test_where_bitsandbytes_is_missing_a_sentence_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", missing)
    for precision, device in (("nf4", "cpu"), ("nf4", "cuda"), ("int8", "cuda")):
        with pytest.raises(UsageError, match=r"need bitsandbytes: pip install 'swarm-peers\[cuda\]'"):
            check_kernels(precision, device)
    check_kernels("int8", "cpu")


def test_nothing_that_serves_on_a_cpu_imports_it() -> None:
    code = "import sys, peers.loading, peers.precision, clients.model; print('bitsandbytes' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=90, check=True)
    assert done.stdout.split() == ["False"]
