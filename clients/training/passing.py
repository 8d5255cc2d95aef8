"""One forward pass of a batch through the swarm, and the way back: what autograd sees of it."""

import asyncio
from collections import deque
from collections.abc import Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor

from clients.cache import Opener
from clients.training.adapters import Adapters
from clients.training.chains import INPUTS, Leg, TrainingChains, total
from clients.training.sums import Sums
from swarm.errors import UsageError
from swarm.training import MAX_SEQUENCES, MicroBatch, PackedAdapter

__all__ = ["differentiate"]

T = TypeVar("T")
MICRO_TOKENS = 1024  # of a micro-batch at most, unless one sequence has more: what a hop is busy with at a time
LEAST_TOKENS = 128  # below which a hop computes no faster


@dataclass(slots=True)
class _Pass:
    """A batch under way: its micro-batches, and the legs that each has taken."""

    connection: Opener
    adapters: Adapters
    packed: Mapping[int, PackedAdapter]
    seed: int | None
    first: int | None  # as TrainingChains has it
    micro: list[MicroBatch] = field(default_factory=list)
    legs: list[list[Leg]] = field(default_factory=list)

    async def forward(self, flat: Tensor, lengths: Sequence[int]) -> Tensor:
        """`flat` `[T, width]`: sequences of `lengths`, one after another."""
        chains = await self.connection.training()
        keys = tuple((block, adapter.key) for block, adapter in self.packed.items())
        groups = _groups(lengths)
        self.micro = [
            MicroBatch(0, group, keys, None if self.seed is None else (self.seed + index) % (1 << 63))
            for index, group in enumerate(groups)
        ]
        parts = torch.split(flat, [batch.tokens for batch in self.micro])
        async with asyncio.TaskGroup() as tasks:
            running = [
                tasks.create_task(chains.forward(batch, part, self.packed, first=self.first))
                for batch, part in zip(self.micro, parts, strict=True)
            ]
        results = [task.result() for task in running]
        self.legs = [legs for legs, _ in results]
        return torch.cat([output for _, output in results])

    async def backward(self, gradient: Tensor) -> tuple[Tensor | None, dict[int, list[Tensor]]]:
        """The gradient of what `forward` was given, where that learns, and of the adapters' tensors by block."""
        assert self.first is not None  # for autograd has a way back
        chains = await self.connection.training()
        parts = torch.split(gradient, [batch.tokens for batch in self.micro])
        inputs: list[Tensor] = []
        found: dict[int, list[Tensor]] = {}
        async with asyncio.TaskGroup() as tasks:
            sums = self._sums(chains, self.first, tasks)
            running = deque(
                tasks.create_task(chains.backward(legs, part, self.packed, first=self.first, sums=sums))
                for legs, part in zip(self.legs, parts, strict=True)
            )
            while running:  # one sum grows: gradients of every micro-batch at once would be many times the adapter
                own, more = await running.popleft()
                inputs += [] if own is None else [own]
                found = total(found, more)
        if sums is not None:
            await sums.finish()
            found = total(found, *sums.found)
        return torch.cat(inputs) if inputs else None, found

    def _sums(self, chains: TrainingChains, first: int, tasks: asyncio.TaskGroup) -> Sums | None:
        if not chains.compression.sums:
            return None
        return Sums(chains, self.legs, self.packed, first=first, tasks=tasks)


class _Through(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, run: _Pass, lengths: Sequence[int], flat: Tensor, *_: Tensor) -> Tensor:
        ctx.run = run
        _check_finite(flat, "what goes into the first block")
        return _wait(run.connection, run.forward(flat.detach().cpu(), lengths)).to(flat)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        run: _Pass = ctx.run
        _check_finite(gradients[0], "the gradient that the loss sends back")
        inputs, found = _wait(run.connection, run.backward(gradients[0].detach().cpu()))
        own = [tensor for block in run.adapters.blocks for tensor in found[block]]
        return (None, None, None if inputs is None else inputs.to(gradients[0]), *own)


def differentiate(
    connection: Opener,
    hidden: Tensor,
    mask: Tensor | None,
    adapters: Adapters,
    *,
    training: bool,
    max_positions: int | None,
) -> Tensor:
    """What comes out behind the last block for `hidden` `[batch, columns, width]`, differentiable by it and by the
    adapters' parameters. `mask` `[batch, columns]`: which columns are real; behind the others are zeros. With
    `training`, what has a dropout drops, by torch's own seed."""
    real = torch.ones(hidden.shape[:2], dtype=torch.bool) if mask is None else mask
    real = real.to(hidden.device)
    lengths = [n for n in real.sum(1).tolist() if n]
    if not lengths:
        raise UsageError("this batch has no tokens: none of its rows has any that its attention_mask lets through")
    longest = max(lengths)
    if max_positions is not None and longest > max_positions:
        raise UsageError(
            f"a sequence of {longest} tokens is longer than this model's context of {max_positions}: cut it"
        )
    seed = int(torch.randint(0, 1 << 62, (1,))) if training else None
    run = _Pass(connection, adapters, adapters.pack(), seed, _first_learner(hidden, adapters))
    flat = _Through.apply(  # type: ignore[no-untyped-call]
        run, lengths, hidden[real], *adapters.parameters
    )
    output = torch.zeros_like(hidden)
    result: Tensor = output.masked_scatter(real[..., None], flat)
    return result


def _first_learner(hidden: Tensor, adapters: Adapters) -> int | None:
    """Where the way back ends: at the inputs, or at a block. None: there is none."""
    if not torch.is_grad_enabled() or not (hidden.requires_grad or adapters.learn):
        return None
    return INPUTS if hidden.requires_grad else min(adapters.blocks)


def _check_finite(values: Tensor, what: str) -> None:
    if not bool(torch.isfinite(values).all()):
        raise UsageError(f"{what} is not finite: begin again from a checkpoint, with a lower learning rate")


def _groups(lengths: Sequence[int]) -> list[tuple[int, ...]]:
    """Sequences that go together, in their order: a few groups, so that hops work on different ones at once."""
    most = min(MICRO_TOKENS, max(LEAST_TOKENS, sum(lengths) // 8))
    groups: list[list[int]] = []
    for length in lengths:
        if groups and sum(groups[-1]) + length <= most and len(groups[-1]) < MAX_SEQUENCES:
            groups[-1].append(length)
        else:
            groups.append([length])
    return [tuple(group) for group in groups]


def _wait(connection: Opener, work: Coroutine[Any, Any, T]) -> T:
    """The result; an interrupt cancels the work."""
    future = connection.submit(work)
    try:
        return future.result()
    except BaseExceptionGroup as group:
        raise _first(group) from group
    except BaseException:
        future.cancel()
        raise


def _first(error: BaseException) -> BaseException:
    return _first(error.exceptions[0]) if isinstance(error, BaseExceptionGroup) else error
