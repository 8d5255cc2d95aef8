"""Frames that have come and are not read yet. Reading a frame costs this thread what others' steps need, so each peer
gets a little time for it between two passes; what it brings beyond that waits, in order, and is read then."""

from collections import deque
from collections.abc import Iterator

from swarm.ids import PeerId

__all__ = ["Reading"]

LEAST = 0.001  # seconds of a turn


class Reading:
    def __init__(self, most: int) -> None:
        """`most`: bytes of one peer that may wait; what comes then is lost, as on a bad line."""
        self._most = most
        self._allowed = LEAST
        self._used: dict[PeerId, float] = {}  # seconds in this turn
        self._waiting: dict[PeerId, deque[bytes]] = {}
        self._bytes: dict[PeerId, int] = {}

    def __bool__(self) -> bool:
        return bool(self._waiting)

    def may(self, sender: PeerId) -> bool:
        """Whether a frame may be read at once."""
        return sender not in self._waiting and self._used.get(sender, 0.0) <= self._allowed

    def spent(self, sender: PeerId, seconds: float) -> None:
        self._used[sender] = self._used.get(sender, 0.0) + seconds

    def put(self, sender: PeerId, frame: bytes) -> bool:
        """False where it is lost."""
        if self._bytes.get(sender, 0) + len(frame) > self._most:
            return False
        self._waiting.setdefault(sender, deque()).append(frame)
        self._bytes[sender] = self._bytes.get(sender, 0) + len(frame)
        return True

    def turn(self, allowed: float) -> Iterator[tuple[PeerId, bytes]]:
        """Begins a turn, in which each peer has `allowed` seconds or a little more; what waited and may be read now.
        Say how long each took, with `spent`, before the next. Who took longer pays for it in the turns that follow."""
        self._allowed = max(LEAST, allowed)
        self._used = {peer: rest for peer, used in self._used.items() if (rest := used - self._allowed) > 0}
        for peer in list(self._waiting):
            waiting = self._waiting.get(peer)
            while waiting and self._used.get(peer, 0.0) <= self._allowed:
                frame = waiting.popleft()
                self._bytes[peer] -= len(frame)
                yield peer, frame
            if not waiting:
                self.gone(peer)

    def gone(self, peer: PeerId) -> None:
        """What waits of it is of no use."""
        self._waiting.pop(peer, None)
        self._bytes.pop(peer, None)
