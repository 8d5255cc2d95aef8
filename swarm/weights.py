"""Tensors of a checkpoint: which file holds which, whose block each belongs to, and reading only what is wanted."""

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from transformers import PreTrainedConfig
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key
from transformers.utils import logging as library_logging

from swarm.architecture import Architecture, skeleton
from swarm.errors import ModelError
from swarm.ids import Span

__all__ = [
    "INDEX_FILE",
    "SINGLE_FILE",
    "TensorName",
    "check_shard",
    "name_tensors",
    "quiet_library",
    "read_index",
    "read_tensors",
]

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"


@dataclass(frozen=True, slots=True)
class TensorName:
    """`stored`: its name in the checkpoint; `causal`: in the causal model; `block`: None if it is the client's."""

    stored: str
    causal: str
    block: int | None

    def within(self, blocks: Span, list_name: str) -> str:
        """The stored name, as if the model began with `blocks`."""
        assert self.block is not None
        old, new = f"{list_name}.{self.block}.", f"{list_name}.{self.block - blocks.start}."
        if old not in self.stored:  # the family calls its list otherwise on disk
            old, new = f".{self.block}.", f".{self.block - blocks.start}."
        return self.stored.replace(old, new, 1)


def name_tensors(stored: Iterable[str], config: PreTrainedConfig, arch: Architecture) -> tuple[TensorName, ...]:
    """What the library would make of each stored name when it loads the causal model."""
    model = skeleton(config)
    expected = model.state_dict()
    mapping = get_model_conversion_mapping(model)
    renamings = [entry for entry in mapping if isinstance(entry, WeightRenaming)]
    converters = [entry for entry in mapping if isinstance(entry, WeightConverter)]

    def name(stored: str) -> TensorName:
        causal, _ = rename_source_key(stored, renamings, converters, model.base_model_prefix, expected)
        return TensorName(stored, causal, arch.block_index(causal))

    return tuple(map(name, stored))


def read_index(path: Path) -> dict[str, str]:
    """Tensor name → file name, from a checkpoint's index."""
    try:
        weight_map = json.loads(path.read_bytes())["weight_map"]
    except (ValueError, KeyError, TypeError):
        raise ModelError(f"{path} is no index of safetensors files: fetch the model again") from None
    return {str(tensor): str(file) for tensor, file in weight_map.items()}


def check_shard(path: Path) -> tuple[str, ...]:
    """The names of the tensors in `path`; ModelError if it is missing, cut short or no safetensors file."""
    try:
        with safe_open(path, framework="pt") as shard:
            return tuple(shard.keys())
    except (SafetensorError, OSError) as error:
        raise ModelError(_unreadable(path, error)) from None


def read_tensors(path: Path, names: Mapping[str, str]) -> dict[str, torch.Tensor]:
    """The tensors `names` (stored → wanted name) of one shard. They are mapped, and read when first touched."""
    try:
        with safe_open(path, framework="pt") as shard:
            return {wanted: shard.get_tensor(stored) for stored, wanted in names.items()}
    except (SafetensorError, OSError) as error:
        raise ModelError(_unreadable(path, error)) from None


def _unreadable(path: Path, error: Exception) -> str:
    if not path.exists():
        return f"the weights file {path} is missing: fetch the model again"
    return f"the weights file {path} is damaged or cut short ({error}): delete it and fetch the model again"


@contextmanager
def quiet_library() -> Iterator[None]:
    """No progress bars from transformers: who calls us has a display of their own."""
    shown = library_logging.is_progress_bar_enabled()
    library_logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            library_logging.enable_progress_bar()
