from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from peers.span import BlockSpan
from peers.span_memory import KV_SHARE, LEAST_KV_TOKENS, check_memory, default_kv_tokens, kv_bytes_per_token, span_bytes
from swarm.checkpoint import Checkpoint, resolve
from swarm.errors import ModelError
from swarm.ids import Span
from tests.models import tiny_model

FAMILIES = ("llama", "qwen3_moe", "gemma2")


@pytest.fixture(scope="module", params=FAMILIES)
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    folder: Path = tmp_path_factory.mktemp(request.param)
    tiny_model(request.param, folder / "model")
    return resolve(str(folder / "model"), cache=folder / "cache")


def test_what_is_computed_is_what_a_span_takes(checkpoint: Checkpoint) -> None:
    blocks, dtype = Span(1, 3), torch.bfloat16
    span = BlockSpan.load(checkpoint, blocks, dtype=dtype, device=torch.device("cpu"), kv_tokens=64)
    assert kv_bytes_per_token(checkpoint, blocks, dtype) == span.cache.bytes_per_token
    layers = sum(p.nbytes for name, p in span.model.named_parameters() if "layers." in name)
    assert span_bytes(checkpoint, blocks, dtype) == layers


def test_a_span_that_does_not_fit_is_refused_with_both_sizes(checkpoint: Checkpoint) -> None:
    need = span_bytes(checkpoint, Span(0, 4), torch.float32)
    check_memory(checkpoint, Span(0, 4), torch.float32, need)
    with pytest.raises(ModelError, match="are available: serve 3 blocks at most"):
        check_memory(checkpoint, Span(0, 4), torch.float32, need - 1)
    with pytest.raises(ModelError, match="not one block fits"):
        check_memory(checkpoint, Span(0, 4), torch.float32, 10)


def test_blocks_that_a_model_does_not_have_are_named(checkpoint: Checkpoint) -> None:
    with pytest.raises(ModelError, match="has blocks 0:4"):
        span_bytes(checkpoint, Span(2, 5), torch.float32)


@given(st.integers(0, 10**12), st.integers(1, 10**6), st.integers(1, 10**6))
def test_the_kv_budget_stays_in_its_share_of_memory(available: int, per_token: int, max_positions: int) -> None:
    if int(available * KV_SHARE) // per_token < min(LEAST_KV_TOKENS, max_positions):
        with pytest.raises(ModelError, match="serve fewer blocks"):
            default_kv_tokens(available, per_token, max_positions)
    else:
        assert 0 < default_kv_tokens(available, per_token, max_positions) * per_token <= available * KV_SHARE
