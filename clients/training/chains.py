"""The chains of one client that trains: which peers do what of which micro-batch, and who fills in for the lost."""

import asyncio
import random
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from torch import Tensor

from clients.client import Client
from clients.training.compression import Compress, Compression
from clients.training.hop import Cost, HopLost, TrainingHop
from routing.chains import Hop
from routing.view import runs
from swarm.errors import Busy, HopError, MissingBlocks, NetworkError, Unreachable
from swarm.ids import PeerId, Span
from swarm.training import MicroBatch, PackedAdapter

if TYPE_CHECKING:
    from clients.training.sums import Sums

__all__ = ["INPUTS", "Leg", "TrainingChains", "total"]

REFUSED_SECONDS = 120.0  # for which a peer that takes no training is left alone
INPUTS = -1  # as if it were a block: what goes into the first one learns
LOST_STEPS = 64  # hops that may be lost in one pass of one micro-batch


@dataclass(frozen=True, slots=True)
class Leg:
    """A hop that a micro-batch has passed, under `batch.id`, and what went in `[T, width]`, in `codec`."""

    hop: TrainingHop
    batch: MicroBatch
    inputs: Tensor
    codec: str


class TrainingChains:
    """On the client's loop; any number of micro-batches at once. `first`: the first block that has an adapter, or
    INPUTS; hops before it take no part in going backward."""

    def __init__(self, client: Client, *, patience: float, compress: Compress = Compress.NONE) -> None:
        self.compression = Compression(compress, client.codec, client.hidden_size)
        self._client = client
        self._patience = patience
        self._hops: dict[tuple[PeerId, Span], asyncio.Task[TrainingHop]] = {}
        self.costs: dict[tuple[PeerId, Span], Cost] = {}  # of every hop so far
        self._load: Counter[PeerId] = Counter()  # tokens under way

    async def forward(
        self, batch: MicroBatch, hidden: Tensor, adapters: Mapping[int, PackedAdapter], *, first: int | None
    ) -> tuple[list[Leg], Tensor]:
        """`hidden` `[T, width]` through all blocks: the legs it took, and what left the last; `first` None: there is no
        way back. Raises MissingBlocks when patience runs out, or HopError when peers refuse what was sent."""
        return await self._through(Span(0, self._client.model.num_blocks), batch, hidden, adapters, first)

    async def backward(
        self,
        legs: Sequence[Leg],
        gradient: Tensor,
        adapters: Mapping[int, PackedAdapter],
        *,
        first: int,
        sums: "Sums | None" = None,
    ) -> tuple[Tensor | None, dict[int, list[Tensor]]]:
        """The gradient of what `forward` was given, where that learns, and of the adapters' tensors by block, but of
        those that hops have added to `sums`."""
        found: dict[int, list[Tensor]] = {}
        todo = list(legs)
        back: Tensor | None = gradient
        for _ in range(LOST_STEPS):
            if not todo or back is None:
                return back, found
            leg, given = todo.pop(), back
            span = leg.hop.hop.span
            into = None if sums is None else sums.id_of(leg)
            try:
                with self._under_way(leg.hop.hop.peer, leg.batch.tokens):
                    back, more = await leg.hop.backward(
                        leg.batch,
                        given,
                        leg.inputs,
                        adapters,
                        wanted=first < span.start,
                        forward_codec=leg.codec,
                        into=into,
                    )
                found |= more
                if sums is not None:
                    sums.passed(leg, given)
            except HopLost:
                todo.extend(await self.again(leg, adapters, first=first))
        raise NetworkError(f"peers were lost {LOST_STEPS} times on one way back: too restless a swarm to train in")

    def plan(self) -> Sequence[Hop]:
        """The chain that a micro-batch would take now. Raises MissingBlocks."""
        return self._plan(Span(0, self._client.model.num_blocks))

    async def again(self, leg: Leg, adapters: Mapping[int, PackedAdapter], *, first: int) -> list[Leg]:
        """Legs that take the place of one whose hop is lost."""
        legs, _ = await self._through(leg.hop.hop.span, leg.batch, leg.inputs, adapters, first)
        return legs

    async def close(self) -> None:
        tasks, self._hops = list(self._hops.values()), {}
        for task in tasks:
            if task.done() and not task.cancelled() and task.exception() is None:
                task.result().end("this client is done")
            else:
                task.cancel()

    # --- inside -------------------------------------------------------------------------------------------------------

    async def _through(
        self, span: Span, batch: MicroBatch, hidden: Tensor, adapters: Mapping[int, PackedAdapter], first: int | None
    ) -> tuple[list[Leg], Tensor]:
        legs: list[Leg] = []
        at = span.start
        for _ in range(LOST_STEPS):
            if at == span.end:
                return legs, hidden
            hop = await self._hop_from(Span(at, span.end))
            own = replace(batch, id=hop.new_id())
            keep = first is not None and first < hop.hop.span.end
            codec = hop.codecs.forward
            try:
                with self._under_way(hop.hop.peer, batch.tokens):
                    output = await hop.forward(own, hidden, adapters, keep=keep, codec=codec)
            except HopLost:
                continue
            legs.append(Leg(hop, own, hidden, codec))
            hidden, at = output, hop.hop.span.end
        raise NetworkError(f"peers were lost {LOST_STEPS} times on one way: too restless a swarm to train in")

    async def _hop_from(self, span: Span) -> TrainingHop:
        """An open hop for the beginning of `span`. Raises MissingBlocks when patience runs out."""
        loop = asyncio.get_running_loop()
        give_up = loop.time() + self._patience
        why: Exception | None = None  # the last peer did not work
        while True:
            try:
                return await self._open(self._plan(span)[0])
            except (HopLost, Unreachable, Busy, HopError) as error:
                why = error
                if loop.time() < give_up:
                    continue  # that peer is avoided now
                raise NetworkError(f"no peer for blocks {span} worked within {self._patience:g} s: {why}") from why
            except MissingBlocks as error:
                missing = MissingBlocks(error.blocks, f"{error}; the last failure: {why}") if why else error
            wait = self._client.until_change() * (1 + random.random() / 2)
            if loop.time() + wait > give_up:
                raise missing
            await self._client.change(wait)

    def _plan(self, span: Span) -> Sequence[Hop]:
        """The fastest hops among those with least to do. Raises MissingBlocks."""
        me = self._client.me.peer
        idle = [record.peer for record in self._client.view.peers if not record.trains]
        for bound in sorted({0, *self._load.values()}):
            busy = [peer for peer, tokens in self._load.items() if tokens > bound]
            try:
                return self._client.plan(span, source=me, sink=me, avoid=[*busy, *idle])
            except MissingBlocks:
                if not busy:
                    self._check_trainers(span)
                    raise
        raise AssertionError("nobody has more to do than who has most")

    def _check_trainers(self, span: Span) -> None:
        """Raises MissingBlocks where all who hold a block give fine-tuning none of their time."""
        held = ((block, self._client.view.holders(block)) for block in span)
        lacking = tuple(block for block, peers in held if peers and not any(record.trains for record in peers))
        if lacking:
            spans = ", ".join(map(str, runs(lacking)))
            text = f"nobody trains blocks {spans}: all peers that hold them were started with --training-share 0"
            raise MissingBlocks(lacking, text)

    async def _open(self, hop: Hop) -> TrainingHop:
        """Opened once, however many ask. Raises HopLost, Unreachable, Busy or HopError; the peer is avoided then."""
        key = (hop.peer, hop.span)
        task = self._hops.get(key)
        if task is None or (task.done() and _ended(task)):
            task = self._hops[key] = asyncio.create_task(
                TrainingHop.open(self._client, hop, self._cost(hop), self.compression)
            )
        try:
            return await asyncio.shield(task)
        except (HopLost, Unreachable):
            self._client.failed(hop.peer)
            raise
        except Busy as error:
            self._client.backoff.rest(hop.peer, error.retry_after)
            raise
        except HopError:
            self._client.backoff.rest(hop.peer, REFUSED_SECONDS)
            raise

    def _cost(self, hop: Hop) -> Cost:
        return self.costs.setdefault((hop.peer, hop.span), Cost(hop.name or hop.peer[-8:], hop.span))

    @contextmanager
    def _under_way(self, peer: PeerId, tokens: int) -> Iterator[None]:
        self._load[peer] += tokens
        try:
            yield
        finally:
            self._load[peer] -= tokens
            if not self._load[peer]:
                del self._load[peer]


def _ended(task: "asyncio.Task[TrainingHop]") -> bool:
    """Whether a hop is asked nothing new."""
    return task.cancelled() or task.exception() is not None or task.result().lost is not None or task.result().leaving


def total(*parts: Mapping[int, Sequence[Tensor]]) -> dict[int, list[Tensor]]:
    """The sums of what is under the same block, in the given order."""
    sums: dict[int, list[Tensor]] = {}
    for part in parts:
        for block, tensors in part.items():
            known = sums.get(block)
            sums[block] = list(tensors) if known is None else [a + b for a, b in zip(known, tensors, strict=True)]
    return sums
