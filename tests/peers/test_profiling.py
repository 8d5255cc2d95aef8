import json
from dataclasses import asdict
from pathlib import Path

import pytest
import torch

from peers.profiling import load_or_measure, measure, profile_path
from peers.span import BlockSpan
from routing.perf import Profile
from swarm.ids import Digest, Span
from tests.peers.ring import Model


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return Model.make(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def span(model: Model) -> BlockSpan:
    return load(model, Span(0, 2))


def load(model: Model, blocks: Span, kv_tokens: int = 2048) -> BlockSpan:
    device = torch.device("cpu")
    return BlockSpan.load(model.checkpoint, blocks, dtype=torch.float32, device=device, kv_tokens=kv_tokens)


def path_of(span: BlockSpan, digest: Digest, cache: Path) -> Path:
    return profile_path(digest, span.dtype, "none", span.device, torch.get_num_threads(), cache)


@pytest.mark.parametrize("kv_tokens", [16, 100, 2048])
def test_measuring_fits_into_any_cache_and_leaves_it_empty(model: Model, kv_tokens: int) -> None:
    span = load(model, Span(0, 2), kv_tokens)
    profile = measure(span)
    assert min(profile.row, profile.prompt_token) > 0
    assert min(profile.overhead, profile.extra_row) >= 0
    assert span.pool.free == span.pool.pages


def test_what_was_measured_before_is_read(model: Model, span: BlockSpan, tmp_path: Path) -> None:
    known = Profile(overhead=0.5, row=1.5, extra_row=0.25, prompt_token=0.125)
    path = path_of(span, model.checkpoint.digest, tmp_path)
    path.parent.mkdir()
    path.write_text(json.dumps(asdict(known)))
    assert load_or_measure(span, model.checkpoint.digest, "none", tmp_path) == known


def test_all_spans_of_a_model_share_a_profile_and_nothing_else_does(
    model: Model, span: BlockSpan, tmp_path: Path
) -> None:
    digest = model.checkpoint.digest
    path = path_of(span, digest, tmp_path)
    assert path_of(load(model, Span(0, 3)), digest, tmp_path) == path
    assert path_of(span, Digest("0" * 64), tmp_path) != path
    assert profile_path(digest, torch.bfloat16, "none", span.device, torch.get_num_threads(), tmp_path) != path
    assert profile_path(digest, span.dtype, "int8", span.device, torch.get_num_threads(), tmp_path) != path
    assert profile_path(digest, span.dtype, "none", span.device, 99, tmp_path) != path


@pytest.mark.parametrize("content", ["", "[1]", '{"prefill": 1}', "{"])
def test_a_spoiled_file_is_measured_again(
    model: Model, span: BlockSpan, tmp_path: Path, content: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = path_of(span, model.checkpoint.digest, tmp_path)
    path.parent.mkdir()
    path.write_text(content)
    assert load_or_measure(span, model.checkpoint.digest, "none", tmp_path).row > 0
    assert "measuring again" in caplog.text


def test_a_cache_that_is_no_folder_is_said_and_borne(
    model: Model, span: BlockSpan, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "profiles").write_text("a file where a folder should be")
    assert load_or_measure(span, model.checkpoint.digest, "none", tmp_path).row > 0
    assert "can't be read" in caplog.text
