"""A session: some rows along one chain, kept alive whatever happens to the peers.

The session knows positions, token ids and which outputs it still waits for; hops know everything else. When something
goes wrong it does not reason about what was lost: it asks who lives and where every row stands, fills the holes, and
has everybody send on from there (`clients.repair`). Steps are idempotent, so that is always safe.
"""

import asyncio
import random
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from clients.auditing import Auditor, Recent
from clients.chain import Chain, Parting, Trouble
from clients.client import Client
from clients.events import Event, Observer
from clients.events import Step as StepDone
from clients.handover import Handover, Standing
from clients.history import Embed, History
from clients.overload import Overload
from clients.pending import Pending, Wanted
from clients.repair import Repair
from fault.mend import Leg, RowGoal
from swarm.codecs import encode
from swarm.errors import HopError, MissingBlocks, SwarmError, UsageError, WireError
from swarm.ids import RowId
from swarm.messages import Fault, FaultCode, Fork, ForkEntry, Message, Out, Step, StepRow
from swarm.training import PackedAdapter

__all__ = ["RowChunk", "Session"]


@dataclass(frozen=True, slots=True)
class RowChunk:
    """The next `n` tokens of `row`; outputs of the last `want` of them are wanted. `tokens` [n] int64, or None when
    what comes beside it are raw embeddings that no token could give back."""

    row: RowId
    n: int
    want: int
    tokens: Tensor | None


class Session:
    """Begun with `Session(client, …)` and `open()`. One step at a time; all methods run on the client's event loop."""

    def __init__(
        self,
        client: Client,
        *,
        embed: Embed,
        lease: int,
        patience: float,
        observer: Observer | None,
        adapters: Mapping[int, PackedAdapter] | None = None,
        hosted: str | None = None,
        auditor: Auditor | None = None,
    ) -> None:
        """Every row is computed with `adapters`, of blocks that have one, or the one that peers have `hosted`, and is
        not audited then."""
        self._client = client
        self._observer = observer
        self._history = History(embed)
        self._lengths: dict[RowId, int] = {}
        self._pending = Pending({}, client.hidden_size, torch.float32)
        self._unconfirmed: list[Fork] = []
        self._next_row = 0
        self._spare: frozenset[RowId] = frozenset()
        self._auditor = None if adapters or hosted else auditor
        self._recent = Recent()
        self._turn = asyncio.Lock()
        self.chain = Chain(lambda: self._handover.begin())
        self._repair = Repair(
            client, self.chain, lease=lease, patience=patience, adapters=adapters or {}, hosted=hosted, tell=self._tell
        )
        self._handover = Handover(
            client,
            self.chain,
            self._repair,
            lengths=lambda: self._lengths,
            send=self._send_from,
            change_over=self._change_over,
        )
        self._overload = Overload(client, self.chain, self._repair, move=self._handover.part, dice=client.dice)

    # --- what a model does with a session ---

    def new_row(self) -> RowId:
        """An id for a row that begins with the next step that names it."""
        self._next_row += 1
        return RowId(self._next_row)

    @property
    def positions(self) -> Mapping[RowId, int]:
        """Tokens of every row, those of the step under way included."""
        return dict(self._lengths)

    def predict_step(self, tokens: int) -> float:
        """Seconds that a step of `tokens` tokens of one row is predicted to take; safe to ask from any thread."""
        return self._client.step_seconds(self.chain.hops, tokens=tokens, rows=1)

    async def open(self) -> None:
        """Find a chain and open it. Raises MissingBlocks or Busy when patience runs out."""
        async with self._turn:
            await self._mend(Trouble("the session begins"))

    async def step(self, rows: Sequence[RowChunk], hidden: Tensor) -> Tensor:
        """Compute `hidden` [sum n, hidden] through all blocks; returns [sum want, hidden], rows in the given order."""
        async with self._turn:
            started = asyncio.get_running_loop().time()
            await self._part_with_excluded()
            entries = self._take_in(rows, hidden)
            wanted = {e.row: Wanted(e.want, e.at + e.n) for e in entries if e.want < e.at + e.n}
            self._pending = Pending(wanted, self._client.hidden_size, hidden.dtype)
            self._send(self.chain.legs[0], entries, hidden)
            await self._collect(sum(e.n for e in entries), len(entries))
            if wanted:
                self._unconfirmed.clear()  # outputs came back, so every hop has passed these on
            seconds = asyncio.get_running_loop().time() - started
            tokens = sum(e.n for e in entries)
            self._overload.stepped(seconds, tokens)
            self._tell(StepDone(seconds, tokens, self.chain.trace))
            outputs = self._pending.result()
            if self._auditor is not None:
                self._perhaps_audit(self._auditor, wanted, outputs)
            return outputs

    async def fork(self, forks: Sequence[tuple[RowId, int]]) -> list[RowId]:
        """Row i of the result is the first `at` tokens of `src`, for each (src, at); rows that are not among the
        results are dropped. A row that goes on whole keeps its id."""
        async with self._turn:
            used: Counter[RowId] = Counter()
            entries, result = [], []
            for src, at in forks:
                if at > self._lengths[src]:
                    raise UsageError(f"row {src} has {self._lengths[src]} tokens, it can't be forked at {at}")
                used[src] += 1
                whole = at == self._lengths[src] and used[src] == 1
                dst = src if whole else self.new_row()
                result.append(dst)
                if not whole:
                    entries.append(ForkEntry(src, at, dst))
            self._apply(entries, set(result))
            return result

    async def reserve(self, tokens: int) -> bool:
        """Ask every hop to keep room for `tokens` over all rows instead of what was asked for before. False: one has no
        room, or does not answer; then nothing has changed."""
        async with self._turn:
            return await self._repair.reserve(tokens)

    def spare(self, rows: Iterable[RowId]) -> None:
        """When a hop is lost, these are forgotten instead of computed again, as if no fork had named them. Not for rows
        of the next step; each call replaces the one before."""
        self._spare = frozenset(rows)

    async def close(self) -> None:
        """Free everything on every hop; safe to repeat."""
        await self._handover.close()
        self.chain.close()

    # --- inside ---

    def _perhaps_audit(self, auditor: Auditor, wanted: Mapping[RowId, Wanted], outputs: Tensor) -> None:
        """`outputs`: those of all rows of `wanted`, in this order."""
        parts = torch.split(outputs, [want.stop - want.start for want in wanted.values()])
        for (row, want), part in zip(wanted.items(), parts, strict=True):
            self._recent.add(self.chain.hops, row, want.stop, part)
        if wanted and auditor.wanted():
            row = random.choice(list(wanted))
            sample = self._recent.sample(row, lambda stop: self._history.hidden(row, 0, stop))
            if sample is not None:
                auditor.begin(sample)

    async def _part_with_excluded(self) -> None:
        """Replace peers that audits have found out, and all that went on from what they computed."""
        excluded = self._client.excluded
        for place, leg in enumerate(self.chain.legs):
            if leg.peer in excluded:
                reason = f"peer {leg.peer} {excluded[leg.peer]}"
                await self._mend(Trouble(reason, drop=tuple(later.session for later in self.chain.legs[place:])))
                return

    def _tell(self, event: Event) -> None:
        if self._observer is not None:
            self._observer(event)

    def _apply(self, entries: Sequence[ForkEntry], kept: set[RowId]) -> None:
        for entry in entries:
            self._history.fork(entry.src, entry.at, entry.dst)
            self._lengths[entry.dst] = entry.at
        drop = tuple(row for row in self._lengths if row not in kept)
        if not (entries or drop):
            return
        self._history.keep(kept)
        self._recent.keep(kept)
        self._lengths = {row: at for row, at in self._lengths.items() if row in kept}
        first = self.chain.legs[0]
        fork = Fork(first.session, tuple(entries), drop)
        self._unconfirmed.append(fork)
        self._handover.note(fork)
        self.chain.post(first, fork.pack())

    def _take_in(self, rows: Sequence[RowChunk], hidden: Tensor) -> list[StepRow]:
        entries, offset = [], 0
        for chunk in rows:
            at = self._lengths.get(chunk.row, 0)
            data = chunk.tokens if chunk.tokens is not None else hidden[offset : offset + chunk.n]
            self._history.append(chunk.row, data)
            self._lengths[chunk.row] = at + chunk.n
            entries.append(StepRow(chunk.row, at, chunk.n, at + chunk.n - chunk.want))
            offset += chunk.n
        if offset != hidden.shape[0]:
            raise UsageError(f"{hidden.shape[0]} hidden states were given for rows of {offset} tokens")
        return entries

    def _send(self, first: Leg, entries: Sequence[StepRow], hidden: Tensor) -> None:
        """Post steps to a first hop; long prompts in pieces, so that hops overlap."""
        budget = self._client.piece_tokens(self.chain.hops, tokens=len(hidden))
        batch: list[StepRow] = []
        begin = offset = 0
        for entry in entries:
            for at in range(entry.at, entry.at + entry.n, budget):
                n = min(budget, entry.at + entry.n - at)
                full = offset - begin + n > budget
                if batch and (full or batch[-1].row == entry.row):
                    self._post_step(first, batch, hidden[begin:offset])
                    batch, begin = [], offset
                batch.append(StepRow(entry.row, at, n, entry.want))
                offset += n
        self._post_step(first, batch, hidden[begin:offset])

    def _post_step(self, first: Leg, rows: Sequence[StepRow], hidden: Tensor) -> None:
        codec = self._client.codec
        self.chain.post(first, Step(first.session, tuple(rows), codec, encode(hidden, codec)).pack())

    async def _collect(self, tokens: int, rows: int) -> None:
        """Wait until the step's outputs are here, mending whatever breaks."""
        client, loop = self._client, asyncio.get_running_loop()
        started, smooth, questions = loop.time(), not self._pending.done, 0
        while not self._pending.done:
            hops = self.chain.hops
            limit = client.time_limit(hops, tokens=tokens, rows=rows)
            patience = max(limit, client.stuck_after(hops, tokens=tokens, rows=rows))
            wait = min(limit * 2.0**questions, patience)
            try:
                async with asyncio.timeout(wait):
                    trouble = self._heed(await self.chain.next_event())
            except TimeoutError:
                questions += 1
                trouble = await self._repair.stalled(wait, patience, self._lengths)
            if trouble is not None:
                smooth = False
                await self._mend(trouble)
        if smooth:
            client.took(self.chain.hops, loop.time() - started, tokens=tokens, rows=rows)

    def _heed(self, event: tuple[int, Message | Trouble]) -> Trouble | None:
        """What an event means; None when all is well."""
        index, message = event
        if isinstance(message, Trouble):
            return message
        leg = self.chain.legs[index]
        last = index == len(self.chain.legs) - 1
        if isinstance(message, Out) and last:
            try:
                if self._pending.take(message):
                    self._repair.progress()
                    self.chain.trace, self.chain.depths = message.trace, message.depths
            except WireError as error:
                return Trouble(f"peer {leg.peer} answered wrongly: {error}", drop=(leg.session,), ban=(leg.peer,))
            return None
        if isinstance(message, Step | Fork) and not last:
            after = self.chain.legs[index + 1]
            self.chain.post(after, replace(message, session=after.session).pack())  # star: we carry it on
            return None
        if isinstance(message, Fault):
            if message.code is FaultCode.REFUSED:
                return self._refused(leg, f"peer {leg.peer} refused: {message.message}")
            return self._repair.diagnose(index, message)
        return self._repair.other(index, message)

    def _refused(self, leg: Leg, reason: str) -> Trouble:
        """Another peer is asked whether it would too: one alone ends nobody's session. Raises HopError where all that
        could have refused."""
        me = self._client.me.peer
        try:
            self._client.plan(leg.hop.span, source=me, sink=me, avoid={leg.peer})
        except MissingBlocks:
            raise HopError(FaultCode.REFUSED, reason) from None
        return Trouble(reason, drop=(leg.session,), ban=(leg.peer,))

    async def _mend(self, trouble: Trouble) -> None:
        if trouble.drop and self.chain.legs and self._spare & self._lengths.keys():
            self._apply((), set(self._lengths) - self._spare)
        goals = self._goals()
        await self._repair.mend(trouble, goals, self._unconfirmed)
        self._catch_up(goals)

    async def _change_over(
        self, legs: Sequence[Leg], parting: Parting, standing: Callable[[], Awaitable[Standing]]
    ) -> None:
        """Go on with a chain that was prepared, between two steps. Raises SwarmError; then it goes on with what is left
        of the one before."""
        async with self._turn:
            known, goals = await standing(), self._goals()
            try:
                await self._repair.switch(legs, known, parting, goals, self._unconfirmed)
            except SwarmError as error:
                await self._mend(Trouble(f"peers could not be replaced in good order: {error}"))
                raise
            self._catch_up(goals)

    def _goals(self) -> dict[RowId, RowGoal]:
        return {
            row: RowGoal(length, want if (want := self._pending.want(row)) is not None else length)
            for row, length in self._lengths.items()
        }

    def _catch_up(self, goals: Mapping[RowId, RowGoal]) -> None:
        """Send the first hop what it lacks."""
        first = self.chain.legs[0]
        for row, goal in goals.items():
            self._send_row(first, row, min(first.rows.get(row, 0), goal.length), goal)

    def _send_from(self, first: Leg, starts: Mapping[RowId, int]) -> None:
        """Send a first hop what rows hold from these positions on."""
        for row, start in starts.items():
            self._send_row(first, row, start, RowGoal(self._lengths[row], self._lengths[row]))

    def _send_row(self, first: Leg, row: RowId, start: int, goal: RowGoal) -> None:
        if start < goal.length:
            hidden = self._history.hidden(row, start, goal.length)
            self._send(first, [StepRow(row, start, goal.length - start, goal.want)], hidden)
