"""A whole swarm in one process and in virtual time: real engines on a tiny model, the network's twins between them."""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from clients.client import Client, Model
from clients.events import Event
from clients.session import RowChunk, Session
from peers.changes import Change
from peers.engine import Engine
from peers.hosted import HostedAdapter
from peers.limits import EngineLimits
from peers.link import ExecutorLink, ExecutorLost, InlineLink
from peers.node import Limits, PeerNode
from peers.span import BlockSpan, RowSlice
from peers.training.desk import TrainingDesk
from peers.training.limits import TrainingLimits
from peers.training.trainee import Trainee
from swarm.checkpoint import Checkpoint, client_weights, load_span
from swarm.ids import PeerId, RowId, Span
from swarm.memory import MemoryDirectory, MemoryNetwork, MemoryTransport, Shelf
from swarm.messages import Contact
from swarm.record import PeerRecord, PeerState
from tests.virtual import run_virtual

__all__ = ["MemorySwarm", "Reference", "feed", "in_swarm", "same"]

LONGEST = 7200.0  # virtual seconds of a play


class Reference:
    """The same blocks in one piece: what any chain must compute."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._model = load_span(checkpoint, Span(0, checkpoint.num_blocks), dtype=torch.float32)
        self._table = next(t for name, t in client_weights(checkpoint).items() if "embed" in name)

    def embed(self, tokens: Tensor, start: int) -> Tensor:
        """[n] int64 -> [n, hidden]; positions do not matter to the models that are used here."""
        return self._table[tokens]

    @torch.inference_mode()
    def outputs(self, tokens: Tensor) -> Tensor:
        """[n] int64 -> what leaves the last block, [n, hidden]."""
        hidden: Tensor = self._model(inputs_embeds=self.embed(tokens, 0)[None], use_cache=False).last_hidden_state
        return hidden[0]


@dataclass
class Toil:
    """What a device takes for its work, in virtual seconds: for each pass, and for each token in it."""

    clock: Callable[[], float]
    once: float
    token: float
    times: float = 1.0  # slower than that
    _spent: float = 0.0  # in the turn under way

    def now(self) -> float:
        return self.clock() + self._spent

    def spend(self, tokens: int) -> None:
        self._spent += self.times * (self.once + self.token * tokens)

    def settle(self) -> float:
        """What the turn took."""
        spent, self._spent = self._spent, 0.0
        return spent


class Toiling(BlockSpan):
    toil: Toil

    def forward(
        self,
        hidden: Tensor,
        rows: Sequence[RowSlice],
        layers: slice | None = None,
        adapted: Sequence[Sequence[Change]] = (),
    ) -> Tensor:
        self.toil.spend(len(hidden))
        return super().forward(hidden, rows, layers, adapted)


@dataclass
class Member:
    transport: MemoryTransport
    node: PeerNode
    engine: Engine
    link: ExecutorLink
    task: asyncio.Task[None]
    toil: Toil


@dataclass
class MemorySwarm:
    """Enter it inside a running (virtual) loop."""

    checkpoint: Checkpoint
    network: MemoryNetwork
    shelf: Shelf = field(default_factory=dict)
    members: dict[str, Member] = field(default_factory=dict)
    stack: AsyncExitStack = field(default_factory=AsyncExitStack)
    events: list[Event] = field(default_factory=list)
    news: asyncio.Event = field(default_factory=asyncio.Event)

    async def __aenter__(self) -> "MemorySwarm":
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stack.aclose()
        for name in list(self.members):
            await self.kill(name)

    async def add(
        self,
        name: str,
        blocks: Span,
        *,
        kv_tokens: int = 4096,
        page_size: int = 16,
        outbox_tokens: int = 4096,
        step_seconds: float = 0.001,
        token_seconds: float = 0.0,
        limits: EngineLimits | None = None,
        node_limits: Limits | None = None,
        precision: str = "fp32",
        training: TrainingLimits | None = None,
        adapters: Mapping[str, Path] | None = None,
        span_type: type[BlockSpan] = BlockSpan,
    ) -> PeerId:
        """A new peer that serves `blocks`, announced to everyone. It computes in fp32 whatever `precision` it names.
        `adapters`: names of those that it hosts, and their folders. With `token_seconds` a pass takes
        `step_seconds` and that for each token, as its record says then; otherwise each turn takes `step_seconds`."""
        toil = Toil(asyncio.get_running_loop().time, step_seconds, token_seconds)
        toils = token_seconds > 0
        device = torch.device("cpu")
        span = (Toiling if toils else span_type).load(
            self.checkpoint, blocks, dtype=torch.float32, device=device, kv_tokens=kv_tokens, page_size=page_size
        )
        if isinstance(span, Toiling):
            span.toil = toil
        hosted = [HostedAdapter.read(own, at, self.checkpoint, blocks) for own, at in (adapters or {}).items()]
        engine = Engine(
            span,
            model=self.checkpoint.digest,
            max_positions=self.checkpoint.max_positions,
            outbox_tokens=outbox_tokens,
            limits=limits,
            training=TrainingDesk(
                lambda: Trainee.load(self.checkpoint, blocks, dtype=torch.float32, device=device),
                model=self.checkpoint.digest,
                blocks=blocks,
                limits=training or TrainingLimits(),
                clock=asyncio.get_running_loop().time,
            ),
            hosted=[each.placed(span) for each in hosted],
            clock=toil.now,
        )
        transport = self.network.transport(PeerId(name))
        link = InlineLink(lambda: engine, step_seconds=toil.settle if toils else step_seconds)
        node = PeerNode(transport, link, node_limits)
        await node.start()
        task = asyncio.create_task(_serve(node))
        self.members[name] = Member(transport, node, engine, link, task, toil)
        pace = (1 / (step_seconds + token_seconds), 1 / token_seconds) if toils else (50.0, 1000.0)
        digests = tuple((each.name, each.digest) for each in hosted)
        self.announce(
            name, blocks, precision, trains=training is None or training.share > 0, adapters=digests, pace=pace
        )
        return PeerId(name)

    def announce(
        self,
        name: str,
        blocks: Span,
        precision: str = "fp32",
        *,
        trains: bool = True,
        adapters: tuple[tuple[str, str], ...] = (),
        state: PeerState = PeerState.ONLINE,
        pace: tuple[float, float] = (50.0, 1000.0),
        queue: int = 0,
    ) -> None:
        now = time.time()
        record = PeerRecord(
            contact=Contact(PeerId(name), (f"/memory/{name}",)),
            model=self.checkpoint.digest,
            model_name=self.checkpoint.name,
            num_blocks=self.checkpoint.num_blocks,
            span=blocks,
            state=state,
            throughput=pace[0],
            prefill=pace[1],
            cache_left=4096,
            precision=precision,
            version="0",
            public_name=name,
            reason="the test says so",
            queue=queue,
            issued=now,
            expires=now + 3600,
            trains=trains,
            adapters=adapters,
        )
        self.shelf[self.checkpoint.digest, record.peer] = record
        self.shelf[None, record.peer] = record

    async def kill(self, name: str) -> None:
        """As SIGKILL: gone without a word. Its record stays."""
        self.network.kill(PeerId(name))
        await self.leave(name)

    async def leave(self, name: str) -> None:
        """Gone in good order. Its record stays."""
        member = self.members.pop(name)
        member.task.cancel()
        with suppress(asyncio.CancelledError):
            await member.task
        await member.node.close()
        await member.link.close()
        await member.transport.close()

    async def client(
        self,
        name: str = "client",
        *,
        share_prefixes: bool = True,
        precisions: Collection[str] = (),
        dice: random.Random | None = None,
    ) -> Client:
        model = Model(
            self.checkpoint.name, self.checkpoint.digest, self.checkpoint.num_blocks, self.checkpoint.hidden_size
        )
        transport, directory = self.network.transport(PeerId(name)), MemoryDirectory(self.shelf)
        client = Client(transport, directory, model, share_prefixes=share_prefixes, precisions=precisions, dice=dice)
        return await self.stack.enter_async_context(client)

    async def until(self, kind: type[Event]) -> None:
        """Wait for an event of a session."""
        while not any(isinstance(event, kind) for event in self.events):
            self.news.clear()
            await self.news.wait()

    def hear(self, event: Event) -> None:
        self.events.append(event)
        self.news.set()

    async def session(
        self, client: Client, reference: Reference, *, lease: int = 64, patience: float = 30.0
    ) -> Session:
        session = Session(client, embed=reference.embed, lease=lease, patience=patience, observer=self.hear)
        await session.open()
        return session


def in_swarm(checkpoint: Checkpoint, play: Callable[[MemorySwarm], Awaitable[None]], **network: float) -> None:
    """`play` in virtual time, in a swarm without peers; `network`: what a MemoryNetwork is given."""

    async def main() -> None:
        async with asyncio.timeout(LONGEST), MemorySwarm(checkpoint, MemoryNetwork(**network)) as swarm:
            await play(swarm)

    run_virtual(main())


async def _serve(node: PeerNode) -> None:
    with suppress(ExecutorLost):
        await node.run()


async def feed(
    session: Session, reference: Reference, rows: Mapping[RowId, Tensor], *, want: int | None = None
) -> Tensor:
    """One step with new tokens for some rows; outputs of all of them, or of the last `want`, come back."""
    chunks = [RowChunk(row, len(t), len(t) if want is None else want, t) for row, t in rows.items()]
    hidden = torch.cat([reference.embed(t, session.positions.get(row, 0)) for row, t in rows.items()])
    return await session.step(chunks, hidden)


def same(one: Tensor, other: Tensor) -> bool:
    """As near as different batches leave what is computed in fp32."""
    return torch.allclose(one, other, atol=1e-4, rtol=1e-4)
