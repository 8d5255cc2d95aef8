"""Audits: now and then a client has somebody else compute again what its chain has computed, and compares.

A step's output is compared with what other peers make of the same tokens. Where the two are further apart than
precisions explain, every hop of the chain is asked alone for what its neighbours' inputs become, and a third peer
breaks the tie. Who is found to compute something else is left out by this client from then on.

This is evidence, and for this client alone. A peer that lies only in steps that it does not take for an audit is
noticed by the difference, and found by being in all chains that differ.
"""

import asyncio
import logging
import random
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from clients.client import Client
from clients.events import Event, Excluded
from clients.probe import probe
from fault.audits import Bench, Marks, agree, liar_of, tells
from routing.chains import Hop
from swarm.errors import MissingBlocks, SwarmError
from swarm.ids import PeerId, RowId

__all__ = ["FIRST", "LAST", "LONGEST", "Auditor", "Recent", "Sample", "distance"]

FIRST = 4  # positions before it are left out: models put values there that drown all others
LONGEST = 512  # tokens before a position that is audited: they have to be computed again
LAST = 16  # positions that are compared, at most
WAITING = 16  # audits; beyond it steps are not audited
PROBE_SECONDS = 60.0
REST_SECONDS = 60.0

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Sample:
    """What a chain made of a row: `hidden` [n, hidden] went in, `outputs` [m, hidden] came out at its last
    positions."""

    hops: tuple[Hop, ...]
    hidden: Tensor
    outputs: Tensor


class Recent:
    """The latest outputs of a session's rows, of as many positions in a row as an audit looks at."""

    def __init__(self) -> None:
        self._hops: tuple[Hop, ...] = ()
        self._rows: dict[RowId, tuple[int, Tensor]] = {}

    def add(self, hops: tuple[Hop, ...], row: RowId, stop: int, outputs: Tensor) -> None:
        """`outputs` [n, hidden] of the positions before `stop`, from the chain `hops`; those of another are dropped."""
        if hops != self._hops:
            self._hops, self._rows = hops, {}
        before, known = self._rows.get(row, (0, outputs[:0]))
        if before != stop - len(outputs):
            known = outputs[:0]
        self._rows[row] = stop, torch.cat([known, outputs])[-LAST:]

    def keep(self, rows: Collection[RowId]) -> None:
        self._rows = {row: known for row, known in self._rows.items() if row in rows}

    def sample(self, row: RowId, inputs: Callable[[int], Tensor]) -> Sample | None:
        """What is known of `row`, if an audit can use it; `inputs` gives its first so many."""
        stop, outputs = self._rows[row]
        outputs = outputs[-(stop - FIRST) :] if stop > FIRST else outputs[:0]
        return Sample(self._hops, inputs(stop), outputs) if len(outputs) and stop <= LONGEST else None


class Auditor:
    """Of one client, for all of its sessions. `rate`: the share of steps that are audited. Ended by `close`."""

    def __init__(
        self, client: Client, rate: float, tell: Callable[[Event], None], dice: random.Random | None = None
    ) -> None:
        self.passed = self.failed = 0  # audits
        self._client = client
        self._rate = rate
        self._tell = tell
        self._dice = dice or random.Random()
        self._marks = Marks()
        self._samples: asyncio.Queue[Sample] = asyncio.Queue(WAITING)
        self._task = asyncio.create_task(self._run(), name="audits")

    def wanted(self) -> bool:
        """Whether the step that was just done is to be audited."""
        return not self._samples.full() and self._dice.random() < self._rate

    def begin(self, sample: Sample) -> None:
        """Soon, while the session goes on."""
        with suppress(asyncio.QueueFull):
            self._samples.put_nowait(sample)

    async def settled(self) -> None:
        """Return when all audits that were begun have ended."""
        await self._samples.join()

    async def close(self) -> None:
        self._task.cancel()
        with suppress(asyncio.CancelledError):
            await self._task

    async def _run(self) -> None:
        while True:
            sample = await self._samples.get()
            try:
                await self._audit(sample)
            except MissingBlocks as error:
                _log.debug("nobody else could be asked: %s", error)
            except SwarmError as error:
                _log.info("an audit came to no end: %s", error)
            finally:
                self._samples.task_done()

    async def _audit(self, sample: Sample) -> None:
        peers = {hop.peer for hop in sample.hops}
        others = [self._others(hop, peers) for hop in sample.hops]  # all of them first: who lacks one audits nothing
        states = [sample.hidden]
        for hops in others:
            states.append(await self._through(hops, states[-1]))
        last, they = slice(-len(sample.outputs), None), [hop for hops in others for hop in hops]
        if _agree(sample.outputs, sample.hops, states[-1][last], they, sample.hidden[last]):
            self.passed += 1
            self._marks.passed(peers)
            return
        comparable = [tells({hop.precision}, _precisions(hops)) for hop, hops in zip(sample.hops, others, strict=True)]
        if not any(comparable):
            _log.debug("the outputs of a chain are not what others compute, who round otherwise: that tells nothing")
            return
        _log.warning("the outputs of a chain are not what other peers compute: looking for whose they are")
        found = False
        for hop, hops, (before, after), tell in zip(sample.hops, others, pairwise(states), comparable, strict=True):
            found |= tell and await self._compare(hop, hops, before, after)
        self.failed += found or all(comparable)
        if not found and all(comparable):
            self._mark(sorted(peers))

    async def _compare(self, hop: Hop, others: Sequence[Hop], before: Tensor, after: Tensor) -> bool:
        """Ask `hop` alone, and a third where it differs; whether somebody was found out."""
        own = await self._through([hop], before)
        if _agree(own[FIRST:], [hop], after[FIRST:], others, before[FIRST:]):
            return False
        known = {hop.peer} | {other.peer for other in others}
        try:
            third = self._others(hop, known)
            judge = await self._through(third, before)
        except SwarmError as error:
            _log.warning(
                "peer %s and another differ in blocks %s, with no third to say more: %s", hop.peer, hop.span, error
            )
            return False
        bench = Bench(
            False,
            _agree(own[FIRST:], [hop], judge[FIRST:], third, before[FIRST:]),
            _agree(after[FIRST:], others, judge[FIRST:], third, before[FIRST:]),
        )
        match liar_of(bench):
            case 0:
                guilty = [hop]
            case 1 if len(others) == 1:
                guilty = list(others)
            case _:
                return False
        for one in guilty:
            self._exclude(one.peer, f"computes something else than two others in blocks {one.span}")
        return True

    def _mark(self, peers: Sequence[PeerId]) -> None:
        """Nobody was found, who was asked alone: one of them has a rest, so that other chains tell more."""
        peer = self._marks.failed(peers)
        if peer is None:
            self._client.backoff.rest(self._dice.choice(peers), REST_SECONDS)
        else:
            self._exclude(peer, "was in the chains whose outputs were not those that other peers compute")

    def _others(self, hop: Hop, avoid: Collection[PeerId]) -> tuple[Hop, ...]:
        """Who else could compute the blocks of `hop`, best in its precision. Raises MissingBlocks."""
        me = self._client.me.peer
        return self._client.plan(hop.span, source=me, sink=me, avoid=avoid, like={hop.precision})

    async def _through(self, hops: Sequence[Hop], hidden: Tensor) -> Tensor:
        for hop in hops:
            hidden = await probe(self._client, hop, hidden, PROBE_SECONDS)
        return hidden

    def _exclude(self, peer: PeerId, reason: str) -> None:
        _log.warning("peer %s %s: this client leaves it out from now on", peer, reason)
        self._client.exclude(peer, reason)
        self._tell(Excluded(peer, reason))


def _agree(one: Tensor, ones: Sequence[Hop], other: Tensor, others: Sequence[Hop], before: Tensor) -> bool:
    return agree(distance(one, other, before), _precisions(ones), _precisions(others), len(before))


def _precisions(hops: Sequence[Hop]) -> set[str]:
    return {hop.precision for hop in hops}


def distance(one: Tensor, other: Tensor, before: Tensor) -> float:
    """Relative L2 between what the two add to `before`: [n, hidden] each."""
    added = other.float() - before.float()
    return float((one.float() - other.float()).norm() / added.norm().clamp(min=torch.finfo(torch.float32).tiny))
