"""What adapters do to the modules of a block, while a micro-batch passes: hooks that are gone afterwards.

The arithmetic is that of the PEFT library's layers, so that an adapter trained here is the one trained there: LoRA (Hu
et al. 2021) with any scaling, and (IA)^3 (Liu et al. 2022).
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.nn.functional import dropout, linear
from transformers.pytorch_utils import Conv1D

from swarm.codecs import read_tensors
from swarm.errors import HopError
from swarm.messages import FaultCode
from swarm.training import Tuned

__all__ = ["PREFIX", "BlockAdapter", "applied"]

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
        for module, tensors in self._parts():
            if module.kind != PREFIX:
                _Delta.of(layer, module, tensors).hook(stack, training)

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


@dataclass(frozen=True, slots=True)
class _Delta:
    """One adapter at one linear layer."""

    target: nn.Module
    tuned: Tuned
    tensors: Mapping[str, Tensor]

    @classmethod
    def of(cls, layer: nn.Module, tuned: Tuned, tensors: Mapping[str, Tensor]) -> "_Delta":
        """Raises HopError when there is no such layer, or the tensors are not of its shape."""
        try:
            target = layer.get_submodule(tuned.path)
        except AttributeError:
            target = None
        if not tuned.path or not isinstance(target, nn.Linear | Conv1D):
            raise HopError(FaultCode.REFUSED, f"the blocks here have no linear layer '{tuned.path[:80]}' to adapt")
        out, width = _shape(target)
        shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
        if shapes not in _expected(tuned.kind, tensors, out, width):
            what = f"an adapter ({tuned.kind}) for '{tuned.path[:80]}'"
            raise HopError(FaultCode.REFUSED, f"{what} has tensors {shapes}, which don't fit {out} x {width}")
        return cls(target, tuned, tensors)

    def hook(self, stack: ExitStack, training: bool) -> None:
        if self.tuned.kind == "ia3-input":
            handle = self.target.register_forward_pre_hook(self._scale_input)
        elif self.tuned.kind == "ia3":
            handle = self.target.register_forward_hook(self._scale_output)
        else:
            share = self.tuned.dropout if training else 0.0
            handle = self.target.register_forward_hook(lambda _, args, output: self._low_rank(args[0], output, share))
        stack.callback(handle.remove)

    def _scale_input(self, _: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        scale = self.tensors["scale"].flatten()
        return (args[0].to(scale.dtype).mul(scale).to(args[0].dtype), *args[1:])

    def _scale_output(self, _: nn.Module, __: tuple[Any, ...], output: Tensor) -> Tensor:
        scale = self.tensors["scale"].flatten()
        return output.to(scale.dtype).mul(scale).to(output.dtype)

    def _low_rank(self, x: Tensor, output: Tensor, share: float) -> Tensor:
        down, up = self.tensors["A"], self.tensors["B"]
        given = dropout(x.to(down.dtype), share) if share else x.to(down.dtype)
        change = linear(linear(given, down), up) * self.tuned.scaling
        return output + change.to(output.dtype)


def _check_prefix(tensors: Mapping[str, Tensor]) -> None:
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if shapes.keys() != {"keys", "values"} or shapes["keys"] != shapes["values"] or len(shapes["keys"]) != 3:
        raise HopError(FaultCode.REFUSED, f"a prefix has keys and values [heads, n, head size], not {shapes}")


def _shape(target: nn.Module) -> tuple[int, int]:
    """Outputs and inputs of a linear layer."""
    first, second = target.get_parameter("weight").shape
    return (first, second) if isinstance(target, nn.Linear) else (second, first)


def _expected(kind: str, tensors: Mapping[str, Tensor], out: int, width: int) -> list[dict[str, tuple[int, ...]]]:
    """The shapes that tensors of an adapter of this kind may have."""
    if kind == "ia3":
        return [{"scale": (out, 1)}, {"scale": (out,)}]
    if kind == "ia3-input":
        return [{"scale": (1, width)}, {"scale": (width,)}]
    rank = len(tensors["A"]) if "A" in tensors and tensors["A"].dim() else 0
    return [{"A": (rank, width), "B": (out, rank)}]
