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
    """`stored`: its name in the files; `text`: the same without the prefix of a larger, multimodal model; `causal`: its
    name in the causal model; `block`: None if it is the client's."""

    stored: str
    text: str
    causal: str
    block: int | None

    def within(self, blocks: Span, list_name: str) -> str:
        """Its stored name, if `blocks` were the whole model."""
        assert self.block is not None
        old, new = f"{list_name}.{self.block}.", f"{list_name}.{self.block - blocks.start}."
        if old not in self.text:  # the family calls its list otherwise in the files
            old, new = f".{self.block}.", f".{self.block - blocks.start}."
        return self.text.replace(old, new, 1)


def name_tensors(stored: Iterable[str], config: PreTrainedConfig, arch: Architecture) -> tuple[TensorName, ...]:
    """What the library makes of each stored name when it loads the causal model; without what that model does not have,
    such as a vision tower."""
    stored = tuple(stored)
    model = skeleton(config)
    expected = model.state_dict()
    mapping = get_model_conversion_mapping(model)
    renamings = [entry for entry in mapping if isinstance(entry, WeightRenaming)]
    converters = [entry for entry in mapping if isinstance(entry, WeightConverter)]

    def under(prefix: str) -> dict[str, TensorName]:
        found = {}
        for name in stored:
            if name.startswith(prefix):
                text = name[len(prefix) :]
                causal, _ = rename_source_key(text, renamings, converters, model.base_model_prefix, expected)
                if causal in expected or arch.block_index(causal) is not None:
                    found[name] = TensorName(name, text, causal, arch.block_index(causal))
        return found

    def covered(found: Mapping[str, TensorName]) -> int:
        return len({tensor.causal for tensor in found.values()} & expected.keys())

    plain = under("")
    if any(tensor.block is not None for tensor in plain.values()):
        return tuple(plain.values())
    nested = max((under(prefix) for prefix in _prefixes(stored)), key=covered, default={})
    return tuple((plain | nested).values())


def _prefixes(stored: Iterable[str]) -> list[str]:
    """Every path, of one or two parts, under which a larger model may keep its text model; shortest first."""
    paths = {".".join(name.split(".")[:depth]) + "." for name in stored for depth in (1, 2) if name.count(".") > depth}
    return sorted(paths, key=lambda path: (path.count("."), path))


def read_index(path: Path) -> dict[str, str]:
    """Tensor name → file name, from a checkpoint's index."""
    try:
        return {str(tensor): str(file) for tensor, file in json.loads(path.read_bytes())["weight_map"].items()}
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ModelError(f"{path} is no index of safetensors files: fetch the model again") from None


def check_shard(path: Path) -> tuple[str, ...]:
    """The names of the tensors in `path`; ModelError if it is missing, cut short or no safetensors file."""
    try:
        with safe_open(path, framework="pt") as shard:
            return tuple(shard.keys())
    except (SafetensorError, OSError, RuntimeError) as error:  # the last is torch's, for what can't be mapped
        raise ModelError(_unreadable(path, error)) from None


def read_tensors(path: Path, names: Mapping[str, str]) -> dict[str, torch.Tensor]:
    """The tensors `names` (stored → wanted name) of one shard. They are mapped, and read when first touched."""
    try:
        with safe_open(path, framework="pt") as shard:
            return {wanted: shard.get_tensor(stored) for stored, wanted in names.items()}
    except (SafetensorError, OSError, RuntimeError) as error:  # the last is torch's, for what can't be mapped
        raise ModelError(_unreadable(path, error)) from None


def _unreadable(path: Path, error: Exception) -> str:
    if not path.exists():
        return f"the weights file {path} is missing: fetch the model again"
    if "allocate memory" in str(error):
        return f"there is no memory to map the weights file {path}: free some"
    return f"the weights file {path} is damaged or cut short ({error}): delete it and fetch the model again"


@contextmanager
def quiet_library() -> Iterator[None]:
    """Neither progress bars nor reports from transformers: what matters of them becomes an error of ours."""
    shown, verbosity = library_logging.is_progress_bar_enabled(), library_logging.get_verbosity()
    library_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    library_logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        library_logging.set_verbosity(verbosity)
        if shown:
            library_logging.enable_progress_bar()  # type: ignore[no-untyped-call]
