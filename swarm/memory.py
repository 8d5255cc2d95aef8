"""The network's twins in memory: a transport and a directory for tests and simulations, in the loop's own time.

`MemoryNetwork` decides what happens to frames on their way: delays, duplicates, partitions, peers that die or hang.
"""

import asyncio
import random
import time
from collections import Counter, deque
from collections.abc import Callable, MutableMapping, Sequence
from dataclasses import dataclass, field

from swarm.directory import Directory
from swarm.errors import NetworkError, RecordError, StreamClosed, Unreachable, UsageError, WireError
from swarm.identity import Identity
from swarm.ids import Digest, PeerId
from swarm.record import Announced, PeerRecord, Presence
from swarm.sealing import check_live
from swarm.transport import Handler, Stream, Transport, handle
from swarm.wire import PREFIX, TOTAL, checked_total

__all__ = ["MemoryDirectory", "MemoryNetwork", "MemoryTransport"]

Delay = float | Callable[[PeerId, PeerId], float]
Shelf = MutableMapping[tuple[str | None, PeerId], Announced]  # under a model, none, or a run

_SOON = 1e-6  # seconds; a frame this close to its arrival has arrived, whatever floating point says


class _Waiters:
    """Tasks that wait for something to change; they look for themselves what it was."""

    def __init__(self) -> None:
        self._futures: list[asyncio.Future[None]] = []

    def wake(self) -> None:
        for future in self._futures:
            if not future.done():
                future.set_result(None)
        self._futures.clear()

    async def changed(self, until: float | None = None) -> None:
        """Return at the next `wake`, or at loop time `until`."""
        future = asyncio.get_running_loop().create_future()
        self._futures.append(future)
        try:
            async with asyncio.timeout_at(until):
                await future
        except TimeoutError:
            return


@dataclass
class _Pipe:
    """One direction of a stream: frames with the loop time at which each arrives."""

    source: PeerId
    target: PeerId
    frames: deque[tuple[float, bytes]] = field(default_factory=deque)
    size: int = 0  # bytes that were sent and not yet received
    last: float = 0.0  # when the frame before arrives; none overtakes another
    end: float | None = None  # when the news arrives that the sender has closed


class _Link(_Waiters):
    """What the two ends of one stream share."""

    def __init__(self, one: PeerId, other: PeerId) -> None:
        super().__init__()
        self.pipes = (_Pipe(one, other), _Pipe(other, one))
        self.broken = False


class MemoryNetwork:
    """All peers of one test. `delay`: seconds one way, or a function of (source, target), asked for every frame.
    `bandwidth`: bytes a second from each peer to each other; None for no limit.
    `duplicate`: the chance that a frame arrives twice. `capacity`: bytes on the way before a sender has to wait.
    `open_timeout`: how long a dial into silence lasts. `frames` and `bytes` count what was sent by (source, target)."""

    def __init__(
        self,
        *,
        delay: Delay = 0.0,
        bandwidth: float | None = None,
        seed: int = 0,
        duplicate: float = 0.0,
        capacity: int = 1 << 20,
        open_timeout: float = 5.0,
    ) -> None:
        self.delay = delay
        self.bandwidth = bandwidth
        self.duplicate = duplicate
        self.capacity = capacity
        self.open_timeout = open_timeout
        self.frames: Counter[tuple[PeerId, PeerId]] = Counter()
        self.bytes: Counter[tuple[PeerId, PeerId]] = Counter()
        self._free: dict[tuple[PeerId, PeerId], float] = {}  # when the last byte has left
        self._random = random.Random(seed)
        self._transports: dict[PeerId, MemoryTransport] = {}
        self._links: dict[_Link, None] = {}  # an ordered set: waking is the same in every run
        self._cut: set[frozenset[PeerId]] = set()
        self._hung: set[PeerId] = set()
        self._changes = _Waiters()

    def transport(self, peer: PeerId) -> "MemoryTransport":
        """`peer` joins, for the first time or again after its end."""
        if peer in self._transports:
            raise UsageError(f"peer {peer} is on this network already")
        self._transports[peer] = MemoryTransport(self, peer)
        return self._transports[peer]

    def partition(self, one: PeerId, other: PeerId) -> None:
        """Nothing passes between the two; streams stay open and frames wait for `heal`."""
        self._cut.add(frozenset((one, other)))

    def heal(self, one: PeerId, other: PeerId) -> None:
        self._cut.discard(frozenset((one, other)))
        self._wake_all()

    def hang(self, peer: PeerId) -> None:
        """Nothing arrives at `peer` or leaves it until `resume`, as after SIGSTOP; its streams stay open."""
        self._hung.add(peer)

    def resume(self, peer: PeerId) -> None:
        self._hung.discard(peer)
        self._wake_all()

    def kill(self, peer: PeerId) -> None:
        """`peer` is gone as after SIGKILL: its streams end at once, what was on the way is lost, its handlers stop."""
        self._hung.discard(peer)
        transport = self._transports.pop(peer, None)
        if transport is not None:
            transport.stop()
        for link in [link for link in self._links if peer in (link.pipes[0].source, link.pipes[0].target)]:
            self._break(link)
        self._changes.wake()

    # --- for streams and transports ---------------------------------------------------------------------------------

    def blocked(self, one: PeerId, other: PeerId) -> bool:
        return one in self._hung or other in self._hung or frozenset((one, other)) in self._cut

    def seconds(self, source: PeerId, target: PeerId) -> float:
        return self.delay if isinstance(self.delay, int | float) else self.delay(source, target)

    def put(self, pipe: _Pipe, frame: bytes) -> None:
        """Send `frame` on its way, now and then twice."""
        left = self._leave_time(pipe, len(frame))
        pipe.last = max(pipe.last, left + self.seconds(pipe.source, pipe.target))
        copies = 2 if self._random.random() < self.duplicate else 1
        for _ in range(copies):
            pipe.frames.append((pipe.last, frame))
            pipe.size += len(frame)
        self.frames[pipe.source, pipe.target] += copies
        self.bytes[pipe.source, pipe.target] += copies * len(frame)

    def _leave_time(self, pipe: _Pipe, size: int) -> float:
        now = asyncio.get_running_loop().time()
        if self.bandwidth is None:
            return now
        way = (pipe.source, pipe.target)
        self._free[way] = max(now, self._free.get(way, 0.0)) + size / self.bandwidth
        return self._free[way]

    def finish(self, link: _Link, pipe: _Pipe) -> None:
        """The sender of `pipe` has closed: the other end hears of it after what was sent before."""
        now = asyncio.get_running_loop().time()
        pipe.end = max(pipe.last, now + self.seconds(pipe.source, pipe.target))
        link.wake()

    def forget(self, link: _Link) -> None:
        self._links.pop(link, None)

    def leave(self, peer: PeerId) -> None:
        self._transports.pop(peer, None)

    async def dial(self, source: PeerId, peer: PeerId, protocol: str) -> "MemoryStream":
        handler = await self._reach(source, peer, protocol)
        link = _Link(source, peer)
        self._links[link] = None
        near, far = link.pipes
        self._transports[peer].accept(handler, MemoryStream(self, link, incoming=near, outgoing=far))
        return MemoryStream(self, link, incoming=far, outgoing=near)

    async def _reach(self, source: PeerId, peer: PeerId, protocol: str) -> Handler:
        try:
            async with asyncio.timeout(self.open_timeout):
                while self.blocked(source, peer):
                    await self._changes.changed()
                await asyncio.sleep(self.seconds(source, peer) + self.seconds(peer, source))
                while self.blocked(source, peer):
                    await self._changes.changed()
        except TimeoutError:
            raise Unreachable(f"peer {peer} did not answer within {self.open_timeout:g} s") from None
        transport = self._transports.get(peer)
        if transport is None or peer == source:
            raise Unreachable(f"peer {peer} can't be dialled from here: nobody answers under that id")
        handler = transport.handlers.get(protocol)
        if handler is None:
            raise Unreachable(f"peer {peer} does not serve {protocol}")
        return handler

    def _break(self, link: _Link) -> None:
        link.broken = True
        self.forget(link)
        link.wake()

    def _wake_all(self) -> None:
        self._changes.wake()
        for link in self._links:
            link.wake()


class MemoryStream(Stream):
    def __init__(self, network: MemoryNetwork, link: _Link, *, incoming: _Pipe, outgoing: _Pipe) -> None:
        self.remote = outgoing.target
        self._network = network
        self._link = link
        self._in = incoming
        self._out = outgoing
        self._closed = False
        self.on_close: Callable[[MemoryStream], None] = lambda _: None

    @property
    def gone(self) -> bool:
        """Whether this end is closed, or knows that the other is."""
        return self._closed or self._link.broken or (self._in.end is not None and self._is_past(self._in.end))

    async def send(self, frame: bytes) -> None:
        while True:
            if self.gone:
                raise StreamClosed(f"the stream to peer {self.remote} is closed")
            if not self._out.size or self._out.size + len(frame) <= self._network.capacity:
                break
            await self._link.changed(until=self._in.end)
        self._network.put(self._out, frame)
        self._link.wake()

    async def receive(self) -> bytes:
        while True:
            frame = self._arrived()
            if frame is not None:
                return self._checked(frame)
            if self.gone:
                raise StreamClosed(f"the stream from peer {self.remote} is closed")
            await self._link.changed(until=self._next_event())

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        self.on_close(self)
        self._network.finish(self._link, self._out)
        if self._in.end is not None:
            self._network.forget(self._link)

    def _arrived(self) -> bytes | None:
        pipe = self._in
        if self._closed or self._link.broken or not pipe.frames or not self._is_past(pipe.frames[0][0]):
            return None
        _, frame = pipe.frames.popleft()
        pipe.size -= len(frame)
        self._link.wake()
        return frame

    def _is_past(self, due: float) -> bool:
        if self._network.blocked(self._in.source, self._in.target):
            return False
        return due <= asyncio.get_running_loop().time() + _SOON

    def _next_event(self) -> float | None:
        if self._network.blocked(self._in.source, self._in.target):
            return None
        return self._in.frames[0][0] if self._in.frames else self._in.end

    def _checked(self, frame: bytes) -> bytes:
        """What a reader of bytes would notice: a frame that is not as long as it says."""
        try:
            if len(frame) < PREFIX.size or checked_total(frame) != len(frame) - TOTAL.size:
                raise WireError(f"peer {self.remote} sent a frame that is not as long as it says")
        except WireError:
            self.close()
            raise
        return frame


class MemoryTransport(Transport):
    """Made by `MemoryNetwork.transport`."""

    def __init__(self, network: MemoryNetwork, peer_id: PeerId) -> None:
        self.peer_id = peer_id
        self.handlers: dict[str, Handler] = {}
        self._network = network
        self._streams: dict[MemoryStream, None] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._stopped = False

    async def open(self, peer: PeerId, protocol: str, addresses: Sequence[str] = ()) -> Stream:
        self._check_alive()
        stream = await self._network.dial(self.peer_id, peer, protocol)
        if self._stopped:
            stream.close()
        self._check_alive()
        return self._keep(stream)

    async def serve(self, protocol: str, handler: Handler) -> None:
        self._check_alive()
        self.handlers[protocol] = handler

    async def addresses(self) -> tuple[str, ...]:
        self._check_alive()
        return (f"/memory/1/p2p/{self.peer_id}",)

    async def close(self) -> None:
        if not self._stopped:
            self._network.leave(self.peer_id)
        self.stop()
        for stream in list(self._streams):
            stream.close()
        tasks = self._tasks - {asyncio.current_task()}
        if tasks:
            await asyncio.wait(tasks)

    # --- for the network --------------------------------------------------------------------------------------------

    def accept(self, handler: Handler, stream: MemoryStream) -> None:
        self._keep(stream)
        task = asyncio.create_task(handle(handler, stream), name=f"{self.peer_id} serves {stream.remote}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def stop(self) -> None:
        self._stopped = True
        for task in self._tasks:
            task.cancel()

    def _keep(self, stream: MemoryStream) -> MemoryStream:
        self._streams[stream] = None
        stream.on_close = self._streams.pop
        return stream

    def _check_alive(self) -> None:
        if self._stopped:
            raise NetworkError(f"peer {self.peer_id} has left the network")


class MemoryDirectory(Directory):
    """One peer's access to `shelf`, the dictionary that all peers of a test share. `clock` gives Unix time."""

    def __init__(self, shelf: Shelf, *, clock: Callable[[], float] = time.time) -> None:
        self.closed = False
        self._shelf = shelf
        self._clock = clock

    async def announce(self, record: PeerRecord) -> None:
        self._put(record, record.model, None)

    async def appear(self, presence: Presence, run: Identity) -> None:
        if presence.run != run.peer_id:
            raise RecordError(f"a presence in {presence.run} can't be signed by {run.peer_id}")
        self._put(presence, presence.run)

    async def read(self, model: Digest | None = None) -> tuple[PeerRecord, ...]:
        return tuple(record for record in self._live(model) if isinstance(record, PeerRecord))

    async def present(self, run: PeerId) -> tuple[Presence, ...]:
        return tuple(record for record in self._live(run) if isinstance(record, Presence))

    async def close(self) -> None:
        self.closed = True

    def _put(self, record: Announced, *keys: str | None) -> None:
        self._check_open()
        check_live(record, self._clock())
        for key in keys:
            known = self._shelf.get((key, record.peer))
            if known is None or known.issued <= record.issued:
                self._shelf[key, record.peer] = record

    def _live(self, key: str | None) -> list[Announced]:
        self._check_open()
        now = self._clock()
        found = (record for (of, _), record in self._shelf.items() if of == key and record.expires > now)
        return sorted(found, key=lambda record: record.peer)

    def _check_open(self) -> None:
        if self.closed:
            raise NetworkError("the directory is closed")
