"""A hop that trains: one session on one peer, micro-batches asked and answered, many at once."""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import count

import torch
from torch import Tensor

from clients.client import Client
from clients.hops import HopStream, Lost
from routing.chains import Hop
from swarm.codecs import body_size, decode, encode, read_tensors
from swarm.errors import Busy as BusyError
from swarm.errors import HopError, StreamClosed, WireError
from swarm.ids import SessionId, Span, new_session_id
from swarm.messages import Busy, Close, Fault, FaultCode, Message, Ping, Ready
from swarm.training import (
    Adapter,
    AdapterKey,
    Backward,
    Forward,
    Gradients,
    MicroBatch,
    Missing,
    PackedAdapter,
    Passed,
    Train,
)

__all__ = ["Cost", "HopLost", "TrainingHop"]

ASK_SECONDS = 10.0  # of silence, after which a hop is asked whether it lives
LONGEST_BATCH = 45.0  # s: a hop that computes for longer than this answers no question either
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

    def __init__(self, client: Client, hop: Hop, session: SessionId, stream: HopStream, cost: Cost) -> None:
        self.hop = hop
        self._cost = cost
        self.lost: str | None = None  # why it ended
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
    async def open(cls, client: Client, hop: Hop, cost: Cost) -> "TrainingHop":
        """`cost` is added to. Raises Unreachable, Busy, HopLost, or HopError when the peer refuses."""
        stream = await client.hops.to(hop.contact)
        self = cls(client, hop, new_session_id(), stream, cost)
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

    # --- asking -----------------------------------------------------------------------------------------------------

    def new_id(self) -> int:
        return next(self._ids)

    async def forward(
        self, batch: MicroBatch, hidden: Tensor, adapters: Mapping[int, PackedAdapter], *, keep: bool
    ) -> Tensor:
        """What leaves the hop for `hidden` `[T, width]`. Raises HopLost, or HopError when nobody else can do it
        either."""
        frame = Forward(self._session, batch, keep, self._client.codec, encode(hidden, self._client.codec))
        async with self._room, _Asking(self, batch.id) as queue:
            self._check()
            self._post(frame, adapters)
            for _ in range(TRIES):
                answer = await self._next(queue)
                if isinstance(answer, Passed):
                    self._add(batch, answer.seconds)
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
    ) -> tuple[Tensor | None, dict[int, list[Tensor]]]:
        """The gradient of the inputs `[T, width]`, where it is `wanted`, and of the adapters' tensors by block."""
        codec = self._client.codec
        raw = encode(gradient, codec)
        frame = Backward(self._session, batch, False, codec, raw, wanted)
        async with self._room, _Asking(self, batch.id) as queue:
            self._check()
            self._post(frame, adapters)
            for _ in range(TRIES):
                answer = await self._next(queue)
                if isinstance(answer, Gradients):
                    return await self._collect(batch, answer, queue, adapters, wanted=wanted)
                if isinstance(answer, Missing) and not answer.adapters:
                    frame = replace(frame, given=True, body=b"".join((encode(inputs, codec), raw)))
                self._resend(frame, answer, adapters)
        raise self._gives_up("it says again and again that it lacks what it was sent")

    def _post(self, frame: Forward | Backward, adapters: Mapping[int, PackedAdapter]) -> None:
        for block, key in frame.batch.adapters:
            if key not in self._sent and block in self.hop.span:
                adapter = adapters[block]
                self._stream.post(Adapter(self._session, key, adapter.tuned, adapter.body).pack())
                self._sent.add(key)
        self._stream.post(frame.pack())

    def _resend(self, frame: Forward | Backward, answer: Answer, adapters: Mapping[int, PackedAdapter]) -> None:
        if isinstance(answer, Missing):
            self._sent.difference_update(answer.adapters)
            self._post(frame, adapters)

    async def _collect(
        self,
        batch: MicroBatch,
        first: Gradients,
        queue: "asyncio.Queue[Answer]",
        adapters: Mapping[int, PackedAdapter],
        *,
        wanted: bool,
    ) -> tuple[Tensor | None, dict[int, list[Tensor]]]:
        # a hop of an earlier version sends the gradient whether or not it is wanted
        unsent = not wanted and not len(first.body)
        gradient = None if unsent else self._read(first.codec, first.body, batch.tokens)
        found: dict[int, list[Tensor]] = {}
        answer: Answer = first
        while isinstance(answer, Gradients) and answer.more:
            answer = await self._next(queue)
            if isinstance(answer, Gradients) and answer.block is not None and answer.block in adapters:
                found[answer.block] = self._tensors(adapters[answer.block], answer.body)
        if isinstance(answer, Gradients):
            self._add(batch, answer.seconds)
        if found.keys() != {block for block, _ in batch.adapters if block in self.hop.span}:
            raise self._gives_up("it sent gradients of other adapters than it was given")
        return gradient if wanted else None, found

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
        if isinstance(message, Lost):
            self._client.backoff.fail(self.hop.peer)
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
        if fault.code is FaultCode.REFUSED:
            self.refusal = HopError(fault.code, f"peer {self.hop.peer} refused: {fault.message}")
        elif fault.code is not FaultCode.UNKNOWN_SESSION:
            self._client.backoff.fail(self.hop.peer)
        self.end(f"peer {self.hop.peer} says: {fault.message}")

    def _open_with(self, error: Exception) -> None:
        if not self._opening.done():
            self._opening.set_exception(error)

    def _gives_up(self, why: str) -> HopLost:
        self._client.backoff.fail(self.hop.peer)
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

    def _tensors(self, adapter: PackedAdapter, body: bytes | memoryview) -> list[Tensor]:
        if len(body) != sum(spec.nbytes for spec in adapter.specs):
            raise self._gives_up("it sent gradients of another size than the adapter's")
        tensors = read_tensors(adapter.specs, body)
        if not all(bool(torch.isfinite(tensor).all()) for tensor in tensors):
            raise self._gives_up("it sent gradients that are not finite")
        return tensors


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
