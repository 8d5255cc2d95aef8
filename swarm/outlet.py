"""Frames on their way into one stream: posting never waits, so one slow reader holds up nobody else."""

import asyncio
from collections import deque

from swarm.errors import StreamClosed
from swarm.transport import Stream

__all__ = ["Outlet"]


class Outlet:
    """`limit`: bytes that may wait; a stream whose reader falls further behind is closed."""

    def __init__(self, stream: Stream, limit: int) -> None:
        self._stream = stream
        self._limit = limit
        self._waiting: deque[bytes] = deque()
        self._bytes = 0
        self._more = asyncio.Event()
        self._empty = asyncio.Event()
        self._empty.set()

    def post(self, frame: bytes) -> None:
        """Send `frame` after everything posted before."""
        self._waiting.append(frame)
        self._bytes += len(frame)
        self._empty.clear()
        self._more.set()
        if self._bytes > self._limit:
            self._waiting.clear()
            self._stream.close()

    async def drained(self) -> None:
        """Wait until everything posted has been handed to the network."""
        await self._empty.wait()

    async def run(self) -> None:
        """Write what is posted, for ever; raises StreamClosed at the stream's end. Run it as one task."""
        while True:
            while self._waiting:
                frame = self._waiting.popleft()
                await self._stream.send(frame)
                self._bytes -= len(frame)
            if self._bytes > self._limit:
                raise StreamClosed(f"peer {self._stream.remote} does not read what it is sent")
            self._empty.set()
            self._more.clear()
            await self._more.wait()
