"""Peers of one layout on this machine, and a client of them."""

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Self

import torch
from torch import Tensor

from clients.bench.answers import Answer, ask_at_once, ask_shared
from clients.bench.steps import StepLog
from clients.bench.trial import Layout, shares
from clients.completion.shared import SharedModel
from clients.local_swarm import LocalSwarm
from clients.model import SwarmModelForCausalLM
from swarm.checkpoint import Checkpoint
from swarm.rates import threads

__all__ = ["Fleet"]

LOOPBACK = ("--host", "127.0.0.1")
DTYPES = ("fp32", "fp16")


class Fleet:
    """A context manager; whatever it started is gone when it ends.

    `options`: for each peer, after those that every peer gets. `shared`: several answers at once come over shared
    chains, as a gateway's, and not in a thread each. `copies`: of each part of the blocks, one after another."""

    def __init__(
        self,
        model: str,
        cache: Path,
        checkpoint: Checkpoint,
        layout: Layout,
        *,
        peer_threads: int,
        client_threads: int,
        client_dtype: torch.dtype = torch.float32,
        client_head: str | None = None,
        options: Sequence[Sequence[str]] = (),
        shared: bool = False,
        copies: int = 1,
    ) -> None:
        self.layout = layout
        self.steps = StepLog()
        self._stack = ExitStack()
        self._client_threads = client_threads
        spans = shares(checkpoint.num_blocks, layout.peers) * copies
        own = options or [("--port", "0")] * len(spans)
        try:
            swarm = self._stack.enter_context(LocalSwarm(model, cache, threads=peer_threads))
            for index, (span, extra) in enumerate(zip(spans, own, strict=True)):
                swarm.start(f"peer{index}", "--blocks", str(span), *_precision(layout.precision), *LOOPBACK, *extra)
            swarm.wait_ready()
            self.addresses = swarm.addresses
            self.pids = [peer.pid for peer in swarm.peers]
            self.peer_ids = [peer.ready.peer_id for peer in swarm.peers]
            self.model = self._stack.enter_context(
                SwarmModelForCausalLM.from_pretrained(
                    str(checkpoint.folder),
                    initial_peers=swarm.addresses,
                    cache=cache,
                    observer=self.steps.hear,
                    dtype=client_dtype,
                    head=client_head,
                )
            )
            self._shared = SharedModel(self.model) if shared else None
            if self._shared is not None:
                self._stack.callback(self._shared.close)
        except BaseException:
            self._stack.close()
            raise

    def ask(self, prompts: Sequence[Tensor], new_tokens: int) -> list[Answer]:
        """Greedy answers to all of `prompts` at once."""
        with threads(self._client_threads):
            if self._shared is not None and len(prompts) > 1:
                return ask_shared(self._shared, prompts, new_tokens)
            return ask_at_once(self.model, prompts, new_tokens)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._stack.__exit__(kind, error, at)


def _precision(name: str) -> tuple[str, ...]:
    """Of what linear layers weigh; the rest stays in fp32, except in fp16."""
    if name in DTYPES:
        return "--dtype", name, "--quantization", "none"
    return "--dtype", "fp32", "--quantization", name
