"""A hop that trains: one session on one peer, micro-batches asked and answered, many at once."""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, count, pairwise
from math import prod

import torch
from torch import Tensor

from clients.client import Client
from clients.hops import HopStream, Lost
from clients.training.compression import Codecs, Compress, Compression, Exchange
from routing.chains import Hop
from swarm.codecs import body_size, decode, encode, read_tensors
from swarm.dtypes import DTYPES
from swarm.errors import Busy as BusyError
from swarm.errors import HopError, StreamClosed, WireError
from swarm.ids import SessionId, Span, new_session_id
from swarm.messages import Busy, Close, Fault, FaultCode, Message, Ping, Pong, Ready
from swarm.training import (
    AdapterKey,
    Backward,
    Collect,
    Forward,
    Gradients,
    MicroBatch,
    Missing,
    PackedAdapter,
    Passed,
    TensorSpec,
    Train,
)

__all__ = ["Cost", "HopLost", "TrainingHop"]

ASK_SECONDS = 10.0  # of silence, after which a hop is asked whether it lives
LONGEST_BATCH = 45.0  # s: a hop answers between modules of its blocks, of which one may take long
DELAY_NONCE = 1  # of the question that measures a delay
TRIES = 3  # to give a hop what it says it has not
UNDER_WAY = 4  # micro-batches at one hop: it computes one at a time, and has the next ones by then

Answer = Passed | Gradients | Missing


@dataclass(slots=True)
class Cost:
    """What one peer has computed for this client: tokens, forward and backward counted alike, in so many seconds."""

    name: str
    span: Span
    tokens: int = 0
    seconds: float = 0.0


class HopLost(Exception):
    """A hop can't go on; its peer has been put aside. Somebody else may do its part."""


class TrainingHop:
    """Made by `open`. On the client's loop."""

    def __init__(
        self, client: Client, hop: Hop, session: SessionId, stream: HopStream, cost: Cost, compression: Compression
    ) -> None:
        self.hop = hop
        self._compression = compression
        self._round_trip = 0.0  # s
        self._asked: float | None = None  # when; until it is answered
        self._cost = cost
        self.lost: str | None = None  # why it ended
        self.leaving = False  # it answers what it was asked, and then ends
        self.refusal: HopError | None = None  # that ended it: nobody else would do it either
        self._client = client
        self._session = session
        self._stream = stream
        self._answers: dict[int, asyncio.Queue[Answer]] = {}
        self._opening: asyncio.Future[Message] = asyncio.get_running_loop().create_future()
        self._heard = asyncio.get_running_loop().time()
        self._room = asyncio.Semaphore(UNDER_WAY)
        self._sent: set[AdapterKey] = set()
        self._ids = count(1)

    @classmethod
    async def open(cls, client: Client, hop: Hop, cost: Cost, compression: Compression) -> "TrainingHop":
        """`cost` is added to, and `compression` told how fast it is. Raises Unreachable, Busy, HopLost, or HopError
        when the peer refuses."""
        stream = await client.hops.to(hop.contact)
        self = cls(client, hop, new_session_id(), stream, cost, compression)
        try:
            stream.listen(self._session, self._hear)
            frame = Train(self._session, client.model.digest, hop.span, client.codec)
            stream.post(frame.pack())
            async with asyncio.timeout(client.open_seconds):
                answer = await self._opening
        except (TimeoutError, StreamClosed) as error:
            self.end(str(error) or f"peer {hop.peer} did not answer within {client.open_seconds:g} s")
            raise HopLost(self.lost) from None
        if isinstance(answer, Ready):
            self._ask_delay()
            return self
        self.end("it was not opened")
        if isinstance(answer, Busy):
            raise BusyError(answer.message, answer.retry_after)
        assert isinstance(answer, Fault)
        raise HopError(answer.code, f"peer {hop.peer} refused to train: {answer.message}")

    def end(self, reason: str) -> None:
        """Safe to repeat; whoever waits for an answer is told."""
        if self.lost is not None:
            return
        self.lost = reason
        self._stream.forget(self._session)
        self._stream.post(Close(self._session).pack())
        for queue in self._answers.values():
            queue.put_nowait(Missing(self._session, 0))  # wakes them; they look at `lost` first

    def end_if_idle(self) -> None:
        """Where the peer leaves and owes no answer any more."""
        if self.leaving and not self._answers:
            self.end(f"peer {self.hop.peer} is leaving")

    # --- asking -----------------------------------------------------------------------------------------------------

    def new_id(self) -> int:
        return next(self._ids)

    @property
    def codecs(self) -> Codecs:
        """That suit its line at this moment."""
        return self._compression.codecs(self.hop.peer)

    async def forward(
        self, batch: MicroBatch, hidden: Tensor, adapters: Mapping[int, PackedAdapter], *, keep: bool, codec: str
    ) -> Tensor:
        """What leaves the hop for `hidden` `[T, width]`, both in `codec`. Raises HopLost, or HopError when nobody else
        can do it either."""
        frame = Forward(self._session, batch, keep, codec, encode(hidden, codec), self._unless_usual(codec))
        async with self._room, _Asking(self, batch.id) as queue:
            self._check()
            timed = self._timed(batch, self._post(frame, adapters))
            for _ in range(TRIES):
                answer = await self._next(queue)
                if isinstance(answer, Passed):
                    self._add(batch, answer.seconds)
                    timed.answered(len(answer.body), answer.seconds)
                    return self._read(answer.codec, answer.body, batch.tokens)
                self._resend(frame, answer, adapters)
        raise self._gives_up("it says again and again that it lacks what it was sent")

    async def backward(
        self,
        batch: MicroBatch,
        gradient: Tensor,
        inputs: Tensor,
        adapters: Mapping[int, PackedAdapter],
        *,
        wanted: bool,
        forward_codec: str,
        into: int | None = None,
    ) -> tuple[Tensor | None, dict[int, list[Tensor]]]:
        """The gradient of the inputs `[T, width]`, where it is `wanted`, and of the adapters' tensors by block; or the
        latter added `into` what `collect` asks for. `forward_codec`: in which the inputs went forward."""
        codec = self.codecs.backward
        raw = encode(gradient, codec)
        frame = Backward(self._session, batch, False, codec, raw, wanted, answer=self._unless_usual(codec), into=into)
        async with self._room, _Asking(self, batch.id) as queue:
            self._check()
            timed = self._timed(batch, self._post(frame, adapters))
            for _ in range(TRIES):
                answer = await self._next(queue)
                if isinstance(answer, Gradients):
                    if not answer.more:
                        timed.answered(len(answer.body), answer.seconds)
                    return await self._gather(batch, answer, queue, adapters, wanted=wanted, summed=into is not None)
                if isinstance(answer, Missing) and not answer.adapters:
                    body = b"".join((encode(inputs, forward_codec), raw))
                    frame = replace(frame, given=True, body=body, inputs=self._unless_usual(forward_codec, codec))
                self._resend(frame, answer, adapters)
        raise self._gives_up("it says again and again that it lacks what it was sent")

    async def collect(
        self,
        into: int,
        count: int,
        blocks: Sequence[int],
        adapters: Mapping[int, PackedAdapter],
    ) -> dict[int, list[Tensor]] | None:
        """What `count` micro-batches have added up, for each of `blocks`; None where that is no longer there. Raises
        HopLost."""
        frame = Collect(self._session, into, count, self.codecs.sums)
        async with _Asking(self, into) as queue:
            self._stream.post(frame.pack())
            answer = await self._next(queue)
            if not isinstance(answer, Gradients):
                return None
            found = await self._tensors_after(answer, queue, adapters, frame.codec)
        if found.keys() != set(blocks):
            raise self._gives_up("it sent gradients of other adapters than it was given")
        return found

    def _post(self, frame: Forward | Backward, adapters: Mapping[int, PackedAdapter]) -> int:
        """Bytes that were posted."""
        frames = []
        for block, key in frame.batch.adapters:
            if key not in self._sent and block in self.hop.span:
                frames.append(adapters[block].addressed(self._session).pack())
                self._sent.add(key)
        frames.append(frame.pack())
        for each in frames:
            self._stream.post(each)
        return sum(map(len, frames))

    def _unless_usual(self, codec: str, usual: str | None = None) -> str | None:
        return None if codec == (usual or self._client.codec) else codec

    def _timed(self, batch: MicroBatch, sent: int) -> "_Timed":
        """Says nothing of the line unless it was idle."""
        return _Timed(self, batch.tokens, sent if len(self._answers) == 1 else 0, asyncio.get_running_loop().time())

    def _resend(self, frame: Forward | Backward, answer: Answer, adapters: Mapping[int, PackedAdapter]) -> None:
        if isinstance(answer, Missing):
            self._sent.difference_update(answer.adapters)
            self._post(frame, adapters)

    async def _gather(
        self,
        batch: MicroBatch,
        first: Gradients,
        queue: "asyncio.Queue[Answer]",
        adapters: Mapping[int, PackedAdapter],
        *,
        wanted: bool,
        summed: bool,
    ) -> tuple[Tensor | None, dict[int, list[Tensor]]]:
        # a hop of an earlier version sends the gradient whether or not it is wanted
        unsent = not wanted and not len(first.body)
        gradient = None if unsent else self._read(first.codec, first.body, batch.tokens)
        self._add(batch, first.seconds)
        found = await self._tensors_after(first, queue, adapters, None)
        due = set() if summed else {block for block, _ in batch.adapters if block in self.hop.span}
        if found.keys() != due:
            raise self._gives_up("it sent gradients of other adapters than it was given")
        return gradient if wanted else None, found

    async def _tensors_after(
        self,
        first: Gradients,
        queue: "asyncio.Queue[Answer]",
        adapters: Mapping[int, PackedAdapter],
        codec: str | None,
    ) -> dict[int, list[Tensor]]:
        """By block: what `first` brings, where that is of a block, and what follows it."""
        found: dict[int, list[Tensor]] = {}
        answer: Answer = first
        while True:
            if isinstance(answer, Gradients) and answer.block is not None and answer.block in adapters:
                found[answer.block] = self._tensors(adapters[answer.block], answer.body, codec)
            if not isinstance(answer, Gradients) or not answer.more:
                return found
            answer = await self._next(queue)

    def _ask_delay(self) -> None:
        if self._compression.mode is Compress.AUTO:
            self._asked = asyncio.get_running_loop().time()
            self._stream.post(Ping(self._session, DELAY_NONCE).pack())

    def _add(self, batch: MicroBatch, seconds: float) -> None:
        self._cost.tokens += batch.tokens
        self._cost.seconds += seconds

    # --- hearing ----------------------------------------------------------------------------------------------------

    async def _next(self, queue: "asyncio.Queue[Answer]") -> Answer:
        """The next answer. Raises HopLost when the hop is gone, or silent for too long."""
        loop = asyncio.get_running_loop()
        while True:
            self._check()
            try:
                async with asyncio.timeout(ASK_SECONDS):
                    answer = await queue.get()
            except TimeoutError:
                if loop.time() > self._heard + LONGEST_BATCH:
                    raise self._gives_up(f"it said nothing for {LONGEST_BATCH:.0f} s") from None
                self._stream.post(Ping(self._session, 0).pack())
            else:
                self._check()
                return answer

    def _check(self) -> None:
        if self.refusal is not None:
            raise self.refusal
        if self.lost is not None:
            raise HopLost(self.lost)

    def _hear(self, _: HopStream, message: Message | Lost) -> None:
        self._heard = asyncio.get_running_loop().time()
        if isinstance(message, Pong) and message.nonce == DELAY_NONCE and self._asked is not None:
            self._round_trip, self._asked = self._heard - self._asked, None
        elif isinstance(message, Lost):
            self._client.failed(self.hop.peer)
            self._open_with(StreamClosed(message.reason))
            self.end(f"lost peer {self.hop.peer}: {message.reason}")
        elif not self._opening.done():
            if isinstance(message, Ready | Busy | Fault):
                self._opening.set_result(message)
        elif isinstance(message, Fault):
            self._fault(message)
        elif isinstance(message, Busy):
            self._client.backoff.rest(self.hop.peer, message.retry_after)
            self.end(f"peer {self.hop.peer} has too much to do: {message.message}")
        elif isinstance(message, Passed | Gradients | Missing):
            queue = self._answers.get(message.id)
            if queue is not None and queue.qsize() <= 2 * self._client.model.num_blocks:
                queue.put_nowait(message)

    def _fault(self, fault: Fault) -> None:
        if fault.code is FaultCode.DRAINING:
            self._client.leaves(self.hop.peer)
            self.leaving = True
            self.end_if_idle()
            return
        if fault.code is FaultCode.REFUSED:
            self.refusal = HopError(fault.code, f"peer {self.hop.peer} refused: {fault.message}")
        elif fault.code is not FaultCode.UNKNOWN_SESSION:
            self._client.failed(self.hop.peer)
        self.end(f"peer {self.hop.peer} says: {fault.message}")

    def _open_with(self, error: Exception) -> None:
        if not self._opening.done():
            self._opening.set_exception(error)

    def _gives_up(self, why: str) -> HopLost:
        self._client.failed(self.hop.peer)
        self.end(f"peer {self.hop.peer}: {why}")
        return HopLost(self.lost)

    # --- reading ----------------------------------------------------------------------------------------------------

    def _read(self, codec: str, body: bytes | memoryview, tokens: int) -> Tensor:
        """`[tokens, width]`, finite. Raises HopLost."""
        width = self._client.hidden_size
        if len(body) != body_size(codec, tokens, width):
            raise self._gives_up(f"it answered {tokens} tokens with {len(body)} bytes in {codec}")
        try:
            values = decode(body, codec, width)
        except WireError as error:
            raise self._gives_up(str(error)) from error
        if not bool(torch.isfinite(values).all()):
            raise self._gives_up("it answered with numbers that are not finite")
        return values

    def _tensors(self, adapter: PackedAdapter, body: bytes | memoryview, codec: str | None) -> list[Tensor]:
        """Of one block's adapter, in their own dtypes. Raises HopLost."""
        sizes = [spec.nbytes if codec is None else body_size(codec, 1, prod(spec.shape)) for spec in adapter.specs]
        if len(body) != sum(sizes):
            raise self._gives_up("it sent gradients of another size than the adapter's")
        if codec is None:
            tensors = read_tensors(adapter.specs, body)
        else:
            ends = pairwise(accumulate(sizes, initial=0))
            cuts = zip(adapter.specs, ends, strict=True)
            tensors = [_row(spec, memoryview(body)[begin:end], codec) for spec, (begin, end) in cuts]
        if not all(bool(torch.isfinite(tensor).all()) for tensor in tensors):
            raise self._gives_up("it sent gradients that are not finite")
        return tensors


def _row(spec: TensorSpec, body: memoryview, codec: str) -> Tensor:
    return decode(body, codec, prod(spec.shape)).view(spec.shape).to(DTYPES[spec.dtype])


@dataclass(frozen=True, slots=True)
class _Timed:
    """A micro-batch that was posted; `sent` 0 where others were under way."""

    hop: TrainingHop
    tokens: int
    sent: int
    posted: float

    def answered(self, heard: int, busy: float) -> None:
        if self.sent:
            seconds = asyncio.get_running_loop().time() - self.posted - self.hop._round_trip
            self.hop._compression.heard(self.hop.hop.peer, Exchange(self.sent, heard, self.tokens, seconds, busy))


class _Asking:
    """Answers with one id come into its queue, within."""

    def __init__(self, hop: TrainingHop, id: int) -> None:  # noqa: A002 (the frame's word)
        self._hop = hop
        self._id = id

    async def __aenter__(self) -> "asyncio.Queue[Answer]":
        queue: asyncio.Queue[Answer] = asyncio.Queue()  # bounded where it is filled
        self._hop._answers[self._id] = queue
        return queue

    async def __aexit__(self, *_: object) -> None:
        self._hop._answers.pop(self._id, None)
        self._hop.end_if_idle()
