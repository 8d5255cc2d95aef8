"""A stand-in for a connection and its sessions: the same methods, blocks computed by the library in this process."""

import asyncio
import copy
import threading
from collections.abc import Coroutine, Iterable, Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from clients.events import ChainChanged, Observer
from clients.history import Embed
from clients.loop_thread import LoopThread, Submitted
from clients.session import RowChunk
from clients.training.chains import TrainingChains
from routing.chains import Hop
from routing.hosting import Hosted
from swarm.checkpoint import load_span, resolve
from swarm.errors import UsageError
from swarm.ids import PeerId, RowId, Span
from swarm.messages import Contact
from swarm.training import PackedAdapter

T = TypeVar("T")

HERE = Hop(Contact(PeerId("here"), ("/memory/here",)), Span(0, 1), 0.001, name="here", precision="fp32")


class LocalConnection:
    """Its loop runs in a thread; counts what sessions do."""

    def __init__(self, folder: Path, cache: Path) -> None:
        checkpoint = resolve(str(folder), cache=cache)
        self.blocks = load_span(
            checkpoint, Span(0, checkpoint.num_blocks), dtype=torch.float32, attn_implementation="eager"
        )
        self.sessions: list[LocalSession] = []
        self.room = 1 << 20  # tokens that a session may reserve
        self.sent: list[tuple[int, int]] = []  # (tokens, outputs wanted) of every step
        self.gate = threading.Event()  # steps wait for it,
        self.waiting = threading.Event()  # and say so
        self.gate.set()
        self._thread = LoopThread("local")
        self._submitted = Submitted(self._thread.loop)

    @property
    def open_sessions(self) -> int:
        return sum(not session.gone.is_set() for session in self.sessions)

    def submit(self, coroutine: Coroutine[Any, Any, T]) -> "Future[T]":
        return self._submitted.submit(coroutine)

    async def session(
        self,
        *,
        embed: Embed,
        lease_tokens: int,
        observer: Observer | None = None,
        adapters: Mapping[int, PackedAdapter] | None = None,
        hosted: str | None = None,
    ) -> "LocalSession":
        if adapters or hosted:
            raise UsageError("the stand-in for a swarm computes without adapters")
        session = LocalSession(self, embed, lease_tokens)
        if observer is not None:
            observer(ChainChanged((HERE,), (), 0.0, "the session begins"))
        self.sessions.append(session)
        return session

    async def hosted(self, name: str) -> Hosted:
        raise UsageError("the stand-in for a swarm hosts no adapters")

    async def training(self) -> TrainingChains:
        raise UsageError("the stand-in for a swarm has no gradients")

    def close(self) -> None:
        if self._submitted.end(asyncio.sleep(0)):
            self._thread.close()


class LocalSession:
    def __init__(self, connection: LocalConnection, embed: Embed, lease: int) -> None:
        self.embed = embed
        self.lease = lease
        self.gone = threading.Event()
        self._connection = connection
        self._caches: dict[RowId, DynamicCache] = {}
        self._next_row = 0

    def new_row(self) -> RowId:
        self._next_row += 1
        return RowId(self._next_row)

    @property
    def positions(self) -> Mapping[RowId, int]:
        return {row: cache.get_seq_length() for row, cache in self._caches.items()}

    def predict_step(self, tokens: int) -> float:
        return 0.1 + 0.001 * tokens  # as far away as a swarm may be

    async def step(self, rows: Sequence[RowChunk], hidden: Tensor) -> Tensor:
        if self.gone.is_set():
            raise UsageError("this session is closed")
        while not self._connection.gate.is_set():
            self._connection.waiting.set()
            await asyncio.sleep(0)
        outputs, offset = [], 0
        for chunk in rows:
            cache = self._caches.setdefault(chunk.row, DynamicCache())
            new = hidden[offset : offset + chunk.n]
            if chunk.tokens is not None:  # what recovery would send instead is the same
                torch.testing.assert_close(self.embed(chunk.tokens, cache.get_seq_length()), new)
            outputs.append(_through_blocks(self._connection.blocks, new, cache)[chunk.n - chunk.want :])
            offset += chunk.n
        assert offset == len(hidden)
        self._connection.sent.append((offset, sum(chunk.want for chunk in rows)))
        return torch.cat(outputs)

    async def fork(self, forks: Sequence[tuple[RowId, int]]) -> list[RowId]:
        caches: dict[RowId, DynamicCache] = {}
        for src, at in forks:
            cache = self._caches[src]
            if src not in caches and at == cache.get_seq_length():
                caches[src] = cache
                continue
            cache = copy.deepcopy(cache)
            cache.crop(at - cache.get_seq_length())
            caches[self.new_row()] = cache
        self._caches = caches
        return list(caches)

    async def reserve(self, tokens: int) -> bool:
        if tokens > self._connection.room:
            return False
        self.lease = tokens
        return True

    def spare(self, rows: Iterable[RowId]) -> None:
        pass  # nothing is ever lost here

    async def close(self) -> None:
        self.gone.set()
        self._caches.clear()


@torch.no_grad()
def _through_blocks(blocks: PreTrainedModel, hidden: Tensor, cache: DynamicCache) -> Tensor:
    """`hidden` [n, hidden] behind the last block."""
    start = cache.get_seq_length()
    positions = torch.arange(start, start + len(hidden))[None]
    output: Tensor = blocks(inputs_embeds=hidden[None], position_ids=positions, past_key_values=cache).last_hidden_state
    return output[0]
