"""Models by name, and the parts of them that a peer or a client loads.

A peer loads the blocks of its span, a client everything else; neither ever holds the whole.
"""

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel

from swarm import catalogue, gguf_import, hub
from swarm.architecture import Architecture, architecture
from swarm.digest import model_digest
from swarm.errors import ModelError
from swarm.hollow import hollow_class
from swarm.ids import Digest, Span
from swarm.messages import MAX_POSITION
from swarm.shards import Shards
from swarm.weights import TensorName, name_tensors, quiet_library, read_tensors

__all__ = ["Checkpoint", "client_weights", "files_of", "load_span", "resolve", "span_shell"]


@dataclass(frozen=True)
class Checkpoint:
    """A model, found but not loaded. `folder` holds config and tokenizer, and some or all of the weights. `config` is
    the decoder's; treat it as read-only. Can be pickled."""

    name: str
    folder: Path
    config: PreTrainedConfig = field(repr=False)
    digest: Digest
    num_blocks: int
    hidden_size: int
    max_positions: int
    architecture: Architecture = field(repr=False)
    shards: Shards = field(repr=False)

    @cached_property
    def tensors(self) -> tuple[TensorName, ...]:
        """Of all files."""
        return name_tensors(self.shards.where(), self.config, self.architecture)


def resolve(
    name: str,
    *,
    cache: Path,
    revision: str | None = None,
    token: str | None = None,
    offline: bool = False,
    endpoint: str | None = None,
    hub_cache: Path | None = None,
) -> Checkpoint:
    """Finds a model by alias, hub id, folder or .gguf file; weights stay where they are. Raises ModelError.

    `cache`: where conversions and digests are kept. `endpoint`, `hub_cache`: other than huggingface_hub's own."""
    entry = catalogue.find(name)
    if entry is not None and entry.package is not None:
        return _open(entry.alias, gguf_import.convert(catalogue.embedded_file(entry), cache=cache), None, cache)
    path = Path(name).expanduser()
    if entry is None and name and path.is_dir():
        return _open(path.resolve().name, path.resolve(), None, cache)
    if entry is None and path.is_file():
        return _open(path.stem, gguf_import.convert(path.resolve(), cache=cache), None, cache)
    repo_id = name if entry is None else entry.source
    if not hub.looks_like_hub_id(repo_id):
        raise ModelError(f"there is no model, folder or file '{name}': {catalogue.suggest(name)}")
    repo, folder = hub.open_repo(repo_id, revision, hub.Hub(token, offline, endpoint, hub_cache))
    return _open(name, folder, repo, cache)


def load_span(
    checkpoint: Checkpoint,
    blocks: Span,
    *,
    dtype: torch.dtype,
    device: str | torch.device = "cpu",
    attn_implementation: str | None = None,
) -> PreTrainedModel:
    """The library's base model with `blocks` alone, numbered from 0; frozen, in eval mode.

    Call it with `inputs_embeds=` the hidden states `[B, T, H]` that enter the first of its blocks; `last_hidden_state`
    is what leaves the last, before the final norm. Where `dtype` is that of the files, weights are mapped, not copied.
    Raises ModelError."""
    state = _span_tensors(checkpoint, blocks)
    options: dict[str, Any] = {} if attn_implementation is None else {"attn_implementation": attn_implementation}
    model = _build(checkpoint, blocks, state, dtype=dtype, **options)
    model.requires_grad_(False).train(False)
    if torch.device(device).type != "cpu":
        nn.Module.to(model, device=device)
    return model


def span_shell(
    checkpoint: Checkpoint, blocks: Span, *, dtype: torch.dtype, attn_implementation: str | None = None
) -> PreTrainedModel:
    """As `load_span` on the CPU, with zeros for weights, which take no memory."""
    zero = torch.zeros((), dtype=dtype)
    state = {name: zero.expand(tensor.shape) for name, tensor in _span_tensors(checkpoint, blocks).items()}
    options: dict[str, Any] = {} if attn_implementation is None else {"attn_implementation": attn_implementation}
    model = _build(checkpoint, blocks, state, dtype=dtype, **options)
    model.requires_grad_(False).train(False)
    return model


def client_weights(
    checkpoint: Checkpoint, *, dtype: torch.dtype | None = None, device: str | torch.device = "cpu"
) -> dict[str, torch.Tensor]:
    """Every tensor that belongs to no block, by its name in the causal model's state dict. A tied head is not there."""
    wanted = {tensor.stored: tensor.causal for tensor in checkpoint.tensors if tensor.block is None}
    return {name: tensor.to(device=device, dtype=dtype) for name, tensor in _read(checkpoint, wanted).items()}


def files_of(checkpoint: Checkpoint, blocks: Span | None) -> tuple[str, ...]:
    """The files of weights that hold some of `blocks`, or, with None, some of what a client keeps. Fetches none."""
    if not checkpoint.shards.index:
        return checkpoint.shards.files
    where = checkpoint.shards.where()
    wanted = (t for t in checkpoint.tensors if (t.block is None if blocks is None else t.block in [*blocks]))
    return tuple(sorted({where[tensor.stored] for tensor in wanted}))


def _span_tensors(checkpoint: Checkpoint, blocks: Span) -> dict[str, torch.Tensor]:
    """Of `blocks`, named as if they were the whole model; mapped."""
    if blocks.end > checkpoint.num_blocks:
        raise ModelError(f"{checkpoint.name} has blocks 0:{checkpoint.num_blocks}, so {blocks} is not among them")
    wanted = [tensor for tensor in checkpoint.tensors if tensor.block is not None and tensor.block in blocks]
    names = {tensor.stored: tensor.within(blocks, checkpoint.architecture.list_name) for tensor in wanted}
    return _read(checkpoint, names)


def _open(name: str, folder: Path, repo: hub.Repo | None, cache: Path) -> Checkpoint:
    raw = _read_config(folder)
    config = _parse_config(folder)
    arch = architecture(config)
    shards = Shards.open(folder, repo)
    return Checkpoint(
        name=name,
        folder=folder,
        config=config,
        digest=model_digest(raw, shards.digests(cache)),
        num_blocks=config.num_hidden_layers,
        hidden_size=config.hidden_size,
        max_positions=getattr(config, "max_position_embeddings", None) or MAX_POSITION,
        architecture=arch,
        shards=shards,
    )


def _read_config(folder: Path) -> Mapping[str, Any]:
    path = folder / "config.json"
    try:
        raw = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise ModelError(f"{folder} has no config.json, so it is no Hugging Face model folder") from None
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} cannot be read: {error}") from None
    if not isinstance(raw, dict):
        raise ModelError(f"{path} is no config of a model")
    return raw


def _parse_config(folder: Path) -> PreTrainedConfig:
    try:
        config: PreTrainedConfig = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        return config.get_text_config(decoder=True)
    except Exception as error:  # the library raises whatever the contents of the file led it to
        first = str(error).strip().partition("\n")[0]
        raise ModelError(f"{folder / 'config.json'} describes no model that transformers knows: {first}") from error


def _read(checkpoint: Checkpoint, names: Mapping[str, str]) -> dict[str, torch.Tensor]:
    """The tensors `names` (stored → wanted name), from no more files than hold them."""
    where = checkpoint.shards.where()
    per_file: defaultdict[str, dict[str, str]] = defaultdict(dict)
    for stored, wanted in names.items():
        per_file[where[stored]][stored] = wanted
    tensors: dict[str, torch.Tensor] = {}
    for file, chosen in per_file.items():
        tensors |= read_tensors(checkpoint.shards.path(file), chosen)
    return tensors


def _build(
    checkpoint: Checkpoint, blocks: Span, state: Mapping[str, torch.Tensor], *, dtype: torch.dtype, **options: Any
) -> PreTrainedModel:
    arch = checkpoint.architecture
    cls = hollow_class(arch.base, arch.list_name, blocks)
    what = f"blocks {blocks} of {checkpoint.name}"
    try:
        with quiet_library():
            loaded: Any = cls.from_pretrained(
                None, config=checkpoint.config, state_dict=state, dtype=dtype, output_loading_info=True, **options
            )
    except MemoryError:
        raise ModelError(_too_large(checkpoint, blocks, dtype)) from None
    except RuntimeError as error:
        if "allocate memory" in str(error) or "out of memory" in str(error):
            raise ModelError(_too_large(checkpoint, blocks, dtype)) from None
        raise ModelError(f"{what} cannot be loaded: {error}") from error
    except (ImportError, ValueError) as error:  # a quantizer that is not installed, a shape that is not the config's
        raise ModelError(f"{what} cannot be loaded: {error}") from error
    model, report = loaded
    _check_complete(what, report["missing_keys"])
    assert isinstance(model, PreTrainedModel)
    return model


def _check_complete(what: str, missing: Iterable[str]) -> None:
    names = sorted(missing)
    if names:
        raise ModelError(
            f"{what} lack {len(names)} tensors in their files, {names[0]} among them: fetch the model again"
        )


def _too_large(checkpoint: Checkpoint, blocks: Span, dtype: torch.dtype) -> str:
    size = sum(checkpoint.architecture.block_parameters[index] for index in blocks) * dtype.itemsize
    return (
        f"blocks {blocks} of {checkpoint.name} need {size >> 20} MiB of memory, more than is free: serve fewer blocks"
    )
