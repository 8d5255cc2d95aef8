"""What PEFT has put into a model's blocks, as peers are told of it."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from swarm.codecs import raw_bytes
from swarm.dtypes import DTYPES, NAMES
from swarm.errors import UsageError
from swarm.training import PackedAdapter, TensorSpec, Tuned, adapter_key

__all__ = ["Adapters", "find_adapters", "spec"]

_POSSIBLE = "peers can compute LoRA (rank-stabilised too) and IA3 on linear layers, and prompts of any kind"


@dataclass(frozen=True, slots=True)
class Adapters:
    """By block: what is tuned, and the tensors in the order of `Tuned.tensors`."""

    blocks: Mapping[int, tuple[tuple[Tuned, ...], tuple[Tensor, ...]]]

    def __bool__(self) -> bool:
        return bool(self.blocks)

    @property
    def parameters(self) -> list[Tensor]:
        return [parameter for _, parameters in self.blocks.values() for parameter in parameters]

    @property
    def learn(self) -> bool:
        return any(parameter.requires_grad for parameter in self.parameters)

    @property
    def drops(self) -> bool:
        """Whether some of it is dropped while training."""
        return any(module.dropout for tuned, _ in self.blocks.values() for module in tuned)

    def pack(self) -> dict[int, PackedAdapter]:
        """As they are at this moment."""
        packed = {}
        for block, (tuned, parameters) in self.blocks.items():
            if not all(bool(torch.isfinite(parameter).all()) for parameter in parameters):
                raise UsageError(
                    f"the adapter of block {block} has numbers that are not finite: begin again from a checkpoint, "
                    "with a lower learning rate"
                )
            body = b"".join(raw_bytes(parameter) for parameter in parameters)
            packed[block] = PackedAdapter(adapter_key(tuned, body), tuned, body)
        return packed


def find_adapters(blocks: Sequence[nn.Module]) -> Adapters:
    """Raises UsageError for what peers can't compute, and for weights of blocks that are to be trained themselves."""
    found = {}
    for index, block in enumerate(blocks):
        tuned: list[Tuned] = []
        parameters: list[Tensor] = []
        for path, module in block.named_modules():
            for module_tuned, own in _of(path, module):
                tuned.append(module_tuned)
                parameters.extend(own)
        _check_others(index, block, parameters)
        if tuned:
            found[index] = (tuple(tuned), tuple(parameters))
    return Adapters(found)


def _of(path: str, module: nn.Module) -> Iterator[tuple[Tuned, tuple[Tensor, ...]]]:
    """What the active adapters of one of PEFT's layers do."""
    if not hasattr(module, "base_layer") or not hasattr(module, "active_adapters") or module.disable_adapters:
        return
    layer: Any = module
    if layer.merged:
        raise UsageError(f"an adapter is merged into '{path}', whose weights are elsewhere: unmerge it")
    for name in layer.active_adapters:
        if name in getattr(layer, "lora_A", ()):
            yield _lora(path, layer, name)
        elif name in getattr(layer, "ia3_l", ()):
            scale = layer.ia3_l[name]
            kind = "ia3-input" if layer.is_feedforward else "ia3"
            yield Tuned(path, kind, 1.0, 0.0, (spec("scale", scale),)), (scale,)
        else:
            _refuse_others(path, layer, name)


def _lora(path: str, layer: Any, name: str) -> tuple[Tuned, tuple[nn.Parameter, ...]]:
    down, up = layer.lora_A[name], layer.lora_B[name]
    if name in layer.lora_variant and getattr(layer, "use_dora", {}).get(name):
        text = f"the adapter '{name}' is a DoRA, which at '{path}' needs norms of weights that only peers have"
        raise UsageError(f"{text}: leave use_dora out, rank-stabilised LoRA (use_rslora=True) for one works")
    plain = name not in layer.lora_variant and getattr(up, "bias", None) is None
    if not plain or not isinstance(down, nn.Linear) or not isinstance(up, nn.Linear):
        raise UsageError(f"the adapter '{name}' does more to '{path}' than plain LoRA does: {_POSSIBLE}")
    if down.weight.requires_grad and up.weight.requires_grad and not (up.weight.any() or down.weight.any()):
        text = f"the adapter '{name}' has only zeros at '{path}', so it would never learn"
        raise UsageError(
            f"{text}: where it was to begin with a part of the model's own weights (init_lora_weights='pissa' and its "
            "like), those are with the peers; begin with init_lora_weights=True, 'gaussian' or 'orthogonal'"
        )
    tensors = (spec("A", down.weight), spec("B", up.weight))
    share = float(getattr(layer.lora_dropout[name], "p", 0.0))
    matrices = (down.get_parameter("weight"), up.get_parameter("weight"))
    return Tuned(path, "lora", float(layer.scaling[name]), share, tensors), matrices


def _refuse_others(path: str, layer: Any, name: str) -> None:
    """An adapter that is not on this layer is nothing to refuse."""
    stores = [getattr(layer, store, {}) for store in getattr(layer, "adapter_layer_names", ())]
    if any(name in store for store in stores):
        raise UsageError(f"the adapter '{name}' changes '{path}' in a way that peers can't compute: {_POSSIBLE}")


def _check_others(index: int, block: nn.Module, known: Sequence[Tensor]) -> None:
    ids = {id(parameter) for parameter in known}
    for name, parameter in block.named_parameters():
        if not parameter.requires_grad or id(parameter) in ids:
            continue
        if "lora_" in name or "ia3_" in name:
            continue  # of an adapter that is not active
        raise UsageError(
            f"'{name}' of block {index} is to be trained, but its weights stay with the peers: freeze it "
            f"(requires_grad_(False)) and train an adapter; {_POSSIBLE}"
        )


def spec(name: str, tensor: Tensor) -> TensorSpec:
    """How a tensor travels. Raises UsageError."""
    if tensor.dtype not in NAMES:
        raise UsageError(f"an adapter in {tensor.dtype} can't travel: use one of {', '.join(DTYPES)}")
    return TensorSpec(name, NAMES[tensor.dtype], tuple(tensor.shape))
