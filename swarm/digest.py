"""What makes two copies of a model the same model: one digest of its config and its weights.

The weights count by the sha256 of their files, which the hub knows without a download, so that a hub id and a local
copy of it have one digest. The same weights split into other files are, for a swarm, another model.
"""

import hashlib
import json
import logging
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from swarm import atomic
from swarm.errors import ModelError
from swarm.ids import Digest

__all__ = ["canonical_config", "file_sha256", "model_digest"]

_log = logging.getLogger(__name__)

# Where a config came from, how it is stored, or what only the client's tokenizer and sampler use.
IRRELEVANT = frozenset(
    {
        "_attn_implementation_autoset",
        "_model_name_or_path",
        "_name_or_path",
        "architectures",
        "auto_map",
        "bos_token_id",
        "dtype",
        "eos_token_id",
        "id2label",
        "initializer_range",
        "label2id",
        "name_or_path",
        "output_attentions",
        "output_hidden_states",
        "pad_token_id",
        "return_dict",
        "torch_dtype",
        "transformers_version",
        "unk_token_id",
        "use_cache",
    }
)


def canonical_config(raw: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a config.json that change what is computed. A field that is null counts as absent."""

    def keep(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {str(k): keep(v) for k, v in value.items() if k not in IRRELEVANT and v is not None}
        if isinstance(value, list):
            return [keep(entry) for entry in value]
        return value

    kept: dict[str, Any] = keep(raw)
    return kept


def model_digest(raw_config: Mapping[str, Any], shard_sha256: Iterable[str]) -> Digest:
    text = json.dumps({"config": canonical_config(raw_config), "weights": sorted(shard_sha256)}, sort_keys=True)
    return Digest(hashlib.sha256(text.encode()).hexdigest())


def file_sha256(path: Path, cache: Path) -> str:
    """Of the whole file; remembered in `cache` by path, size and time of change. Raises ModelError."""
    try:
        real = path.resolve(strict=True)
        stat = real.stat()
    except OSError as error:
        raise ModelError(f"cannot read {path}: {error.strerror}") from None
    if real.parent.name == "blobs" and re.fullmatch(r"[0-9a-f]{64}", real.name):
        return real.name  # the hub's own cache names large files by their sha256
    key = [str(real), stat.st_size, stat.st_mtime_ns]
    note = cache / "digests" / hashlib.sha256(str(real).encode()).hexdigest()[:32]
    return _remembered(note, key) or _compute(real, note, key)


def _remembered(note: Path, key: list[Any]) -> str | None:
    try:
        entry = json.loads(note.read_bytes())
        return str(entry["sha256"]) if entry["key"] == key else None
    except (OSError, ValueError, KeyError, TypeError):  # never written, or unreadable: compute it
        return None


def _compute(path: Path, note: Path, key: list[Any]) -> str:
    try:
        with path.open("rb") as file:
            value = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ModelError(f"cannot read {path}: {error.strerror}") from None
    try:
        atomic.write_file(note, json.dumps({"key": key, "sha256": value}).encode())
    except OSError as error:
        _log.warning("the digest of %s is not remembered and will be computed again: %s", path, error)
    return value
