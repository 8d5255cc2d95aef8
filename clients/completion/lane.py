"""One chain and the thread that computes on it: all rows of a step are embedded, sent, put through the head and sampled
together.

A turn is: take what waits, let go of what nobody wants, plan, compute, choose, hand out.
"""

import logging
import threading
from collections import defaultdict, deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import CancelledError

import torch
from torch import Tensor

from clients.cache import Opener
from clients.completion.choosing import Chooser, Chosen, choose
from clients.completion.generation import Began, Event, Finished, Token
from clients.completion.handle import Handle, hand_out
from clients.completion.kept import Kept, common
from clients.completion.lane_session import LaneSession
from clients.completion.limits import Limits
from clients.completion.plan import Piece, plan
from clients.completion.rows import Choice, Job, Row
from clients.events import ChainChanged, Step
from clients.events import Event as SwarmEvent
from clients.model import SwarmModelForCausalLM
from swarm.errors import NetworkError, SwarmError
from swarm.training import PackedAdapter

__all__ = ["Lane"]

logger = logging.getLogger(__name__)

TOLD = 64  # events of the swarm that may wait for the end of a step
WORTH_A_COPY = 16  # tokens: to compute fewer again costs less than to copy a row


class Lane:
    """Threads may `add`, `wake` and `close`, and look at `load` and `known`; all else is the lane's own thread's."""

    def __init__(
        self,
        model: SwarmModelForCausalLM,
        connection: Opener,
        limits: Limits,
        *,
        adapters: Mapping[int, PackedAdapter],
        hosted: str | None,
        freed: Callable[[], None],
        clock: Callable[[], float],
    ) -> None:
        """`freed` is called from the lane's thread whenever its load has become less; `clock`: seconds."""
        self._model = model
        self._limits = limits
        self._freed = freed
        self._clock = clock
        self._changed = threading.Condition()
        self._new: deque[Job] = deque()
        self._woken = False
        self._closing = False
        self._load = 0
        self._session = LaneSession(connection, model.embed, self._hear, adapters, hosted)
        self._rows: list[Row] = []
        self._kept = Kept(limits)
        self._chain: ChainChanged | None = None
        self._full = False  # a peer had no more room, and nothing has ended since
        self._moved = False  # the chain has changed, so that rows may be lost
        self._told: deque[SwarmEvent] = deque(maxlen=TOLD)
        self._ended: list[Handle] = []
        self._readers: tuple[Handle, ...] = ()
        self._thread = threading.Thread(target=self._run, name="swarm lane", daemon=True)
        self._thread.start()

    # --- for any thread ---

    @property
    def load(self) -> int:
        """Rows that are computed here, or soon will be."""
        return self._load

    @property
    def kept(self) -> int:
        """Tokens of complete answers that peers still have."""
        return self._kept.tokens

    def known(self, prompt: Sequence[int]) -> int:
        """How much of a prompt peers seem to have here; the lane itself may find otherwise a moment later."""
        return self._best(prompt)[1]

    def add(self, job: Job) -> None:
        with self._changed:
            self._load += len(job.open)
            self._new.append(job)
        self.wake()

    def wake(self) -> None:
        """Something has changed that may matter to the next step."""
        with self._changed:
            self._woken = True
            self._changed.notify()

    def close(self) -> None:
        """Ends all requests with a NetworkError; safe to repeat. `join` waits for it."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._session.interrupt()

    def join(self) -> None:
        self._thread.join()

    # --- the thread ---

    def _run(self) -> None:
        at_work = False
        while self._wait(at_work):
            at_work = self._guarded_turn()
        self._fail(NetworkError("this model is closed"))

    def _wait(self, at_work: bool) -> bool:
        """Until there may be something to do; False when the lane ends."""
        with self._changed:
            while not (at_work or self._woken or self._closing):
                if not self._changed.wait(self._limits.idle_seconds if self._session.is_open else None):
                    self._rest()
            self._woken = False
            return not self._closing

    def _guarded_turn(self) -> bool:
        try:
            return self._turn()
        except CancelledError:
            self._fail(NetworkError("the connection to the swarm was closed"))
        except SwarmError as error:
            self._fail(error)
        except Exception as error:  # whatever is wrong, readers must hear of it, and others be served
            logger.exception("a step of a shared model failed")
            self._fail(SwarmError(f"computing this answer failed: {type(error).__name__}: {error}"))
        return False

    def _turn(self) -> bool:
        """One step, where there is one to do; returns whether there was."""
        self._let_go()
        if self._kept.shrink(self._clock()):
            self._session.changed()
        self._take_in()
        pieces = plan(self._rows, self._limits)
        if not pieces:
            self._session.agree((*self._rows, *self._kept.rows))
            self._reserve(0)
            self._hand_out_ended()
            return False
        self._reserve(0)
        logits = self._compute(pieces)
        self._go_on(pieces, logits)
        return True

    def _rest(self) -> None:
        """Nobody has asked for long: what peers have is given back."""
        self._kept.keep_only(())
        self._chain, self._full = None, False
        self._session.close()

    # --- requests come and go ---

    def _take_in(self) -> None:
        """Give requests rows, as long as peers have room."""
        events: dict[Handle, list[Event]] = {}
        while (job := self._next()) is not None:
            if not job.handle.closed and not self._has_room(job):
                with self._changed:
                    self._new.appendleft(job)
                break
            try:
                choices = [Choice(job, index, Chooser(job.request, index)) for index in sorted(job.open)]
            except Exception as error:  # whatever a constraint may raise
                self._fail_job(job, SwarmError(f"the constraint of this request failed: {error}"))
                continue
            row = self._row(job)
            row.choices = choices
            self._rows.append(row)
            events[job.handle] = [Began(row.done)] if self._chain is None else [self._chain, Began(row.done)]
        if events:
            self._readers = (*self._readers, *events)
            hand_out(events)

    def _next(self) -> Job | None:
        with self._changed:
            return self._new.popleft() if self._new else None

    def _row(self, job: Job) -> Row:
        """A row for a prompt, which goes on from the row that has most of it."""
        prompt, private = list(job.request.prompt), not job.request.keep
        row, known = (None, 0) if private else self._best(prompt)
        if row is None or (known < WORTH_A_COPY and known < row.done):
            return Row(prompt, private=private)
        if row in self._kept.rows:
            if known == row.done:
                self._kept.take(row)
                row.tokens = prompt
                return row
            self._kept.add(row, self._clock())
        self._session.changed()
        return Row(prompt, done=known, source=row, shared=known)

    def _best(self, prompt: Sequence[int]) -> tuple[Row | None, int]:
        """The row that has most of a prompt, and how much; the last token has to be computed in any case."""
        asked = list(prompt[:-1])
        rows = [row for row in (*self._kept.rows, *self._rows) if not row.private]
        found = max(((common(asked, row), at) for at, row in enumerate(rows)), default=(0, 0))
        return (rows[found[1]], found[0]) if found[0] else (None, 0)

    def _let_go(self) -> None:
        """Of choices that nobody wants any more."""
        for row in list(self._rows):
            for choice in [choice for choice in row.choices if not choice.wanted]:
                self._close(row, choice)

    def _close(self, row: Row, choice: Choice) -> None:
        """Nothing more comes of a choice; its row stays for others where it may."""
        job = choice.job
        self._full = False
        row.choices.remove(choice)
        job.open.discard(choice.index)
        if not job.open:
            self._ended.append(job.handle)
        if row.choices:
            return
        self._rows.remove(row)
        if row.private or not row.done or row.done < row.shared + 1:
            self._session.changed()
        else:
            del row.tokens[row.done :]
            self._kept.add(row, self._clock())

    def _fail_job(self, job: Job, error: SwarmError) -> None:
        """One request can't go on, for a reason of its own; its rows go with the next step."""
        job.open.clear()
        hand_out({}, [job.handle], error)

    def _fail(self, error: SwarmError) -> None:
        """The chain can't be mended: everybody on it is told, and the next request begins another one."""
        jobs = {choice.job for row in self._rows for choice in row.choices}
        with self._changed:
            if self._closing:
                jobs.update(self._new)
                self._new.clear()
        ended, self._ended = self._ended, []
        self._rows = []
        self._rest()
        self._count()
        hand_out({}, [*(job.handle for job in jobs), *ended], error)
        self.wake()  # for those who have come meanwhile

    def _hand_out_ended(self) -> None:
        """Tell those whose requests have ended; what they held is gone."""
        if self._ended and not self._session.stale:
            ended, self._ended = self._ended, []
            self._count()
            hand_out({}, ended)

    def _count(self) -> None:
        """How much there is to do now, and who listens."""
        with self._changed:
            before, self._load = self._load, sum(len(row.choices) for row in self._rows)
            self._load += sum(len(job.open) for job in self._new)
            less = self._load < before
        self._readers = tuple({choice.job.handle: None for row in self._rows for choice in row.choices})
        if less:
            self._freed()

    # --- room at the peers ---

    def _has_room(self, job: Job) -> bool:
        """Whether a request can begin. Where nobody else runs whose end would make room, the chain itself shall say."""
        request = job.request
        more = len(request.prompt) - self.known(request.prompt)
        return self._reserve(more + request.choices * self._limits.ahead_tokens) or not self._rows

    def _reserve(self, more: int) -> bool:
        """Have peers keep room for `more` tokens than what is here now, and forget what they remember where that
        helps."""
        if self._full:
            return False
        while not self._session.reserve(self._need() + more):
            if not self._kept.forget_oldest():
                self._full = True
                return False
            self._session.changed()
            self._session.agree((*self._rows, *self._kept.rows))
        return True

    def _need(self) -> int:
        ahead = self._limits.ahead_tokens
        return sum(row.own + min(row.coming, ahead) for row in self._rows) + self._kept.tokens

    # --- a step ---

    def _compute(self, pieces: Sequence[Piece]) -> Tensor:
        """The logits [w, vocab] behind each wanted piece; behind the last one where none is."""
        tokens = torch.tensor([t for piece in pieces for t in piece.row.tokens[piece.row.done :][: piece.n]])
        positions = torch.tensor([at for piece in pieces for at in range(piece.row.done, piece.row.done + piece.n)])

        def through(hidden: Tensor) -> Tensor:
            return self._session.step(pieces, tokens, hidden, self._rows, self._kept.rows)

        logits = self._model.packed_logits(tokens, positions, through)
        if self._moved:
            self._moved = False
            self._kept.keep_only(self._session.here(self._kept.rows))
        return logits

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
        if result.token in request.stop_tokens:
            events.append(Finished(choice.index, "stop"))
        elif choice.made == request.max_new_tokens or row.done + 1 == self._model.max_positions:
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
            tokens = [*row.tokens, choice.next]
            copy = Row(tokens, row.done, source=row, choices=[choice], shared=row.done, private=row.private)
            self._rows.append(copy)
            self._session.changed()
        row.choices = [first]
        row.tokens.append(first.next)

    def _hear(self, event: SwarmEvent) -> None:
        """On the connection's thread."""
        if isinstance(event, ChainChanged):
            self._chain = event
            self._moved = True
        if isinstance(event, Step):
            self._told.append(event)  # with the tokens that it brought
        else:
            hand_out({reader: [event] for reader in self._readers})
