"""Adapters that a peer has of its own, from its volunteer, for whoever asks for one by its digest."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import torch

from peers.span import BlockSpan
from peers.training.deltas import BlockAdapter
from swarm.checkpoint import Checkpoint
from swarm.errors import HopError, ModelError
from swarm.ids import Span
from swarm.peft_folder import read_folder
from swarm.training import AdapterKey, AdapterKeys

__all__ = ["HostedAdapter"]


@dataclass(frozen=True, slots=True)
class HostedAdapter:
    """`digest`: of the whole adapter, so that hops which agree on it never mix two. `keys`: of those blocks here that
    it changes, whose tensors are `blocks`."""

    name: str
    digest: str
    keys: AdapterKeys
    blocks: Mapping[AdapterKey, BlockAdapter]

    @classmethod
    def read(cls, name: str, folder: Path, checkpoint: Checkpoint, blocks: Span) -> Self:
        """Raises ModelError."""
        stored = read_folder(folder, checkpoint, blocks)
        packed = stored.blocks.values()
        tensors = {each.key: BlockAdapter.read(each.tuned, each.body) for each in packed}
        return cls(name, stored.digest, tuple((b, each.key) for b, each in stored.blocks.items()), tensors)

    @property
    def nbytes(self) -> int:
        return sum(adapter.nbytes for adapter in self.blocks.values())

    def within(self, hop: Span) -> AdapterKeys:
        """What the blocks of a hop are changed by."""
        return tuple((block, key) for block, key in self.keys if block in hop)

    def placed(self, span: BlockSpan) -> Self:
        """The same on the device of a span that can compute it. Raises ModelError where it can't."""
        try:
            for block, key in self.keys:
                span.fit(block, self.blocks[key])
        except HopError as error:
            raise ModelError(f"the adapter '{self.name}' can't be hosted here: {error}") from None
        device: torch.device = span.device
        return type(self)(self.name, self.digest, self.keys, {k: each.to(device) for k, each in self.blocks.items()})
