"""A line between two places, played: bytes come out later than they went in, and no faster than it carries.

Delay and bandwidth are of the line alone: any number of things are on their way at once.
"""

import asyncio
from collections import deque
from dataclasses import dataclass

__all__ = ["Lateness", "Pacer", "Way"]

IN_FLIGHT = 4 << 20  # bytes on their way in one direction of one connection; a sender of more waits, as with TCP


class Pacer:
    """What shares one direction of a line: its bytes leave one after another."""

    def __init__(self, bandwidth: float) -> None:
        """`bandwidth`: bytes per second. Raises ValueError when nothing could pass."""
        if bandwidth <= 0:
            raise ValueError(f"a line of {bandwidth} bytes per second carries nothing")
        self._bandwidth = bandwidth
        self._free = 0.0  # when the last byte has left

    def departure(self, now: float, size: int) -> float:
        """When the last of `size` bytes that are handed in now has left."""
        self._free = max(now, self._free) + size / self._bandwidth
        return self._free


@dataclass(slots=True)
class Lateness:
    """How much later than they should have things arrived: the error of this instrument, in seconds."""

    count: int = 0
    total: float = 0.0
    worst: float = 0.0

    def note(self, seconds: float) -> None:
        self.count += 1
        self.total += seconds
        self.worst = max(self.worst, seconds)

    @property
    def mean(self) -> float:
        return self.total / self.count if self.count else 0.0


class Way:
    """One direction of one connection; `get` is for one task at a time."""

    def __init__(self, delay: float, pacer: Pacer, lateness: Lateness, *, in_flight: int = IN_FLIGHT) -> None:
        """`delay`: seconds."""
        self._delay = delay
        self._pacer = pacer
        self._lateness = lateness
        self._most = in_flight
        self._bytes = 0
        self._under_way: deque[tuple[float, bytes]] = deque()
        self._news = asyncio.Event()
        self._room = asyncio.Event()
        self._room.set()

    async def put(self, data: bytes) -> None:
        """Send `data`, empty for the end; waits while too much is under way."""
        await self._room.wait()
        self._bytes += len(data)
        if self._bytes >= self._most:
            self._room.clear()
        departure = self._pacer.departure(asyncio.get_running_loop().time(), len(data))
        self._under_way.append((departure + self._delay, data))
        self._news.set()

    async def get(self) -> bytes:
        """What arrives next, when it arrives."""
        while not self._under_way:
            self._news.clear()
            await self._news.wait()
        due, data = self._under_way[0]
        loop = asyncio.get_running_loop()
        await asyncio.sleep(max(0.0, due - loop.time()))
        self._lateness.note(max(0.0, loop.time() - due))
        self._under_way.popleft()
        self._bytes -= len(data)
        if self._bytes < self._most:
            self._room.set()
        return data
