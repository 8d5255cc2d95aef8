"""A peer's side of fine-tuning: frames in, one micro-batch at a time through the blocks, frames out.

Runs between the engine's batches, a piece at a time. A session holds the adapters of its client and what going backward
needs, both within budgets; when either is missing the client is told, and sends it again.
"""

import logging
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import accumulate, pairwise

import torch
from torch import Tensor

from peers.training.deltas import BlockAdapter
from peers.training.limits import TrainingLimits
from peers.training.piecemeal import Piecemeal
from peers.training.sums import Sums
from peers.training.trainee import Pass, Trainee
from swarm.codecs import body_size, decode, encode, raw_bytes
from swarm.errors import HopError, SwarmError
from swarm.ids import Digest, PeerId, SessionId, Span
from swarm.messages import Busy, Close, Fault, FaultCode, Message, Ping, Pong, Ready
from swarm.training import (
    Adapter,
    AdapterKey,
    Backward,
    Collect,
    Forward,
    Gradients,
    MicroBatch,
    Missing,
    Passed,
    Train,
    adapter_key,
)

__all__ = ["TrainingDesk"]

logger = logging.getLogger(__name__)

Asked = Adapter | Forward | Backward | Collect

RETRY_SECONDS = 2.0
IDLE_SECONDS = 300.0
LAYERS_SECONDS = 600.0  # without sessions, after which their memory is for others: everybody waits while they are read


@dataclass(slots=True, eq=False)
class _Session:
    id: SessionId
    owner: PeerId
    hop: Span
    codec: str
    heard: float
    adapters: OrderedDict[AdapterKey, BlockAdapter] = field(default_factory=OrderedDict)
    unused: set[AdapterKey] = field(default_factory=set)  # that no micro-batch has asked for yet
    passes: dict[int, Pass] = field(default_factory=dict)
    sums: Sums = field(default_factory=Sums)
    waiting: deque[Asked] = field(default_factory=deque)

    @property
    def adapter_bytes(self) -> int:
        return sum(adapter.nbytes for adapter in self.adapters.values())


class TrainingDesk:
    def __init__(
        self,
        load: Callable[[], Trainee],
        *,
        model: Digest,
        blocks: Span,
        limits: TrainingLimits,
        clock: Callable[[], float],
    ) -> None:
        """`load` makes what trains, when it is first wanted; it may raise a SwarmError that says why it can't."""
        self._load = load
        self._model = model
        self._blocks = blocks
        self._limits = limits
        self._clock = clock
        self._trainee: Trainee | None = None
        self._sessions: dict[SessionId, _Session] = {}
        self._turns: OrderedDict[SessionId, None] = OrderedDict()
        self._work = Piecemeal(clock)
        self._doing: _Session | None = None  # whose frame it is
        self._used = clock()  # when a session last ended
        self._kept: OrderedDict[tuple[SessionId, int], int] = OrderedDict()  # bytes, the oldest first
        self._waiting_bytes = 0
        self._rest_until = 0.0
        self._outgoing: deque[tuple[PeerId, bytes]] = deque()
        self.tokens_done = 0

    # --- what comes and goes ------------------------------------------------------------------------------------------

    def concerns(self, message: Message) -> bool:
        """Whether a frame is for this desk and not for the engine."""
        return message.session in self._sessions or isinstance(message, Train | Asked)

    def receive(self, sender: PeerId, message: Message) -> None:
        session = self._sessions.get(message.session)
        if isinstance(message, Train):
            self._open(sender, message)
        elif session is None:
            if not isinstance(message, Close):
                self._fault(sender, message.session, FaultCode.UNKNOWN_SESSION, "this session is not known here")
        elif sender == session.owner:
            session.heard = self._clock()
            self._accept(session, message)

    def gone(self, peer: PeerId) -> None:
        for session in [s for s in self._sessions.values() if s.owner == peer]:
            self._forget(session)

    def expire(self) -> None:
        oldest = self._clock() - IDLE_SECONDS
        for session in [s for s in self._sessions.values() if s.heard < oldest and not s.waiting]:
            if session is not self._doing:
                self._fail(session, FaultCode.UNKNOWN_SESSION, f"nothing was heard of it for {IDLE_SECONDS:.0f} s")
        if self._trainee is not None and not self._sessions and self._clock() >= self._used + LAYERS_SECONDS:
            self._trainee.close()
            self._trainee = None

    def outgoing(self) -> list[tuple[PeerId, bytes]]:
        out = list(self._outgoing)
        self._outgoing.clear()
        return out

    @property
    def session_count(self) -> int:
        return len(self._sessions)

    @property
    def kept_bytes(self) -> int:
        return sum(self._kept.values())

    # --- turns --------------------------------------------------------------------------------------------------------

    @property
    def waits(self) -> bool:
        """Whether there is anything to do."""
        return self._doing is not None or bool(self._turns)

    def rest(self) -> float:
        """Seconds until it may take time from others again."""
        return max(0.0, self._rest_until - self._clock())

    def step(self, seconds: float, *, others: bool) -> None:
        """Works on the frame whose turn it is for `seconds`, and then up to where that may be interrupted. Rests
        afterwards where it took that time from `others`, so that it has its share and no more."""
        began = self._clock()
        session = self._doing = self._doing or self._begin()
        try:
            if self._work.go_on(seconds):
                self._doing = None
        except Exception as error:  # whatever torch may raise; the desk outlives it
            self._failed(session, error)
        if others:
            share = self._limits.share
            self._rest_until = self._clock() + (self._clock() - began) * (1 - share) / share

    # --- inside -------------------------------------------------------------------------------------------------------

    def _begin(self) -> _Session:
        """The next frame's session, which then stands last."""
        session = self._sessions[next(iter(self._turns))]
        message = session.waiting.popleft()
        self._waiting_bytes -= len(message.body)
        self._turns.move_to_end(session.id)
        if not session.waiting:
            del self._turns[session.id]
        self._work.begin(partial(self._handle, session, message))
        return session

    def _failed(self, session: _Session, error: Exception) -> None:
        match error:
            case HopError():
                code, text = FaultCode(error.code), str(error)
            case SwarmError():
                code, text = FaultCode.REFUSED, str(error)
            case MemoryError() | torch.OutOfMemoryError():
                code, text = FaultCode.EXECUTOR, f"memory ran out: send smaller micro-batches ({error})"
            case _:  # mostly of tensors that don't go together
                logger.warning("a micro-batch of peer %s failed: %s", session.owner, error)
                why = str(error).partition("\n")[0] or type(error).__name__
                code, text = FaultCode.REFUSED, f"the micro-batch can't be computed: {why}"
        self._fail(session, code, text)

    def _open(self, sender: PeerId, message: Train) -> None:
        refusal = self._refusal(message)
        mine = sum(s.owner == sender for s in self._sessions.values())
        if message.session in self._sessions:
            return
        if refusal is not None:
            self._fault(sender, message.session, FaultCode.REFUSED, refusal)
        elif len(self._sessions) >= self._limits.max_sessions or mine >= self._limits.max_sessions_per_owner:
            busy = Busy(message.session, RETRY_SECONDS, "this peer has as many training sessions as it takes")
            self._outgoing.append((sender, busy.pack()))
        else:
            session = _Session(message.session, sender, message.hop, message.codec, self._clock())
            self._sessions[session.id] = session
            self._outgoing.append((sender, Ready(session.id).pack()))

    def _refusal(self, message: Train) -> str | None:
        if not self._limits.share:
            return "this peer gives no time to training"
        if message.model != self._model:
            return f"this peer serves model {self._model}, not {message.model}"
        if message.hop not in self._blocks:
            return f"this peer holds blocks {self._blocks}, not {message.hop}"
        if self._trainee is None:
            try:
                self._trainee = self._load()
            except SwarmError as error:
                return f"this peer can't train: {error}"
        return None

    def _accept(self, session: _Session, message: Message) -> None:
        if isinstance(message, Close):
            self._forget(session)
        elif isinstance(message, Ping):
            self._outgoing.append((session.owner, Pong(session.id, message.nonce, {}, len(session.waiting)).pack()))
        elif isinstance(message, Asked):
            most = self._limits.waiting_frames + len(
                session.hop
            )  # each of its blocks may have an adapter to come first
            full = self._waiting_bytes + len(message.body) > self._limits.waiting_bytes
            if full or len(session.waiting) >= most:
                busy = Busy(session.id, RETRY_SECONDS, "more micro-batches wait here than this peer takes")
                self._outgoing.append((session.owner, busy.pack()))
                self._forget(session)
                return
            session.waiting.append(message)
            self._waiting_bytes += len(message.body)
            self._turns.setdefault(session.id)

    def _handle(self, session: _Session, message: Asked) -> None:
        match message:
            case Adapter():
                self._learn(session, message)
            case Forward():
                self._forward(session, message)
            case Backward():
                self._backward(session, message)
            case Collect():
                self._collect(session, message)

    def _learn(self, session: _Session, message: Adapter) -> None:
        if adapter_key(message.tuned, message.body) != message.key:
            raise HopError(FaultCode.BAD_INPUT, "an adapter's key is not the digest of what it says")
        session.adapters[message.key] = BlockAdapter.read(message.tuned, message.body)
        session.unused.add(message.key)
        while session.adapter_bytes > self._limits.adapter_bytes:
            oldest, _ = session.adapters.popitem(last=False)
            if oldest in session.unused:  # what is sent for one micro-batch has to fit together
                text = (
                    f"the adapters of blocks {session.hop} take more than the {self._limits.adapter_bytes >> 20} MiB "
                    "that this peer keeps for a client: take a lower rank, or fewer layers"
                )
                raise HopError(FaultCode.REFUSED, text)

    def _forward(self, session: _Session, message: Forward) -> None:
        if self._lacks(session, message.batch):
            return
        began = self._clock()
        (hidden,) = self._hidden(message.batch, (message.codec,), message.body)
        done = self._run(session, message.batch, hidden, keep=message.keep)
        if message.keep:
            self._keep(session, message.batch.id, done)
        codec = message.answer or session.codec
        body = encode(done.output, codec)
        passed = Passed(session.id, message.batch.id, codec, body, self._clock() - began)
        self._outgoing.append((session.owner, passed.pack()))

    def _backward(self, session: _Session, message: Backward) -> None:
        began = self._clock()
        known = session.passes.pop(message.batch.id, None)
        self._kept.pop((session.id, message.batch.id), None)
        if known is None:
            if not message.given:
                self._outgoing.append((session.owner, Missing(session.id, message.batch.id).pack()))
                return
            if self._lacks(session, message.batch):
                return
        codecs = (message.inputs or message.codec, message.codec) if message.given else (message.codec,)
        parts = self._hidden(message.batch, codecs, message.body)
        if known is None:
            known = self._run(session, message.batch, parts[0], keep=True)
        self._answer(session, message, known, parts[-1], began)

    def _run(self, session: _Session, batch: MicroBatch, hidden: Tensor, *, keep: bool) -> Pass:
        assert self._trainee is not None  # since a session is open
        adapters = {block: session.adapters[key] for block, key in batch.adapters if block in session.hop}
        done = self._trainee.forward(
            session.hop, hidden, batch.lengths, adapters, seed=batch.seed, keep=keep, pause=self._work.pause
        )
        if not bool(torch.isfinite(done.output).all()):
            text = f"blocks {session.hop} made hidden states that are not finite: lower the learning rate"
            raise HopError(FaultCode.REFUSED, text)
        self.tokens_done += batch.tokens
        return done

    def _answer(self, session: _Session, asked: Backward, done: Pass, gradient: Tensor, began: float) -> None:
        """The gradient of the inputs or nothing, then one frame for each block that has an adapter, unless those are
        added up."""
        inputs, others = done.backward(gradient.to(done.output.device), wanted=asked.wanted)
        if not all(bool(torch.isfinite(each).all()) for each in (*others, *([] if inputs is None else [inputs]))):
            text = f"blocks {session.hop} made gradients that are not finite: lower the learning rate"
            raise HopError(FaultCode.REFUSED, text)
        rest = iter(others)
        tensors = {block: [next(rest) for _ in range(count)] for block, count in done.tuned}
        if asked.into is not None:
            session.sums.add(asked.into, asked.batch.adapters, tensors, limit=self._limits.adapter_bytes)
            tensors = {}
        codec = asked.answer or session.codec
        first = b"" if inputs is None else encode(inputs, codec)
        bodies = [(block, b"".join(map(raw_bytes, own))) for block, own in tensors.items()]
        self._send(session, asked.batch.id, codec, [(None, first), *bodies], began)

    def _collect(self, session: _Session, asked: Collect) -> None:
        began = self._clock()
        tensors = session.sums.take(asked.id, asked.count)
        if tensors is None:
            self._outgoing.append((session.owner, Missing(session.id, asked.id).pack()))
            return
        encoded = {block: b"".join(_written(tensor, asked.codec) for tensor in own) for block, own in tensors.items()}
        self._send(session, asked.id, asked.codec or session.codec, [*encoded.items()], began)

    def _send(
        self,
        session: _Session,
        id: int,  # noqa: A002 (the frame's word)
        codec: str,
        bodies: Sequence[tuple[int | None, bytes | memoryview]],
        began: float,
    ) -> None:
        for index, (block, body) in enumerate(bodies):
            more, seconds = index + 1 < len(bodies), self._clock() - began
            self._outgoing.append((session.owner, Gradients(session.id, id, block, more, codec, body, seconds).pack()))

    def _lacks(self, session: _Session, batch: MicroBatch) -> bool:
        """Whether adapters are not here; then the client has been told which."""
        lacking = tuple(key for block, key in batch.adapters if block in session.hop and key not in session.adapters)
        for _, key in batch.adapters:
            if key in session.adapters:
                session.adapters.move_to_end(key)
        if lacking:
            self._outgoing.append((session.owner, Missing(session.id, batch.id, lacking).pack()))
        else:
            session.unused.clear()
        return bool(lacking)

    def _hidden(self, batch: MicroBatch, codecs: Sequence[str], body: bytes | memoryview) -> tuple[Tensor, ...]:
        """`[T, hidden]` in each of `codecs`, one after another. Raises HopError."""
        assert self._trainee is not None
        width = self._trainee.hidden_size
        if batch.tokens > self._limits.max_tokens:
            text = f"a micro-batch of {batch.tokens} tokens; this peer takes {self._limits.max_tokens}"
            raise HopError(FaultCode.REFUSED, text)
        ends = [*accumulate((body_size(codec, batch.tokens, width) for codec in codecs), initial=0)]
        if len(body) != ends[-1]:
            raise HopError(FaultCode.BAD_INPUT, f"{batch.tokens} tokens are {ends[-1]} bytes, not {len(body)}")
        view = memoryview(body)
        cuts = zip(codecs, pairwise(ends), strict=True)
        decoded = tuple(decode(view[begin:end], codec, width) for codec, (begin, end) in cuts)
        if not all(bool(torch.isfinite(part).all()) for part in decoded):
            raise HopError(FaultCode.BAD_INPUT, "a micro-batch brings numbers that are not finite")
        return decoded

    def _keep(self, session: _Session, id: int, done: Pass) -> None:  # noqa: A002 (the frame's word)
        session.passes[id] = done
        self._kept[session.id, id] = done.kept
        while self.kept_bytes > self._limits.kept_bytes:
            (owner, old), _ = self._kept.popitem(last=False)
            del self._sessions[owner].passes[old]

    def _fault(self, peer: PeerId, session: SessionId, code: FaultCode, text: str) -> None:
        self._outgoing.append((peer, Fault(session, code, text).pack()))

    def _fail(self, session: _Session, code: FaultCode, text: str) -> None:
        self._fault(session.owner, session.id, code, text)
        self._forget(session)

    def _forget(self, session: _Session) -> None:
        if self._sessions.pop(session.id, None) is None:
            return
        self._used = self._clock()
        if self._doing is session:
            self._doing = None
            self._work.abandon()
        self._turns.pop(session.id, None)
        self._waiting_bytes -= sum(len(message.body) for message in session.waiting)
        for id in session.passes:  # noqa: A001 (the frame's word)
            self._kept.pop((session.id, id), None)


def _written(tensor: Tensor, codec: str | None) -> bytes | memoryview:
    return raw_bytes(tensor) if codec is None else encode(tensor.reshape(1, -1), codec)
