"""What of a device's memory is for weights and what for keys and values."""

import pytest
import torch

from peers.executor_settings import ExecutorSettings
from peers.loading import fit_memory
from peers.span_memory import span_bytes
from swarm.checkpoint import Checkpoint
from swarm.errors import ModelError
from swarm.ids import Span
from tests.peers.ring import Model

ALL = Span(0, 4)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return Model.make(tmp_path_factory.mktemp("models")).checkpoint


def fitted(
    checkpoint: Checkpoint, kind: str, available: int, *, limited: bool, kv_tokens: int | None = None
) -> tuple[int, int | None]:
    settings = ExecutorSettings(
        model="", blocks=ALL, cache="", kv_tokens=kv_tokens, max_memory=available if limited else None
    )
    return fit_memory(checkpoint, settings, torch.float32, kind, available)


@pytest.mark.parametrize("kind", ["cpu", "cuda"])
def test_where_all_fits_nothing_passes(checkpoint: Checkpoint, kind: str) -> None:
    plenty = 4 * span_bytes(checkpoint, ALL, torch.float32)
    for limited in (False, True):
        tokens, room = fitted(checkpoint, kind, plenty, limited=limited)
        assert room is None
        assert tokens > 0


@pytest.mark.parametrize("kind", ["cpu", "cuda"])
def test_what_is_left_beside_keys_and_values_is_for_weights_that_pass(checkpoint: Checkpoint, kind: str) -> None:
    needed = span_bytes(checkpoint, ALL, torch.float32)
    rooms = [fitted(checkpoint, kind, needed, limited=True, kv_tokens=tokens)[1] for tokens in (16, 32)]
    few, many = rooms
    assert few is not None
    assert many is not None
    assert many < few < needed
    if kind == "cuda":
        assert few < needed * 7 / 8  # a GPU computes there, too


@pytest.mark.parametrize("kind", ["cpu", "cuda", "mps"])
def test_without_a_limit_that_was_given_nothing_passes(checkpoint: Checkpoint, kind: str) -> None:
    with pytest.raises(ModelError, match=r"serve 3 blocks at most"):
        fitted(checkpoint, kind, span_bytes(checkpoint, Span(0, 4), torch.float32) * 7 // 8, limited=False)
