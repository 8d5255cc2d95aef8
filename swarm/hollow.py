"""A base model of the library that holds one span of blocks and nothing else.

The class is made at run time from the family's own base class. It first builds the whole model, so that each block is
made by its place in the whole (dense or sparse, sliding or full, with or without rotation), then keeps the span's. That
happens on the meta device, where it costs no memory.
"""

from typing import Any, cast

import torch
from torch import nn
from transformers import PreTrainedModel

from swarm.ids import Span

__all__ = ["hollow_class"]


def hollow_class(base: type[PreTrainedModel], list_name: str, blocks: Span) -> type[PreTrainedModel]:
    """A subclass of `base` that keeps `blocks` alone. Its name and module are the base's, since the library looks up
    weight conversions by them."""
    names = {"__module__": base.__module__, "__qualname__": base.__qualname__, "_list_name": list_name, "_span": blocks}
    return cast("type[PreTrainedModel]", type(base.__name__, (_Hollow, base), names))


class _Hollow:
    """Goes before the base class. `forward(inputs_embeds=hidden)` gives the blocks' output for `hidden` `[B, T, H]`,
    without what the whole model does before its first and after its last block. One thread at a time."""

    _list_name: str
    _span: Span

    def __init__(self, config: Any, *args: Any, **kwargs: Any) -> None:
        super().__init__(config, *args, **kwargs)  # type: ignore[call-arg]
        model = cast(PreTrainedModel, self)
        blocks = cast(nn.ModuleList, getattr(model, self._list_name))
        total = len(blocks)
        setattr(model, self._list_name, blocks[self._span.start : self._span.end])
        _renumber(cast(nn.ModuleList, getattr(model, self._list_name)), self._span.start)
        _slice_config(model.config, self._span, total)
        _hollow_out(model, self._list_name)

    def forward(self, *, inputs_embeds: torch.Tensor, **kwargs: Any) -> Any:
        def enter(_module: nn.Module, args: tuple[Any, ...], named: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
            if args:
                return (inputs_embeds, *args[1:]), named
            return args, named | {"hidden_states": inputs_embeds}

        first = cast(nn.ModuleList, getattr(self, self._list_name))[0]
        with first.register_forward_pre_hook(enter, with_kwargs=True):
            return super().forward(inputs_embeds=inputs_embeds, **kwargs)  # type: ignore[misc]


class _NoEmbedding(nn.Module):
    """Stands for an embedding whose result is thrown away before the first block."""

    def __init__(self, embedding: nn.Embedding) -> None:
        super().__init__()
        self.dim = embedding.embedding_dim

    def forward(self, ids: torch.Tensor, *_args: Any, **_kwargs: Any) -> torch.Tensor:
        return torch.zeros((), device=ids.device).expand(*ids.shape, self.dim)


def _renumber(blocks: nn.ModuleList, start: int) -> None:
    for module in blocks.modules():
        if isinstance(getattr(module, "layer_idx", None), int):
            module.layer_idx -= start  # type: ignore[assignment,operator]


def _slice_config(config: Any, span: Span, total: int) -> None:
    config.num_hidden_layers = len(span)
    for name, value in list(vars(config).items()):
        if isinstance(value, list | tuple) and len(value) == total and not name.startswith("_"):
            setattr(config, name, value[span.start : span.end])


def _hollow_out(model: PreTrainedModel, list_name: str) -> None:
    """Takes every part with weights, other than the blocks, out of the model."""
    for name, child in list(model.named_children()):
        if name == list_name or not any(True for _ in child.parameters()):
            continue
        setattr(model, name, _NoEmbedding(child) if isinstance(child, nn.Embedding) else nn.Identity())
