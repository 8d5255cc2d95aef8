"""The hop's side of every session: frames in, batches through the span, frames out.

Knows nothing of sockets or of asyncio, and runs in one thread. One turn of `step` is: handle what needs no computing,
plan a batch, run it, send what came out. What is invalid is answered with a Fault to the session's owner, and changes
nothing.
"""

import logging
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from peers.changes import Change
from peers.company import Company
from peers.courtesy import Courtesy
from peers.depth import Depth
from peers.hop_session import HopSession
from peers.hosted import HostedAdapter
from peers.inbox import Letter
from peers.kv import PagedRows
from peers.limits import EngineLimits
from peers.outbox import Outbox
from peers.pages import PagePool
from peers.plan import Waiting, share_out
from peers.prefixes import Prefixes, SharedPage
from peers.reading import Reading
from peers.reception import Reception
from peers.resending import kept
from peers.room import Room
from peers.sending import aside_frame, frames, tokens_per_frame
from peers.span import BlockSpan, RowSlice
from peers.stats import EngineStats
from peers.training.desk import TrainingDesk
from peers.transfer import to_host
from peers.work import Passed, Piece, Work, pick
from swarm.codecs import body_size, decode
from swarm.errors import Busy as BusyError
from swarm.errors import HopError, WireError
from swarm.ids import Digest, PeerId, SessionId, Span
from swarm.messages import (
    Busy,
    Close,
    Fault,
    FaultCode,
    Fork,
    Message,
    Open,
    Ping,
    Ready,
    Relink,
    Resend,
    Step,
    StepRow,
    parse,
)
from swarm.training import Adapter, AdapterKeys, Missing

__all__ = ["Engine"]

logger = logging.getLogger(__name__)

TRAINING_TURN = 0.2  # seconds at a time: seldom that long, rather than some of each step of those who generate
READING = 0.1  # of the time of a pass, for the frames that one peer has sent meanwhile

Batch = list[tuple[HopSession, Piece]]


class Engine:
    def __init__(
        self,
        span: BlockSpan,
        *,
        model: Digest,
        max_positions: int,
        outbox_tokens: int,
        limits: EngineLimits | None = None,
        training: TrainingDesk | None = None,
        hosted: Sequence[HostedAdapter] = (),
        clock: Callable[[], float],
    ) -> None:
        """`clock`: seconds that only grow. The KV budget is the span's own pool; `outbox_tokens` is the outbox's.
        `training`: who sees to fine-tuning between batches. `hosted`: adapters that whoever asks may use."""
        self._span = span
        self._max_positions = max_positions
        self._limits = limits or EngineLimits()
        self._clock = clock
        self._training = training
        sent = PagePool(span.pool.pages_for(outbox_tokens), span.pool.page_size)
        self._outbox = Outbox(PagedRows(sent, span.hidden_size, span.dtype))
        self._prefixes = Prefixes(span.pool, sent)
        self._sessions: dict[SessionId, HopSession] = {}
        self._room = Room(span.pool, self._limits, self._sessions, self._end, clock)
        self._reception = Reception(span, model, self._limits, hosted, self._sessions, self._room, clock)
        self._turns: OrderedDict[SessionId, HopSession] = OrderedDict()  # those with something to do, in order of turn
        self._company = Company(clock)
        self._courtesy = Courtesy(clock)
        self._reading = Reading(self._limits.unread_bytes)
        self._depth = Depth(clock)
        self._inbox_bytes = 0
        self._outgoing: deque[tuple[PeerId, bytes]] = deque()
        self._tokens_done = 0
        self._tokens_shared = 0
        self._batches = 0
        self._rows_done = 0
        self._busy_seconds = 0.0
        self._opened = 0
        self._ignored = 0
        self._malformed = 0
        self._faults = 0
        self._busy = 0

    # --- what comes and goes ----------------------------------------------------------------------------------------

    def receive(self, sender: PeerId, frame: bytes) -> None:
        """Take one frame of a proved sender; never raises, whatever it holds. Who has brought much that takes long to
        read has to wait until others have had their turn."""
        if self._reading.may(sender):
            self._take_in(sender, frame)
        else:
            self._reading.put(sender, frame)

    def _take_in(self, sender: PeerId, frame: bytes) -> None:
        began = self._clock()
        self._read(sender, frame)
        self._reading.spent(sender, self._clock() - began)

    def _read(self, sender: PeerId, frame: bytes) -> None:
        try:
            message = parse(frame)
        except WireError as error:
            self._blame(sender, str(error))
            return
        session = self._sessions.get(message.session)
        if session is None and isinstance(message, Adapter) and self._reception.expects(sender, message):
            self._take(sender, message)
        elif session is None and self._training is not None and self._training.concerns(message):
            self._training.receive(sender, message)
        elif isinstance(message, Open) and session is None:
            self._open(sender, message)
        elif isinstance(message, Fault):
            self._pass_back(sender, message)
        elif session is None:
            self._unknown(sender, message)
        elif _may(session, sender, message):
            session.heard = self._clock()
            self._accept(session, sender, message, len(frame))
        else:
            self._ignored += 1

    def gone(self, peer: PeerId) -> None:
        """The peer's last stream has ended: free all sessions it owns."""
        for session in [s for s in self._sessions.values() if s.owner == peer]:
            self._forget(session)
        self._reading.gone(peer)
        self._reception.gone(peer)
        if self._training is not None:
            self._training.gone(peer)

    def outgoing(self) -> list[tuple[PeerId, bytes]]:
        """The frames to send, in order, and to whom; each is given once."""
        out = list(self._outgoing)
        self._outgoing.clear()
        return out if self._training is None else [*out, *self._training.outgoing()]

    def expire(self) -> None:
        """Frees sessions that nobody has spoken to for too long, and tells their owners."""
        oldest = self._clock() - self._limits.idle_seconds
        for session in [s for s in self._sessions.values() if s.heard < oldest and not s.waits]:
            text = f"nothing was heard of this session for {self._limits.idle_seconds:.0f} s, so it was freed"
            self._end(session, text)
        if self._training is not None:
            self._training.expire()

    @property
    def session_count(self) -> int:
        return len(self._sessions) + (self._training.session_count if self._training else 0)

    @property
    def rest(self) -> float | None:
        """Seconds until the next `step` will have something to do if nothing comes in; None: it has nothing."""
        if self._training is None or not self._training.waits:
            return None
        return 0.0 if self._courtesy.alone else self._training.rest()

    def stats(self) -> EngineStats:
        return EngineStats(
            sessions=len(self._sessions),
            sessions_opened=self._opened,
            training_sessions=self._training.session_count if self._training else 0,
            rows=sum(len(session.rows) for session in self._sessions.values()),
            queue_tokens=self._queue_tokens(),
            depth_tokens=round(self._depth.tokens),
            queue_bytes=self._inbox_bytes,
            page_tokens=self._span.pool.page_size,
            kv_tokens=self._span.pool.tokens,
            kv_tokens_free=self._room.free_tokens,
            outbox_tokens_free=self._outbox.free_tokens,
            tokens_done=self._tokens_done,
            tokens_shared=self._tokens_shared,
            tokens_trained=self._training.tokens_done if self._training else 0,
            batches=self._batches,
            rows_done=self._rows_done,
            busy_seconds=self._busy_seconds,
            outboxes_dropped=self._outbox.dropped,
            ignored=self._ignored,
            malformed=self._malformed,
            faults=self._faults,
            busy=self._busy,
        )

    def patience(self, since: float) -> float:
        """Seconds for which the next `step` may wait for more frames, having waited since `since`; 0: it is due."""
        waiting = {session.owner for session in self._turns.values()}
        held = self._courtesy.held_back(waiting)
        if held:
            return self._courtesy.patience(held) if held >= waiting else 0.0
        if not self._turns or not all(self._decodes(session) for session in self._turns.values()):
            return 0.0
        return self._company.patience(len(self._turns), since)

    def step(self) -> bool:
        """One turn; False when there was nothing to do."""
        for sender, frame in self._reading.turn(READING * self._courtesy.pass_seconds):
            self._take_in(sender, frame)
        waiting = list(self._turns.values())
        self._advance_all(waiting)
        self._run(self._plan())
        for session in waiting:
            self._send_aside(session)
            if not session.waits:
                self._turns.pop(session.id, None)
        trained = self._train()
        return bool(waiting) or trained or bool(self._reading)

    def _train(self) -> bool:
        """Some of what is to be trained; False when nothing was done."""
        if self._training is None or self.rest != 0.0:
            return False
        began = self._clock()
        self._training.step(TRAINING_TURN, others=not self._courtesy.alone)
        self._courtesy.worked(self._clock() - began)
        return True

    # --- frames that are answered on arrival ------------------------------------------------------------------------

    def _open(self, sender: PeerId, message: Open) -> None:
        try:
            session = self._reception.admit(sender, message)
        except (HopError, BusyError) as error:
            self._turn_away(sender, message.session, error)
            return
        if isinstance(session, Missing):
            self._send(sender, session)
            return
        self._sessions[session.id] = session
        self._opened += 1
        self._send(sender, Ready(session.id))

    def _take(self, sender: PeerId, message: Adapter) -> None:
        """An adapter for a session that is about to be opened."""
        try:
            self._reception.take(sender, message)
        except (HopError, BusyError) as error:
            self._turn_away(sender, message.session, error)

    def _turn_away(self, sender: PeerId, session: SessionId, error: HopError | BusyError) -> None:
        if isinstance(error, BusyError):
            self._send_busy(sender, Busy(session, error.retry_after, str(error)))
        else:
            self._send_fault(sender, Fault(session, FaultCode(error.code), str(error)))

    def _accept(self, session: HopSession, sender: PeerId, message: Message, size: int) -> None:
        match message:
            case Close():
                self._forget(session)
            case Ping():
                self._send(sender, session.pong(message.nonce, self._queue_tokens()))
            case Step() | Fork() | Relink() | Open():
                if isinstance(message, Relink) and message.prev is not None:
                    session.prev = message.prev
                self._enqueue(session, Letter(sender, message, session.heard, size))

    def _enqueue(self, session: HopSession, letter: Letter) -> None:
        if not session.inbox.has_room(letter.size):
            self._send_busy(session.owner, self._too_much(session, f"{len(session.inbox)} frames of this session"))
        elif self._inbox_bytes + letter.size > self._limits.total_inbox_bytes:
            self._send_busy(session.owner, self._too_much(session, f"{self._inbox_bytes} bytes of all sessions"))
        else:
            session.inbox.put(letter)
            self._inbox_bytes += letter.size
            self._turns.setdefault(session.id, session)
            if isinstance(letter.message, Step):
                self._company.came(session.id)
                self._courtesy.came(session.owner, session.id)

    def _too_much(self, session: HopSession, what: str) -> Busy:
        text = f"{what} wait here already; a frame was not taken and has to be sent again"
        return Busy(session.id, self._limits.retry_seconds, text)

    def _pass_back(self, sender: PeerId, fault: Fault) -> None:
        """Where the next hop does not know the session, its owner should hear of it; hops say nothing else to hops."""
        for session in self._sessions.values():
            to_next = session.next is not None and session.next.peer == sender != session.owner
            if to_next and session.next_session == fault.session and fault.code is FaultCode.UNKNOWN_SESSION:
                self._tell(session, fault.code, f"the next hop says: {fault.message}", peer=sender)
                return
        self._ignored += 1

    def _unknown(self, sender: PeerId, message: Message) -> None:
        if isinstance(message, Step | Fork | Relink | Ping):
            text = "this session is not known here: it was closed, or idle for too long, or the peer has restarted"
            self._send_fault(sender, Fault(message.session, FaultCode.UNKNOWN_SESSION, text))
        elif isinstance(message, Close):
            self._reception.forget(message.session)
        else:
            self._ignored += 1

    def _blame(self, sender: PeerId, why: str) -> None:
        """A peer sent nonsense: owners of the sessions that it feeds should route around it."""
        self._malformed += 1
        for session in self._sessions.values():
            if session.prev == sender != session.owner:
                self._tell(session, FaultCode.BAD_INPUT, f"the previous hop sent what is no frame: {why}", peer=sender)

    # --- frames that wait for their turn ----------------------------------------------------------------------------

    def _advance_all(self, waiting: Sequence[HopSession]) -> None:
        """Handle what waits; of those who are held back no more than fits into the time that they may cost others."""
        held = self._courtesy.held_back({session.owner for session in waiting})
        for session in waiting:
            if session.owner not in held:
                self._advance(session)
        began = self._clock()
        for session in waiting:
            if session.owner in held and session.waits_to_begin:
                since = self._clock()
                if since - began > self._courtesy.seconds(held) / 2:
                    return
                self._advance(session)
                self._courtesy.spent(session.owner, self._clock() - since)
                if session.id in self._turns:  # else it failed
                    self._turns.move_to_end(session.id)

    def _advance(self, session: HopSession) -> None:
        """Handle the session's frames in order, up to the first that has to be computed or to be sent in parts."""
        self._adopt(session)
        while session.id in self._sessions and session.work is None:
            if session.resends:
                self._resend(session)
                return
            if not session.inbox:
                return
            letter = session.inbox.take()
            self._inbox_bytes -= letter.size
            try:
                self._handle(session, letter)
                self._adopt(session)
            except HopError as error:
                blamed = letter.sender if error.code in (FaultCode.GAP, FaultCode.BAD_INPUT) else None
                self._tell(session, FaultCode(error.code), str(error), peer=blamed)
            except BusyError as error:
                self._send_busy(session.owner, Busy(session.id, error.retry_after, str(error)))

    def _handle(self, session: HopSession, letter: Letter) -> None:
        match letter.message:
            case Step():
                session.work = self._begin(session, letter.message, letter)
            case Fork():
                self._fork(session, letter.message)
            case Relink():
                session.relink(letter.message)
            case Open():
                self._open_again(session, letter.message)

    def _begin(self, session: HopSession, step: Step, letter: Letter) -> Work | None:
        """The work a step brings, None when all of it is known. Raises HopError or Busy; then nothing has changed."""
        tokens, width = sum(row.n for row in step.rows), self._span.hidden_size
        size, expected = len(step.body), body_size(step.codec, tokens, width)
        if size != expected:
            text = f"{tokens} tokens of width {width} in {step.codec} are {expected} bytes; the step brings {size}"
            raise HopError(FaultCode.BAD_INPUT, text)
        rows, parts = session.new_tokens(step, self._max_positions)
        if not rows:
            return None
        unknown = sum(row.row not in session.rows for row in rows)
        self._check_rows(len(session.rows) + unknown)
        hidden = decode(step.body, step.codec, width)
        if not torch.isfinite(hidden).all():
            raise HopError(FaultCode.BAD_INPUT, "the step brings hidden states that are not finite")
        self._room.promise(session, session.pages_for(rows))
        new = pick(hidden, parts)
        session.begin(rows, step, new, letter.sender)
        return Work(rows, new, letter.arrived, Passed.by(step))

    def _check_rows(self, rows: int) -> None:
        if rows > self._limits.max_rows_per_session:
            most = self._limits.max_rows_per_session
            raise HopError(FaultCode.REFUSED, f"a session may have {most} rows here, not {rows}")

    def _fork(self, session: HopSession, message: Fork) -> None:
        """Raises HopError or Busy; then nothing has changed."""
        self._check_rows(max(len(message.forks), session.check_fork(message)))
        self._room.promise(session, session.fork_pages(message))
        for entry, last in session.new_forks(message):
            self._outbox.fork(session.id, entry.src, entry.at, entry.dst)
            session.fork(entry, last=last)
        for row in message.drop:
            self._outbox.forget_row(session.id, row)
            session.drop(row)
        self._room.settle(session)
        if message.onward and session.next is not None:
            self._send(session.next.peer, Fork(session.sends_as, message.forks, message.drop))

    def _open_again(self, session: HopSession, message: Open) -> None:
        self._reception.change(session, message)
        self._send(session.owner, Ready(session.id))

    def _resend(self, session: HopSession) -> None:
        """One frame's worth of what a Relink asked for."""
        found = self._kept(session, session.resends, last=session.next is None)
        if found is None:
            session.resends.clear()
            self._tell(session, FaultCode.NO_OUTBOX, "what is to be sent again is no longer kept here")
        elif found[0]:
            self._outgoing.extend(frames(session, *found, Passed(), self._limits.frame_bytes))

    def _send_aside(self, session: HopSession) -> None:
        """One frame's worth for whoever is to take over from the next hop; steps go on meanwhile. What is no longer
        kept is not missed: whoever takes over is brought up to date in the end."""
        aside = session.aside
        if aside is None or session.id not in self._sessions:
            return
        found = self._kept(session, aside.resends, last=False)
        if found is not None and found[0]:
            self._outgoing.append(aside_frame(session, aside, *found))
        if found is None or not aside.resends:
            session.aside = None

    def _kept(
        self, session: HopSession, resends: deque[Resend], *, last: bool
    ) -> tuple[tuple[StepRow, ...], Tensor] | None:
        room = tokens_per_frame(session.codec, self._span.hidden_size, self._limits.frame_bytes)
        return kept(self._outbox, session, resends, room, last=last)

    def _adopt(self, session: HopSession) -> None:
        """Takes over what was computed for another row that begins alike, and sends it on like what is computed now."""
        work, size = session.work, self._span.pool.page_size
        if work is None or work.longest < size or not session.keys:
            return
        shared = [(row, self._prefixes.find(session.coming_keys(row.row, row.at))) for row in work.rows]
        known = [(replace(row, n=size * len(pages)), pages) for row, pages in shared if pages]
        if not known:
            return
        began = self._clock()
        outputs = torch.cat([self._outbox.read_pages([page.outbox for page in pages]) for _, pages in known])
        for row, pages in known:
            session.adopt(row.row, [page.kv for page in pages])
            self._outbox.adopt(session.id, row.row, row.at, [page.outbox for page in pages])
        work.skip({row.row: row.n for row, _ in known})
        self._tokens_shared += len(outputs)
        self._send_on(session, tuple(row for row, _ in known), outputs, began)

    def _reach(self, session: HopSession, work: Work) -> int:
        """How many tokens to compute next: up to the end of a page, where what follows is known."""
        row, size = work.rows[0], self._span.pool.page_size
        rest = -row.at % size
        if not 0 < rest < row.n or not self._prefixes.find(session.coming_keys(row.row, row.at + rest)):
            return work.tokens
        return rest

    def _remember(self, session: HopSession, row: StepRow) -> None:
        """Pages that `row` has filled are there for other rows that begin alike."""
        keys, size = session.keys.get(row.row), self._span.pool.page_size
        if keys is None or self._outbox.length(session.id, row.row) != row.at + row.n:
            return
        first, stop = row.at // size, (row.at + row.n) // size
        for index, key in enumerate(keys.pages(first, stop), first):
            sent = self._outbox.page(session.id, row.row, index)
            if sent is not None:
                self._prefixes.add(key, SharedPage(session.rows[row.row].pages[index], sent))

    # --- the batch --------------------------------------------------------------------------------------------------

    def _plan(self) -> Batch:
        """Who computes now, with which tokens; those chosen stand last from then on."""
        works = [(s, s.work) for s in self._turns.values() if s.work is not None]
        ring = any(s.next is not None or s.prev != s.owner for s, _ in works)
        most = self._company.half if ring else len(works)
        waiting = [(s.owner, Waiting(s.id, self._reach(s, work), work.longest)) for s, work in works]
        chosen = share_out(waiting, self._limits, self._courtesy, most)
        batch: Batch = []
        for session, work in works:
            if session.id in chosen:
                batch.append((session, work.take(chosen[session.id])))
                self._turns.move_to_end(session.id)
        return batch

    def _run(self, batch: Batch) -> None:
        """One pass for each hop that occurs in the batch, whatever the adapters; but where these have to be apart."""
        hops: dict[tuple[Span, AdapterKeys], Batch] = {}
        for session, piece in batch:
            apart = session.adapters if session.apart else ()
            hops.setdefault((session.hop, apart), []).append((session, piece))
        for (hop, _), part in hops.items():
            part.sort(key=lambda each: each[0].adapters)  # those of one adapter stand together
            slices = [[RowSlice(session.extend(row), row.at, row.n) for row in piece.rows] for session, piece in part]
            self._forward(hop, part, slices)

    def _forward(self, hop: Span, batch: Batch, slices: list[list[RowSlice]]) -> None:
        """A pass that fails is repeated session by session, so that only those suffer that can't be computed."""
        began = self._clock()
        try:
            hidden = torch.cat([piece.hidden for _, piece in batch])
            rows = [row for each in slices for row in each]
            outputs = to_host(self._span.forward(hidden, rows, self._span.part(hop), _adapted(batch)))
        except Exception as error:  # whatever torch may raise; the engine outlives it
            if len(batch) > 1:
                logger.warning("a batch of %d sessions failed and is repeated one by one: %s", len(batch), error)
                for each, own in zip(batch, slices, strict=True):
                    self._forward(hop, [each], [own])
                return
            logger.exception("a session could not be computed and was freed")
            text = f"computing blocks {hop} failed: {type(error).__name__}: {error}"
            self._fail(batch[0][0], FaultCode.EXECUTOR, text)
            return
        self._batches += 1
        self._rows_done += sum(map(len, slices))
        self._busy_seconds += self._clock() - began
        self._tokens_done += len(outputs)
        self._courtesy.computed(_tokens_of(batch), self._clock() - began)
        if all(len(piece.hidden) <= self._limits.decode_tokens for _, piece in batch):
            self._company.computed(began, self._clock())
        parts = torch.split_with_sizes(outputs, [len(piece.hidden) for _, piece in batch])
        for (session, piece), part in zip(batch, parts, strict=True):
            self._deliver(session, piece, part, began)

    def _deliver(self, session: HopSession, piece: Piece, outputs: Tensor, began: float) -> None:
        """Store what was computed, send it on, and finish the step when this was the end of it."""
        if not torch.isfinite(outputs).all():
            text = f"blocks {session.hop} made hidden states that are not finite"
            self._fail(session, FaultCode.EXECUTOR, text)
            return
        for row, part in zip(piece.rows, torch.split_with_sizes(outputs, [row.n for row in piece.rows]), strict=True):
            self._outbox.append(session.id, row.row, part)
            self._remember(session, row)
        self._send_on(session, piece.rows, outputs, began)

    def _send_on(self, session: HopSession, rows: tuple[StepRow, ...], outputs: Tensor, began: float) -> None:
        """Outputs `[sum n, hidden]` of a part of the session's step, which may be the end of it."""
        work = session.work
        assert work is not None  # they are a part of it
        now = self._clock()
        self._depth.left(len(outputs), now - work.arrived)
        passed = work.passed.then(1000 * (began - work.arrived), 1000 * (now - began), round(self._depth.tokens))
        self._outgoing.extend(frames(session, rows, outputs, passed, self._limits.frame_bytes))
        session.heard = session.worked = now
        if not work.tokens:
            session.work = None
            self._room.settle(session)

    # --- small things -----------------------------------------------------------------------------------------------

    def _decodes(self, session: HopSession) -> bool:
        """Whether all that it waits with is a short step."""
        return not session.resends and 0 < session.queue_tokens <= self._limits.decode_tokens

    def _queue_tokens(self) -> int:
        return sum(session.queue_tokens for session in self._turns.values())

    def _send(self, peer: PeerId, message: Message) -> None:
        self._outgoing.append((peer, message.pack()))

    def _send_fault(self, peer: PeerId, fault: Fault) -> None:
        self._faults += 1
        self._send(peer, fault)

    def _send_busy(self, peer: PeerId, busy: Busy) -> None:
        self._busy += 1
        self._send(peer, busy)

    def _tell(self, session: HopSession, code: FaultCode, text: str, peer: PeerId | None = None) -> None:
        """A Fault to the session's owner; the session stays."""
        self._send_fault(session.owner, Fault(session.id, code, text, peer))

    def _fail(self, session: HopSession, code: FaultCode, text: str) -> None:
        """A Fault to the session's owner; the session is freed."""
        self._tell(session, code, text)
        self._forget(session)

    def _end(self, session: HopSession, why: str) -> None:
        self._fail(session, FaultCode.UNKNOWN_SESSION, why)

    def _forget(self, session: HopSession) -> None:
        del self._sessions[session.id]
        self._turns.pop(session.id, None)
        self._company.forget(session.id)
        self._inbox_bytes -= session.inbox.bytes
        session.release()
        self._outbox.forget(session.id)
        self._room.leave(session.id)


def _tokens_of(batch: Batch) -> Mapping[PeerId, int]:
    """How many tokens of each client."""
    tokens = Counter[PeerId]()
    for session, piece in batch:
        tokens[session.owner] += len(piece.hidden)
    return tokens


def _adapted(batch: Batch) -> Sequence[Sequence[Change]]:
    """What changes each row; the very same where sessions have the same adapters. Empty where nothing does."""
    if not any(session.adapters for session, _ in batch):
        return ()
    known: dict[AdapterKeys, Sequence[Change]] = {}
    for session, _ in batch:
        if session.adapters not in known:
            known[session.adapters] = session.changes
    return [known[session.adapters] for session, piece in batch for _ in piece.rows]


def _may(session: HopSession, sender: PeerId, message: Message) -> bool:
    """Whether `sender` has a say in this: the owner in everything, the previous hop in what comes down the chain."""
    if isinstance(message, Step | Fork):
        return sender in (session.owner, session.prev)
    return sender == session.owner and isinstance(message, Open | Relink | Ping | Close)
