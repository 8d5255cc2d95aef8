"""What adapters do to the modules of a block, while a micro-batch passes: hooks that are gone afterwards. In passes
over many sessions' rows it is `peers.changes` that does it.

The arithmetic is that of the PEFT library's layers, so that an adapter trained here is the one trained there: LoRA (Hu
et al. 2021) with any scaling, and (IA)^3 (Liu et al. 2022).
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import dropout, linear

from peers.places import Place
from swarm.codecs import read_tensors
from swarm.errors import HopError
from swarm.messages import FaultCode
from swarm.training import Tuned

__all__ = ["PREFIX", "BlockAdapter", "Delta", "applied"]

PREFIX = "prefix"  # the kind that is no module's


@dataclass(frozen=True, slots=True)
class BlockAdapter:
    """An adapter of one block: `tensors` are those of `tuned`, one after another."""

    tuned: tuple[Tuned, ...]
    tensors: tuple[Tensor, ...]

    @classmethod
    def read(cls, tuned: tuple[Tuned, ...], body: bytes | memoryview) -> "BlockAdapter":
        """From the body of an Adapter, whose size has been checked."""
        tensors = read_tensors((spec for module in tuned for spec in module.tensors), body)
        return cls(tuned, tuple(tensors))

    @property
    def nbytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.tensors)

    def leaves(self) -> "BlockAdapter":
        """The same tensors, to be differentiated by."""
        return BlockAdapter(self.tuned, tuple(tensor.detach().requires_grad_() for tensor in self.tensors))

    def to(self, device: torch.device) -> "BlockAdapter":
        return BlockAdapter(self.tuned, tuple(tensor.to(device) for tensor in self.tensors))

    @property
    def prefix(self) -> tuple[Tensor, Tensor] | None:
        """Keys and values `[heads, n, head size]` in front of every sequence. Raises HopError when they are none."""
        for module, tensors in self._parts():
            if module.kind == PREFIX:
                _check_prefix(tensors)
                return tensors["keys"], tensors["values"]
        return None

    def hooks(self, layer: nn.Module, stack: ExitStack, training: bool) -> None:
        """Until the stack ends. Raises HopError when it does not fit the layer."""
        for delta in self.deltas(layer):
            delta.hook(stack, training)

    def deltas(self, layer: nn.Module) -> "tuple[Delta, ...]":
        """What it does to the modules of a layer, the prefix left out. Raises HopError when it does not fit."""
        return tuple(Delta.of(layer, module, tensors) for module, tensors in self._parts() if module.kind != PREFIX)

    def _parts(self) -> Iterator[tuple[Tuned, Mapping[str, Tensor]]]:
        tensors = iter(self.tensors)
        for module in self.tuned:
            yield module, {spec.name: next(tensors) for spec in module.tensors}


@contextmanager
def applied(layers: Sequence[nn.Module], adapters: Mapping[int, BlockAdapter], *, training: bool) -> Iterator[None]:
    """Within, `layers` compute with `adapters`, by their place among the layers."""
    with ExitStack() as stack:
        for index, adapter in adapters.items():
            adapter.hooks(layers[index], stack, training)
        yield


@dataclass(frozen=True, slots=True, eq=False)
class Delta:
    """One adapter at one linear layer."""

    place: Place
    tuned: Tuned
    tensors: Mapping[str, Tensor]

    @classmethod
    def of(cls, layer: nn.Module, tuned: Tuned, tensors: Mapping[str, Tensor]) -> "Delta":
        """Raises HopError when there is no such layer, or the tensors are not of its shape."""
        place = Place.find(layer, tuned.path)
        if place is None:
            raise HopError(FaultCode.REFUSED, f"the blocks here have no linear layer '{tuned.path[:80]}' to adapt")
        out, width = place.outputs, place.inputs
        shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
        if shapes not in _expected(tuned.kind, tensors, out, width):
            what = f"an adapter ({tuned.kind}) for '{tuned.path[:80]}'"
            raise HopError(FaultCode.REFUSED, f"{what} has tensors {shapes}, which don't fit {out} x {width}")
        return cls(place, tuned, tensors)

    def hook(self, stack: ExitStack, training: bool) -> None:
        """On a layer of the library's own build."""
        assert self.place.alone
        target = self.place.target
        if self.tuned.kind == "ia3-input":
            handle = target.register_forward_pre_hook(lambda _, args: (self._scaled(args[0]), *args[1:]))
        elif self.tuned.kind == "ia3":
            handle = target.register_forward_hook(lambda _, __, output: self._scaled(output))
        else:
            share = self.tuned.dropout if training else 0.0
            handle = target.register_forward_hook(lambda _, args, output: self._low_rank(args[0], output, share))
        stack.callback(handle.remove)

    def _scaled(self, x: Tensor) -> Tensor:
        scale = self.tensors["scale"].flatten()
        return x.to(scale.dtype).mul(scale).to(x.dtype)

    def _low_rank(self, x: Tensor, output: Tensor, share: float) -> Tensor:
        down, up = self.tensors["A"], self.tensors["B"]
        given = dropout(x.to(down.dtype), share) if share else x.to(down.dtype)
        return output + (linear(linear(given, down), up) * self.tuned.scaling).to(output.dtype)


def _check_prefix(tensors: Mapping[str, Tensor]) -> None:
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if shapes.keys() != {"keys", "values"} or shapes["keys"] != shapes["values"] or len(shapes["keys"]) != 3:
        raise HopError(FaultCode.REFUSED, f"a prefix has keys and values [heads, n, head size], not {shapes}")


def _expected(kind: str, tensors: Mapping[str, Tensor], out: int, width: int) -> list[dict[str, tuple[int, ...]]]:
    """The shapes that tensors of an adapter of this kind may have."""
    if kind == "ia3":
        return [{"scale": (out, 1)}, {"scale": (out,)}]
    if kind == "ia3-input":
        return [{"scale": (1, width)}, {"scale": (width,)}]
    rank = len(tensors["A"]) if "A" in tensors and tensors["A"].dim() else 0
    return [{"A": (rank, width), "B": (out, rank)}]
