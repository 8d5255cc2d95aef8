"""Blocks that gradients pass through: the library's layers, frozen, with the adapters that a micro-batch brings."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import chain

import torch
from torch import Tensor, nn
from torch.nn.functional import pad
from torch.nn.utils.rnn import pad_sequence
from transformers import DynamicCache, PreTrainedModel

from peers.gates import Gates, find_layers
from peers.training.deltas import BlockAdapter, applied
from swarm.checkpoint import Checkpoint, load_span
from swarm.errors import HopError
from swarm.ids import Span
from swarm.layout import let_go_of_weights
from swarm.messages import FaultCode

__all__ = ["Pass", "Trainee"]

EXACT, FAST = "eager", "sdpa"  # attention: some models have caps or sinks that the fast one leaves out
PROBE_TOKENS = 64
PROBE_TOLERANCE = 1e-2  # relative; bf16 rounds to 4e-3
STRIDE = 0x9E3779B97F4A7C15  # between the seeds of blocks: odd, so that all differ


@dataclass(frozen=True, slots=True)
class Pass:
    """A micro-batch that went forward. `leaves` are the inputs `[T, hidden]`, then the tensors of the adapters: of
    each of `tuned`, a block of the model, so many. `kept`: bytes that are held to go backward."""

    leaves: tuple[Tensor, ...]
    tuned: tuple[tuple[int, int], ...]
    output: Tensor  # [T, hidden]
    kept: int

    def backward(self, gradient: Tensor, *, wanted: bool = True) -> tuple[Tensor | None, tuple[Tensor, ...]]:
        """Gradients of the inputs, where they are `wanted`, and of the other leaves, given that of the output `[T,
        hidden]`. Once: what was held is let go."""
        leaves = self.leaves if wanted else self.leaves[1:]
        if not leaves:
            return None, ()
        found = torch.autograd.grad(self.output, leaves, gradient.to(self.output.dtype), allow_unused=True)
        pairs = zip(found, leaves, strict=True)
        whole = tuple(torch.zeros_like(leaf) if grad is None else grad for grad, leaf in pairs)
        return (whole[0], whole[1:]) if wanted else (None, whole)


@dataclass(slots=True)
class _Slot:
    """What gates want of a batch."""

    layer: int = 0
    learn: bool = False


class Trainee:
    """Blocks `blocks` of a model. One thread at a time."""

    def __init__(self, model: PreTrainedModel, blocks: Span) -> None:
        self.blocks = blocks
        self.hidden_size: int = model.config.get_text_config().hidden_size
        self.dtype = model.dtype
        self.device = model.device
        model.requires_grad_(False)
        self._model = model
        self._layers = find_layers(model, len(blocks))
        self._gates = Gates(self._layers)
        self._weights = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers())}

    @classmethod
    def load(cls, checkpoint: Checkpoint, blocks: Span, *, dtype: torch.dtype, device: torch.device) -> "Trainee":
        """Where `dtype` is the files', weights are mapped and take no memory of their own. Raises ModelError."""
        model = load_span(checkpoint, blocks, dtype=dtype, device=device, attn_implementation=EXACT)
        _hasten(model)
        return cls(model, blocks)

    def forward(
        self,
        hop: Span,
        hidden: Tensor,
        lengths: Sequence[int],
        adapters: Mapping[int, BlockAdapter],
        *,
        seed: int | None,
        keep: bool,
        pause: Callable[[], None] = lambda: None,
    ) -> Pass:
        """`hidden` `[T, hidden]`: sequences of `lengths`, one after another, through the blocks of `hop`. `adapters` by
        block of the model. `seed`: of what is dropped while training; None drops nothing. `pause` is called after every
        module of the blocks, going backward, too."""
        inputs = hidden.to(device=self.device, dtype=self.dtype)
        leaves = {block: adapter.leaves() for block, adapter in adapters.items()} if keep else dict(adapters)
        held: dict[int, int] = {}
        with torch.set_grad_enabled(keep), self._counted(held), _pausing(self._layers[self._part(hop)], pause):
            inputs.requires_grad_(keep)
            output = self._run(hop, inputs, lengths, leaves, seed)
        tensors = tuple(tensor for adapter in leaves.values() for tensor in adapter.tensors)
        tuned = tuple((block, len(adapter.tensors)) for block, adapter in leaves.items())
        return Pass((inputs, *tensors), tuned, output, sum(held.values()))

    def close(self) -> None:
        """Let go of the weights at once: the library's model refers to itself."""
        let_go_of_weights(self._model)

    def _run(
        self, hop: Span, hidden: Tensor, lengths: Sequence[int], adapters: Mapping[int, BlockAdapter], seed: int | None
    ) -> Tensor:
        padded = pad_sequence(list(torch.split(hidden, list(lengths))), batch_first=True)
        columns = torch.arange(padded.shape[1], device=hidden.device)
        real = columns < torch.tensor(lengths, device=hidden.device)[:, None]
        part = self._part(hop)
        local = {block - self.blocks.start: adapter for block, adapter in adapters.items()}
        self._model.train(seed is not None)
        with (
            self._gates.open(part, padded, _Slot()),  # type: ignore[arg-type]  # of a batch, gates want these two alone
            applied(self._layers, local, training=seed is not None),
            self._seeded(seed),
        ):
            prefix, before = self._prefix(local, len(padded))
            positions = before + columns[None].expand(len(padded), -1)
            mask = None if bool(real.all()) else pad(real, (before, 0), value=True).long()
            self._model(
                inputs_embeds=padded,
                attention_mask=mask,
                position_ids=positions,
                past_key_values=prefix,
                use_cache=prefix is not None,
            )
            return self._gates.output[real]

    def _part(self, hop: Span) -> slice:
        return slice(hop.start - self.blocks.start, hop.end - self.blocks.start)

    def _prefix(self, adapters: Mapping[int, BlockAdapter], rows: int) -> tuple[DynamicCache | None, int]:
        """What comes before every row, as the library's cache, and how many tokens that is. Raises HopError."""
        found = {index: pair for index, adapter in adapters.items() if (pair := adapter.prefix) is not None}
        if not found:
            return None, 0
        if len({pair[0].shape for pair in found.values()}) > 1:
            raise HopError(FaultCode.REFUSED, "the prefixes of a hop's blocks have the same shape")
        some = next(iter(found.values()))
        cache = DynamicCache()
        for index in range(len(self._layers)):  # those that don't run have one too, for masks are made from the first
            keys, values = (t.to(self.device, self.dtype) for t in found.get(index, some))
            cache.update(keys[None].expand(rows, -1, -1, -1), values[None].expand(rows, -1, -1, -1), index)
        return cache, some[0].shape[1]

    @contextmanager
    def _seeded(self, seed: int | None) -> Iterator[None]:
        """Each block drops what follows from the seed and its own number, however the model is cut into hops."""
        if seed is None:
            yield
            return
        devices = [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices), ExitStack() as stack:
            for number, layer in zip(self.blocks, self._layers, strict=True):
                stack.callback(layer.register_forward_pre_hook(_Seeder((seed + number * STRIDE) % (1 << 63))).remove)
            yield

    @contextmanager
    def _counted(self, held: dict[int, int]) -> Iterator[None]:
        """Bytes of each memory, other than weights, that autograd keeps hold of. What is kept knows nothing of where it
        came from: an output that its own way back keeps would never be let go of."""

        def count(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in self._weights:
                held[storage.data_ptr()] = storage.nbytes()
            return tensor.detach()

        with torch.autograd.graph.saved_tensors_hooks(count, _same):
            yield


@contextmanager
def _pausing(layers: Iterable[nn.Module], pause: Callable[[], None]) -> Iterator[None]:
    """Within, `pause` is called after every innermost module; and when a gradient has come to its output, later."""

    def computed(_: nn.Module, __: object, output: object) -> None:
        pause()
        if isinstance(output, Tensor) and output.requires_grad:
            output.register_hook(lambda _: pause())  # type: ignore[no-untyped-call]

    with ExitStack() as stack:
        for module in chain.from_iterable(layer.modules() for layer in layers):
            if not any(module.children()):
                stack.callback(module.register_forward_hook(computed).remove)
        yield


@torch.no_grad()
def _hasten(model: PreTrainedModel) -> None:
    """Takes the faster attention where it gives what the exact one gives."""
    width = model.config.get_text_config().hidden_size
    probe = torch.randn(1, PROBE_TOKENS, width, generator=torch.Generator().manual_seed(0))
    probe = probe.to(model.device, model.dtype)

    def output() -> Tensor:
        states: Tensor = model(inputs_embeds=probe, use_cache=False).last_hidden_state
        return states.float()

    exact = output()
    try:
        model.set_attn_implementation(FAST)
        agrees = float((output() - exact).norm()) <= PROBE_TOLERANCE * float((exact - probe.float()).norm())
    except ValueError:  # this family has no other
        agrees = False
    if not agrees:
        model.set_attn_implementation(EXACT)


def _same(tensor: Tensor) -> Tensor:
    return tensor


@dataclass(frozen=True, slots=True)
class _Seeder:
    seed: int

    def __call__(self, module: nn.Module, args: object) -> None:
        torch.manual_seed(self.seed)
