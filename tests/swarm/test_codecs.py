"""Codecs: what comes out is what went in, exactly or as closely as promised."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from swarm.codecs import body_size, decode, encode
from swarm.errors import WireError
from swarm.fields import GRADIENT_CODECS
from swarm.messages import CODECS

ALL = CODECS + GRADIENT_CODECS
RAW = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def activations(tokens: int, width: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(tokens, width, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("codec", ALL)
@pytest.mark.parametrize("shape", [(1, 64), (3, 100), (5, 1), (2, 576), (0, 64)])
def test_size_of_a_body_is_known_before_it_is_made(codec: str, shape: tuple[int, int]) -> None:
    assert len(encode(activations(*shape), codec)) == body_size(codec, *shape)


@pytest.mark.parametrize("codec", RAW)
def test_raw_codecs_return_the_same_values_in_their_dtype(codec: str) -> None:
    hidden = activations(3, 100).to(RAW[codec])
    decoded = decode(encode(hidden, codec), codec, 100)
    assert decoded.dtype == RAW[codec]
    assert torch.equal(decoded, hidden)


def test_raw_bytes_are_little_endian_floats_token_after_token() -> None:
    assert bytes(encode(torch.tensor([[1.0, 2.0], [-2.0, 0.5]]), "fp16")) == bytes.fromhex("003c004000c00038")
    assert bytes(encode(torch.tensor([[1.0]]), "bf16")) == bytes.fromhex("803f")


@pytest.mark.parametrize("codec", CODECS)
def test_any_dtype_and_layout_can_be_encoded(codec: str) -> None:
    hidden = activations(70, 4).to(torch.bfloat16).T
    torch.testing.assert_close(decode(encode(hidden, codec), codec, 70).float(), hidden.float(), atol=0.02, rtol=0.01)


@pytest.mark.parametrize("codec", ALL)
def test_decoded_states_do_not_share_memory_with_the_body(codec: str) -> None:
    body = bytearray(encode(activations(2, 64), codec))
    decoded = decode(memoryview(body), codec, 64)
    before = decoded.clone()
    body[:] = bytes(len(body))
    assert torch.equal(decoded, before)
    decoded.zero_()


def test_int8_costs_about_one_byte_a_value() -> None:
    assert 1.03 <= body_size("int8", 10, 4096) / (10 * 4096) <= 1.06


@given(st.integers(1, 200), st.integers(0, 5), st.floats(1e-3, 20_000), st.integers(0, 1000))
def test_int8_is_off_by_at_most_half_a_level_of_its_block(width: int, tokens: int, scale: float, seed: int) -> None:
    hidden = activations(tokens, width, seed) * scale
    decoded = decode(encode(hidden, "int8"), "int8", width)
    for begin in range(0, width, 64):
        block = hidden[:, begin : begin + 64]
        level = block.abs().amax(dim=-1, keepdim=True) / 127
        slack = level * 127 * 2**-10 + 2**-24 * 127  # the scale itself is rounded to fp16
        assert ((decoded[:, begin : begin + 64] - block).abs() <= level / 2 + slack).all()


@pytest.mark.parametrize(("codec", "block", "levels"), [("grad8", 64, 127), ("grad4", 32, 7)])
@given(st.integers(1, 200), st.integers(0, 5), st.floats(-12, 12), st.integers(0, 1000))
def test_gradients_of_any_size_are_off_by_at_most_half_a_level_of_their_block(
    codec: str, block: int, levels: int, width: int, tokens: int, exponent: float, seed: int
) -> None:
    gradient = activations(tokens, width, seed) * 10**exponent
    decoded = decode(encode(gradient, codec), codec, width)
    for begin in range(0, width, block):
        part = gradient[:, begin : begin + block]
        peak = part.abs().amax(dim=-1, keepdim=True)
        slack = peak * 2**-8  # the scale itself is rounded to bf16
        assert ((decoded[:, begin : begin + block] - part).abs() <= peak / levels / 2 + slack).all()


def test_gradients_cost_about_a_byte_or_half_a_byte_a_value() -> None:
    assert body_size("grad8", 10, 4096) == 10 * (4096 + 2 * 64)
    assert body_size("grad4", 10, 4096) == 10 * (2048 + 2 * 128)


@pytest.mark.parametrize("codec", GRADIENT_CODECS)
@given(st.binary(max_size=400), st.integers(1, 100))
def test_whatever_a_stranger_sends_is_refused_or_a_gradient(codec: str, body: bytes, width: int) -> None:
    size = body_size(codec, 1, width)
    if len(body) % size:
        with pytest.raises(WireError):
            decode(body, codec, width)
    else:
        assert decode(body, codec, width).shape == (len(body) // size, width)


def test_int8_keeps_huge_activations_and_their_small_neighbours_in_other_blocks() -> None:
    hidden = activations(1, 128)
    hidden[0, 5] = 20_000.0
    decoded = decode(encode(hidden, "int8"), "int8", 128)
    assert abs(float(decoded[0, 5]) - 20_000) < 20
    assert torch.allclose(decoded[:, 64:], hidden[:, 64:], atol=0.02)


def test_int8_of_zeros_is_zeros() -> None:
    assert torch.equal(decode(encode(torch.zeros(2, 70), "int8"), "int8", 70), torch.zeros(2, 70))


@pytest.mark.parametrize("codec", ALL)
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_values_that_are_not_finite_stay_noticeable(codec: str, bad: float) -> None:
    hidden = activations(2, 100)
    hidden[1, 7] = bad
    decoded = decode(encode(hidden, codec), codec, 100)
    assert decoded[0].isfinite().all()
    assert not decoded[1].isfinite().all()


@pytest.mark.parametrize("codec", ALL)
def test_body_of_a_wrong_size_is_refused(codec: str) -> None:
    body = bytes(encode(activations(2, 64), codec))
    with pytest.raises(WireError, match="no whole number"):
        decode(body[:-1], codec, 64)


def test_unknown_codec_is_refused() -> None:
    with pytest.raises(WireError, match="unknown codec"):
        body_size("int3", 1, 64)
    with pytest.raises(WireError, match="unknown codec"):
        encode(activations(1, 64), "int3")
