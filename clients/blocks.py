"""The blocks of a client's model: the library's module tree without its weights, and one remote call in its place.

Whatever the library's forward does before the blocks (embedding, scaling, learned positions) and after them (norm,
head, soft caps, loss) runs unchanged. The blocks are handed hidden states and one keyword: `remote`, what to do instead
of computing.
"""

import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedModel

from clients.training.adapters import Adapters, find_adapters
from clients.training.prefix import Prefix
from swarm.errors import ModelError, UsageError

__all__ = ["ATTENTION", "Peek", "Remote", "RemoteBlocks", "adopt_blocks", "blocks_of"]

ATTENTION = "swarm-remote"  # no attention runs here; and as it has no mask function, no mask is ever made


class Remote(ABC):
    """What one forward pass hands to the blocks, under the keyword `remote`."""

    prefix: Prefix | None = None  # keys and values that come before every row

    @property
    def settled(self) -> bool:
        """Whether adapters have been seen to and nothing is learned, so that `through` is all there is to do."""
        return False

    @abstractmethod
    def through(self, hidden: Tensor) -> Tensor:
        """What comes out behind the last block for `hidden` [batch, columns, hidden]."""

    def differentiate(self, hidden: Tensor, adapters: Adapters) -> Tensor:
        """The same, with adapters in the blocks; gradients go back to them and to `hidden`. Raises UsageError where
        that is not possible."""
        raise UsageError("peers keep nothing of a pass with gradients or adapters, so it can't go on from earlier ones")


class Peek(Remote):
    """Only look at what reaches the first block."""

    hidden: Tensor | None = None

    def through(self, hidden: Tensor) -> Tensor:
        self.hidden = hidden
        return hidden

    def differentiate(self, hidden: Tensor, adapters: Adapters) -> Tensor:
        return self.through(hidden)


class RemoteBlocks(nn.ModuleList):
    """A list of blocks which for a forward pass is one block: the call to the swarm.

    Names, types and shapes of all modules and parameters are the library's own, so that adapters find their places;
    every parameter is a single zero, expanded, which takes no memory.
    """

    def __init__(self, blocks: nn.ModuleList) -> None:
        super().__init__(blocks)
        first, *others = self._modules.values()
        first.forward = partial(_call_swarm, self)
        for other in others:
            other.forward = _pass_on

    def __iter__(self) -> Iterator[nn.Module]:
        yield from self[:]

    def __getitem__(self, index: int | slice) -> Any:
        if isinstance(index, slice):  # as in `for block in self.layers[:n]`
            return [self._modules["0"]] if 0 in range(len(self))[index] else []
        return super().__getitem__(index)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({len(self)} x {type(self[0]).__name__}, computed by the peers of a swarm)"

    def adapters(self) -> Adapters:
        """What PEFT has put into the blocks. Raises UsageError for what peers can't compute."""
        if "peft" not in sys.modules and not torch.is_grad_enabled():
            return Adapters({})  # a step that generates has no time to look at every module
        return find_adapters(list(self._modules.values()))

    def hollow(self) -> None:
        """Replace every parameter and buffer by a zero of its shape and type which takes no memory."""
        for module in self.modules():
            stores: tuple[dict[str, Any], ...] = (module._parameters, module._buffers)
            for store in stores:
                store.update({name: _hollow(tensor) for name, tensor in store.items() if tensor is not None})

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "RemoteBlocks":
        """`to()`, `half()` and their like: what takes no memory still takes none afterwards."""

        def frugal(tensor: Tensor) -> Tensor:
            return fn(_seed(tensor)).expand(tensor.shape) if _is_hollow(tensor) else fn(tensor)

        super()._apply(frugal, recurse)  # type: ignore[no-untyped-call]
        return self


def adopt_blocks(model: PreTrainedModel, path: str) -> None:
    """Puts RemoteBlocks in the place of the list of blocks at `path` in `model`."""
    owner, _, name = path.rpartition(".")
    blocks = model.get_submodule(path)
    assert isinstance(blocks, nn.ModuleList)
    setattr(model.get_submodule(owner), name, RemoteBlocks(blocks))


def blocks_of(model: PreTrainedModel) -> RemoteBlocks:
    return next(module for module in model.modules() if isinstance(module, RemoteBlocks))


def _call_swarm(
    blocks: RemoteBlocks, hidden_states: Tensor, *_: Any, remote: Remote | None = None, **__: Any
) -> Tensor:
    if remote is None:
        raise ModelError("this architecture does not hand keyword arguments to its blocks, so it can't run in a swarm")
    if remote.settled and remote.prefix is None:
        with torch.no_grad():
            return remote.through(hidden_states)
    adapters = blocks.adapters()
    if adapters or remote.prefix is not None or (torch.is_grad_enabled() and hidden_states.requires_grad):
        return remote.differentiate(hidden_states, adapters)
    with torch.no_grad():
        return remote.through(hidden_states)


def _pass_on(hidden_states: Tensor, *_: Any, **__: Any) -> Tensor:
    return hidden_states


def _no_attention(*_: Any, **__: Any) -> NoReturn:
    raise ModelError(
        "a block of a swarm's model was called by itself; blocks are computed by peers, from first to last"
    )


def _hollow(tensor: Tensor) -> Tensor:
    zero = torch.zeros((), dtype=tensor.dtype).expand(tensor.shape)
    hollow = nn.Parameter(zero, requires_grad=False) if isinstance(tensor, nn.Parameter) else zero
    hollow._is_hf_initialized = True  # type: ignore[attr-defined]  # the library leaves it as it is
    return hollow


def _is_hollow(tensor: Tensor) -> bool:
    return tensor.dim() > 0 and tensor.numel() > 1 and not any(tensor.stride()) and tensor.device.type != "meta"


def _seed(tensor: Tensor) -> Tensor:
    return tensor[(0,) * tensor.dim()]


AttentionInterface.register(ATTENTION, _no_attention)
