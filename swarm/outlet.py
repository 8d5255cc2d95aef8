"""Frames on their way into one stream: posting never waits, so one slow reader holds up nobody else."""

import asyncio
from collections import deque

from swarm.errors import StreamClosed
from swarm.transport import Stream

__all__ = ["Allowance", "Outlet"]

SHARE = 16  # of an allowance that many have, what each may use at least


class Allowance:
    """`limit`: bytes that may wait in some outlets together, as a part of what may wait `within` another allowance.
    Where that one is used up, those have to give way that use more than a sixteenth of their own."""

    def __init__(self, limit: int, within: "Allowance | None" = None) -> None:
        self.used = 0
        self._limit = limit
        self._within = within

    @property
    def exceeded(self) -> bool:
        crowded = self._within is not None and self._within.used > self._within._limit
        return self.used > (self._limit // SHARE if crowded else self._limit)

    def add(self, size: int) -> None:
        self.used += size
        if self._within is not None:
            self._within.add(size)


class Outlet:
    """`limit`: bytes that may wait, here or in all that share the allowance; a stream whose reader falls further behind
    is closed. `close` gives back what still waits."""

    def __init__(self, stream: Stream, limit: int | Allowance) -> None:
        self._stream = stream
        self._allowance = limit if isinstance(limit, Allowance) else Allowance(limit)
        self._waiting: deque[bytes] = deque()
        self._bytes = 0
        self._closed = False
        self._more = asyncio.Event()
        self._empty = asyncio.Event()
        self._empty.set()

    def post(self, frame: bytes) -> None:
        """Send `frame` after everything posted before."""
        if self._closed:
            return
        self._waiting.append(frame)
        self._count(len(frame))
        self._empty.clear()
        self._more.set()
        if self._allowance.exceeded:
            self.close()
            self._stream.close()

    def close(self) -> None:
        """Forget what waits, and what is posted from now on; safe to repeat. The stream is its owner's to close."""
        self._closed = True
        self._waiting.clear()
        self._count(-self._bytes)
        self._more.set()
        self._empty.set()  # nobody waits for what will not be sent

    async def drained(self) -> None:
        """Wait until everything posted has been handed to the network."""
        await self._empty.wait()

    async def run(self) -> None:
        """Write what is posted, for ever; raises StreamClosed at the stream's end. Run it as one task."""
        while True:
            while self._waiting:
                frame = self._waiting.popleft()
                await self._stream.send(frame)
                if not self._closed:
                    self._count(-len(frame))
            if self._closed:
                raise StreamClosed(f"peer {self._stream.remote} does not read what it is sent")
            self._empty.set()
            self._more.clear()
            await self._more.wait()

    def _count(self, size: int) -> None:
        self._bytes += size
        self._allowance.add(size)
