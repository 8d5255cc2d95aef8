"""Adapters as PEFT keeps them, in a folder or a repository of the hub: read as peers take them, by block and named by
content, without PEFT.

What comes out is what PEFT's own `from_pretrained` puts into the model's layers, numbers of 16 bits widened to 32 as it
does, so whoever loads the same adapter there and sends it names it alike. Everything in a folder has to be understood:
what is left over is refused, never left out.
"""

import json
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from math import sqrt
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from swarm import hub
from swarm.architecture import skeleton
from swarm.checkpoint import Checkpoint, resolve
from swarm.codecs import raw_bytes
from swarm.errors import ModelError
from swarm.ids import Span
from swarm.training import AdapterKeys, PackedAdapter, TensorSpec, Tuned, adapter_digest, adapter_key
from swarm.weights import check_shard, read_tensors

__all__ = ["StoredAdapter", "check_base", "find_folder", "read_folder"]

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
WIDE = torch.float32  # what adapters are computed in
NARROW = (torch.bfloat16, torch.float16)

_PREFIX = "base_model.model."  # PEFT's own modules around the causal model
_MATRICES = {"lora_A.weight": "A", "lora_B.weight": "B"}
_SCALE = "ia3_l"
_PLAIN_STARTS = (True, False, "gaussian", "eva", "orthogonal")  # others begin by changing the base's weights
_READ = {"alpha_pattern", "base_model_name_or_path", "feedforward_modules", "init_lora_weights", "lora_alpha"} | {
    *("lora_dropout", "peft_type", "use_rslora")
}
_SHOWN = {"bias", "exclude_modules", "layers_pattern", "layers_to_transform", "r", "rank_pattern", "target_modules"}
_IDLE = {"auto_mapping", "ensure_weight_tying", "fan_in_fan_out", "inference_mode", "init_ia3_weights", "revision"} | {
    *("corda_config", "eva_config", "loftq_config", "lora_ga_config", "megatron_config", "megatron_core"),
    *("peft_version", "qalora_group_size", "runtime_config", "task_type"),
}
_SAID = _READ | _SHOWN | _IDLE  # of a configuration: what is read, what the tensors show, and what changes no result


@dataclass(frozen=True, slots=True)
class StoredAdapter:
    """`keys`: of every block that it changes; `blocks`: those of them that were asked for. `base`: what its
    configuration calls the model that it was made for, if it says."""

    keys: AdapterKeys
    blocks: Mapping[int, PackedAdapter]
    base: str

    @property
    def digest(self) -> str:
        """The same for whoever has the same adapter."""
        return adapter_digest(self.keys)

    @property
    def nbytes(self) -> int:
        return sum(len(packed.body) for packed in self.blocks.values())


def find_folder(name: str, *, revision: str | None = None, source: hub.Hub | None = None) -> Path:
    """The folder of an adapter: a local one, or that of a repository of the hub, fetched. Raises ModelError."""
    folder = Path(name).expanduser()
    if folder.is_dir():
        return folder.resolve()
    if not hub.looks_like_hub_id(name):
        raise ModelError(f"there is no adapter '{name}': give the folder that PEFT wrote, or a hub id")
    repo, folder = hub.open_repo(name, revision, source or hub.Hub())
    hub.fetch(repo, WEIGHTS_FILE)
    return folder


def read_folder(folder: Path, checkpoint: Checkpoint, only: Span | None = None) -> StoredAdapter:
    """The adapter of `checkpoint`'s blocks in `folder`; of their tensors, those of the blocks `only` are kept. Raises
    ModelError where it is of another model, or does what peers can't compute."""
    config = _read_config(folder)
    file = folder / WEIGHTS_FILE
    if not file.is_file():
        raise ModelError(f"{folder} has no {WEIGHTS_FILE}: save the adapter again, with safe_serialization")
    model = skeleton(checkpoint.config)
    placed = _placed(check_shard(file), checkpoint, folder)
    keys, blocks = [], {}
    for block in sorted(placed):
        layer = model.get_submodule(f"{checkpoint.architecture.blocks}.{block}")
        packed = _pack(layer, f"{checkpoint.architecture.blocks}.{block}", placed[block], config, file)
        keys.append((block, packed.key))
        if only is None or block in only:
            blocks[block] = packed
    if not keys:
        raise ModelError(f"the adapter in {folder} changes nothing: {WEIGHTS_FILE} is empty")
    return StoredAdapter(tuple(keys), blocks, _text(config.get("base_model_name_or_path")))


def check_base(adapter: StoredAdapter, checkpoint: Checkpoint, *, cache: Path) -> None:
    """Raises ModelError when the model that the adapter names is on this machine and is not `checkpoint`. A name alone
    says nothing: the same model has many, and folders are called anything."""
    if adapter.base in ("", checkpoint.name, str(checkpoint.folder)):
        return
    try:
        base = resolve(adapter.base, cache=cache, offline=True)
    except ModelError:
        return  # not here, so there is nothing to compare
    if base.digest != checkpoint.digest:
        raise ModelError(
            f"the adapter was made for {adapter.base}, which is another model than {checkpoint.name}: "
            "use it with the model that it was made for"
        )


# --- what a folder says ----------------------------------------------------------------------------------------------


def _read_config(folder: Path) -> Mapping[str, Any]:
    path = folder / CONFIG_FILE
    try:
        config = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise ModelError(f"{folder} has no {CONFIG_FILE}, so it holds no adapter of PEFT") from None
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} cannot be read: {error}") from None
    if not isinstance(config, dict) or config.get("peft_type") not in ("LORA", "IA3"):
        kind = config.get("peft_type") if isinstance(config, dict) else None
        raise ModelError(f"the adapter in {folder} is of type {_text(kind) or 'none'}: peers take LORA and IA3")
    for name, value in config.items():
        if value and name not in _SAID:
            raise ModelError(f"the adapter in {folder} wants '{name}', which peers can't compute")
    start = config.get("init_lora_weights", True)
    if start not in _PLAIN_STARTS:
        raise ModelError(
            f"the adapter in {folder} began with '{start}', which changes the model's own weights: "
            "convert it to plain LoRA as PEFT's documentation says"
        )
    return config


def _placed(names: Iterable[str], checkpoint: Checkpoint, folder: Path) -> Mapping[int, Mapping[str, dict[str, str]]]:
    """By block and path within it: which tensor, such as "A", has which name in the file."""
    arch = checkpoint.architecture
    placed: defaultdict[int, defaultdict[str, dict[str, str]]] = defaultdict(lambda: defaultdict(dict))
    for name in names:
        path, role = _role(name)
        block = arch.block_index(path)
        if role is None or not name.startswith(_PREFIX):
            raise ModelError(f"the adapter in {folder} holds '{name}': peers can compute LoRA and IA3 on linear layers")
        if block is None:
            raise ModelError(
                f"the adapter in {folder} changes '{path}', which is in none of {checkpoint.name}'s blocks "
                f"({arch.blocks}): adapters of a swarm's model change its blocks alone"
            )
        if block >= checkpoint.num_blocks:
            raise ModelError(
                f"the adapter in {folder} is of another model: it changes block {block}, and {checkpoint.name} has "
                f"{checkpoint.num_blocks} blocks"
            )
        placed[block][path.removeprefix(f"{arch.blocks}.{block}.")][role] = name
    return placed


def _role(name: str) -> tuple[str, str | None]:
    """The path of the module in the causal model that a tensor changes, and what the tensor is to it."""
    path = name.removeprefix(_PREFIX)
    for suffix, role in (*_MATRICES.items(), (_SCALE, "scale")):
        if path.endswith("." + suffix):
            return path.removesuffix("." + suffix), role
    return path, None


# --- what it does to a block -----------------------------------------------------------------------------------------


def _pack(
    layer: nn.Module, where: str, named: Mapping[str, Mapping[str, str]], config: Mapping[str, Any], file: Path
) -> PackedAdapter:
    """Modules in the order in which the layer has them, as whoever looks through it finds them."""
    paths = [path for path, _ in layer.named_modules() if path in named]
    if unknown := sorted(set(named) - set(paths)):
        raise _foreign(file, f"{where}.{unknown[0]}", "is not in this model")
    tuned: list[Tuned] = []
    bodies: list[bytes] = []
    for path in paths:
        roles = named[path]
        stored = read_tensors(file, {name: role for role, name in roles.items()})
        tensors = {role: tensor.to(WIDE) if tensor.dtype in NARROW else tensor for role, tensor in stored.items()}
        try:
            module = _tuned(path, f"{where}.{path}", tensors, config)
        except (TypeError, ValueError, re.error) as error:
            raise ModelError(f"{file.parent / CONFIG_FILE} says what makes no sense: {error}") from None
        _check(module, tensors, layer.get_submodule(path), f"{where}.{path}", file)
        tuned.append(module)
        bodies.extend(raw_bytes(tensors[spec.name]) for spec in module.tensors)
    body = b"".join(bodies)
    return PackedAdapter(adapter_key(tuned, body), tuple(tuned), body)


def _tuned(path: str, where: str, tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> Tuned:
    """`where`: the module's path in the causal model, which patterns are about."""
    if config["peft_type"] == "IA3":
        kind = "ia3-input" if _is_feedforward(where, config.get("feedforward_modules")) else "ia3"
        return Tuned(path, kind, 1.0, 0.0, tuple(_specs(tensors, ("scale",))))
    rank = len(tensors["A"]) if "A" in tensors and tensors["A"].dim() else 1
    alpha = float(_by_pattern(config.get("alpha_pattern"), where, config.get("lora_alpha", 8)))
    scaling = alpha / (sqrt(max(rank, 1)) if config.get("use_rslora") else max(rank, 1))
    return Tuned(path, "lora", scaling, float(config.get("lora_dropout", 0.0)), tuple(_specs(tensors, ("A", "B"))))


def _specs(tensors: Mapping[str, Tensor], names: Iterable[str]) -> Iterator[TensorSpec]:
    for name in names:
        if name in tensors:
            yield TensorSpec(name, "fp32", tuple(tensors[name].shape))


def _check(module: Tuned, tensors: Mapping[str, Tensor], target: nn.Module, where: str, file: Path) -> None:
    if isinstance(target, Conv1D):
        width, out = target.weight.shape
    elif isinstance(target, nn.Linear):
        out, width = target.weight.shape
    else:
        raise _foreign(file, where, "is no linear layer in this model")
    if any(tensor.dtype != WIDE for tensor in tensors.values()):
        raise ModelError(f"{file} has tensors of '{where}' that are neither fp32, bf16 nor fp16")
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if shapes != _shapes(module.kind, out, width, rank=shapes.get("A", (0,))[0]):
        raise _foreign(file, where, f"is {width} wide and gives {out} here, which the tensors {shapes} don't fit")
    if not all(bool(torch.isfinite(tensor).all()) for tensor in tensors.values()):
        raise ModelError(f"{file} has numbers at '{where}' that are not finite: take an earlier checkpoint")


def _shapes(kind: str, out: int, width: int, *, rank: int) -> dict[str, tuple[int, ...]]:
    if kind == "lora":
        return {"A": (rank, width), "B": (out, rank)}
    return {"scale": (out, 1) if kind == "ia3" else (1, width)}


def _foreign(file: Path, where: str, why: str) -> ModelError:
    return ModelError(f"the adapter in {file.parent} is of another model: '{where}' {why}")


def _by_pattern(patterns: object, where: str, usual: Any) -> Any:
    """PEFT's way to give some modules other numbers: a pattern is the end of a path, or all of it."""
    for pattern, value in (patterns if isinstance(patterns, dict) else {}).items():
        if re.match(rf"(.*\.)?({pattern})$", where):
            return value
    return usual


def _is_feedforward(where: str, named: object) -> bool:
    if isinstance(named, str):
        return re.fullmatch(named, where) is not None
    return isinstance(named, list) and any(where.endswith(name) for name in named)


def _text(value: object) -> str:
    return value[:256] if isinstance(value, str) else ""
