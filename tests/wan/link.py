"""What lies between two hosts, and when a packet comes out of it."""

import math
import random
from dataclasses import dataclass

__all__ = ["Line", "Link"]


@dataclass(frozen=True, slots=True)
class Link:
    """One direction of a way. Packets keep their order, whatever the jitter."""

    delay: float = 0.0  # s
    jitter: float = 0.0  # s: every packet takes up to this much longer
    bandwidth: float = math.inf  # bytes per second
    loss: float = 0.0  # share of packets that never come out
    queue: float = 0.5  # s of waiting for bandwidth; who would wait longer is dropped

    def __post_init__(self) -> None:
        if min(self.delay, self.jitter, self.queue) < 0 or self.bandwidth <= 0 or not 0 <= self.loss <= 1:
            raise ValueError(f"no link is like {self}")


class Line:
    """A link in use."""

    def __init__(self, link: Link, dice: random.Random) -> None:
        self._link = link
        self._dice = dice
        self._free = -math.inf  # when the last byte so far has gone in
        self._last = -math.inf  # when the last packet so far comes out

    def take(self, now: float, size: int) -> float | None:
        """When a packet of `size` bytes that goes in `now` comes out; None if it never does."""
        link = self._link
        if link.loss and self._dice.random() < link.loss:
            return None
        begins = max(now, self._free)
        if begins - now > link.queue:
            return None
        self._free = begins + size / link.bandwidth
        late = self._dice.uniform(0, link.jitter) if link.jitter else 0.0
        self._last = max(self._last, self._free + link.delay + late)
        return self._last
