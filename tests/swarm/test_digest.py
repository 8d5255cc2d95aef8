import hashlib
import json
import logging
import os
from pathlib import Path

import pytest

from swarm.digest import canonical_config, file_sha256, model_digest
from swarm.errors import ModelError

CONFIG = {"model_type": "llama", "hidden_size": 64, "rope_parameters": {"rope_theta": 1e4, "factor": None}}


def test_fields_that_change_nothing_do_not_change_the_digest() -> None:
    noisy = CONFIG | {"transformers_version": "9", "torch_dtype": "float16", "_name_or_path": "/home/a", "new": None}
    assert model_digest(noisy, ["a"]) == model_digest(CONFIG, ["a"])
    assert canonical_config(noisy)["rope_parameters"] == {"rope_theta": 1e4}


def test_fields_that_change_the_computation_change_the_digest() -> None:
    assert model_digest(CONFIG | {"rms_norm_eps": 1e-6}, ["a"]) != model_digest(CONFIG, ["a"])
    other_theta = CONFIG | {"rope_parameters": {"rope_theta": 5e5}}
    assert model_digest(other_theta, ["a"]) != model_digest(CONFIG, ["a"])


def test_other_weights_change_the_digest_and_the_order_of_files_does_not() -> None:
    assert model_digest(CONFIG, ["a", "b"]) == model_digest(CONFIG, ["b", "a"])
    assert model_digest(CONFIG, ["a", "b"]) != model_digest(CONFIG, ["a", "c"])


def test_a_files_digest_is_remembered_until_the_file_changes(tmp_path: Path) -> None:
    file, cache = tmp_path / "w", tmp_path / "cache"
    file.write_bytes(b"one")
    assert file_sha256(file, cache) == hashlib.sha256(b"one").hexdigest()
    (note,) = (cache / "digests").iterdir()
    note.write_text(json.dumps(json.loads(note.read_text()) | {"sha256": "remembered"}))
    assert file_sha256(file, cache) == "remembered"
    file.write_bytes(b"two")
    os.utime(file, ns=(1, 1))
    assert file_sha256(file, cache) == hashlib.sha256(b"two").hexdigest()


def test_a_spoilt_note_is_computed_again(tmp_path: Path) -> None:
    file, cache = tmp_path / "w", tmp_path / "cache"
    file.write_bytes(b"one")
    value = file_sha256(file, cache)
    (note,) = (cache / "digests").iterdir()
    note.write_bytes(b"\xff not json")
    assert file_sha256(file, cache) == value


def test_a_cache_that_cannot_be_written_costs_time_only(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file, blocked = tmp_path / "w", tmp_path / "blocked"
    file.write_bytes(b"one")
    blocked.write_text("a file where the cache should be")
    with caplog.at_level(logging.WARNING):
        assert file_sha256(file, blocked) == hashlib.sha256(b"one").hexdigest()
    assert "computed again" in caplog.text


def test_the_hubs_own_cache_names_files_by_their_digest(tmp_path: Path) -> None:
    blob = tmp_path / "blobs" / ("ab" * 32)
    blob.parent.mkdir()
    blob.write_bytes(b"large")
    link = tmp_path / "model.safetensors"
    link.symlink_to(blob)
    assert file_sha256(link, tmp_path / "cache") == "ab" * 32


def test_a_missing_file_is_a_model_error(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="cannot read"):
        file_sha256(tmp_path / "none", tmp_path)
