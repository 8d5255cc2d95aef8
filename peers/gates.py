"""Gates in front of a model's layers: which of them run, what goes into the first, and what the last gave.

The layers stay where and what they are; only their `forward` is put behind a gate. So the library's own model code runs
around them, and a hop that uses a part of a span runs just that part.
"""

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from peers.attention import Current
from peers.batch import PagedBatch
from peers.fused import FusedBlock
from peers.window import Passage
from swarm.errors import ModelError

__all__ = ["Gates", "find_layers"]

# What a layer may be given besides hidden states: all of it follows from positions alone, so every peer can make it.
KNOWN_INPUTS = frozenset({"attention_mask", "position_embeddings", "position_ids"})


class Gates:
    """The layers of one model behind gates. Outside of `open` the model can't run."""

    def __init__(self, layers: Sequence[nn.Module], window: Passage | None = None) -> None:
        """`window`: through which the layers' weights pass."""
        self._window = window
        self._in_tuples = False  # whether layers return a tuple that begins with the hidden states
        self._layers = slice(0, 0)
        self._current = Current(layers)
        self._states: Tensor | None = None
        self._list = layers
        self._fused: list[FusedBlock | None] = [None] * len(layers)
        self.embeddings: list[object] = [None] * len(layers)  # the position embeddings that layers were given to learn
        for index, layer in enumerate(layers):
            # nn.Module calls `self.forward`; an attribute of the instance comes before the method of its class.
            layer.forward = self._gate(index, layer.forward)

    @contextmanager
    def open(self, layers: slice, states: Tensor, batch: PagedBatch) -> Iterator[None]:
        """Within, a run of the model takes `states` `[1, T, hidden]` through `layers`; `output` has the result then."""
        self._layers, self._states, self._current.batch = layers, states, batch
        try:
            yield
        finally:
            self._states = self._current.batch = None

    @property
    def output(self) -> Tensor:
        """What the last of the open layers returned, `[1, T, hidden]`. Only within `open`."""
        assert self._states is not None
        return self._states

    def replace(self, index: int, block: FusedBlock) -> None:
        """Lets a block compute in place of a layer, whose own parts are let go."""
        self._fused[index] = block
        layer = self._list[index]
        for name in [name for name, _ in layer.named_children()]:
            delattr(layer, name)
        layer.add_module("fused", block)

    def fused(self, layers: slice) -> list[FusedBlock] | None:
        """The blocks in place of these layers, when all of them have one."""
        blocks = [block for block in self._fused[layers] if block is not None]
        return blocks if len(blocks) == layers.stop - layers.start else None

    def _gate(self, index: int, forward: Callable[..., Any]) -> Callable[..., Any]:
        def gated(*args: Any, **kwargs: Any) -> Any:
            batch = self._current.batch
            if batch is None:
                raise ModelError("the layers of a span run only in its own steps")
            if not self._layers.start <= index < self._layers.stop:
                states = args[0] if args else kwargs["hidden_states"]
                return (states,) if self._in_tuples else states
            if batch.learn:
                _check_inputs(forward, args, kwargs)
                self.embeddings[index] = kwargs.get("position_embeddings")
            batch.layer = index
            block = self._fused[index]
            if block is not None:
                assert self._states is not None
                with self._opened(index):
                    self._states = block(self._states[0].clone(), batch)[None]
                return (self._states,) if self._in_tuples else self._states
            if args:
                args = (self._states, *args[1:])
            else:
                kwargs["hidden_states"] = self._states
            with self._opened(index):
                result = forward(*args, **kwargs)
            self._in_tuples = isinstance(result, tuple)
            self._states = result[0] if self._in_tuples else result
            return result

        return gated

    def _opened(self, index: int) -> AbstractContextManager[None]:
        return nullcontext() if self._window is None else self._window.open(index)


def find_layers(model: nn.Module, count: int) -> Sequence[nn.Module]:
    """The decoder layers of a base model: its outermost list of `count` modules. Raises ModelError."""
    lists = [module for module in model.modules() if isinstance(module, nn.ModuleList) and len(module) == count]
    if not lists:
        raise ModelError(f"{type(model).__name__} has no list of {count} layers, so it can't run in a swarm")
    return list(lists[0])


def _check_inputs(forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Raises ModelError when a layer is given tensors that another peer could not make from positions alone."""
    bound = inspect.signature(forward).bind(*args, **kwargs)
    inputs = dict(bound.arguments)
    for parameter in bound.signature.parameters.values():
        if parameter.kind is parameter.VAR_KEYWORD:
            inputs.update(inputs.pop(parameter.name, {}))
    for name, value in list(inputs.items())[1 if args else 0 :]:
        if name not in KNOWN_INPUTS and name != "hidden_states" and _has_tensors(value):
            raise ModelError(f"its blocks need '{name}' besides hidden states")


def _has_tensors(value: Any) -> bool:
    if isinstance(value, dict):
        return any(_has_tensors(entry) for entry in value.values())
    if isinstance(value, list | tuple):
        return any(_has_tensors(entry) for entry in value)
    return isinstance(value, torch.Tensor)
