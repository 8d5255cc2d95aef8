"""One chain and the thread that computes on it: all rows of a step are embedded, sent, put through the head and sampled
together.

A turn is: take what waits, let go of what nobody wants, plan, compute, choose, hand out.
"""

import logging
import threading
from collections import defaultdict, deque
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import CancelledError, Future
from contextlib import suppress
from typing import Any, TypeVar

import torch
from torch import Tensor

from clients.cache import Opener, SessionLike
from clients.completion.choosing import Chooser, Chosen, choose
from clients.completion.generation import Began, Event, Finished, Token
from clients.completion.handle import Handle, hand_out
from clients.completion.limits import Limits
from clients.completion.plan import Piece, plan
from clients.completion.rows import Choice, Job, Row
from clients.events import ChainChanged, Step
from clients.events import Event as SwarmEvent
from clients.model import SwarmModelForCausalLM
from clients.session import RowChunk
from swarm.errors import NetworkError, SwarmError

__all__ = ["Lane"]

T = TypeVar("T")

logger = logging.getLogger(__name__)


class Lane:
    """Threads may `add`, `wake`, `close` and look at `load`; all else belongs to the lane's own thread."""

    def __init__(
        self, model: SwarmModelForCausalLM, connection: Opener, limits: Limits, freed: Callable[[], None]
    ) -> None:
        """`freed` is called from the lane's thread whenever its load has become less."""
        self._model = model
        self._connection = connection
        self._limits = limits
        self._freed = freed
        self._changed = threading.Condition()
        self._new: deque[Job] = deque()
        self._woken = False
        self._closing = False
        self._load = 0
        self._max_positions = model.max_positions
        self._running: Future[Any] | None = None
        self._session: SessionLike | None = None
        self._rows: list[Row] = []
        self._unsettled = False  # the session has rows that are gone here, or lacks copies
        self._chain: ChainChanged | None = None
        self._told: deque[SwarmEvent] = deque(maxlen=64)  # of the swarm, not yet handed out
        self._ended: list[Handle] = []
        self._readers: tuple[Handle, ...] = ()
        self._thread = threading.Thread(target=self._run, name="swarm lane", daemon=True)
        self._thread.start()

    # --- for any thread ---

    @property
    def load(self) -> int:
        """Rows that are computed here, or soon will be."""
        return self._load

    def add(self, job: Job) -> None:
        with self._changed:
            self._load += job.request.choices
            self._new.append(job)
            self._woken = True
            self._changed.notify()

    def wake(self) -> None:
        """Something has changed that may matter to the next step."""
        with self._changed:
            self._woken = True
            self._changed.notify()

    def close(self) -> None:
        """Ends all requests with a NetworkError; safe to repeat. `join` waits for it."""
        with self._changed:
            self._closing = True
            running = self._running
            self._changed.notify()
        if running is not None:
            running.cancel()

    def join(self) -> None:
        self._thread.join()

    # --- the thread ---

    def _run(self) -> None:
        at_work = False
        while self._wait(at_work):
            try:
                at_work = self._turn()
            except CancelledError:
                at_work = False
                self._fail(NetworkError("the connection to the swarm was closed"))
            except SwarmError as error:
                at_work = False
                self._fail(error)
            except Exception as error:  # whatever is wrong, readers must hear of it, and others be served
                at_work = False
                logger.exception("a step of a shared model failed")
                self._fail(SwarmError(f"computing this answer failed: {type(error).__name__}: {error}"))
        self._fail(NetworkError("this model is closed"))

    def _wait(self, at_work: bool) -> bool:
        """Until there may be something to do; False when the lane ends."""
        with self._changed:
            if not at_work:
                self._changed.wait_for(lambda: self._woken or self._closing)
            self._woken = False
            return not self._closing

    def _turn(self) -> bool:
        """One step, where there is one to do; returns whether there was."""
        self._take_in()
        self._let_go()
        pieces = plan(self._rows, self._limits)
        if not pieces:
            self._settle()
            return False
        logits = self._compute(pieces)
        self._go_on(pieces, logits)
        return True

    # --- requests ---

    def _take_in(self) -> None:
        with self._changed:
            new, self._new = self._new, deque()
        events: dict[Handle, list[Event]] = {}
        for job in new:
            try:
                choices = [Choice(job, index, Chooser(job.request, index)) for index in sorted(job.open)]
            except Exception as error:  # whatever a constraint may raise
                self._fail_job(job, error)
                continue
            self._rows.append(Row(list(job.request.prompt), choices=choices))
            events[job.handle] = [Began(0)] if self._chain is None else [self._chain, Began(0)]
        if new:
            self._readers = (*self._readers, *events)
            hand_out(events)

    def _let_go(self) -> None:
        """Of choices that nobody wants any more."""
        for row in list(self._rows):
            for choice in [choice for choice in row.choices if not choice.wanted]:
                self._close(row, choice)

    def _close(self, row: Row, choice: Choice) -> None:
        """Nothing more comes of a choice."""
        job = choice.job
        row.choices.remove(choice)
        job.open.discard(choice.index)
        if not job.open:
            self._ended.append(job.handle)
        if not row.choices:
            self._rows.remove(row)
            self._unsettled = True

    def _fail_job(self, job: Job, error: Exception) -> None:
        """One request can't go on, for a reason of its own; its rows go with the next step."""
        job.open.clear()
        told = error if isinstance(error, SwarmError) else SwarmError(f"the constraint of this request failed: {error}")
        hand_out({}, [job.handle], told)

    def _fail(self, error: SwarmError) -> None:
        """The chain can't be mended: everybody on it is told, and the next request begins another one."""
        with self._changed:
            waiting = list(self._new) if self._closing else []
            if self._closing:
                self._new.clear()
        jobs = {choice.job for row in self._rows for choice in row.choices} | set(waiting)
        session, self._session, self._chain = self._session, None, None
        self._rows, self._unsettled = [], False
        ended, self._ended = self._ended, []
        if session is not None:
            with suppress(NetworkError, CancelledError):  # the connection is closed, and with it the session
                self._connection.submit(session.close()).result()
        self._count()
        hand_out({}, [*(job.handle for job in jobs), *ended], error)

    def _count(self) -> None:
        """How much there is to do now, and who listens."""
        with self._changed:
            before, self._load = self._load, sum(len(row.choices) for row in self._rows)
            self._load += sum(len(job.open) for job in self._new)
            less = self._load < before
        self._readers = tuple({choice.job.handle: None for row in self._rows for choice in row.choices})
        if less:
            self._freed()

    # --- a step ---

    def _compute(self, pieces: Sequence[Piece]) -> Tensor:
        """The logits [w, vocab] behind each wanted piece; behind the last one where none is."""
        tokens = torch.tensor([t for piece in pieces for t in piece.row.tokens[piece.row.done :][: piece.n]])
        positions = torch.tensor([at for piece in pieces for at in range(piece.row.done, piece.row.done + piece.n)])

        def through(hidden: Tensor) -> Tensor:
            return self._wait_for(self._step(pieces, tokens, hidden))

        return self._model.packed_logits(tokens, positions, through)

    async def _step(self, pieces: Sequence[Piece], tokens: Tensor, hidden: Tensor) -> Tensor:
        """Hidden states [w, hidden] behind the last block; on the connection's loop, while the lane waits."""
        session = self._session or await self._open()
        await self._agree(session)
        none = not any(piece.wanted for piece in pieces)
        chunks = []
        for piece, own in zip(pieces, torch.split(tokens, [piece.n for piece in pieces]), strict=True):
            if piece.row.id is None:
                piece.row.id = session.new_row()
            last = none and piece is pieces[-1]  # an answer to everything, so that no more than one step is on its way
            chunks.append(RowChunk(piece.row.id, piece.n, int(piece.wanted or last), own))
        return await session.step(chunks, hidden)

    async def _open(self) -> SessionLike:
        lease = sum(len(row.tokens) for row in self._rows)
        self._session = await self._connection.session(embed=self._model.embed, lease_tokens=lease, observer=self._hear)
        return self._session

    def _settle(self) -> None:
        """Make the session's rows what ours are, without a step."""
        if self._unsettled and self._session is not None:
            self._wait_for(self._agree(self._session))
        self._hand_out_ended()

    async def _agree(self, session: SessionLike) -> None:
        if not self._unsettled:
            return
        there = [row for row in self._rows if row.id is not None]
        copies = [row for row in self._rows if row.source is not None]
        forks = [(row.origin, row.done) for row in (*there, *copies)]
        for row, name in zip((*there, *copies), await session.fork(forks), strict=True):
            row.id, row.source = name, None
        self._unsettled = False

    def _wait_for(self, work: Coroutine[Any, Any, T]) -> T:
        with self._changed:
            if self._closing:
                work.close()
                raise CancelledError
            running: Future[T] = self._connection.submit(work)
            self._running = running
        try:
            return running.result()
        finally:
            self._running = None

    def _go_on(self, pieces: Sequence[Piece], logits: Tensor) -> None:
        """Choose the next tokens and hand them out."""
        rows = [piece.row for piece in pieces if piece.wanted]
        for piece in pieces:
            piece.row.done += piece.n
        events: dict[Handle, list[Event]] = defaultdict(list)
        picks = [(at, row, choice) for at, row in enumerate(rows) for choice in row.choices]
        chosen = choose(logits, [at for at, _, _ in picks], [choice.chooser for _, _, choice in picks]) if picks else []
        for (_, row, choice), result in zip(picks, chosen, strict=True):
            self._take(row, choice, result, events[choice.job.handle])
        for row in rows:
            self._branch(row)
        told = [self._told.popleft() for _ in range(len(self._told))]
        for reader in self._readers if told else ():
            events[reader].extend(told)
        self._count()
        hand_out(events)
        self._hand_out_ended()

    def _take(self, row: Row, choice: Choice, result: Chosen | SwarmError | None, events: list[Event]) -> None:
        """What was chosen for a choice; where it does not end, its row's next token is noted."""
        if isinstance(result, SwarmError):
            self._fail_job(choice.job, result)
            return
        if result is None:
            events.append(Finished(choice.index, "stop"))
            self._close(row, choice)
            return
        request = choice.job.request
        events.append(Token(choice.index, result.token, result.logprob, result.top))
        choice.made += 1
        choice.next = result.token
        length = row.done + 1
        if result.token in request.stop_tokens:
            events.append(Finished(choice.index, "stop"))
        elif choice.made == request.max_new_tokens or length == self._max_positions:
            events.append(Finished(choice.index, "length"))
        else:
            return
        self._close(row, choice)

    def _branch(self, row: Row) -> None:
        """Each choice goes on in a row of its own; the first one in this row."""
        if not row.choices:
            return
        first, *others = row.choices
        for choice in others:
            copy = Row([*row.tokens, choice.next], row.done, source=row, choices=[choice])
            self._rows.append(copy)
            self._unsettled = True
        row.choices = [first]
        row.tokens.append(first.next)

    def _hand_out_ended(self) -> None:
        """Tell those whose requests have ended; what they held is gone."""
        if self._ended and not self._unsettled:
            ended, self._ended = self._ended, []
            self._count()
            hand_out({}, ended)

    def _hear(self, event: SwarmEvent) -> None:
        """On the connection's thread."""
        if isinstance(event, ChainChanged):
            self._chain = event
        if isinstance(event, Step):
            self._told.append(event)  # with the tokens that it brought
        else:
            hand_out({reader: [event] for reader in self._readers})
