"""What a family of models looks like, found out from the library itself: where its blocks are, and whether they can
run in a swarm.

No family is known by name. A skeleton without memory is built from the config and looked at.
"""

import inspect
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import cast

import torch
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from swarm.errors import ModelError

__all__ = ["Architecture", "architecture", "skeleton"]

RUNNABLE_LAYERS = frozenset({"full_attention", "sliding_attention"})
SHARED_CACHE_FIELDS = ("num_kv_shared_layers", "use_cla")  # blocks that read the keys and values of other blocks


@dataclass(frozen=True)
class Architecture:
    """`blocks`: path of the list of blocks in the causal model, as in "model.layers". `base`: the class that holds it.
    `block_parameters`: how many parameters each block has. `block_linears`: inputs and outputs of the plain linear
    layers in each. `odd_matrix`: the name of a matrix in some block that is in no such layer, if there is one."""

    causal: type[PreTrainedModel]
    base: type[PreTrainedModel]
    blocks: str
    block_parameters: tuple[int, ...]
    block_linears: tuple[tuple[tuple[int, int], ...], ...]
    odd_matrix: str

    @property
    def list_name(self) -> str:
        return self.blocks.rpartition(".")[2]

    def block_index(self, name: str) -> int | None:
        """The block to which `name`, a tensor of the causal model, belongs; None for the client's tensors."""
        prefix = self.blocks + "."
        index = name[len(prefix) :].partition(".")[0] if name.startswith(prefix) else ""
        return int(index) if index.isdecimal() else None


def architecture(config: PreTrainedConfig) -> Architecture:
    """Raises ModelError, in one sentence, if models of this config cannot run in a swarm."""
    _check_config(config)
    try:
        model = skeleton(config)
    except Exception as error:  # the library raises whatever the values in the config led it to
        raise ModelError(f"transformers cannot build this {_family(config)} model: {error}") from error
    path, blocks = _find_blocks(model, config)
    owner = model.get_submodule(path.rpartition(".")[0])
    if not isinstance(owner, PreTrainedModel) or "inputs_embeds" not in inspect.signature(owner.forward).parameters:
        raise ModelError(
            f"{_family(config)} models cannot run in a swarm: their blocks cannot be entered in the middle"
        )
    sizes = tuple(sum(parameter.numel() for parameter in block.parameters()) for block in blocks)
    linears = tuple(tuple(_linears(block)) for block in blocks)
    odd = next((name for block in blocks for name in _odd_matrices(block)), "")
    return Architecture(type(model), type(owner), path, sizes, linears, odd)


def _linears(block: nn.Module) -> Iterator[tuple[int, int]]:
    for module in block.modules():
        if type(module) is nn.Linear:
            yield module.in_features, module.out_features


def _odd_matrices(block: nn.Module) -> Iterator[str]:
    for path, module in block.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.dim() > 1 and type(module) is not nn.Linear:
                yield f"{path}.{name}"


def skeleton(config: PreTrainedConfig) -> PreTrainedModel:
    """The whole causal model, without memory for its weights."""
    with torch.device("meta"):
        return cast(PreTrainedModel, AutoModelForCausalLM.from_config(config))  # type: ignore[no-untyped-call]


def _family(config: PreTrainedConfig) -> str:
    return str(config.model_type or type(config).__name__)


def _check_config(config: PreTrainedConfig) -> None:
    reason = _unfit(config)
    if reason:
        raise ModelError(f"{_family(config)} models cannot run in a swarm: {reason}")


def _unfit(config: PreTrainedConfig) -> str | None:
    if config.is_encoder_decoder:
        return "they have an encoder and a decoder, and a swarm runs decoder-only models"
    model_class = _causal_class(config)
    if model_class is None:
        return "the transformers library has no causal language model for them"
    odd = sorted(set(getattr(config, "layer_types", None) or ()) - RUNNABLE_LAYERS)
    if odd:
        return f"some of their blocks are of the kind {', '.join(odd)}, and only full and sliding attention is served"
    if not model_class._supports_attention_backend:
        return "their attention does not go through the library's AttentionInterface"
    shared = [name for name in SHARED_CACHE_FIELDS if getattr(config, name, None)]
    if shared:
        return f"some blocks use the keys and values of others ({shared[0]}), which may be on another machine"
    if getattr(config, "hidden_size_per_layer_input", None):
        return "every block needs the tokens themselves, besides the hidden states"
    if getattr(config, "use_bidirectional_attention", None):
        return "their attention also looks ahead"
    return None


def _causal_class(config: PreTrainedConfig) -> type[PreTrainedModel] | None:
    mapping: Mapping[type[PreTrainedConfig], object] = AutoModelForCausalLM._model_mapping
    found = mapping.get(type(config), None)
    if isinstance(found, list | tuple):
        found = found[0]
    return cast("type[PreTrainedModel] | None", found)


def _find_blocks(model: PreTrainedModel, config: PreTrainedConfig) -> tuple[str, nn.ModuleList]:
    """The outermost list with as many modules as the config has layers."""
    found = [
        (path, module)
        for path, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == config.num_hidden_layers
    ]
    if not found:
        raise ModelError(f"{_family(config)} models cannot run in a swarm: they have no plain list of blocks")
    return min(found, key=lambda entry: entry[0].count("."))
